"""The units that points come in: a location and a scale for each column, found in the data, and always the same two ways.

Networks, noise levels and distances are for data about 0 with a standard deviation of about 1. What is learned is therefore
``(x - location) / scale``, and what a generator makes is taken back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.data.errors import DataError

LEAST_DIGITS = 1e-3  # of a standard deviation, to which a number must be told from the next


@dataclass(frozen=True)
class Units:
    """Location and scale of each column, float64 [D]; the scale is positive.

    Attributes:
        dtype: what holds points in these units: float32, or float64 where that cannot tell points apart so far from 0.

    """

    location: Tensor
    scale: Tensor
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        step = torch.finfo(torch.float32).eps * (self.location.abs() + self.scale) / self.scale  # from a number to the next
        object.__setattr__(self, "dtype", torch.float32 if bool((step <= LEAST_DIGITS).all()) else torch.float64)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Units":
        """What `config` gave. Raises ValueError for what are no units."""
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
        """As plain numbers."""
        return {"location": self.location.tolist(), "scale": self.scale.tolist()}

    def standard(self, x: Tensor) -> Tensor:
        """Points [N, D] in these units as they are learned: float32, of location 0 and scale 1."""
        return ((x.double() - self.location.to(x.device)) / self.scale.to(x.device)).float()

    def back(self, x: Tensor) -> Tensor:
        """What was learned [N, D] in these units, of type `dtype`."""
        return (x.double() * self.scale.to(x.device) + self.location.to(x.device)).to(self.dtype)


def units_of(array: np.ndarray, name: str) -> Units:
    """Mean and standard deviation of each column of numbers [N, D]; `name` is how the user gave them.

    Raises DataError for numbers that are not finite, a constant column, and values that float32 or the array's own type cannot hold.
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
    scale = np.sqrt(np.square((x - middle) / np.maximum(large, 1e-300)).mean(0)) * large  # a square neither overflows nor vanishes
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
