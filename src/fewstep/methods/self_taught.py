"""A student of the probability flow, which learns from a trained teacher, a closed form, the data alone, or a teacher of the same run.

With ``method.own_teacher`` above 0, a network like the student's learns to denoise in that share of the run; the student then starts from
its weights, and the network stays frozen as the teacher. Subclasses define the student's loss.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.generator import Generator, frozen
from fewstep.maths.flow import stage_at
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.maths.schedules import lognormal_sigmas
from fewstep.methods.base import Batch, LossOutput, Method, Networks, Turn, hidden_labels
from fewstep.methods.devices import world_size
from fewstep.networks.base import dropout_of
from fewstep.streams import normal


class SelfTaught(Method):
    """A method with a student and, optionally, a teacher, which may be trained in the first part of the same run.

    Args:
        settings: the method's settings.
        student: the generator to train, in place; untrained, or with a teacher's weights.
        steps: length of the run.
        teacher: a trained teacher, which is saved in the run folder.
        real: a denoiser in closed form that teaches in place of `teacher`.

    Raises ValueError where the average that ships would keep weights from before the run's own teacher had learned, and where the teacher's
    share of the run rounds to no step or to all of them.

    """

    ships = "student"

    def __init__(
        self, settings: Any, student: Generator, steps: int = 1, teacher: Generator | None = None, real: nn.Module | None = None
    ) -> None:
        self.settings, self.student, self.steps, self.teacher = settings, student, steps, teacher
        self.networks = {"student": student.denoiser.train()}
        self.turns = (Turn("student", ("student",), settings.optimizer, begins=settings.own_teacher),)
        if settings.own_teacher and settings.ema_warmup < 1:
            raise ValueError(
                f"method.ema_warmup is {settings.ema_warmup}, and with method.own_teacher the average that ships would keep weights from "
                "before the teacher had learned; set it to 1 or more"
            )
        if settings.own_teacher:
            self.networks["teacher"] = frozen(student.denoiser).requires_grad_(True).train()
            self.turns = (Turn("teacher", ("teacher",), settings.own_optimizer, ends=settings.own_teacher), *self.turns)
            first, then = (turn.updates(steps) for turn in self.turns)
            if not first or not then:
                raise ValueError(
                    f"method.own_teacher is {settings.own_teacher}, which of {steps} step{'s' * (steps > 1)} gives the teacher {first} and "
                    f"the student {then}; each needs one at least: give more steps, or another share"
                )
        elif (guide := real or (teacher.denoiser if teacher else None)) is not None:
            self.networks["teacher"] = frozen(guide)
        self.label_dropout = settings.label_dropout if student.num_classes else 0.0
        self.dropout = bool(dropout_of(student.denoiser))
        self.updates = {turn.name: 0 for turn in self.turns}

    def check_hidden(self) -> None:
        """Raise ValueError where the student is to learn the unconditional estimate from a teacher that never learned it."""
        if self.label_dropout and self.teacher is not None and not self.teacher.info.get("label_dropout"):
            raise ValueError(
                f"method.label_dropout is {self.label_dropout}, but the teacher was trained without label dropout, and what it makes of a "
                "hidden label is no unconditional estimate; set it to 0, or give a teacher trained with label dropout"
            )

    @property
    def kept_teacher(self) -> Generator | None:
        """The trained teacher that was given, or None."""
        return self.teacher

    @property
    def stage(self) -> int:
        """The number of the present stage, of the stages into which the student's part of the run is divided."""
        own = self.turns[-1].updates(self.steps)
        return stage_at(self.updates["student"] / max(1, own), self.settings.stages, self.settings.first_stage)

    @property
    def has_taught_itself(self) -> bool:
        """Whether the run's own teacher has finished training, or the run trains none."""
        return len(self.turns) == 1 or self.updates["teacher"] >= self.turns[0].updates(self.steps)

    @property
    def best_from(self) -> float:
        """The fraction of the run at which the last third of the student's part begins."""
        return 1 - (1 - self.settings.own_teacher) / 3

    @abstractmethod
    def student_loss(self, networks: Networks, batch: Batch, rng: torch.Generator) -> LossOutput:
        """Return the loss of the student on one batch, to whose labels label dropout has already been applied."""

    def for_targets(self, network: Any) -> Callable[..., Tensor]:
        """Return the student's `network` as a target calls it: each call drops the activations that the next pass outside drops.

        With other activations dropped, a target differs from the output that is compared with it although the function is exact, and a
        difference of two passes is mostly noise. An item has the same activations dropped only at the same place of an equally large batch.
        """
        if not self.dropout:
            return network

        def called(x: Tensor, *told: Any) -> Tensor:
            with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
                found: Tensor = network(x, *told)
                return found

        return called

    def call_all_the_same(self, network: Any, x: Tensor, *told: Tensor | None) -> None:
        """Call `network` on the first item and drop its output, in a run of several processes where this one has no item to call it on.

        The processes gather a sharded network together at each call, and each has to call it as often as the others, which may have items.
        """
        if world_size() > 1:
            network(x[:1], *(None if one is None else one[:1] for one in told))

    def denoise(self, network: Any, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """Return the estimate of x0, like `x` [B, ...], by a network that is built like the student's."""
        return network(x, sigma, label)

    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """Return the student's loss or, in the teacher's turn, EDM's denoising loss (arXiv 2206.00364) with the term ``denoising``."""
        batch = Batch(batch.x, hidden_labels(batch.label, self.label_dropout, self.student.num_classes, rng))
        if turn == "student":
            if "teacher" in self.networks and self.networks["teacher"].training:
                self.networks["teacher"].eval()
            return self.student_loss(networks, batch, rng)
        x0 = batch.x
        sigma = lognormal_sigmas(len(x0), self.settings.own_sigma_mean, self.settings.own_sigma_std, rng, x0.device)
        x = x0 + expand_like(sigma, x0) * normal(x0.shape, rng)
        weight = expand_like(edm_weight(sigma, self.student.sigma_data), x0)
        loss = (weight * (self.denoise(networks["teacher"], x, sigma, batch.label) - x0).square()).mean()
        return LossOutput(loss, {"denoising": loss.detach()})

    def after_update(self, turn: str) -> None:
        """Count the update; when the run's own teacher has finished training, copy its weights into the student."""
        self.updates[turn] += 1
        if turn == "teacher" and self.has_taught_itself:
            self.networks["student"].load_state_dict(self.networks["teacher"].state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates of each turn so far."""
        return {"updates": dict(self.updates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.updates = dict(state["updates"])

    def shipped(self, network: nn.Module, method: str, step: int) -> Generator:
        """Return the student's generator with the weights of `network` or, until the student's first update, of the run's own teacher.

        `network`, the average, follows the student from that update on, and has its random initial weights before.
        """
        info = {**self.student.info, "method": method, "step": step, "label_dropout": self.label_dropout}
        has_begun = len(self.turns) == 1 or self.updates["student"] > 0
        return self.student.derive(self.student.sampler, info, network if has_begun else self.networks["teacher"])
