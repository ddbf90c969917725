"""Images in folders: whether a folder is read as such, which of its sub-folders are splits, and the class of an image, its sub-folder."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fewstep.data.checks import SHOWN, Kind, Mistakes
from fewstep.data.errors import DataError
from fewstep.data.metadata import speaks_for
from fewstep.data.origin import LeftOut, Origin
from fewstep.data.scanning import Parts, Scan, is_hidden
from fewstep.data.splits import CHUNK, EMPTY_CLASS, HELD_OUT, SPLIT_FOLDERS, TRAIN, Found, Split

# names of the only sub-folder of a split that do not stand for a class
NO_CLASS = {*SPLIT_FOLDERS, "unknown", "unlabelled", "unlabeled", "images", "image", "imgs", "img", "all", "data"}
SHARDS = (".tar", ".tar.gz", ".tgz")  # archives that may be WebDataset shards
SAVED = ("state.json", "dataset_dict.json")  # files that save_to_disk writes

STRAY = Kind("image{s} outside the class sub-folders", "put each into the sub-folder of its class, or set data.label_column: none")
EMPTY_FOLDER = Kind("class sub-folder{s} without an image", "fill or remove what is named")
ARCHIVE = Kind("archive{s} beside images that lie unpacked", "unpack what is not yet, if there is any")
ONLY_PLACE = Kind("metadata file{s} without a column of labels", "the class of an image is its sub-folder")


def is_of_images(scan: Scan, root: Path, label_column: str | None, source: str) -> bool:
    """Return whether the folder `root` is read as images in folders, not by `datasets` as tables, archives, or images with metadata.

    Raises DataError if the folder holds nothing to read, if both images and tables could be meant, and as
    `fewstep.data.metadata.speaks_for` does, if metadata would silently drop images.
    """
    if any((root / name).is_file() for name in SAVED):
        return False
    tables = [*scan.tables, *scan.archives, *scan.metadata]
    if not scan.images:
        if not tables:
            raise _nothing(scan, source)
        if scan.archives and not (scan.tables or scan.metadata or any(parts[-1].lower().endswith(SHARDS) for parts in scan.archives)):
            first, several = "/".join(scan.archives[0]), len(scan.archives) > 1
            raise DataError(
                f"{source}, which holds {len(scan.archives)} archive{'s' * several} ({first}{', ...' * several}) and no image that lies "
                f"unpacked; unpack {'them' if several else 'it'} there, and give data.path the folder of the images"
            )
        return False
    if (scan.tables or scan.archives) and _is_of_the_hub(root):
        return False
    if scan.tables:
        first = "/".join(scan.tables[0])
        raise DataError(
            f"{source}, which holds {len(scan.images)} images and {len(scan.tables)} table{'s' * (len(scan.tables) > 1)} ({first}), and "
            "either could be meant; give data.path the table itself or a folder of images alone, or move one of them away"
        )
    return not scan.metadata or not speaks_for(scan, root, label_column, source)


def _nothing(scan: Scan, source: str) -> DataError:
    if not scan.left_out:
        return DataError(f"{source}, an empty folder; put images into it, one sub-folder a class")
    others = "; ".join(str(LeftOut.of(kind, places)).removeprefix("left out: ") for kind, places in scan.left_out.items())
    return DataError(f"{source}, which holds no image that can be read, but {others}; put images into it, one sub-folder a class")


def _is_of_the_hub(root: Path) -> bool:
    """Return whether `root` has the README of a Hugging Face Hub data set that says how the data set is read."""
    try:
        with (root / "README.md").open(errors="replace") as file:
            head = file.read(1 << 16)
    except OSError:
        return False
    block = head.split("\n---", 1)[0] if head.startswith("---\n") else ""
    return any(line.startswith(("configs:", "dataset_info:")) for line in block.splitlines())


def folder_splits(root: Path, scan: Scan, classes: bool, mistakes: Mistakes) -> Found:
    """Return the splits among the images of `scan` in the folder `root`; with classes if `classes` is true and there are at least two.

    Of the splits beside the training split, the first of `HELD_OUT` is held out; one whose images lie in no class sub-folders is passed
    over if the training split has classes. Mistakes in the classes are recorded in `mistakes`. Raises DataError for a folder beside the
    splits that is not itself a split.
    """
    import pyarrow as pa

    split_of = _split_folders(scan.images, mistakes.source)
    rows = {name: [parts for parts in scan.images if split_of.get(parts[0], TRAIN) == name] for name in (TRAIN, *HELD_OUT)}
    places = {name: [parts[bool(split_of) : -1] for parts in some] for name, some in rows.items()}  # the sub-folders of each image
    alike = _alike(places[TRAIN]) if classes else 0
    words = {name: [place[-1 - alike] if len(place) > alike else None for place in some] for name, some in places.items()}
    classes = classes and any(words[TRAIN])
    if classes:
        mistakes.notes.extend(_taken_for_classes(places[TRAIN], alike))
    present = [name for name in HELD_OUT if rows[name]]
    passed = [name for name in present if classes and _is_unlabelled(words[name], set(words[TRAIN]))]
    held = next((name for name in present if name not in passed), None)
    used = [TRAIN, held] if held else [TRAIN]
    if passed and held is None:
        mistakes.notes.append(
            f"the images of {_folders(split_of, passed)} lie in no class sub-folders and have no labels, so data.holdout of "
            f"{_folders(split_of, [TRAIN])} is held out instead; put them into the sub-folders of their classes to hold them out, or set "
            "data.label_column: none to learn without classes and hold them out"
        )
    splits = []
    for name in used:

        def arrays(column: str, rows: list[Parts] = rows[name]) -> Iterator[Any]:
            for first in range(0, len(rows), 16 * CHUNK):
                yield pa.array([str(root.joinpath(*parts)) for parts in rows[first : first + 16 * CHUNK]], pa.string())

        splits.append(Split(name, {}, len(rows[name]), arrays, root))
    out = [_left_out_split(split_of, name, rows[name], passed, held) for name in present if name not in used]
    if classes:
        for name in used:
            mistakes.add_all(STRAY, ["/".join(parts) for parts, word in zip(rows[name], words[name], strict=True) if word is None])
    names = _class_names(root, scan.images, used, rows, words, split_of, mistakes) if classes else ()
    number = {name: k for k, name in enumerate(names)}
    labels = [torch.tensor([number.get(word or "", 0) for word in words[name]]) for name in used] if len(names) > 1 else []
    by = "the sub-folder" if len(names) > 1 else _no_classes(words[TRAIN], classes)
    origin = Origin(
        str(root),
        "file",
        scan.found,
        (*out, *_left_out(scan)),
        by,
        _folders(split_of, [TRAIN]) if split_of else "",
        f"{_folders(split_of, [held])}, which lies there as a split of its own" if held else "",
        _by_content(scan),
    )
    return Found(splits, "path", tuple(names) if len(names) > 1 else (), labels, origin, named=True)


def _split_folders(files: list[Parts], source: str) -> dict[str, str]:
    """Return the split of each top-level folder; empty if these folders are not splits.

    Raises DataError for a folder or an image that lies beside the splits and belongs to none.
    """
    tops = sorted({parts[0] for parts in files})  # top-level folders, and images directly in the root
    kinds = {top: SPLIT_FOLDERS.get(top.lower()) for top in tops}
    if list(kinds.values()) != [TRAIN] and not (TRAIN in kinds.values() and any(kind in HELD_OUT for kind in kinds.values())):
        return {}
    others = [top for top, kind in kinds.items() if kind is None]
    if others:
        raise DataError(
            f"{source}, where {others[0]!r} lies beside the splits {', '.join(top for top in tops if kinds[top])}; "
            f"take it elsewhere, or give data.path the folder of one split"
        )
    return {top: kind for top, kind in kinds.items() if kind}


def _alike(places: list[Parts]) -> int:
    """Return how many of the innermost folders have the same name for all images at `places`, in different folders, and tell no class.

    Such are the folders ``images`` in ``cat/images`` and ``dog/images``, so that 1 is returned there, and 0 for ``cat`` and ``dog``.
    """
    found = 0
    while places and min(map(len, places)) > found + 1 and len({place[-1 - found] for place in places}) == 1 and len(set(places)) > 1:
        found += 1
    return found


def _taken_for_classes(places: list[Parts], alike: int) -> Iterator[str]:
    """Yield notes on the classes of images at `places` that somebody may mean otherwise; `alike` is from `_alike`."""
    if alike:
        inner = "/".join(places[0][-alike:])
        yield f"all images lie in sub-folders called {inner}, and the class of an image is the folder above"
    of: dict[str, set[Parts]] = {}
    for place in places:
        if len(place) > alike:
            of.setdefault(place[-1 - alike], set()).add(place[: len(place) - alike])
    several = {word: sorted(found) for word, found in of.items() if len(found) > 1}
    if several:
        word, (first, second, *_) = next(iter(sorted(several.items())))
        yield (
            f"{len(several)} class{'es' * (len(several) > 1)} gathered from sub-folders of the same name ({word} from {'/'.join(first)}, "
            f"{'/'.join(second)}{', ...' * (len(several[word]) > 2)}): the class of an image is its innermost sub-folder; rename them if "
            "they are different classes"
        )


def _is_unlabelled(words: list[str | None], known: set[str | None]) -> bool:
    """Return whether the images of a split have no classes: all lie in no sub-folder, or all in one whose name stands for no class.

    `words` are the sub-folders of the images, and `known` are those of the training split, which always stand for classes.
    """
    found = set(words)
    only = next(iter(found)) if len(found) == 1 else ""
    return only is None or (only not in known and only.lower() in NO_CLASS)


def _class_names(
    root: Path,
    files: list[Parts],
    used: list[str],
    rows: dict[str, list[Parts]],
    words: dict[str, list[str | None]],
    split_of: dict[str, str],
    mistakes: Mistakes,
) -> list[str]:
    """Return the classes of the splits `used` in alphabetical order; mistakes in the classes are recorded in `mistakes`."""
    filled = {parts[:k] for parts in files for k in range(1, len(parts))}
    trained = {parts[:-1] for parts in rows[TRAIN] if len(parts) > (2 if split_of else 1)}
    for above in sorted({parts[:-1] for parts in trained}):
        inside = sorted(entry.name for entry in os.scandir(root.joinpath(*above)) if entry.is_dir() and not is_hidden(entry.name))
        mistakes.add_all(EMPTY_FOLDER, ["/".join((*above, name)) for name in inside if (*above, name) not in filled])
    names = sorted({word for name in used for word in words[name] if word is not None})
    mistakes.add_all(EMPTY_CLASS, [name for name in names if name not in set(words[TRAIN])])
    return names


def _folders(split_of: dict[str, str], names: list[str]) -> str:
    """Return the names of the folders of the splits `names`, as text for a message."""
    return " and ".join(f"{top}/" for top, split in split_of.items() if split in names)


def _left_out_split(split_of: dict[str, str], name: str, rows: list[Parts], passed: list[str], held: str | None) -> LeftOut:
    why = "without class sub-folders" if name in passed else f"which is not needed beside {_folders(split_of, [held or ''])}"
    kind = Kind(f"image{{s}} of {_folders(split_of, [name])}, {why}", "")
    return LeftOut.of(kind, ["/".join(parts) for parts in rows])


def _left_out(scan: Scan) -> list[LeftOut]:
    """Return the files in a folder of images that are not used as images."""
    archives = {ARCHIVE: ["/".join(parts) for parts in scan.archives], ONLY_PLACE: ["/".join(parts) for parts in scan.metadata]}
    return [LeftOut.of(kind, places) for kind, places in {**archives, **scan.left_out}.items() if places]


def _no_classes(words: list[str | None], wanted: bool) -> str:
    if not wanted:
        return "data.label_column is none" if any(words) else "the images lie in no sub-folders"
    return f"all images lie in the one sub-folder {next(word for word in words if word)}"


def _by_content(scan: Scan) -> tuple[str, ...]:
    if not scan.by_content:
        return ()
    num, names = len(scan.by_content), ", ".join("/".join(parts) for parts in scan.by_content[:SHOWN])
    verbs = "have none of the usual endings, and were" if num > 1 else "has none of the usual endings, and was"
    return (f"{num:,} of the images {verbs} told by content ({names}{', ...' * (num > SHOWN)}).",)
