"""A scene of two modes of unequal weight, so that no reflection maps its picture to itself, and frames of a run in it."""

import numpy as np

from fewstep.viz.dashboard import Frame, Scene
from fewstep.viz.dashboard.picture import Picture
from fewstep.viz.dashboard.scene import Reading

CENTRES = np.array([[2.0, -1.0], [-2.0, 2.0]])
WEIGHTS = np.array([0.75, 0.25])
SIGMA = 0.4


def make_scene():
    x, y = np.meshgrid(np.linspace(-4, 4, 41), np.linspace(-4, 4, 41))
    parts = [w * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * SIGMA**2)) for (a, b), w in zip(CENTRES, WEIGHTS, strict=True)]
    density = sum(parts)
    return Scene("two modes", -4.0, 4.0, density, density**2 / (density**2).sum(), CENTRES, WEIGHTS)


def make_frame(step, total=1000, **changes):
    rng = np.random.default_rng(step)
    axis = np.linspace(-4, 4, 9)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    steps = np.arange(1, step + 1, 5)
    values = {
        "samples": CENTRES[rng.choice(2, 100, p=WEIGHTS)] + SIGMA * rng.normal(size=(100, 2)),
        "points": points,
        "field": CENTRES[0] - points,
        "loss": (steps, np.exp(-steps / 300) * np.exp(0.2 * rng.normal(size=len(steps)))),
        "shares": np.array([0.7, 0.2]) * step / 1000,
        "inside": 0.9 * step / 1000,
    }
    return Frame(**{"step": step, "total": total, "gamma": 2.0, "temperature": 0.1, **values, **changes})


def shown(scene, *frames):
    picture = Picture(scene)
    history = []
    for frame in frames:
        history.append(Reading.of(frame))
        picture.show(frame, history)
    return picture


def pixels(picture):
    return np.array(picture.sheet.canvas.buffer_rgba())[..., :3].astype(int)
