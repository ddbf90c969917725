"""Drift: a generator without a teacher follows a field between real and generated samples.

    x    = G(z), z ~ N(0, I)
    V    = gamma (b_real(x; T) - x) - (b_fake(x; T) - x)        b: kernel-weighted barycentres
    loss = mean (x - stop_gradient(x + V))^2

For the Gaussian kernel this is distribution matching with the scores of the two sets of samples, blurred by ``h^2 = T / 2``
(Lai et al. 2026, arXiv 2603.07514). gamma and T may each be ramped in training. Fields: "strict" is the one above; "two_temperature" has
``b_fake`` at ``T / gamma`` and gamma 1 elsewhere; "drifting" is Drifting Models (Deng et al. 2026, arXiv 2602.04770) and "toy" the
field of its 2D notebook; "wasserstein" is W-Flow's (2605.11755), between entropic transport plans to real samples and to a second
generated batch. Each class drifts by itself. The field may act on features of x instead of x (2602.04770, Eqs. 13-14).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fewstep.generator import Generator
from fewstep.maths.kernels import log_kernel_sum, temperature_range
from fewstep.maths.matching import drift_field, drifting_loss, toy_drift_field
from fewstep.maths.transport import wasserstein_field
from fewstep.methods.base import Alarm, Batch, Data, Given, LossOutput, Method, Networks, Ramp, Turn
from fewstep.methods.devices import whole_batch, world_size
from fewstep.methods.drift.classes import Sets, apart, mean_square_distance
from fewstep.methods.drift.features import features_named
from fewstep.methods.drift.settings import DriftSettings
from fewstep.networks import tables_of
from fewstep.screen import SCREEN
from fewstep.streams import normal


class Drift(Method):
    """Train `generator`, a push-forward, by a drift field.

    With gamma other than 1 in the field, "strict" comes to rest at a *blurred* p^gamma, and "two_temperature" at modes whose variance is
    right, but whose weights are wrong where modes are unequal (docs/drift.md).

    Args:
        settings: the method's settings.
        generator: a generator with a push-forward denoiser, a map from noise to data.
        steps: length of the run, of which ramps may take fractions.
        features: maps items [B, ...] to features [B, F], with a gradient, on which the field acts; None for the items themselves.
        limits: (high, low), the start and the end of each temperature where the settings leave them to the data ("auto").

    Raises:
        ValueError: for a field, gamma, guidance and other settings that do not go together.

    """

    Settings = DriftSettings
    ships = "generator"
    shown = ("drift",)
    main = "generator.loss"
    drawn: ClassVar = {"losses": ("loss",), "drift": ("drift",), "escaped": ("escaped",), "plans": ("plan_error",)}
    logarithmic = ("losses", "drift")
    readings: ClassVar = {
        "losses": "The mean squared length of the field at the samples: how far they are still moved. Lower is better at one temperature; "
        "as the temperatures fall, it changes by itself.",
        "drift": "The length of the field at the samples, which comes to rest where they are distributed like the data. Lower is better.",
        "escaped": "The share of samples that lie where there are hardly any real ones, and may be out of the field's reach. 0 is best.",
        "plans": "The share of mass that the transport plans of the field send to the wrong samples, in the worst class at the worst "
        "temperature. Lower is better; above 0.2 the Sinkhorn iterations were too few.",
    }
    compares_batch = True
    alarms: ClassVar = (
        Alarm(
            "escape",
            "generator.escaped",
            "{value:.0%} of the samples lie where there are hardly any real ones, and the field may not bring them back",
            "Raise method.temperature_start or method.temperatures",
            high=0.5,
        ),
        Alarm(
            "transport",
            "generator.plan_error",
            "the transport plans send {value:.0%} of the mass to the wrong samples",
            "Raise method.sinkhorn_iterations, or method.temperatures",
            high=0.2,
        ),
    )
    advice: ClassVar = {
        "collapse": "Too few real samples attract: raise method.temperature_start (which settles coverage), batch_size or method.memory",
        "noise": "Lower method.optimizer.lr, or give the field more samples (batch_size)",
        "shift": "The temperature is too low for distant samples to interact: raise method.temperature_start or method.temperatures",
        "saturation": "Lower method.optimizer.lr or network.gain",
    }
    LOOK = 10  # updates between measurements of the term ``escaped``

    def __init__(
        self,
        settings: DriftSettings,
        generator: Generator,
        steps: int = 0,
        features: Callable[[Tensor], Tensor] | None = None,
        limits: tuple[float, float] | None = None,
    ) -> None:
        self.settings, self.generator, self.features = settings, generator, features
        self.field_name, self.plan, self.memory = settings.field, settings.plan, settings.memory
        self.gamma, self.temperatures = _ramps(settings, steps, limits)
        if self.field_name in ("toy", "drifting", "wasserstein") and (self.gamma.end != 1.0 or self.gamma.start not in (None, 1.0)):
            raise ValueError(
                f"method.gamma is {self.gamma.end}, which the field {self.field_name!r} does not know; use 1, or method.gamma_by=data"
            )
        if settings.guidance_scale != 1.0 and (self.field_name != "drifting" or generator.num_classes is None):
            raise ValueError(f"method.guidance_scale is {settings.guidance_scale}; it needs method.field=drifting and data with classes")
        if self.plan == "sinkhorn" and self.field_name == "toy":
            raise ValueError("method.plan is 'sinkhorn', which the field 'toy' does not know; use another method.field")
        if settings.temperature_unit == "distance" and self.field_name == "drifting":
            raise ValueError(
                "method.temperature_unit is 'distance', but temperatures of the field 'drifting' count in mean distances anyway; leave it "
                "at 'one'"
            )
        if settings.temperature_unit == "distance" and limits is not None:
            raise ValueError(
                "method.temperature_unit is 'distance', but temperatures that are left to the data ('auto') are no multiples; give "
                "numbers, or leave it at 'one'"
            )
        if self.field_name == "drifting" and limits is not None:
            raise ValueError(
                "method.temperatures and temperature_start cannot be 'auto' with the field 'drifting', whose temperatures count in mean "
                "distances whatever the data; give numbers, such as [0.02, 0.05, 0.2]"
            )
        if settings.affinity_floor and (self.field_name != "drifting" or self.plan == "sinkhorn"):
            raise ValueError(
                f"method.affinity_floor is {settings.affinity_floor}, which only method.field=drifting with method.plan=softmax knows; set "
                "it to 0"
            )
        if settings.gamma_by == "data" and settings.gamma_start is not None:
            raise ValueError(
                f"method.gamma_start is {settings.gamma_start}, but with method.gamma_by=data gamma is the same in the whole run; set it "
                "to null"
            )
        if self.field_name == "wasserstein" and settings.kernel != "gaussian":
            raise ValueError("method.kernel is 'laplace', but the field 'wasserstein' moves by squared distances; use gaussian")
        self.kernel = _kernel(settings)
        self.kept: dict[str, Tensor] = {}  # the features of the last ``method.memory`` real items, and their labels
        self.networks = {"generator": generator.denoiser}
        scales = dict.fromkeys(tables_of(generator.denoiser), settings.table_scale)
        self.turns = (Turn("generator", ("generator",), settings.optimizer, scales=scales),)
        self.updates = 0

    @classmethod
    def make(cls, settings: DriftSettings, given: Given) -> "Drift":
        """Make the method, with a map from noise to data, and measure on the data the temperatures that the settings leave to it."""
        if given.batch_size < 2:  # checked before distances within a batch are measured
            raise ValueError(f"batch_size is {given.batch_size}; drift needs at least 2 samples a step, for each leaves itself out")
        features, limits = features_named(settings.features, given), None
        if "auto" in (settings.temperatures, settings.temperature_start):
            some = given.data.some(given.batch_size, given.seed)
            with torch.no_grad():  # distances are those that the field will see
                some = features(some).float() if features else some.flatten(1)
            high, low = temperature_range(some, settings.temperature_neighbours)
            # those are squared distances, and a Laplace kernel divides distances by its temperature
            limits = (high, low) if _kernel(settings) == "gaussian" else (math.sqrt(high), math.sqrt(low))
            if not limits[1] > 0:
                raise ValueError("method.temperatures is 'auto', but most points of a batch coincide; give numbers, or data without copies")
        if settings.gamma_by == "field" and settings.field == "strict":
            relative = settings.temperature_unit == "distance"
            unit = mean_square_distance(given.data.some(given.batch_size, given.seed).flatten(1)) if relative else 1.0
            _warn_of_bound(settings, min(_ends(settings, limits)) * unit, given.data)
        generator = given.make_generator({"name": "push_forward"}, {"name": "push_forward"})
        generator.info["trained_in_features"] = settings.features
        return cls(settings, generator, given.steps, features, limits)

    @property
    def needs_whole_batch(self) -> str:
        """The reason why gradient accumulation is impossible: each sample is moved by all others of the batch."""
        return "every sample drifts by what all others of the batch are"

    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """Return the regression loss onto x + V.

        Terms: ``loss``; ``drift``, the field's root mean square; ``plan_error``, with the field "wasserstein"; and, without classes,
        ``escaped`` at every `LOOK`-th update. ``plan_error`` is the share of the mass that the transport plans send wrongly, in the worst
        class at the worst temperature. ``escaped`` is the share of generated samples at which the density of the real samples, blurred by
        the kernel, is lower than at 99% of the real samples: a field can vanish because mass has gone where nothing pulls it back
        (arXiv 2604.24196).
        """
        z = normal((len(batch.x), *self.generator.latent_shape), rng)
        x = networks["generator"](z, math.inf, batch.label)
        features = self.features or (lambda items: items.flatten(1))
        # the field is that of the whole batch, of which each process has a part
        phi_x, label = whole_batch(features(x).float()), None if batch.label is None else whole_batch(batch.label)
        phi_y = self._remember(whole_batch(features(batch.x).float()), label)
        second = None
        if self.field_name == "wasserstein":
            with torch.no_grad():
                z = normal((len(batch.x), *self.generator.latent_shape), rng)
                second = whole_batch(features(networks["generator"](z, math.inf, batch.label)).float())
        total, terms = self._regress(phi_x, *phi_y, label, second)
        terms = {"loss": total.detach(), **terms}
        if batch.label is None and self.updates % self.LOOK == 0:
            terms["escaped"] = self._escaped(phi_x.detach(), phi_y[0])
        return LossOutput(total * world_size(), terms, x.detach(), batch.label)

    def _remember(self, y: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Add real `y` [M, F] to the memory; return the last ``method.memory`` real samples and their labels, at least those of `y`."""
        if self.memory <= len(y):
            return y, label
        now = {"kept": y} if label is None else {"kept": y, "label": label}
        self.kept = {name: torch.cat([x, self.kept[name]])[: self.memory] if name in self.kept else x for name, x in now.items()}
        return self.kept["kept"], self.kept.get("label")

    def _regress(
        self, x: Tensor, y: Tensor, y_label: Tensor | None, label: Tensor | None, second: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (loss, terms) for features of generated x [B, F] and real y [M, F] with labels [B] and [M], or None.

        `second` are the features of a second generated batch, like x, which the field "wasserstein" needs.
        """
        if self.field_name == "drifting":
            return self._drifting(x, y, y_label, label)
        flat, terms = x.detach(), dict[str, Tensor]()
        if second is not None:
            drift, terms["plan_error"] = self._wasserstein(flat, y, second, label, y_label)
        elif label is None or y_label is None:
            drift = self._field(flat, y, self._temperatures(y))
        elif self.plan == "sinkhorn":  # a plan for each class: in one plan, mass would have to cross between classes of unequal shares
            drift, temperatures = torch.zeros_like(flat), self._temperatures(y, y_label)
            for k in (label.bincount() > 1).nonzero().flatten():
                drift[label == k] = self._field(flat[label == k], y[y_label == k], temperatures)
        else:
            temperatures = self._temperatures(y, y_label)
            drift = self._field(*apart(flat, label, y, y_label, max(temperatures), self.kernel), temperatures)[:, : x.shape[1]]
        if label is not None and second is None:
            drift = drift.masked_fill((label.bincount()[label] < 2)[:, None], 0.0)  # a sample that is alone in its class has no field
        return (x - (flat + drift)).square().mean(), {"drift": drift.square().mean().sqrt(), **terms}

    def _wasserstein(self, x: Tensor, y: Tensor, second: Tensor, label: Tensor | None, y_label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (W-Flow's field at x, the largest error of its transport plans) (arXiv 2605.11755); each class has plans of its own."""
        temperatures = self._temperatures(y, y_label)
        if label is None or y_label is None:
            label, y_label = (s.new_zeros(len(s), dtype=torch.long) for s in (x, y))
        classes = label.unique()
        mine, real, other = Sets(x, label, classes), Sets(y, y_label, classes), Sets(second, label, classes)
        total, worst = torch.zeros_like(mine.items), x.new_zeros(())
        for temperature in temperatures:
            field, error = wasserstein_field(
                mine.items,
                real.items,
                other.items,
                temperature,
                self.settings.sinkhorn_iterations,
                mine.log_weights,
                real.log_weights,
                other.log_weights,
            )
            total, worst = total + field, torch.maximum(worst, error.max())
        return mine.back(total, x), worst

    def _temperatures(self, y: Tensor, y_label: Tensor | None = None) -> list[float]:
        """Return the present temperatures, in the unit "distance" times the mean squared distance of real y [M, F] within a class.

        For a Laplace kernel that unit is the root of the mean squared distance.
        """
        now = [ramp(self.updates) for ramp in self.temperatures]
        if self.settings.temperature_unit == "one":
            return now
        # over all classes together where no class has two items in the batch; any unit will do where all items coincide
        squared = mean_square_distance(y, y_label) or mean_square_distance(y) or 1.0
        unit = squared if self.kernel == "gaussian" else math.sqrt(squared)
        return [temperature * unit for temperature in now]

    def _field(self, x: Tensor, y: Tensor, temperatures: Sequence[float]) -> Tensor:
        gamma, total, iterations = self.gamma(self.updates), torch.zeros_like(x), self.settings.sinkhorn_iterations
        for temperature in temperatures:
            if self.field_name == "toy":
                total += toy_drift_field(x, y, temperature)
            elif self.field_name == "two_temperature":
                total += drift_field(x, y, x, temperature, 1.0, self.kernel, temperature / gamma, self.plan, iterations)
            else:
                total += drift_field(x, y, x, temperature, gamma, self.kernel, None, self.plan, iterations)
        return total

    def _drifting(self, x: Tensor, y: Tensor, y_label: Tensor | None, label: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        temperatures = [ramp(self.updates) for ramp in self.temperatures]
        plan = "sinkhorn" if self.plan == "sinkhorn" else "double_softmax"
        groups = [(x, y)] if label is None else [(x[label == k], y[y_label == k]) for k in label.unique()]
        losses, drifts, total = x.sum() * 0, x.new_zeros(()), 0
        for gen, pos in groups:
            if len(gen) < 2:
                continue
            neg = weight = None
            if self.settings.guidance_scale != 1.0:
                neg = y
                weight = y.new_full((len(y),), (len(gen) - 1) * (self.settings.guidance_scale - 1) / len(y))
            loss, info = drifting_loss(
                gen, pos, neg, temperatures, None, None, weight, self.settings.affinity_floor, plan, self.settings.sinkhorn_iterations
            )
            losses = losses + loss * len(gen)
            drifts = drifts + torch.stack([v for k, v in info.items() if k.startswith("drift_")]).mean() * len(gen)
            total += len(gen)
        return losses / max(1, total), {"drift": drifts / max(1, total)}

    def _escaped(self, x: Tensor, y: Tensor) -> Tensor:
        temperature = max(self._temperatures(y))
        if self.field_name == "drifting":  # its temperatures are multiples of the mean distance
            temperature *= torch.cdist(x, y).mean().item()
        real = log_kernel_sum(y, y, temperature, self.kernel, exclude_self=True)
        return (log_kernel_sum(x, y, temperature, self.kernel) < real.quantile(0.01)).float().mean()

    def field(self, points: Tensor, samples: Tensor, real: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return (positions, V): at `points`, or at `samples` where the field is defined only at generated samples; None for features.

        The field "drifting" is known up to a factor.
        """
        if self.features is not None:
            return None
        if self.field_name in ("strict", "two_temperature") and self.plan == "softmax":
            gamma, total = self.gamma(self.updates), torch.zeros_like(points)
            for temperature in self._temperatures(real):
                two = self.field_name == "two_temperature"
                cold = temperature / gamma if two else None
                total += drift_field(points, real, samples, temperature, 1.0 if two else gamma, self.kernel, cold)
            return points, total
        if self.field_name == "wasserstein":
            some, second = samples[: min(len(real), len(samples) // 2)], samples[len(samples) // 2 :]
            return some, self._wasserstein(some, real, second, None, None)[0]
        some = samples[: len(real)]
        if self.field_name != "drifting":
            return some, self._field(some, real, self._temperatures(real))
        with torch.enable_grad():
            x = some.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self._regress(x, real, None, None)[0], x)
        return some, -gradient * x.numel() / 2

    def settings_now(self) -> dict[str, float]:
        """Return the present gamma and first temperature."""
        return {"gamma": self.gamma(self.updates), "temperature": self.temperatures[0](self.updates)}

    def after_update(self, turn: str) -> None:
        """Count the updates, for the ramps."""
        self.updates += 1

    def ship(self, network: nn.Module, step: int) -> Generator:
        """Return the generator with the weights of `network`."""
        return self.generator.derive(self.generator.sampler, {**self.generator.info, "method": "drift", "step": step}, network)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates so far, which the ramps follow."""
        return {"updates": self.updates}

    def tensors(self) -> dict[str, Tensor]:
        """Return the features of the remembered real samples, and their labels; empty without ``method.memory``."""
        return dict(self.kept)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        self.kept = dict(tensors)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.updates = state["updates"]


def _kernel(settings: DriftSettings) -> Literal["gaussian", "laplace"]:
    """Return the kernel of the field."""
    return "laplace" if settings.field in ("toy", "drifting") else settings.kernel


def _ends(settings: DriftSettings, limits: tuple[float, float] | None) -> Sequence[float]:
    """Return the final value of each temperature."""
    if isinstance(settings.temperatures, str):
        assert limits is not None
        return [limits[1]]
    return settings.temperatures


def _ramps(settings: DriftSettings, steps: int, limits: tuple[float, float] | None) -> tuple[Ramp, tuple[Ramp, ...]]:
    """Return the ramps of gamma and of each temperature over a run of `steps` updates."""
    start = settings.temperature_start
    if isinstance(start, str):
        assert limits is not None
        start = limits[0]
    long = [round(w * steps) if isinstance(w, float) else w for w in (settings.gamma_warmup, settings.temperature_warmup)]
    gamma = Ramp(settings.gamma, settings.gamma_start, long[0]) if settings.gamma_by == "field" else Ramp(1.0)
    log = settings.temperature_schedule == "log"
    return gamma, tuple(Ramp(end, start, long[1], log) for end in _ends(settings, limits))


def _warn_of_bound(settings: DriftSettings, temperature: float, data: Data) -> None:
    """Warn where the strict field cannot reach p^gamma: a mode of variance s^2 ends at (s^2 + h^2) / gamma - h^2 (docs/drift.md)."""
    if data.mixture is None or settings.kernel != "gaussian":
        return
    variance = data.mixture[1].min().item() ** 2
    bound = 1 + 2 * variance / temperature
    if settings.gamma >= bound:
        SCREEN.say(
            f"warning: method.gamma is {settings.gamma}, and with the strict field at temperature {temperature:g} a mode of {data.name} "
            f"becomes a point from gamma {bound:.3g} on (1 + 2 std^2 / T); drift/ring (method.gamma_by=data) has no such bound"
        )
