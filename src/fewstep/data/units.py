"""The units of points: a location and a scale for each column, found in the data, with conversions to and from standard units.

Networks, noise levels and distances are made for data with a mean of 0 and a standard deviation of about 1. Training therefore uses
``(x - location) / scale``, and what a generator makes is converted back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.data.errors import DataError

LEAST_DIGITS = 1e-3  # standard deviations between neighbouring numbers, up to which float32 is used


@dataclass(frozen=True)
class Units:
    """Location and scale of each column, float64 [D]; the scale is positive.

    Attributes:
        dtype: dtype of points in these units: float32, or float64 if float32 cannot tell points apart at that distance from 0.

    """

    location: Tensor
    scale: Tensor
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        step = torch.finfo(torch.float32).eps * (self.location.abs() + self.scale) / self.scale  # between neighbouring numbers
        object.__setattr__(self, "dtype", torch.float32 if bool((step <= LEAST_DIGITS).all()) else torch.float64)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Units":
        """Return the units whose `config` is given. Raises ValueError if it does not describe valid units."""
        try:
            location, scale = (torch.tensor(config[key], dtype=torch.float64) for key in ("location", "scale"))
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise ValueError(f"units are {config!r}; give location and scale, a number a column each") from None
        if (
            location.ndim != 1
            or location.shape != scale.shape
            or not location.isfinite().all()
            or not (scale.isfinite() & (scale > 0)).all()
        ):
            raise ValueError(f"units are {config!r}; give as many finite locations as positive scales")
        return cls(location, scale)

    @property
    def config(self) -> dict[str, list[float]]:
        """Location and scale as plain numbers, for JSON."""
        return {"location": self.location.tolist(), "scale": self.scale.tolist()}

    def standard(self, x: Tensor) -> Tensor:
        """Return points `x` [N, D] in these units as float32 in standard units, of location 0 and scale 1."""
        return ((x.double() - self.location.to(x.device)) / self.scale.to(x.device)).float()

    def back(self, x: Tensor) -> Tensor:
        """Return points `x` [N, D] in standard units as points in these units, of dtype `dtype`."""
        return (x.double() * self.scale.to(x.device) + self.location.to(x.device)).to(self.dtype)


def units_of(array: np.ndarray, name: str) -> Units:
    """Return the mean and standard deviation of each column of numbers [N, D] as `Units`; messages call the numbers `name`.

    Raises DataError for numbers that are not finite, a constant column, and values that float32 or the array's own dtype cannot hold.
    """
    x = np.asarray(array, np.float64)
    rows = ~np.isfinite(x).all(1)
    if rows.any():
        what = f"{rows.sum()} of {len(x)} points hold NaN or infinity, the first in row {rows.argmax()}"
        raise DataError(f"{name}: {what}; mend or remove these rows")
    large = np.abs(x).max(0)
    if large.max() > float(np.finfo(np.float32).max):
        column = int(large.argmax())
        raise DataError(f"{name}: column {column} holds {large[column]:.3g}, and float32 ends at 3.4e+38; divide that column by a number")
    middle = x.mean(0)
    # squares of values divided by the largest one neither overflow nor underflow
    scale = np.sqrt(np.square((x - middle) / np.maximum(large, 1e-300)).mean(0)) * large
    own = np.finfo(array.dtype).eps if array.dtype.kind == "f" else 0.0
    for column in range(x.shape[1]):
        if np.ptp(x[:, column]) == 0:
            raise DataError(
                f"{name}: column {column} is {x[0, column] + 0.0:.6g} in every row, and there is nothing to learn in it; leave it out"
            )
        rounded = max(own, float(np.finfo(np.float64).eps)) * large[column] / max(scale[column], 1e-300)
        if rounded > 0.1:
            raise DataError(
                f"{name}: column {column} lies at {middle[column]:.6g} and varies by {scale[column]:.2g}, which {array.dtype} cannot "
                "hold: its values are steps of rounding; subtract a number from it before it is saved"
            )
        if not scale[column] > float(np.finfo(np.float32).tiny):
            raise DataError(
                f"{name}: column {column} varies by {scale[column]:.2g}, which float32 cannot hold; multiply that column by a number"
            )
    return Units(torch.from_numpy(middle), torch.from_numpy(scale))
