"""DMD2's teacher, student and fake network: three copies of one network, or one network with low-rank adapters of their own (LoRA)."""

from typing import NamedTuple

from torch import nn

from fewstep.denoisers.adapted import Adapted, Slot
from fewstep.errors import UserError
from fewstep.generator import Generator, frozen
from fewstep.methods.dmd2.settings import LoRA
from fewstep.networks.base import dropout_of
from fewstep.pipelines.lora import TARGETS


class Roles(NamedTuple):
    """The denoisers of DMD2, which give equal estimates at the start."""

    teacher: nn.Module
    student: nn.Module
    fake: nn.Module


def roles(teacher: Generator, lora: LoRA | None, seed: int) -> Roles:
    """Return the denoiser of `teacher` in its three roles.

    Without `lora` the denoiser is copied for each role, but for the teacher's where its weights belong to a pipeline (``teacher.base``).
    With `lora` the roles share one network in memory, which `teacher` uses from then on, too, except the fake network where ``lora.fake``
    is "full"; `seed` sets the adapters' initial weights. Raises ValueError for a network that cannot take adapters.
    """
    if lora is None:
        teaches = frozen(teacher.denoiser) if teacher.base is None else teacher.denoiser.requires_grad_(False).eval()
        return Roles(teaches, _learning(teacher.denoiser), _learning(teacher.denoiser))
    if teacher.base is None:
        raise ValueError(
            "method.lora is for text-to-image models, of which a run keeps the changes alone; leave it out (null), and the whole network "
            "is trained"
        )
    if isinstance(teacher.denoiser, Adapted) and teacher.denoiser.tensors:
        raise ValueError(
            "method.teacher has low-rank changes (LoRA) of its own; give the pipeline that it was made from, or fuse them into it"
        )
    fake = _learning(teacher.denoiser) if lora.fake == "full" else None
    try:
        slot = Slot(teacher.denoiser, lora.rank, lora.targets or TARGETS[teacher.network_config["name"]])
    except UserError as error:
        raise ValueError(str(error)) from error
    teacher.denoiser = slot.as_it_is()
    return Roles(slot.as_it_is(), slot.adapted(2 * seed), fake or slot.adapted(2 * seed + 1))


def _learning(denoiser: nn.Module) -> nn.Module:
    """Return a copy of `denoiser` to train, without dropout, as published: a student is sampled without, and would make other samples."""
    copied = frozen(denoiser).requires_grad_(True).train()
    for layer in dropout_of(copied):
        layer.p = 0.0  # type: ignore[assignment]
    return copied
