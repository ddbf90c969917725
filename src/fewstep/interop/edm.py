"""Import of the published EDM checkpoints (Karras et al. 2022, arXiv 2206.00364) as model folders, without running anything in them.

An official file ``NAME.pkl`` is a pickle of ``{"ema": net, "augment_pipe", "loss_fn", "dataset_kwargs"}``. Each network in it carries the
source text of its module, which `pickle` would run; `fewstep.interop.inert_pickle` ignores that text, and returns the attributes of the
network: its constructor's arguments, its parameters, buffers and sub-modules.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.files import check_free, whole_folder, write_file
from fewstep.generator import Generator
from fewstep.interop.inert_pickle import InertTensor, Record, Refused, read_pickle, shown
from fewstep.weights import check_finite

LARGEST = 2 << 30  # bytes; the largest official file has 1.2e9
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LICENCE = "CC BY-NC-SA 4.0 (of the official EDM checkpoints)"
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # noise levels of the published samples (Table 1)
MAGICS = {
    b"PK\x03\x04": "a zip archive, as torch.save writes it since 1.6",
    b"PK\x05\x06": "an empty zip archive",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\x89HDF": "an HDF5 file",
    b"<": "a text of HTML or XML, such as the error page of a download",
    b"version https://git-lfs": "a pointer of git-lfs in place of the file",
}

# the constructor arguments of the official classes EDMPrecond and SongUNet, in order, with their defaults
PRECONDITIONING: dict[str, Any] = {
    "img_resolution": None,
    "img_channels": None,
    "label_dim": 0,
    "use_fp16": False,
    "sigma_min": 0.0,
    "sigma_max": math.inf,
    "sigma_data": 0.5,
    "model_type": "DhariwalUNet",
}
UNET: dict[str, Any] = {
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.10,
    "label_dropout": 0.0,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
# the arguments that tell the two forms of EDMUNet apart; both forms have decoder_type "standard"
FORMS: dict[str, dict[str, Any]] = {
    "ddpmpp": {"embedding_type": "positional", "encoder_type": "standard", "channel_mult_noise": 1, "resample_filter": [1, 1]},
    "ncsnpp": {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]},
}


@dataclass(frozen=True)
class Imported:
    """What an imported checkpoint held.

    Attributes:
        kind: the classes of its network, in words.
        form: the network's form, a key of `FORMS`.
        shape: (C, H, W) of one image.
        num_classes: number of classes; None for an unconditional network.
        parameters: number of parameters.
        sha256: checksum of the file.
        data: name of the data set that the network was trained on.

    """

    kind: str
    form: str
    shape: tuple[int, ...]
    num_classes: int | None
    parameters: int
    sha256: str
    data: str


def import_edm(path: Path, out: Path) -> Imported:
    """Import the network of the official EDM pickle `path` (its key "ema") into the model folder `out`, as float32.

    `out` is written whole or not at all, and `fewstep.load` opens it. Nothing in the file is run, no module that it names is imported, and
    the source text that it carries is not read. The sampler of `out` is the paper's: Heun's method from noise level 80 to 0.002 (or the
    network's own limits, where these are narrower) with rho 7, in 18 levels for images of up to 32x32, else in 40.

    Raises:
        UserError: for a file that is not an official EDM pickle, that holds anything other than numbers, text, containers, tensors and
            modules, or whose network `fewstep.networks.edm_unet.EDMUNet` cannot represent; and for a folder `out` that is not empty.

    """
    check_free(out)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give an official EDM checkpoint, such as edm-cifar10-32x32-cond-vp.pkl")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; at most {LARGEST:,} are read, and the largest official file has 1.2e9")
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        _check_magic(data)
        root = read_pickle(data)
        del data
        generator, network, found = _network(root, path.stem)
        weights = _weights(network, generator)
        try:
            check_finite(weights)
        except ValueError as error:
            raise Refused(f"cannot be used: {error}") from None
    except Refused as error:
        raise UserError(
            f"{path} {error}. It was not imported, and nothing in it was run; give an official EDM checkpoint (NAME.pkl), "
            "from where it was published"
        ) from None
    generator.info |= {"imported_from": path.name, "sha256": sha256}
    _write(out, generator.config, weights)
    parameters = sum(weights[name].numel() for name, _ in generator.named_parameters())
    return Imported(**found, shape=generator.shape, num_classes=generator.num_classes, parameters=parameters, sha256=sha256)


def _check_magic(data: bytes) -> None:
    """Raise Refused for a file whose first bytes show that it is no pickle."""
    if not data:
        raise Refused("is empty")
    for magic, what in MAGICS.items():
        if data.startswith(magic):
            raise Refused(f"is {what}, and no pickle")
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        raise Refused("is a safetensors file, and no pickle")


def _network(root: Any, stem: str) -> tuple[Generator, Record, dict[str, str]]:
    """Return (a generator without weights for the network in the file, that network, its classes, form and data in words).

    Raises Refused for a file that holds anything but a network of a known form.
    """
    if not isinstance(root, dict) or "ema" not in root:
        raise Refused(f"holds {_held(root)}, where official checkpoints have a dictionary with the network under 'ema'")
    net = root["ema"]
    if not isinstance(net, Record) or net.state is None:
        raise Refused(f"has {shown(net)} under 'ema', where official checkpoints have a network")
    if net.kind != "EDMPrecond":
        raise Refused(f"has a network of class {shown(net.kind)}; only EDMPrecond can be imported")
    outer = _arguments(net, tuple(PRECONDITIONING))
    inner = {key: value for key, value in outer.items() if key not in PRECONDITIONING}
    outer = PRECONDITIONING | {key: value for key, value in outer.items() if key in PRECONDITIONING}
    if outer["model_type"] == "DhariwalUNet":
        raise Refused("has a network of class DhariwalUNet (the ADM network of ImageNet-64), which is not supported yet; only SongUNet is")
    model = _part(net, "_modules").get("model")
    if outer["model_type"] != "SongUNet" or not isinstance(model, Record) or model.kind != "SongUNet":
        raise Refused(f"has model_type {shown(outer['model_type'])} with {shown(model)} inside; only SongUNet can be imported")
    if unknown := sorted(set(inner) - set(UNET)):
        raise Refused(f"has a SongUNet with the argument {shown(unknown[0])}, which is not known; known are {', '.join(UNET)}")
    inner = UNET | inner
    size = _whole("img_resolution", outer["img_resolution"], 4, 1024)
    shape = (_whole("img_channels", outer["img_channels"], 1, 16), size, size)
    classes = _whole("label_dim", outer["label_dim"], 0, 100_000) or None
    form = _form(inner)
    network = {
        "name": "edm_unet",
        "form": form,
        "channels": _whole("model_channels", inner["model_channels"], 4, 2048),
        "multipliers": _wholes("channel_mult", inner["channel_mult"], 1, 16, 8),
        "blocks": _whole("num_blocks", inner["num_blocks"], 1, 32),
        "attention": _wholes("attn_resolutions", inner["attn_resolutions"], 1, 1024, 8),
        "dropout": _number("dropout", inner["dropout"], 0, 1),
        "augment_dim": _whole("augment_dim", inner["augment_dim"], 0, 1024),
    }
    sampler = {
        "name": "heun",
        "steps": 18 if size <= 32 else 40,  # as the published samples, which take 35 and 79 network evaluations
        # the official sampler keeps to the noise levels that the network supports
        "sigma_min": max(SIGMA_MIN, _number("sigma_min", outer["sigma_min"], 0, 1)),
        "sigma_max": min(SIGMA_MAX, _number("sigma_max", outer["sigma_max"], 1, math.inf)),
        "rho": RHO,
    }
    data, names = _data_set(root, stem, classes, size)
    info = {
        "method": "teacher",
        "data": data,
        "class_names": list(names),
        "label_dropout": _number("label_dropout", inner["label_dropout"], 0, 1),
        "licence": LICENCE,
    }
    sigma_data = _number("sigma_data", outer["sigma_data"], 1e-3, 1e3)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):  # tensors with names and shapes that take no memory
            generator = Generator(shape, classes, sigma_data, network, sampler, info)
    except ValueError as error:
        raise Refused(f"has a network that cannot be made: {error}") from error
    return generator, net, {"kind": f"{net.kind} of a {model.kind}", "form": form, "data": data}


def _held(root: Any) -> str:
    if isinstance(root, dict):
        return f"a dictionary with the keys {', '.join(shown(key) for key in list(root)[:8]) or 'of none'}"
    return shown(root)


def _arguments(net: Record, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the constructor arguments of `net` by name. Raises Refused where the file does not hold them."""
    assert net.state is not None
    positional, named = net.state.get("_init_args"), net.state.get("_init_kwargs")
    if not isinstance(positional, list | tuple) or not isinstance(named, dict) or len(positional) > len(names):
        raise Refused(f"has a network of class {net.kind} that does not say what it was made with (_init_args, _init_kwargs)")
    return dict(zip(names, positional, strict=False)) | named


def _form(arguments: Mapping[str, Any]) -> str:
    """Return which form in `FORMS` the arguments of a SongUNet have. Raises Refused, naming the first argument that fits neither form."""
    for key, value in {"decoder_type": "standard", "channel_mult_emb": 4}.items():
        if arguments[key] != value:
            raise Refused(f"has a SongUNet with {key} {shown(arguments[key])}; only {value} can be imported")
    form = "ncsnpp" if arguments["embedding_type"] == FORMS["ncsnpp"]["embedding_type"] else "ddpmpp"
    for key, value in FORMS[form].items():
        got = list(arguments[key]) if isinstance(arguments[key], tuple) else arguments[key]
        if got != value:
            pairs = " or ".join(", ".join(f"{k} {v}" for k, v in known.items()) for known in FORMS.values())
            raise Refused(f"has a SongUNet with {key} {shown(got)}; what can be imported is {pairs}")
    return form


def _whole(key: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise Refused(f"has a network with {key} {shown(value)}; allowed are whole numbers from {low} to {high:,}")
    return value


def _wholes(key: str, value: Any, low: int, high: int, most: int) -> list[int]:
    if not isinstance(value, list | tuple) or len(value) > most:
        raise Refused(f"has a network with {key} {shown(value)}; allowed are up to {most} whole numbers")
    return [_whole(key, entry, low, high) for entry in value]


def _number(key: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refused(f"has a network with {key} {shown(value)}; allowed are numbers from {low:g} to {high:g}")
    return float(value)


def _data_set(root: Mapping[str, Any], stem: str, classes: int | None, size: int) -> tuple[str, tuple[str, ...]]:
    """Return (name, class names) of the data set that the network was trained on, from the file's dataset_kwargs and its name."""
    settings = root.get("dataset_kwargs")
    place = settings.get("path") if isinstance(settings, dict) else None
    place = place if isinstance(place, str) else ""
    if size == 32 and re.search("cifar-?10(?!0)", f"{stem} {place}".lower()):
        return "cifar10", CIFAR10 if classes == len(CIFAR10) else ()
    return shown(re.split(r"[/\\]", place)[-1].removesuffix(".zip") or stem), ()


def _weights(net: Record, generator: Generator) -> dict[str, Tensor]:
    """Return all weights of `generator` from `net`, in float32. Raises Refused where names or shapes differ or a number is not finite."""
    found, prefix = dict(_tensors(net)), "denoiser.network."
    wanted = {name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    for names, what in ((set(wanted) - set(found), "lacks"), (set(found) - set(wanted), "has, beside those of its network,")):
        if names:
            first = ", ".join(shown(name) for name in sorted(names)[:3])
            raise Refused(f"{what} {len(names)} of the tensors that its arguments ask for, such as {first}")
    weights = {}
    for name, shape in wanted.items():
        inert = found[name]
        if inert.shape != shape or not inert.storage.dtype.is_floating_point:
            raise Refused(
                f"has {name} as {inert.storage.dtype} of shape {list(inert.shape)}; its arguments ask for floats of {list(shape)}"
            )
        weights[prefix + name] = inert.tensor().float()
        if not math.isfinite(weights[prefix + name].sum(dtype=torch.float64)):  # no sum of finite float32 overflows; faster than isfinite()
            raise Refused(f"has numbers in {name} that are not finite")
    return weights


def _tensors(net: Record) -> Iterator[tuple[str, InertTensor]]:
    """Yield (name, tensor) of each parameter and persistent buffer of `net`, named as in a state dict.

    Raises Refused where `net` is not a tree of modules.
    """
    waiting, seen = [("", net)], {id(net)}
    while waiting:
        prefix, module = waiting.pop()
        passing = (module.state or {}).get("_non_persistent_buffers_set", [])
        for kind in ("_parameters", "_buffers"):
            for name, value in _part(module, kind).items():
                if value is None or (kind == "_buffers" and isinstance(passing, list) and name in passing):
                    continue
                if not isinstance(value, InertTensor):
                    raise Refused(f"has {shown(value)} where the tensor {shown(prefix + name)} should be")
                yield prefix + name, value
        for name, value in _part(module, "_modules").items():
            if value is None:
                continue
            if not isinstance(value, Record) or id(value) in seen:
                what = "the same module twice" if isinstance(value, Record) else f"{shown(value)} for a module"
                raise Refused(f"has {what}, at {shown(prefix + name)}")
            seen.add(id(value))
            waiting.append((f"{prefix}{name}.", value))


def _part(module: Record, key: str) -> dict[str, Any]:
    """Return the dictionary `key`, such as ``_parameters``, that every torch module has. Raises Refused where `module` lacks it."""
    part = (module.state or {}).get(key)
    if not isinstance(part, dict):
        raise Refused(f"has a {shown(module.kind)} without {key}, which every torch module has")
    return part


def _write(out: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write the model folder `out`, config.json and weights, whole or not at all."""
    from safetensors.torch import save_file

    with whole_folder(out) as folder:
        save_file(dict(weights), folder / "model.safetensors")
        write_file(folder / "config.json", json.dumps(dict(config), indent=2).encode())
