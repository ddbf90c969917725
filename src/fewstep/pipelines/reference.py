"""Models that stand on a pipeline's network: their folders name the pipeline, and hold only low-rank adapters (LoRA) for its network.

The adapters lie in the file, and under the names, that stock diffusers loads: ``pytorch_lora_weights.safetensors``.
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

INSIDE = "network."  # prefix that the names of diffusers have inside a denoiser


@dataclass(frozen=True)
class Base:
    """The pipeline's network that a model stands on.

    Attributes:
        model: the pipeline's folder or Hub id.
        weights: checksum of the pipeline's network, see `weights_id`.
        rank: rank of the low-rank adapters; None for the network without adapters.
        targets: names of the layers that have adapters, or endings of such names.

    """

    model: str
    weights: str
    rank: int | None = None
    targets: tuple[str, ...] = ()

    @classmethod
    def of(cls, tree: Any) -> "Base":
        """Return the `Base` that `tree`, the entry ``base`` of a config.json, describes. Raises ValueError for anything else."""
        if not isinstance(tree, Mapping) or not isinstance(tree.get("model"), str) or not isinstance(tree.get("weights"), str):
            raise ValueError(f"base is {tree!r}; it names no model and weights")
        rank, targets = tree.get("rank"), tree.get("targets") or ()
        if not (rank is None or (type(rank) is int and rank > 0)) or not all(isinstance(target, str) for target in targets):
            raise ValueError(f"base has rank {rank!r} and targets {targets!r}; give a whole number and names of layers")
        return cls(tree["model"], tree["weights"], rank, tuple(targets))

    @property
    def config(self) -> dict[str, Any]:
        """The entry ``base`` of config.json."""
        return {**asdict(self), "targets": list(self.targets)}

    def changed_by(self, denoiser: nn.Module) -> "Base":
        """Return the same network with the rank and targets of `denoiser`'s adapters, or without adapters where it has none."""
        if not isinstance(denoiser, Adapted) or denoiser.tensors is None:
            return Base(self.model, self.weights)
        return Base(self.model, self.weights, denoiser.slot.rank, denoiser.slot.targets)


def read_based(base: Base, folder: Path, sigma_data: float) -> nn.Module:
    """Return the denoiser of the model in `folder`: the network of `base` with the low-rank adapters in `folder`, and without prompts.

    Raises UserError where the pipeline cannot be found, its network has changed, or the adapters do not fit the network.
    """
    try:
        place = network_folder(base.model)
        theirs = weights_id(place)
    except UserError as error:
        raise UserError(
            f"it is based on the network of {base.model}, which cannot be loaded ({error}); if that has moved, write its new place into "
            "config.json, as base.model and latents.model"
        ) from error
    if theirs != base.weights:
        raise UserError(
            f"it is based on the network of {base.model} as it was in training, which has changed since; restore the former one"
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
    """Return the low-rank adapters of `denoiser`, if it has any, under diffusers' names, such as ``unet.LAYER.lora_A.weight``."""
    tensors = (denoiser.tensors or {}) if isinstance(denoiser, Adapted) else {}
    return {f"{name.removeprefix(INSIDE)}.weight": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def read_changes(path: Path) -> dict[str, Tensor]:
    """Read low-rank adapters from a file that holds `file_tensors`, under their names inside a denoiser.

    Raises OSError and ValueError for a file that cannot be read or holds numbers that are not finite.
    """
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
