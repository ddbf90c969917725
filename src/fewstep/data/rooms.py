"""Data from the data set that a recipe names: one of this package's classes is used unchanged; others are wrapped and read on request."""

from collections.abc import Callable
from typing import Any, get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from fewstep.data.density import Density
from fewstep.data.errors import DataError
from fewstep.data.images import ImageData
from fewstep.data.items import BEYOND
from fewstep.data.iterables import StreamData, stream_data
from fewstep.data.own import ForeignData, Say, is_map_style, item_data
from fewstep.data.points import PointData
from fewstep.data.prompts import PromptData
from fewstep.data.units import Units
from fewstep.sections import DataSettings

OF_ITEMS, OF_STREAMS = ("holdout",), ("heldout_items", "buffer")


def opened(settings: DataSettings, make: Callable[[DataSettings], Any], say: Say) -> ImageData | PointData | PromptData | ForeignData:
    """Return the data that `make` gives for `settings`; `say` is called with each assumption that was made.

    A data set whose argument ``split`` can be "heldout" (``Literal["train", "heldout"]``) is made a second time for its held-out part.
    Raises DataError if `make` returns something other than a data set, or for keys of `settings` that do not apply to the data.
    """
    made, around = make(settings), settings.around()
    standardize = around.get("standardize")
    name = settings.name.rpartition(":")[2]
    if isinstance(made, ImageData | PointData | PromptData | ForeignData):
        if around:
            raise DataError(f"data.{next(iter(around))} is given, and {settings.name} sets that itself; leave the key out")
        if isinstance(made, StreamData | ImageData) and made.note:
            say(made.note)
        return made
    iterable = not is_map_style(made)
    if iterable and (not hasattr(made, "__iter__") or isinstance(made, str | dict)):
        raise DataError(
            f"the data set {settings.name} gives a {type(made).__name__}; a data set has __len__ and __getitem__, or __iter__"
            + ("; give one of its splits" if isinstance(made, dict) else "")
        )
    for key in OF_ITEMS if iterable else OF_STREAMS:
        if key in around:
            kind = "an iterable" if iterable else "a data set with a length"
            instead = "data.heldout_items" if iterable else "data.holdout"
            raise DataError(f"data.{key} is {around[key]}, and {settings.name} is {kind}; leave the key out, or give {instead}")
    other = _heldout_arguments(settings, around)
    heldout = None if other is None else make(_changed(settings, other))
    rest = {key: value for key, value in around.items() if key not in ("heldout", "standardize")}
    if iterable:
        stream = stream_data(made, name, heldout, **rest)
        notes = [stream.note] if stream.note else []
        data: ForeignData = stream
    else:
        notes, data = [], item_data(made, name, heldout, **rest, say=say)
    if data.spec.bytes:
        notes.append(f"{name}: images are bytes; 0 to 255 is mapped to [-1, 1]")
    for note in notes:
        say(note)
    _into_units(data, settings, standardize)
    return data


def check_made(data: Any, name: str) -> None:
    """Raise DataError where `data`, which the user's own data set `name` has made in memory, is not what its class describes."""
    if not isinstance(data, ImageData | PointData):
        return
    of, ndim = f"the data set {name} gives {type(data).__name__}", 4 if isinstance(data, ImageData) else 2
    for split in ("train", "heldout"):
        x = getattr(data, split)
        if not isinstance(x, Tensor) or x.ndim != ndim or not len(x) or x.shape[1:] != data.train.shape[1:]:
            what = f"of shape {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            form = "[N, C, H, W]" if ndim == 4 else "[N, D]"
            raise DataError(f"{of}, whose {split} is {what}; give a tensor {form} with items, of one shape in both parts")
    if isinstance(data, PointData):
        if data.train.dtype != torch.float32 or data.heldout.dtype != torch.float32:
            raise DataError(f"{of}, whose points are {data.train.dtype} and {data.heldout.dtype}; give torch.float32 in both parts")
        for key, kind in (("density", Density), ("units", Units)):
            if not isinstance(getattr(data, key), kind | None):
                raise DataError(f"{of}, whose {key} is a {type(getattr(data, key)).__name__}; give None (points have no labels)")
        return
    if getattr(data, "latents", None) is None:
        _check_scale(data, of)
    for split in ("train", "heldout"):
        label: Any = data.labels(split)
        if not data.class_names and label is None:
            continue
        if not (
            data.class_names and isinstance(label, Tensor) and label.dtype == torch.int64 and label.shape == (len(getattr(data, split)),)
        ):
            raise DataError(
                f"{of} with {len(data.class_names)} class name(s), and {split}_label is not the class of each item; give torch.int64 "
                f"[{len(getattr(data, split))}], or with no class names None"
            )
        if label.min() < 0 or label.max() >= len(data.class_names):
            raise DataError(
                f"{of} with {len(data.class_names)} class names, and {split}_label has numbers from {label.min()} to {label.max()}; they "
                f"must be 0 to {len(data.class_names) - 1}"
            )


def _check_scale(data: ImageData, of: str) -> None:
    """Raise DataError where the images of `data` leave [-1, 1], as those do that were not scaled."""
    for x in (data.train, data.heldout):
        if (x.dtype == torch.uint8) is (data.half is None) or not (x.dtype == torch.uint8 or x.is_floating_point()):
            raise DataError(
                f"{of}, whose images are {x.dtype} with half {data.half}; give bytes (torch.uint8) with half 127.5, or floats with None"
            )
        low, high = (float(end) if data.half is None else float(end) / data.half - 1 for end in x.aminmax())
        if not (low >= -BEYOND and high <= BEYOND):  # of NaN, too
            raise DataError(f"{of}, whose images lie in [{low:.3g}, {high:.3g}], where images lie in [-1, 1]; scale them")


def _into_units(data: ForeignData, settings: DataSettings, standardize: bool | None) -> None:
    """Convert the points of `data` to standard units, unless `standardize` is False or the recorded run used none.

    The units are those of the run that is resumed, or else they are found in the data. Raises DataError if `standardize` is set for images,
    or if the recorded units are invalid.
    """
    if len(data.shape) != 1:
        if standardize is not None:
            raise DataError(
                f"data.standardize is {standardize}, and the items of {settings.name} are images, in [-1, 1]; leave the key out"
            )
        return
    known = settings.recorded_units
    if standardize is not False and known != {}:
        try:
            units = Units.of(known) if known else None
        except ValueError as error:
            raise DataError(f"config.json of the run's model is damaged: {error}") from None
        data.standardize(units)


def _heldout_arguments(settings: DataSettings, around: dict[str, Any]) -> dict[str, Any] | None:
    """Return the arguments with which the data set makes its held-out part; None if there are none."""
    if "heldout" in around:
        return dict(around["heldout"])
    split = type(settings).model_fields.get("split")
    if split is not None and "heldout" in get_args(split.annotation) and getattr(settings, "split", None) != "heldout":
        return {"split": "heldout"}
    return None


def _changed(settings: DataSettings, arguments: dict[str, Any]) -> DataSettings:
    try:
        return type(settings).model_validate({**settings.model_dump(), **arguments})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"data.heldout is {arguments}, whose key {where} will not do: {first['msg']}") from None
