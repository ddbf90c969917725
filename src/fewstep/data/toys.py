"""The densities that recipes can name, and data sets drawn from them."""

import difflib
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fewstep.data.curves import Curve, Pinwheel
from fewstep.data.density import Density, checked_gamma
from fewstep.data.errors import DataError
from fewstep.data.mixtures import Mixture
from fewstep.data.origin import Origin
from fewstep.data.points import PointData

HELDOUT = 10_000  # points held out by `toy_data`


def ring() -> Mixture:
    """8 modes on a circle of radius 3, standard deviation 0.2."""
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    return Mixture("ring", 3 * torch.stack([angle.cos(), angle.sin()], 1), 0.2)


def grid25() -> Mixture:
    """5 x 5 modes, 2 apart, standard deviation 0.2."""
    ticks = torch.arange(-4.0, 5, 2)
    return Mixture("grid25", torch.cartesian_prod(ticks, ticks), 0.2)


def unequal() -> Mixture:
    """3 modes of weights 1 : 2 : 4 and standard deviations 0.1, 0.2 and 0.4, so far apart that the modes of powers stay separate."""
    means = torch.tensor([[-2.2, -1.4], [2.2, -1.4], [0.0, 1.8]], dtype=torch.float64)
    return Mixture("unequal", means, torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64), torch.tensor([1.0, 2, 4]))


def mixture8d() -> Mixture:
    """5 modes in 8 dimensions, at distance 4 from each other, standard deviation 0.3."""
    signs = ["+-+-+-+-", "-++--++-", "++--++--", "---++++-", "+-+--+-+"]  # rows of a Hadamard matrix, up to sign: orthogonal
    return Mixture("mixture8d", torch.tensor([[1.0 if sign == "+" else -1.0 for sign in row] for row in signs]), 0.3)


def gaussian() -> Mixture:
    """One mode at the origin, standard deviation 0.5."""
    return Mixture("gaussian", torch.zeros(1, 2), 0.5)


def bimodal() -> Mixture:
    """2 modes, 4 apart, standard deviation 0.5: the smallest case in which the mean of a posterior is not a sample of the posterior."""
    return Mixture("bimodal", torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=torch.float64), 0.5)


class Checkerboard(Density):
    """Uniform on the 8 dark squares, of side 2, of a board of 4 x 4 squares over [-4, 4]^2; the lower left one is dark.

    Every power of this density is the density itself.
    """

    name = "checkerboard"
    dim = 2

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Independent exact samples, float32 [num, 2]."""
        square = torch.randint(8, (num,), generator=rng)
        row = square // 2
        column = 2 * (square % 2) + row % 2
        corner = 2.0 * torch.stack([column, row], 1) - 4
        x = (corner + 2 * torch.rand(num, 2, generator=rng, dtype=torch.float64)).float()
        return torch.minimum(x, torch.nextafter(corner + 2, corner))  # float32 may have rounded a point into the next square

    def log_prob(self, x: Tensor) -> Tensor:
        """-log 32 on the dark squares and -inf elsewhere, [N], at `x` [N, 2]. A square includes its left and its lower edge."""
        column, row = (self._checked(x) / 2).floor().unbind(1)
        dark = ((column + row) % 2 == 0) & (x >= -4).all(1) & (x < 4).all(1)
        return torch.where(dark, -math.log(32), -math.inf).to(x)

    @property
    def limits(self) -> tuple[float, float]:
        """(low, high), the same for both axes: slightly more than the board."""
        return -4.4, 4.4

    def power(self, gamma: float) -> Density:
        """The density itself. Raises DataError if gamma is not finite and positive."""
        checked_gamma(gamma)
        return self


def moons() -> Curve:
    """Two interleaving half circles of radius 2, noise 0.15; one is the other turned by 180 degrees about the origin."""

    def arm(u: Tensor) -> Tensor:
        return torch.stack([2 * u.cos() - 1, 2 * u.sin() - 0.5], 1)

    return Curve("moons", (arm, lambda u: -arm(u)), (0.0, math.pi), noise=0.15, nodes=100)


def swiss_roll() -> Curve:
    """A spiral of one and a half turns, noise 0.12: the angle is uniform, and the radius is a quarter of the angle."""
    return Curve("swiss_roll", (lambda u: _spiral(0.25, u),), (1.5 * math.pi, 4.5 * math.pi), noise=0.12, nodes=500)


def spirals() -> Curve:
    """Two spirals of one and a quarter turns, noise 0.15: the square of the angle is uniform, so points are about equally dense."""

    def arm(u: Tensor) -> Tensor:
        return _spiral(0.375, u.sqrt())

    return Curve("spirals", (arm, lambda u: -arm(u)), ((0.5 * math.pi) ** 2, (3 * math.pi) ** 2), noise=0.15, nodes=250)


def _spiral(pitch: float, angle: Tensor) -> Tensor:
    return pitch * angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


DENSITIES: dict[str, Callable[[], Density]] = {
    "ring": ring,
    "grid25": grid25,
    "unequal": unequal,
    "mixture8d": mixture8d,
    "gaussian": gaussian,
    "bimodal": bimodal,
    "checkerboard": Checkerboard,
    "swiss_roll": swiss_roll,
    "moons": moons,
    "spirals": spirals,
    "pinwheel": Pinwheel,
}


def make_density(name: str) -> Density:
    """Return the density called `name` in `DENSITIES`. Raises DataError, with the nearest name, if there is none of that name."""
    if name not in DENSITIES:
        nearest = difflib.get_close_matches(name, DENSITIES, 1, 0.0)[0]
        raise DataError(f"there is no density {name!r}; did you mean {nearest!r}? allowed are {', '.join(DENSITIES)}")
    return DENSITIES[name]()


def toy_data(density: str | Density, size: int = 20_000, seed: int = 0) -> PointData:
    """Draw `size` training points and 10,000 held-out points from a density, which is given itself or by its name, with `seed`.

    The held-out points do not depend on `size`. Raises DataError for an unknown name and for a size below 2.
    """
    if size < 2:
        raise DataError(f"data.size is {size}; at least 2 points are needed to train, choose a larger data.size")
    law = make_density(density) if isinstance(density, str) else density
    # hashed seeds, so that neither split shares its random numbers with a training loop that has the same seed
    streams = np.random.SeedSequence(seed % 2**64).generate_state(2, np.uint64)
    train, heldout = (
        law.sample(num, torch.Generator().manual_seed(int(stream))) for num, stream in zip((size, HELDOUT), streams, strict=True)
    )
    origin = Origin(
        f"points drawn from the density {law.name}, which is known exactly",
        classes="points have none",
        train=f"drawn from seed {seed}",
        heldout="other points, the same for every data.size",
    )
    return PointData(law.name, train, heldout, law, origin=origin)
