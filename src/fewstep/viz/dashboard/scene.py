"""The data that the dashboard shows: the scene that all frames share, a frame, and a frame's reading of the modes; sizes and colours.

Symbols: density ``p`` on a grid of G x G points, target ``p^gamma`` with K modes, field ``V`` at m points, temperature ``T``.
"""

from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT, DPI = 1500, 900, 100  # width and height of a frame in pixels, and its resolution in dots per inch

INK, SOFT, GRID = "#1a1a1a", "#555555", "#d9d9d9"


@dataclass(frozen=True)
class Scene:
    """The data that all frames share.

    Args:
        title: the run's title.
        low, high: the limits of both axes.
        reference: the density ``p`` [G, G] at ``linspace(low, high, G)`` in both directions; each row has one y.
        target: the target ``p^gamma`` [G, G] at the same points.
        modes: the centres of the modes [K, 2]; None for a density without known modes.
        weights: the weights of the modes in the target [K]; None where they are not known.

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
    """The state of the run at one step.

    Args:
        step, total: this step, and the number of steps of the whole run.
        samples: generated samples [n, 2].
        points, field: the points [m, 2] at which the method says how it would move samples, and these moves [m, 2]; none (m = 0) where
            it knows them nowhere.
        loss: the steps and values of the loss so far, two arrays of one length.
        shares: the share of the samples near each mode [K]; samples near no mode must not be counted, or strays would seem to cover modes.
            None where the modes are not known.
        inside: the share of the samples near any mode; None where the modes are not known.
        gamma, temperature: those of the drift at this step; NaN, which is not shown, for a method without them.

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
    """The shares of samples near the modes at one step, as in `Frame`; they are kept of every frame, drawn or not."""

    step: int
    shares: np.ndarray | None
    inside: float | None

    @classmethod
    def of(cls, frame: Frame) -> "Reading":
        """Return the reading of `frame`."""
        return cls(frame.step, frame.shares, frame.inside)
