"""Raw networks. Each has a package of its own, with its settings, which need no torch, and its module.

A network is an ``nn.Module`` made as ``Net(shape, num_classes, **its own settings)``, of one of three roles (`fewstep.sections.Role`):

    denoiser    ``F(x, c_noise, label)``: output like x [B, *shape] for c_noise [B] (``ln(sigma) / 4``) and label int64 [B], or None
                without classes; label ``num_classes`` means "no class"
    map         ``G(z, label)``: items [B, *shape] of noise z [B, latent], with an attribute ``latent``, the shape or length of z
    copy        a copy of the teacher's own network, for which there is no class here

The attribute ``takes`` of a denoiser network's settings names what the network supports beyond that:

    xi          a second noise: ``forward(..., xi=...)``, an attribute ``xi_shape``, and a constructor argument ``xi_channels``
    condition   a vector: ``forward(..., condition=...)`` [B, K], and a constructor argument ``condition`` = K; the condition's weights are
                0 at first, so that the network can start from the weights of one without a condition
    features    a method ``features(x, c_noise, label, levels)`` and an attribute ``feature_shapes``

An optional method ``zero_output()`` makes the output of an untrained network 0. An optional attribute ``tables`` names the parameters of
which each item trains one row only, and for which a method may use a larger learning rate.
"""

from typing import Any

from fewstep.sections import NetworkSettings

__all__ = ["NetworkSettings", "make_network", "num_parameters", "tables_of"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import fewstep.networks.base

        return getattr(fewstep.networks.base, name)
    raise AttributeError(f"module 'fewstep.networks' has no attribute {name!r}")
