"""Distributional diffusion: train a denoiser to sample the posterior, with a scoring rule (De Bortoli et al. 2025, arXiv 2502.02483).

    t     ~ U(0, 1)                     the linear path, 0 data and 1 noise
    x_t   = (1 - t) x0 + t eps          eps ~ N(0, I)
    xhat_j = D(x_t, t, label, xi_j)     m particles, xi_j ~ N(0, I), of one x_t
    loss  = mean w(t) [ 1/m sum_j |x0 - xhat_j|^beta - lambda / (2 m (m - 1)) sum_{j != k} |xhat_j - xhat_k|^beta ]

beta 2 with lambda 0 is ordinary diffusion. No teacher, no distillation: because D draws from ``x0 | x_t`` instead of averaging over it, a
coarse reverse grid keeps its quality.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.denoisers import DistributionalDenoiser
from fewstep.generator import Generator
from fewstep.maths.energy import calibration, energy_score_of, particle_distances
from fewstep.maths.parametrization import expand_like
from fewstep.maths.schedules import linear_path, sigmoid_weight
from fewstep.methods.base import Batch, LossOutput, Method, Networks, OptimizerSettings, Ramp, Turn, hidden_labels


class DDDM(Method):
    """Train `generator`'s distributional denoiser on data (Algorithm 1).

    Args:
        generator: untrained, with the sampler "distributional".
        optimizer: settings of AdamW.
        m: particles an item.
        beta: power of the distance, in (0, 2].
        lam: weight of the term between particles, in [0, 1]; a number, or a `Ramp` over updates. Only 1 is strictly proper.
        bias: of the sigmoid weighting of times; below 0 moves weight towards noise.
        label_dropout: probability that an item's label is replaced by the null class, which guidance needs.

    Raises:
        ValueError: for values outside these ranges, or m below 2 where lam is above 0.

    """

    ships = "denoiser"
    advice: ClassVar = {
        "collapse": "The posterior is drawn too narrow: check that method.lam is 1, raise method.m, or train longer",
        "noise": "Early on this passes; later, lower method.lr",
        "drift": "Check network.sigma_data and the pixel range, or train longer",
    }

    def __init__(
        self,
        generator: Generator,
        optimizer: OptimizerSettings,
        m: int = 8,
        beta: float = 1.0,
        lam: Ramp | float = 1.0,
        bias: float = 0.0,
        label_dropout: float = 0.0,
    ) -> None:
        self.lam = lam if isinstance(lam, Ramp) else Ramp(lam)
        if not isinstance(generator.denoiser, DistributionalDenoiser):
            raise ValueError(f"the generator's sampler is {generator.sampler['name']!r}; DDDM trains one with 'distributional'")
        if not 0 < beta <= 2:
            raise ValueError(f"method.beta is {beta}; allowed are values above 0, up to 2")
        ends = (self.lam.end, self.lam.end if self.lam.start is None else self.lam.start)
        if not all(0 <= end <= 1 for end in ends):
            raise ValueError(f"method.lam is {max(ends, key=abs)}; allowed are values from 0 to 1")
        if m < 1 or (m < 2 and max(ends) > 0):
            raise ValueError(f"method.m is {m} with method.lam {max(ends)}; give m of at least 2, or lam 0 and m of at least 1")
        self.generator, self.xi_shape = generator, generator.denoiser.xi_shape
        self.networks = {"denoiser": generator.denoiser}
        self.turns = (Turn("denoiser", ("denoiser",), optimizer),)
        self.m, self.beta, self.bias, self.label_dropout = m, beta, bias, label_dropout
        self.updates = 0

    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """The weighted generalised energy score of the batch.

        Terms: ``score``; ``error``, the mean distance of a particle from the truth in units of the data; and ``calibration``, the mean
        distance of two particles over that one: 1 for draws from the posterior, 0 where xi is ignored. While lambda still rises, and
        for lambda 0, which asks for no spread, that ratio is called ``apart`` and held to nothing.
        """
        x0, lam, device = batch.x, self.lam(self.updates), batch.x.device
        label = hidden_labels(batch.label, self.label_dropout, self.generator.num_classes, rng)
        t = torch.rand(len(x0), generator=rng, device=device)
        eps = torch.randn(x0.shape, generator=rng, device=device)
        xi = torch.randn(len(x0), self.m, *self.xi_shape, generator=rng, device=device)
        alpha, sigma = (expand_like(c, x0) for c in linear_path(t))
        xhat = networks["denoiser"](alpha * x0 + sigma * eps, t, label, xi)
        errors, pairs = particle_distances(x0, xhat)
        score = (sigmoid_weight(t, self.bias) * energy_score_of(errors, pairs, self.beta, lam)).mean()
        terms = {"score": score.detach(), "error": errors.detach().mean() / (self.generator.sigma_data * x0[0].numel() ** 0.5)}
        if self.m > 1:
            settled = lam == self.lam.end and lam > 0
            terms["calibration" if settled else "apart"] = calibration(errors.detach(), pairs.detach())
        # draws from the posterior of noised data are distributed like the data; means of it, for lambda below 1, are not
        return LossOutput(score, terms, xhat[:, 0].detach() if lam == 1 else None, batch.label)

    def after_update(self, turn: str) -> None:
        """Count, for lambda's ramp."""
        self.updates += 1

    @torch.no_grad()
    def field(self, points: Tensor, samples: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of 16 draws of x0 less `points`, seen at t = 1/2 without noise: where the middle of the path leads."""
        xi = torch.randn(1, 16, *self.xi_shape, generator=torch.Generator().manual_seed(0)).to(points)
        t = torch.tensor(0.5, device=points.device)
        x0 = self.networks["denoiser"]((1 - t) * points, t, None, xi.expand(len(points), *xi.shape[1:]))
        return points, x0.mean(1) - points

    def settings_now(self) -> dict[str, float]:
        """Lambda, where it moves."""
        return {} if self.lam.start is None else {"lam": self.lam(max(0, self.updates - 1))}

    def state_dict(self) -> dict[str, Any]:
        """How many updates there have been."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.updates = state["updates"]

    def ship(self, network: nn.Module, step: int) -> Generator:
        """The denoiser with the generator's own sampler."""
        info = {**self.generator.info, "method": "dddm", "step": step, "label_dropout": self.label_dropout}
        return self.generator.derive(self.generator.sampler, info, network)
