"""Evaluate points: distances to exact samples, coverage of known modes, each with its standard error, and the floor."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.metrics.figures import BY_KEY, choices
from fewstep.metrics.least import LEAST, Lack, lack
from fewstep.metrics.modes import mode_report, usual_radius
from fewstep.metrics.two_sample import Estimate, energy_distance, median_bandwidth, mmd, sliced_wasserstein

OF_MODES = set(choices("points")) - {"energy", "mmd", "sliced_wasserstein"}  # figures that need known modes


class PointSuite:
    """Measures sets of points against exact samples of the density aimed at.

    Args:
        target: exact samples [N, D] of the density, or held-out data.
        other: another set of exact samples [M, D], whose distance from `target` is the floor: the distance by random sampling alone.
        modes: means [K, D], stds [K] and weights [K] of the target, or None.
        standard: converts samples from their own units to those of the target; None where the units are the same.

    """

    def __init__(
        self,
        target: Tensor,
        other: Tensor,
        modes: tuple[Tensor, Tensor, Tensor] | None = None,
        standard: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.target, self.other, self.modes, self.standard = target, other, modes, standard
        self.bandwidth = median_bandwidth(target, other)
        self.within = usual_radius(target.shape[1])

    @property
    def floor(self) -> float:
        """The energy distance of the two exact sets: 0 in expectation."""
        return energy_distance(self.other, self.target).value

    @property
    def undefined(self) -> dict[str, str]:
        """Figures that cannot be measured on these points, each with the reason: those of modes, where no modes are known."""
        return {} if self.modes is not None else dict.fromkeys(OF_MODES, "its modes are not known")

    def lacks(self, generated: int) -> dict[str, Lack]:
        """Return by key what each figure lacks that cannot be given for so few `generated` samples, or so few points of the target."""
        return self._lacks(generated, "samples")

    def floor_lacks(self) -> dict[str, Lack]:
        """Return what `lacks` does, for the floor's row, in which the other exact set takes the place of samples."""
        return self._lacks(len(self.other), "points of the floor")

    def _lacks(self, generated: int, made: str) -> dict[str, Lack]:
        at_mode = None if self.modes is None else generated * (self.modes[2].min() / self.modes[2].sum()).item()
        found = {}
        for key in LEAST:
            if BY_KEY[key].family == "points":
                known = key not in OF_MODES
                found[key] = lack(key, {"points of the reference": len(self.target)} if known else {}, generated, made, at_mode)
        return {key: few for key, few in found.items() if few is not None}

    def floor_row(self) -> dict[str, float]:
        """Return the figures of the other exact set, measured as if it were generated."""
        return self._figures(self.other)

    def measure(self, samples: Tensor, label: Tensor | None = None) -> dict[str, float]:
        """Return ``energy``, ``mmd``, ``sliced_wasserstein`` of `samples` [n, D] to the target; with modes also those of `mode_report`.

        Each figure ``x`` comes with its standard error ``x_error``. A figure that is not defined, such as the variance of modes where no
        mode is covered, is left out.
        """
        return self._figures(samples if self.standard is None else self.standard(samples))

    def _figures(self, samples: Tensor) -> dict[str, float]:
        found: dict[str, Estimate] = {
            "energy": energy_distance(samples, self.target),
            "mmd": mmd(samples, self.target, self.bandwidth),
            "sliced_wasserstein": sliced_wasserstein(samples, self.target),
        }
        if self.modes is not None:
            found |= mode_report(samples, *self.modes, self.within)
        row: dict[str, float] = {}
        for name, estimate in found.items():
            row |= {key: x for key, x in ((name, estimate.value), (f"{name}_error", estimate.error)) if math.isfinite(x)}
        return row


def split(points: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two random halves of `points`."""
    order = torch.randperm(len(points), generator=rng)
    return points[order[::2]], points[order[1::2]]
