"""Checkpoints in the official EDM layout, written by `pickle` itself from stand-ins for the modules that the official code pickles from.

The stand-ins are in `sys.modules` while a file is written, and never while one is read.
"""

import contextlib
import io
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import torch
from torch import nn


class Persistent:
    """An object that is pickled as torch_utils.persistence does: its attributes, and the source text of its class."""

    source = "raise SystemExit('the source text was run')"

    def __init__(self, kind, state, version=6):
        self.kind, self.state, self.version = kind, state, version

    def __reduce__(self):
        function = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
        meta = {"type": "class", "version": self.version, "module_src": self.source, "class_name": self.kind, "state": self.state}
        return function, (meta,), None


def _reconstruct_persistent_obj(meta):
    raise AssertionError("only written, never read")


class EasyDict(dict):
    """As dnnlib's: attributes are items, so that its own __dict__ is empty."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@contextlib.contextmanager
def _official_modules():
    """The names `torch_utils.persistence` and `dnnlib.util`, for the time of writing."""
    places = {_reconstruct_persistent_obj: "torch_utils.persistence", EasyDict: "dnnlib.util"}
    names = {"torch_utils", "dnnlib", *places.values()}
    sys.modules |= {name: types.ModuleType(name) for name in names}
    for thing, place in places.items():
        setattr(sys.modules[place], thing.__name__, thing)
        thing.__module__ = place
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        for thing in places:
            thing.__module__ = __name__


def official_bytes(content, protocol=4):
    """`content` pickled as the official code does."""
    with _official_modules():
        stream = io.BytesIO()
        pickle.dump(content, stream, protocol=protocol)
    return stream.getvalue()


# attributes of the official classes; numpy scalars lie in each block and in the arguments of some convolutions
EXTRA = {
    "UNetBlock": {"skip_scale": np.sqrt(0.5), "num_heads": 0, "adaptive_scale": False, "dropout": 0.13},
    "Conv2d": {"up": False, "down": False, "_init_kwargs": {"init_weight": np.sqrt(0.2), "init_mode": "xavier_uniform"}},
}


def official_network(tensors, arguments, kind="EDMPrecond", inner="SongUNet"):
    """A network of the official classes around `tensors` {official name: tensor}, made with the keyword `arguments`."""

    def module(prefix, kind):
        inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        own = {name: tensor for name, tensor in inside.items() if "." not in name}
        buffers = {name: tensor for name, tensor in own.items() if name in ("resample_filter", "freqs")}
        children = dict.fromkeys(name.split(".")[0] for name in inside if "." in name)
        if kind == inner:
            children |= {"map_noise": None}  # of one form it has no tensors
        modules = OrderedDict((name, module(f"{prefix}{name}.", named(prefix, name))) for name in children)
        if kind == "ModuleDict":
            container = nn.ModuleDict()
            container._modules.update(modules)
            return container
        state = nn.Module().__dict__ | {"_init_args": (), "_init_kwargs": {}, "training": False} | EXTRA.get(kind, {})
        state["_parameters"] = OrderedDict((name, nn.Parameter(own[name], requires_grad=False)) for name in own if name not in buffers)
        state["_buffers"] = OrderedDict(buffers or {"resample_filter": None})
        state["_modules"] = modules
        return Persistent(kind, state)

    def named(prefix, name):
        if prefix == "":
            return inner
        if name in ("enc", "dec"):
            return "ModuleDict"
        if prefix in ("model.enc.", "model.dec.") and "aux" not in name and "conv" not in name:
            return "UNetBlock"
        return "GroupNorm" if "norm" in name else "Linear" if name.startswith(("map", "affine")) else "Conv2d"

    network = module("", kind)
    network.state |= {"_init_kwargs": dict(arguments), "sigma_min": 0, "sigma_max": float("inf")}
    return network


FORMS = {
    "ddpmpp": {"embedding_type": "positional", "encoder_type": "standard", "channel_mult_noise": 1, "resample_filter": [1, 1]},
    "ncsnpp": {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]},
}


def official_arguments(form="ddpmpp", **others):
    """What the official training script gives a network for CIFAR-10; those of `others` that are `...` are left out."""
    arguments = {
        "img_resolution": 32,
        "img_channels": 3,
        "label_dim": 10,
        "use_fp16": False,
        "model_type": "SongUNet",
        "decoder_type": "standard",
        "model_channels": 128,
        "channel_mult": [2, 2, 2],
        "augment_dim": 9,
        "dropout": 0.13,
        **FORMS[form],
        **others,
    }
    return {key: value for key, value in arguments.items() if value is not ...}


def official_content(network, path="datasets/cifar10-32x32.zip"):
    """The dictionary that an official file holds, around a network of `official_network`."""
    loss = Persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5, "_init_args": (), "_init_kwargs": {}})
    augment = Persistent("AugmentPipe", {"p": 0.12, "xflip": 1e8, "yflip": 1, "_init_args": (), "_init_kwargs": {"p": 0.12}})
    settings = EasyDict(class_name="training.dataset.ImageFolderDataset", path=path, use_labels=True, xflip=False, resolution=32)
    return {"ema": network, "loss_fn": loss, "augment_pipe": augment, "dataset_kwargs": settings}


def scattered(tensors, seed=0):
    """Other weights of the same names and shapes: normal, of standard deviation 0.1."""
    rng = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(tensor.shape, generator=rng) for name, tensor in tensors.items()}
