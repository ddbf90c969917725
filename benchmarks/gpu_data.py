"""Find CIFAR-10 for `gpu.py`, and decode its images once, because each piece reads them again."""

import json
import sys
from pathlib import Path

import torch

from fewstep.build import load_data
from fewstep.data.cifar import ARCHIVE, FOLDER, META, RECORDS, TEST, TRAIN
from fewstep.data.images import ImageData
from fewstep.errors import UserError
from fewstep.files import replace_folder, write_file
from fewstep.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
WHERE = (
    "get train-00000-of-00001.parquet and test-00000-of-00001.parquet of the data set uoft-cs/cifar10 from huggingface.co (folder "
    f"plain_text), or {ARCHIVE} from cs.toronto.edu/~kriz/cifar.html, put them into a folder, and name it by --data"
)


def found_data() -> Path | None:
    """Return the nearest ``shared/data/cifar10`` beside the repository or above it; None if there is none."""
    return next((p for above in (ROOT, *ROOT.parents) if (p := above / "shared" / "data" / "cifar10").is_dir()), None)


def why_not(data: Path | None) -> str | None:
    """Return why the folder `data` cannot be CIFAR-10, and what to do; None if it looks like CIFAR-10."""
    if data is None:
        return f"there is no CIFAR-10 here: {WHERE}"
    if not data.is_dir():
        return f"--data is {data}, which is no folder: {WHERE}"
    if is_official(data) or any(data.glob("*.parquet")) or any(entry.is_dir() for entry in data.iterdir()):
        return None
    return f"--data is {data}, which holds no CIFAR-10: {WHERE}"


def is_official(data: Path) -> bool:
    """Whether the authors' binary version lies in `data`, as an archive or unpacked."""
    return any((data / name).exists() for name in (ARCHIVE, FOLDER, TEST))


def overrides(data: Path | None, out: Path, tiny: bool) -> list[str]:
    """Return the data section of a recipe, as overrides; decoded or tiny images are written below `out` if they are missing.

    Raises UserError for data of another size than CIFAR-10's.
    """
    if tiny:
        folder = tiny_images(out / "tiny_images")
        return ["data=" + json.dumps({"name": "images", "path": str(folder), "size": 8, "channels": 3, "resize": "none", "holdout": 0.5})]
    assert data is not None
    folder = data if is_official(data) else decoded(data, out / "cifar10")
    return ["data=" + json.dumps({"name": "cifar10", "dir": str(folder), "flip": True})]


def decoded(data: Path, folder: Path) -> Path:
    """Return `folder` with the images at `data` as the authors' binary files, written if they are missing.

    These files are read in seconds, where a table of encoded images takes half a minute.
    """
    if not (folder / TEST).is_file():
        given = {"name": "images", "path": str(data), "size": 32, "channels": 3, "resize": "none"}
        read = load_data(load_recipe("teacher/cifar10_small", [("data", given)]).data)
        assert isinstance(read, ImageData)
        write_plain(read, folder)
    return folder


def write_plain(read: ImageData, folder: Path) -> None:
    """Write `read`, of CIFAR-10's size, as the files of the authors' binary version. Raises UserError for another size."""
    sizes = [len(read.train), len(read.heldout)]
    if sizes != [len(TRAIN) * RECORDS, RECORDS] or read.num_classes != 10 or read.shape != (3, 32, 32):
        found = f"{sizes[0]:,} and {sizes[1]:,} images {list(read.shape)} of {read.num_classes or 'no'} classes"
        raise UserError(f"{read.name} has {found}, and CIFAR-10 has 50,000 and 10,000 images [3, 32, 32] of 10 classes: {WHERE}")
    assert read.train_label is not None
    assert read.heldout_label is not None
    with replace_folder(folder) as partial:
        for pixels, labels, names in ((read.train, read.train_label, TRAIN), (read.heldout, read.heldout_label, (TEST,))):
            records = torch.cat([labels.to(torch.uint8)[:, None], pixels.flatten(1)], 1)
            for name, part in zip(names, records.split(RECORDS), strict=True):
                write_file(partial / name, part.numpy().tobytes())
        write_file(partial / META, "\n".join(read.class_names).encode())


def tiny_images(folder: Path) -> Path:
    """Return `folder` with sixty random 8x8 images of each of ten colours, a sub-folder a class, written if it is missing."""
    if not folder.exists():
        from PIL import Image

        rng = torch.Generator().manual_seed(0)
        sys.stderr.write(f"note: --tiny: pictures of chance are made in {folder}\n")
        with replace_folder(folder) as partial:
            for label in range(10):
                (partial / f"class_{label}").mkdir()
                for number in range(60):
                    noise = torch.randint(0, 60, (8, 8, 3), generator=rng)
                    pixels = (noise + torch.tensor([19 * label, 190 - 19 * label, 90])).to(torch.uint8)
                    Image.fromarray(pixels.numpy()).save(partial / f"class_{label}" / f"{number}.png")
    return folder
