"""Models that stand on a pipeline's network: their folders name it, and hold what they change of it alone (LoRA).

The changes lie in the file, and under the names, that stock diffusers loads: ``pytorch_lora_weights.safetensors``.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.denoisers.adapted import Adapted, Slot
from fewstep.errors import UserError, first_line
from fewstep.pipelines.denoiser import described, network_folder, read_denoiser, weights_id
from fewstep.weights import LORA_FILE

INSIDE = "network."  # of a denoiser, what diffusers calls the network is inside this


@dataclass(frozen=True)
class Base:
    """The network that a model stands on.

    Attributes:
        model: the pipeline's folder or Hub id.
        weights: what tells its network from any other, see `weights_id`.
        rank: of the changes; None for the network as it is.
        targets: layers that are changed.

    """

    model: str
    weights: str
    rank: int | None = None
    targets: tuple[str, ...] = ()

    @classmethod
    def of(cls, tree: Any) -> "Base":
        """What config.json says of it. Raises ValueError."""
        if not isinstance(tree, Mapping) or not isinstance(tree.get("model"), str) or not isinstance(tree.get("weights"), str):
            raise ValueError(f"base is {tree!r}; it names no model and weights")
        rank, targets = tree.get("rank"), tree.get("targets") or ()
        if not (rank is None or (type(rank) is int and rank > 0)) or not all(isinstance(target, str) for target in targets):
            raise ValueError(f"base has rank {rank!r} and targets {targets!r}; give a whole number and names of layers")
        return cls(tree["model"], tree["weights"], rank, tuple(targets))

    @property
    def config(self) -> dict[str, Any]:
        """As config.json has it."""
        return {**asdict(self), "targets": list(self.targets)}

    def changed_by(self, denoiser: nn.Module) -> "Base":
        """The same network with the changes of `denoiser`, or without any."""
        if not isinstance(denoiser, Adapted) or denoiser.tensors is None:
            return Base(self.model, self.weights)
        return Base(self.model, self.weights, denoiser.slot.rank, denoiser.slot.targets)


def read_based(base: Base, folder: Path, sigma_data: float) -> nn.Module:
    """The denoiser of the model in `folder`: the network of `base`, with the changes that lie there. It has no prompts yet.

    Raises UserError where the pipeline is not where it was, or another, and for changes that do not fit it.
    """
    try:
        place = network_folder(base.model)
        theirs = weights_id(place)
    except UserError as error:
        raise UserError(f"{folder} stands on the network of {base.model}, which cannot be had: {error}") from error
    if theirs != base.weights:
        raise UserError(
            f"{folder} stands on the network of {base.model} as it was in training, and what is there now is another; put the former back"
        )
    denoiser = read_denoiser(described(place), None, sigma_data)
    if base.rank is None:
        return denoiser
    adapted = Slot(denoiser, base.rank, base.targets).adapted(0)
    try:
        adapted.load_tensors(read_changes(folder / LORA_FILE))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / LORA_FILE} cannot be used ({first_line(error)}); take another copy of the model") from error
    return adapted.requires_grad_(False)


def file_tensors(denoiser: nn.Module) -> dict[str, Tensor]:
    """The changes of `denoiser`, if it has some, by the names that diffusers has for them: ``unet.LAYER.lora_A.weight`` and so on."""
    tensors = (denoiser.tensors or {}) if isinstance(denoiser, Adapted) else {}
    return {f"{name.removeprefix(INSIDE)}.weight": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def read_changes(path: Path) -> dict[str, Tensor]:
    """What `file_tensors` gave, from a file, by the names of the places. Raises ValueError and OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    bad = next((name for name, tensor in found.items() if not tensor.isfinite().all()), None)
    if bad is not None:
        raise ValueError(f"{bad} holds numbers that are not finite")
    return {INSIDE + name.removesuffix(".weight"): tensor for name, tensor in found.items()}
