"""What the dashboard shows: the scene that all its frames share, a frame, and what a frame says about the modes; its size and its colours.

Symbols: density ``p`` on a grid of G x G points, target ``p^gamma`` with K modes, drift field ``V`` at m points, temperature ``T``.
"""

from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT, DPI = 1500, 900, 100  # pixels of a frame; its resolution

INK, SOFT, GRID = "#1a1a1a", "#555555", "#d9d9d9"


@dataclass(frozen=True)
class Scene:
    """What all frames share.

    Args:
        title: of the run.
        low, high: limits of both axes.
        reference: [G, G], ``p`` at ``linspace(low, high, G)`` in both directions; a row has one y.
        target: [G, G], ``p^gamma``, likewise.
        modes: [K, 2], centres of the modes; None for a density without known modes.
        weights: [K], of the modes in the target.

    """

    title: str
    low: float
    high: float
    reference: np.ndarray
    target: np.ndarray
    modes: np.ndarray | None = None
    weights: np.ndarray | None = None


@dataclass(frozen=True)
class Frame:
    """The run at one step.

    Args:
        step, total: this step, and the steps of the whole run.
        samples: [n, 2], of the generator.
        points, field: [m, 2], where the drift field was evaluated, and its values there.
        loss: steps and values so far, two arrays of one length.
        shares: [K], part of the samples that is near each mode; what is near none must not count, or strays would cover modes.
        inside: part of the samples that is near any mode.
        gamma, temperature: of the drift at this step; NaN, and not shown, where the method has none.

    """

    step: int
    total: int
    samples: np.ndarray
    points: np.ndarray
    field: np.ndarray
    loss: tuple[np.ndarray, np.ndarray]
    shares: np.ndarray | None
    inside: float | None
    gamma: float
    temperature: float


@dataclass(frozen=True)
class Reading:
    """What a frame says about the modes; kept of every frame, drawn or not."""

    step: int
    shares: np.ndarray | None
    inside: float | None

    @classmethod
    def of(cls, frame: Frame) -> "Reading":
        """That of `frame`."""
        return cls(frame.step, frame.shares, frame.inside)
