"""A student along the probability flow, taught by whoever there is: a trained teacher, a closed form, the data, or itself.

With a share of the run set aside (``method.own_teacher``), a network like the student's first learns to denoise; the student then starts
from it, and it stays as it is, to teach. What the student learns is the method's own.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.generator import Generator, frozen
from fewstep.maths.flow import stage_at
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.maths.schedules import lognormal_sigmas
from fewstep.methods.base import Batch, LossOutput, Method, Networks, Turn, hidden_labels
from fewstep.streams import normal


class SelfTaught(Method):
    """A method with a student, and a teacher that may be its own.

    Args:
        settings: of the method.
        student: the generator to train, in place; untrained, or with a teacher's weights.
        steps: of the run.
        teacher: a trained teacher, which stays in the run folder.
        real: a closed form that teaches in its place.

    """

    ships = "student"

    def __init__(
        self, settings: Any, student: Generator, steps: int = 1, teacher: Generator | None = None, real: nn.Module | None = None
    ) -> None:
        self.settings, self.student, self.steps, self.teacher = settings, student, steps, teacher
        self.networks = {"student": student.denoiser.train()}
        self.turns = (Turn("student", ("student",), settings.optimizer, begins=settings.own_teacher),)
        if settings.own_teacher:
            self.networks["teacher"] = frozen(student.denoiser).requires_grad_(True).train()
            self.turns = (Turn("teacher", ("teacher",), settings.own_optimizer, ends=settings.own_teacher), *self.turns)
        elif (guide := real or (teacher.denoiser if teacher else None)) is not None:
            self.networks["teacher"] = frozen(guide)
        self.label_dropout = settings.label_dropout if student.num_classes else 0.0
        self.updates = {turn.name: 0 for turn in self.turns}

    @property
    def kept_teacher(self) -> Generator | None:
        """The trained teacher, if there is one."""
        return self.teacher

    @property
    def stage(self) -> int:
        """The stage that the student is at, of those that its part of the run is divided into."""
        own = self.turns[-1].updates(self.steps)
        return stage_at(self.updates["student"] / max(1, own), self.settings.stages, self.settings.first_stage)

    @property
    def has_taught_itself(self) -> bool:
        """Whether there was nothing to learn before the student, or it is learned."""
        return len(self.turns) == 1 or self.updates["teacher"] >= self.turns[0].updates(self.steps)

    @property
    def best_from(self) -> float:
        """The last third of the student's stages."""
        return 1 - (1 - self.settings.own_teacher) / 3

    @abstractmethod
    def student_loss(self, networks: Networks, batch: Batch, rng: torch.Generator) -> LossOutput:
        """The loss of the student on one batch, whose labels are hidden here and there already."""

    def denoise(self, network: Any, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """The estimate of x0 by a network like the student's, like `x`."""
        return network(x, sigma, label)

    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """The student's loss; or the teacher's own, EDM's of denoising, with the term ``denoising``."""
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
        """Count; and when the teacher has learned, the student starts from it."""
        self.updates[turn] += 1
        if turn == "teacher" and self.has_taught_itself:
            self.networks["student"].load_state_dict(self.networks["teacher"].state_dict())

    def state_dict(self) -> dict[str, Any]:
        """How many updates there have been."""
        return {"updates": dict(self.updates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.updates = dict(state["updates"])

    def shipped(self, network: nn.Module, method: str, step: int) -> Generator:
        """The student with its sampler, of the weights in `network`; while its teacher still learns, that one."""
        info = {**self.student.info, "method": method, "step": step, "label_dropout": self.label_dropout}
        return self.student.derive(self.student.sampler, info, network if self.has_taught_itself else self.networks["teacher"])
