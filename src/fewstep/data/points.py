"""Data sets of points: in memory, in two splits, drawn from a density or read from a file."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.arrays import load_npy
from fewstep.data.density import Density
from fewstep.data.errors import DataError
from fewstep.data.holdout import advice, count_fitting
from fewstep.data.mixtures import Mixture
from fewstep.data.origin import Origin
from fewstep.data.parts import InMemory
from fewstep.data.units import Units, units_of
from fewstep.limits import TooLarge

LEAST = 40  # points that each part needs
STANDARD = "each column is standardized for training (data.standardize), and samples are in the file's units."


def check_points(x: Tensor) -> None:
    """Raise DataError if a row of `x` [N, D] holds NaN or infinity."""
    bad = (~x.isfinite()).any(1).nonzero()[:, 0]
    if len(bad):
        raise DataError(f"{len(bad)} of {len(x)} points hold NaN or infinity, the first in row {bad[0]}; mend or remove these rows")


@dataclass(frozen=True)
class PointData(InMemory):
    """Points in two splits, for the training loop.

    Attributes:
        name: name of the data set in tables.
        train, heldout: points of the two splits, float32 [N, D] and [M, D].
        density: the density from which both splits were drawn; None if it is unknown.
        units: units of the user's points, of which `train` and `heldout` are the standard form; None if the points are unchanged.
        origin: where the points come from; None for data made in Python.

    Raises:
        DataError: if a point is not finite.

    """

    name: str
    train: Tensor
    heldout: Tensor
    density: Density | None = None
    units: Units | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        check_points(self.train)
        check_points(self.heldout)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (D,) of one point."""
        return tuple(self.train.shape[1:])

    @property
    def num_classes(self) -> int | None:
        """None: there are no classes."""
        return None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty: there are no classes."""
        return ()

    @property
    def mixture(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Means [K, D], standard deviations [K] and weights [K] of the density, float64, if it is a mixture of Gaussians; else None."""
        return (self.density.modes, self.density.mode_stds, self.density.mode_weights) if isinstance(self.density, Mixture) else None

    def images(self, split: str) -> Tensor:
        """All points of split "train" or "heldout", float32 [N, D]."""
        return self.train if split == "train" else self.heldout

    def labels(self, split: str) -> Tensor | None:
        """Return None: points have no labels."""
        return None

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return training points float32 [B, D] on `device` for `index` int64 [B], and None for the labels; `rng` is not used."""
        return self.train[index].to(device), None


def point_file(path: str, holdout: float, standardize: bool = True) -> PointData:
    """Return the points [N, D] in a .npy file, of which the fraction `holdout` is held out at random (seed 0).

    With `standardize`, they are converted to the standard form of their `Units`. Raises DataError if the file is missing, if it holds
    something other than one numeric array [N, D], NaN or infinity, or too few points to split, and as `units_of` does.
    """
    if Path(path).is_file() and zipfile.is_zipfile(path):
        raise DataError(f"data.path is {path!r}, which holds several arrays; give one array of numbers [N, D]")
    try:
        array = load_npy(path)
    except TooLarge as error:
        raise DataError(f"data.path is {path!r}, which is too large: {error}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"data.path is {path!r}, which is no readable .npy file ({error}); save an array [N, D] with numpy.save") from error
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiu":
        what = f"shape {list(array.shape)} and type {array.dtype}"
        raise DataError(f"data.path is {path!r}, which holds {what}; give one array of numbers [N, D]")
    held = round(len(array) * holdout)
    if held < LEAST or len(array) - held < LEAST:
        value = count_fitting(holdout, len(array), LEAST)
        raise DataError(
            f"data.path is {path!r} with {len(array)} points, of which data.holdout {holdout} takes {held}; each part needs {LEAST}: "
            + (advice(value) if value is not None else f"give at least {2 * LEAST} points")
        )
    units = units_of(array, f"data.path is {path!r}") if standardize else None
    whole = torch.from_numpy(array.astype(np.float64))
    points = whole.float() if units is None else units.standard(whole)
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    how = f"the fraction {holdout:.15g} of the points (data.holdout), at random by seed 0"
    origin = Origin(path, "point", len(points), (), "points have none", "", how, () if units is None else (STANDARD,))
    return PointData(Path(path).stem, points[order[held:]], points[order[:held]], None, units, origin)
