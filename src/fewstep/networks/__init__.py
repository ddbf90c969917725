"""Raw networks ``F(x, c_noise, label)``, made by name from plain arguments."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def make_network(config: Mapping[str, Any], shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
    """Build the network that `config` names (key ``name``; the other keys are its arguments) for data [B, *shape].

    Raises ValueError for an unknown name or arguments that do not fit together.
    """
    arguments = dict(config)
    name = arguments.pop("name")
    if name == "unet":
        from fewstep.networks.unet import UNet

        return UNet(shape, num_classes, **arguments)
    if name == "edm_unet":
        from fewstep.networks.edm_unet import EDMUNet

        return EDMUNet(shape, num_classes, **arguments)
    if name == "unet2d":
        from fewstep.networks.unet2d import UNet2D

        return UNet2D(shape, num_classes, **arguments)
    if name == "latent_unet":
        from fewstep.networks.unet import LatentUNet

        return LatentUNet(shape, num_classes, **arguments)
    if name == "dit":
        from fewstep.networks.dit import DiT

        return DiT(shape, num_classes, **arguments)
    from fewstep.networks import mlp

    kinds = {"mlp": mlp.MLP, "latent_mlp": mlp.LatentMLP, "coded_mlp": mlp.CodedMLP}
    if name in kinds:
        return kinds[name](shape, num_classes, **arguments)
    raise ValueError(
        f"network.name is {name!r}; allowed: 'unet', 'latent_unet', 'edm_unet', 'unet2d', 'dit', {', '.join(map(repr, kinds))}"
    )
