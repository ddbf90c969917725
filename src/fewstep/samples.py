"""Write samples into a file, for the command line: a grid as a picture, or arrays, written batch by batch as they are drawn."""

import contextlib
import math
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.class_labels import Labels
from fewstep.data.errors import DataError
from fewstep.data.prompt_files import read_prompts
from fewstep.drawing import asked
from fewstep.errors import Interrupted, UserError
from fewstep.files import replace_file, whole_file
from fewstep.generator import Generator
from fewstep.limits import GRID_PIXELS
from fewstep.quantities import short
from fewstep.training.progress import Progress

PLACE = 64  # pixels to which a VAE decodes one position of a latent: 8 x 8
LABELS = 1 << 16  # labels that are written together


def check_out(out: Path) -> None:
    """Raise UserError where `out`, given as ``--out``, is not a .png or .npz file in a folder that exists."""
    if out.suffix not in (".png", ".npz"):
        raise UserError(f"--out is {out}; allowed are a name that ends in .png (a grid) or .npz (arrays)")
    if not out.parent.is_dir():
        raise UserError(f"--out is {out}, but there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise UserError(f"--out is {out}, which is a folder; give the name of a file")


def asked_prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """Return the prompts `given` on the command line, and after them those in `file`, as often as they stand there.

    Raises UserError where the file cannot be read.
    """
    if file is None:
        return list(given)
    try:
        found = read_prompts(file)
    except DataError as error:
        raise UserError(str(error)) from error
    return [*given, *(found.texts[row] for row in found.rows)]


def check_asked(num: int, labels: Sequence[int | str] | None, prompts: Sequence[str]) -> None:
    """Raise UserError where `num` samples are fewer than the `labels` or `prompts` that were asked for, so that some would not be drawn."""
    for option, wanted in (("--labels", labels or ()), ("--prompt and --prompts", prompts)):
        if wanted and len(wanted) > num:
            raise UserError(f"-n is {num}, and {option} ask for {len(wanted)} samples; give -n {len(wanted)} or more, or ask for fewer")


def write_samples(generator: Generator, num: int, out: Path, labels: Labels, prompts: Sequence[str] = (), **options: Any) -> None:
    """Draw `num` samples into the file `out`: a .png with a grid, or a .npz with ``samples`` [num, *shape] and ``labels`` int64 [num].

    A text-to-image generator draws samples for `prompts`, in turn, or for the rows of its table of prompts; in a grid each sample has its
    prompt below it, and a .npz holds latents. A .npz is written batch by batch, so that only one batch is in memory. `options` are those of
    `Generator.sample`, which would draw the same samples. The file is written atomically (`fewstep.files`).

    Raises:
        UserError: for arguments that the generator does not allow, for more samples than a grid can hold, and for too little disk space.
        Interrupted: after SIGINT, SIGTERM or SIGHUP, with `out` unchanged.
        OSError: where writing fails, with `out` unchanged.

    """
    if prompts:
        if labels is not None:
            raise UserError("--labels and --prompt are both given; give one of them")
        with asked(generator, prompts, num):
            _write(generator, num, out, None, prompts, options)
    else:
        _write(generator, num, out, labels, _texts(generator, num, labels) if out.suffix == ".png" else (), options)


def _texts(generator: Generator, num: int, labels: Labels) -> list[str]:
    """Return the prompt of each of `num` samples with `labels`; empty for a generator without a table of prompts."""
    texts = getattr(getattr(generator.told, "prompts", None), "texts", None)
    rows = None if texts is None else generator.labels(num, labels)
    return [] if texts is None or rows is None else [texts[row] for row in rows.tolist()]


def _write(generator: Generator, num: int, out: Path, labels: Labels, texts: Sequence[str], options: dict[str, Any]) -> None:
    """Do the work of `write_samples`; `texts` are the samples' prompts, in turn, to be written into a grid."""
    if out.suffix == ".png":
        places = PLACE if generator.latents is not None else 1
        if num > (most := GRID_PIXELS // (places * math.prod(generator.shape[1:]))):
            raise UserError(f"-n is {num:,}; a grid holds at most {most:,} of these samples: give fewer, or an --out that ends in .npz")
        _write_grid(generator.pixels(generator.sample(num, labels, **options)).cpu(), out, texts)
        return
    dtype = np.dtype(np.float32) if generator.units is None else torch.empty(0, dtype=generator.units.dtype).numpy().dtype
    classes = generator.num_classes is not None
    _check_room(num, math.prod(generator.shape) * dtype.itemsize + 8 * classes, out)
    batches, drawn = generator.batches(num, labels, **options), 0
    progress = Progress("drawing", num)

    def parts() -> Iterator[NDArray[Any]]:
        nonlocal drawn
        for batch in batches:
            yield batch.cpu().numpy().astype(dtype, copy=False)
            drawn += len(batch)
            progress.advance(len(batch))

    def label_parts() -> Iterator[NDArray[Any]]:
        for first in range(0, num, LABELS):
            part = generator.labels(min(LABELS, num - first), labels, first)
            assert part is not None
            yield part.numpy()

    try:
        with _stopping(), whole_file(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            progress.begin()
            _write_member(archive, "samples", (num, *generator.shape), dtype, parts())
            if classes:
                _write_member(archive, "labels", (num,), np.dtype(np.int64), label_parts())
    except KeyboardInterrupt:
        raise Interrupted(f"stopped after {drawn:,} of {num:,} samples, of which none is kept; {out} was not written") from None
    finally:
        progress.close()


def _write_member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], parts: Iterator[NDArray[Any]]) -> None:
    """Write an array of `shape` into a .npz `archive`, its rows in `parts`, in the format of numpy.savez."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part).data)


def _check_room(num: int, each: int, out: Path) -> None:
    """Raise UserError where the disk has no room for `num` samples of `each` bytes beside the old file `out`, which is replaced last."""
    needed, free = num * each + 4096, shutil.disk_usage(out.parent).free
    if needed > free:
        raise UserError(
            f"-n is {num:,}: so many samples take {short(needed, 'B')}, and the disk of {out.parent} has {short(free, 'B')} free; "
            f"give at most {max(0, free - 4096) // each:,}, or an --out on another disk"
        )


def _write_grid(samples: torch.Tensor, out: Path, texts: Sequence[str]) -> None:
    from fewstep.viz.plots import captioned, image_grid, scatter

    content = BytesIO()
    if samples.ndim == 2:
        scatter(samples, content)
    elif texts:
        captioned(samples, [texts[number % len(texts)] for number in range(len(samples))]).save(content, format="png")
    else:
        image_grid(samples, columns=10 if len(samples) <= 200 else 20).save(content, format="png")
    replace_file(out, content.getvalue())


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise KeyboardInterrupt inside the block, as Ctrl-C does, so that unfinished files are removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: dict[int, Callable[..., Any] | int | None] = {}
    with contextlib.suppress(ValueError):  # outside the main thread signal handlers cannot be set
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name):  # Windows has no SIGHUP
                number = getattr(signal, name)
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
