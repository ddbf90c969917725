"""Feature networks in a TorchScript file: the Inception network of the FID, and any other network with the same interface.

The interface is that of the file NVIDIA publishes with StyleGAN and EDM: called with images uint8 [N, 3, H, W] of any size and
``return_features=True`` the network returns features [N, D], and does its own resizing. TorchScript is not Python, but code all the same:
it computes on tensors, and could read and write files. A file whose program does so is refused before any of it runs. (The ``.pkl`` that
EDM's own script takes is a pickle of the same network, which can run any code; it is refused.)
"""

import hashlib
import itertools
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import hub
from fewstep.files import at_home, sha256_of, whole_file
from fewstep.limits import TooLarge, check_expansion

INCEPTION = "inception-2015-12-05"
INCEPTION_URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION}.pt"
# 95,607,719 bytes; k-diffusion (crowsonkb) pins the same checksum, and the Hugging Face Hub reports it for several mirrors
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
BATCH = 64  # images at once: the network makes them 299 pixels wide, 4 MB each in its widest layer


# calls in the text of a TorchScript program that touch files, or operators that other libraries have registered
FORBIDDEN = re.compile(r"\b(?:from_file|save|PythonOp)\s*\(|\bops\.(?!(?:aten|prim|quantized)\b)\w+\.\w+")


class FeatureError(ValueError):
    """A feature network, a set of features or a file of statistics is missing or unusable; the message says what to change."""


def cache_folder() -> Path:
    """Return the folder of cached downloads and statistics: ``FEWSTEP_CACHE``, else ``fewstep`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if os.environ.get("FEWSTEP_CACHE"):
        return at_home(os.environ["FEWSTEP_CACHE"])
    return at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fewstep"


def to_bytes(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as uint8, as an image file holds them: ``x 127.5 + 128``, clipped to 0 and 255, rounded down (as in EDM)."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


class ScriptedFeatures:
    """A feature network in a TorchScript file with the interface that the module's docstring describes.

    Args:
        path: the file.
        name: name with which figures measured in its features are reported; None for the file's name.
        device: device on which the network runs.

    Attributes:
        sha256: SHA-256 of the file, which with the name identifies the network.
        dims: number of features of an image.
        rounds: True, for the network sees images in bytes, as an image file holds them.

    Raises FeatureError for a file that is no such network.

    """

    rounds = True

    def __init__(self, path: Path, name: str | None = None, device: torch.device | str = "cpu") -> None:
        if path.suffix == ".pkl":
            raise FeatureError(
                f"{path} is a pickle, which can run any code; give the TorchScript file of the same network, {INCEPTION_URL}"
            )
        if not path.is_file():
            raise FeatureError(f"there is no file {path}; give a TorchScript file (.pt), or `inception`")
        _check_code(path)
        self.name, self.sha256 = name or path.stem, sha256_of(path)
        try:
            self.network: Any = torch.jit.load(str(path), map_location=device).eval()
        except Exception as error:  # torch raises several kinds, by what the file is
            raise FeatureError(f"{path} is not TorchScript ({_first_line(error)}); give a file that torch.jit.save wrote") from error
        try:
            found = self.network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device=device), return_features=True)
            self.dims = int(found.reshape(2, -1).shape[1])
        except Exception as error:  # whatever the script raises
            raise FeatureError(
                f"{path} has another interface: called with uint8 [2, 3, 32, 32] and return_features=True it gave "
                f"{_first_line(error)!r}; it must give features [2, D]"
            ) from error

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features float32 [N, D] of images [N, C, H, W] in [-1, 1], converted to bytes first; a single channel is repeated to 3."""
        held = next(itertools.chain(self.network.parameters(), self.network.buffers()), images)
        pixels = to_bytes(images.to(held.device))
        if pixels.shape[1] == 1:
            pixels = pixels.repeat(1, 3, 1, 1)
        features = [self.network(part, return_features=True).float().flatten(1) for part in pixels.split(BATCH)]
        return torch.cat(features).to(images.device)


def _check_code(path: Path) -> None:
    """Raise FeatureError where the program in a TorchScript file touches files or calls other operators than torch's, before it runs.

    A feature network needs neither, and ``torch.from_file(name, shared=True)`` overwrites any file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            expanded = sum(member.file_size for member in archive.infolist())
            check_expansion(str(path), path.stat().st_size, expanded, "take another copy, from where it was published")
            programs = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")}
    except TooLarge as error:
        raise FeatureError(str(error)) from None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # torch.jit.load, which reads only what is read here, will say what is wrong
    for program in programs.values():
        if (found := FORBIDDEN.search(program)) is not None:
            raise FeatureError(
                f"{path} calls {found.group(0).rstrip('(').strip()}, which a feature network has no use for: such a file is code that "
                "runs; take another copy, from where it was published"
            )


def load_inception(device: torch.device | str = "cpu", say: Callable[[str], None] = lambda text: None) -> ScriptedFeatures:
    """Return the reference Inception network (D 2048), downloaded to the cache once and verified each time. Raises FeatureError."""
    path = fetch(INCEPTION_URL, INCEPTION_SHA256, cache_folder() / f"{INCEPTION}.pt", say)
    return ScriptedFeatures(path, INCEPTION, device)


def fetch(url: str, sha256: str, path: Path, say: Callable[[str], None] = lambda text: None) -> Path:
    """Return `path`, downloaded from `url` if there is no such file; a download appears complete and verified, or not at all.

    Raises FeatureError where the download fails, or where the downloaded or the existing file has another SHA-256 than `sha256`.
    """
    if path.is_file():
        if (found := sha256_of(path)) != sha256:
            raise FeatureError(f"{path} has SHA-256 {found}, not {sha256}; remove it, and it is downloaded again")
        return path
    say(f"downloading {url} into {path.parent}")
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    instead = f"fetch it on another machine and put it at {path}, or give its path"
    try:
        with hub.opened(url, url, 60, instead) as answer, whole_file(path) as file:
            while chunk := answer.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != sha256:
                raise FeatureError(f"{url} gave a file with SHA-256 {digest.hexdigest()}, not {sha256}; try again, or take another copy")
    except hub.NotHad as error:
        raise FeatureError(str(error)) from error
    except OSError as error:  # of the network, or of the disk
        raise FeatureError(f"{url} cannot be downloaded ({_first_line(error)}); {instead}") from error
    return path


def _first_line(error: BaseException) -> str:
    # the error of a script begins with the place in the program, and ends with what went wrong
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines and lines[0].startswith("The following operation failed") else lines[0] if lines else type(error).__name__)[
        :200
    ]
