import dataclasses

import numpy as np
import pytest
from PIL import Image

from dashboard_frames import WEIGHTS, make_frame, pixels, shown
from fewstep.viz.dashboard.picture import Picture
from fewstep.viz.dashboard.scene import DPI, HEIGHT, Reading


def panels(picture):
    return {axes.get_title(loc="left").split("  ")[0]: axes for axes in picture.sheet.figure.axes if axes.get_title(loc="left")}


def at(picture, title, point):
    """Row and column of the pixel that shows `point`."""
    column, height = panels(picture)[title].transData.transform(point)
    return round(HEIGHT - height), round(column)


def test_densities_samples_and_arrows_lie_where_they_should(scene):
    frame = make_frame(500, samples=np.array([[-3.0, -2.0]]))
    picture = shown(scene, frame)
    image = pixels(picture)
    for title in ("Reference density", "Target"):
        light = {point: image[at(picture, title, point)].sum() for point in [(2, -1), (-2, 2), (2, 1), (-1, 2), (-2, -1)]}
        assert light[2, -1] < light[-2, 2] < min(light[2, 1], light[-1, 2], light[-2, -1])  # the heavier mode is the darker
    red, green, blue = image[at(picture, "Target", (-3, -2))]
    assert red > 180
    assert max(green, blue) < 90
    arrows = np.stack([picture.field.arrows.U, picture.field.arrows.V], 1)
    lengths = np.linalg.norm(arrows, axis=1)
    assert lengths.max() == pytest.approx(0.8 * 1.0)  # the points are 1 apart
    size = np.linalg.norm(frame.field, axis=1)
    np.testing.assert_allclose(lengths, 0.8 * np.sqrt(size / size.max()), atol=1e-6)
    np.testing.assert_allclose(np.asarray(picture.field.arrows.get_array()), size / size.max(), atol=1e-6)
    np.testing.assert_allclose(arrows * size[:, None], frame.field * lengths[:, None], atol=1e-5)  # and point along the field
    assert picture.field.scale.get_ylim() == (0, pytest.approx(size.max()))


def test_limits_stay_and_an_old_frame_leaves_no_trace(scene):
    first = make_frame(100, samples=np.full((50, 2), 3.0))
    wild = make_frame(600, samples=100 * np.random.default_rng(0).normal(size=(500, 2)), field=1e5 * make_frame(1).field)
    picture = shown(scene, first, wild)
    for title in ("Reference density", "Target", "How samples would move"):
        axes = panels(picture)[title]
        assert (axes.get_xlim(), axes.get_ylim()) == ((-4, 4), (-4, 4))
    assert picture.target.outside.get_text() == f"{(np.abs(wild.samples) > 4).any(1).sum()} of 500 outside"
    fresh = Picture(scene)
    fresh.show(wild, [Reading.of(first), Reading.of(wild)])
    np.testing.assert_array_equal(pixels(picture), pixels(fresh))


def test_the_sharp_picture_holds_all_that_a_frame_holds(scene, tmp_path):
    frames = [make_frame(step) for step in (200, 400, 600)]
    picture = shown(scene, *frames)
    picture.save(tmp_path / "frame.png")
    picture.save(tmp_path / "sharp.png", 2 * DPI)
    with Image.open(tmp_path / "frame.png") as one, Image.open(tmp_path / "sharp.png") as two:
        assert one.size == (1500, 900)
        assert two.size == (3000, 1800)
        blocks = [np.asarray(image.convert("L").resize((150, 90), Image.Resampling.BOX), float) for image in (one, two)]
    assert np.abs(blocks[0] - blocks[1]).max() < 64  # text and lines differ by less than a pixel; what is missing shows as more
    assert np.abs(blocks[0] - blocks[1]).mean() < 1
    assert not list(tmp_path.glob("*.partial"))


def test_curves_of_the_modes(scene):
    picture = shown(scene, make_frame(200), make_frame(1000))
    np.testing.assert_allclose(picture.shares.lines[0].get_xydata(), [[200, 0.14], [1000, 0.7]])
    np.testing.assert_allclose(picture.shares.lines[1].get_xydata(), [[200, 0.04], [1000, 0.2]])
    # a fifth of the weights is 0.15 and 0.05: none of the modes, then both
    np.testing.assert_allclose(picture.coverage.covered.get_xydata(), [[200, 0], [1000, 1]])
    np.testing.assert_allclose(picture.coverage.inside.get_xydata(), [[200, 0.18], [1000, 0.9]])
    assert [text.get_text() for text in picture.coverage.legend.get_texts()] == ["modes covered: 2 of 2", "samples near a mode: 90%"]
    dashed = {line.get_ydata()[0] for line in picture.shares.axes.get_lines() if line.get_linestyle() == "--"}
    assert dashed == set(WEIGHTS)


def test_the_loss_and_its_moving_average(scene):
    frame = make_frame(300)
    steps, values = frame.loss
    picture = shown(scene, frame)
    np.testing.assert_allclose(picture.loss.values.get_xydata(), np.stack([steps, values], 1))
    average = [values[max(0, i - 2) : i + 1].mean() for i in range(60)]  # over a twentieth of 60
    np.testing.assert_allclose(picture.loss.mean.get_xydata(), np.stack([steps, average], 1))
    assert picture.loss.axes.get_yscale() == "log"
    assert picture.loss.axes.get_xlim() == (0, 1000)


def test_without_modes_four_panels_fill_the_figure(scene):
    names = ["Reference density", "Target", "How samples would move", "Loss"]
    with_modes = shown(scene, make_frame(500))
    assert list(panels(with_modes)) == [*names, "Share of samples per mode", "Coverage"]
    for modes in (None, np.empty((0, 2))):
        plain = shown(dataclasses.replace(scene, modes=modes, weights=None), make_frame(500, shares=None, inside=None))
        assert list(panels(plain)) == names
        right = panels(plain)["Loss"].get_position().x1
        assert right == pytest.approx(panels(with_modes)["Coverage"].get_position().x1)


def test_a_method_without_field_and_gamma_is_not_said_to_have_them(scene):
    none = np.empty((0, 2))
    bare = make_frame(500, points=none, field=none, gamma=np.nan)
    picture = shown(scene, bare)
    assert list(panels(picture))[:3] == ["Reference density", "Target", "Generated samples"]
    assert picture.target.axes.get_title(loc="left") == "Target  $p$  and generated samples"
    height, width = pixels(picture).shape[:2]
    bar = pixels(picture)[: height // 2, round(0.945 * width) :]
    assert (bar[round(0.25 * len(bar)) :] == 255).all()  # no colour bar, and no numbers beside it
    both = make_frame(600)
    again = shown(scene, bare, both)  # neither sticks to the next frame
    fresh = Picture(scene)
    fresh.show(both, [Reading.of(bare), Reading.of(both)])
    np.testing.assert_array_equal(pixels(again), pixels(fresh))


@pytest.mark.filterwarnings("error")
def test_a_run_that_went_wrong_can_be_drawn(scene):
    ones, flat = np.ones((81, 2)), np.empty((0, 2))
    wrong = [
        {"samples": np.nan * ones},
        {"samples": flat},
        {"points": flat, "field": flat},
        {"points": ones[:1], "field": ones[:1]},
        {"field": 0 * ones},
        {"field": np.inf * ones},
        {"field": 1e-30 * ones},
        {"loss": (np.arange(3), np.array([0.0, -1.0, np.nan]))},
        {"loss": (np.arange(2), np.array([1e-9, 1e9]))},
        {"loss": (np.arange(2), np.array([0.5, 0.5]))},
        {"shares": np.array([np.nan, 0.5])},
        {"shares": np.ones(3)},
        {"shares": None, "inside": None},
        {"total": 10_000_000},
    ]
    shown(scene, *(make_frame(k + 1, **changes) for k, changes in enumerate(wrong)))
    nothing = {"samples": flat, "points": flat, "field": flat, "loss": (flat[:, 0], flat[:, 0]), "shares": None, "inside": None}
    shown(scene, make_frame(0, total=0, **nothing), make_frame(1))
    shown(dataclasses.replace(scene, reference=0 * scene.reference, target=np.nan * scene.target), make_frame(1))


def test_a_title_is_no_formula(scene):
    shown(dataclasses.replace(scene, title="$x^ {2 " * 20), make_frame(100))
