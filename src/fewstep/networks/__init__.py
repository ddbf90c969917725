"""Raw networks, each a room of its own: its settings, which need no torch, and the module.

A network is an ``nn.Module`` made as ``Net(shape, num_classes, **its own settings)``, of one of three roles (`fewstep.sections.Role`):

    denoiser    ``F(x, c_noise, label)``: like x [B, *shape] for c_noise [B] (``ln(sigma) / 4``) and label int64 [B], or None
                without classes; label ``num_classes`` means "no class"
    map         ``G(z, label)``: items [B, *shape] of noise z [B, latent], with an attribute ``latent``, its shape or length
    copy        the teacher's own network, which no class makes

What a denoiser's network can be given besides, it names in its settings' ``takes``:

    xi          a second noise: ``forward(..., xi=...)``, an attribute ``xi_shape``, made with an argument ``xi_channels``
    condition   a vector: ``forward(..., condition=...)`` [B, K], made with an argument ``condition`` = K; it enters with weight 0 at
                first, so that a network without one can give it its weights
    features    a method ``features(x, c_noise, label, levels)`` and an attribute ``feature_shapes``

A method ``zero_output()``, where there is one, makes an untrained network silent. An attribute ``tables`` names the parameters of which one
item teaches a row alone, and which a method may have learn faster.
"""

from typing import Any

from fewstep.sections import NetworkSettings

__all__ = ["NetworkSettings", "make_network", "num_parameters", "tables_of"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import fewstep.networks.base

        return getattr(fewstep.networks.base, name)
    raise AttributeError(f"module 'fewstep.networks' has no attribute {name!r}")
