"""Data sets as somebody from outside would write them: no import of fewstep."""

import os
import random
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset


class Patches(Dataset):
    """Images [1, 8, 8] of one brightness, in two classes, dark and light."""

    class_names = ("dark", "light")

    def __init__(self, size: int = 80, fail: str = "", kind: Literal["bytes", "floats"] = "bytes") -> None:
        self.size, self.fail, self.kind = size, fail, kind

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, k: int):
        level = (k * 37) % 256
        if self.kind == "bytes":
            return torch.full((1, 8, 8), level, dtype=torch.uint8), int(level > 127)
        return torch.full((1, 8, 8), level / 127.5 - 1), torch.tensor(int(level > 127))


class Noisy(Patches):
    """Each item is drawn anew whenever it is asked for, from three generators."""

    def __getitem__(self, k: int):
        x, label = super().__getitem__(k)
        return x.float() / 127.5 - 1 + 0.01 * torch.randn(1, 8, 8).clamp(
            -0.5, 0.5
        ) - 0.001 * random.random() - 0.001 * np.random.rand(), label


class Plane(Dataset):
    """Points in the plane, the number of each in its first coordinate."""

    def __init__(self, size: int = 200) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, k: int):
        return torch.tensor([float(k), 1.0])


def circle(size: int, scale: float, offset: list[float], seed: int = 0):
    """Four Gaussians on a circle, float64 [size, 2], in other units."""
    rng = np.random.default_rng(seed)
    angle = np.pi / 2 * rng.integers(4, size=size)
    centred = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.standard_normal((size, 2))
    return torch.from_numpy(scale * centred + np.array(offset))


class Circle(Dataset):
    """Points on a circle, by number."""

    def __init__(self, scale: float = 1.0, offset: list[float] = [0.0, 0.0], size: int = 400) -> None:  # noqa: B006
        self.x = circle(size, scale, offset)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int):
        return self.x[k]


class CircleFeed(IterableDataset):
    """The same one after another, counting how often it was begun."""

    def __init__(self, scale: float = 1.0, offset: list[float] = [0.0, 0.0], size: int = 400) -> None:  # noqa: B006
        self.x = circle(size, scale, offset)

    def __iter__(self):
        return iter(self.x)


class Flat(Circle):
    """Its second column is constant, or its twentieth point is not finite."""

    def __init__(self, what: Literal["constant", "nan"] = "constant") -> None:
        super().__init__()
        if what == "constant":
            self.x[:, 1] = 3.0
        else:
            self.x[20, 0] = float("nan")


class Halves(Plane):
    """It has a held-out part of its own."""

    def __init__(self, split: Literal["train", "heldout"] = "train") -> None:
        super().__init__(60 if split == "train" else 50)
        self.first = 0 if split == "train" else 1000

    def __getitem__(self, k: int):
        return torch.tensor([float(self.first + k), 0.0])


class Feed(IterableDataset):
    """Numbers one after another; `states` makes it say where it stands."""

    def __init__(self, size: int = 60) -> None:
        self.size, self.position = size, 0

    def __iter__(self):
        while self.position < self.size:
            self.position += 1
            yield {"x": torch.tensor([float(self.position - 1), 2.0]), "note": "words"}
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Plain:
    """The same without a state."""

    def __init__(self, size: int = 60) -> None:
        self.size = size

    def __iter__(self):
        return ({"x": torch.tensor([float(k), 2.0])} for k in range(self.size))


class Listed:
    """Items as they are given, whatever they are."""

    items: ClassVar[list] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, k: int):
        return self.items[k]


class Nothing:
    """No data set."""


class Broken(Plane):
    """It cannot be made."""

    def __init__(self) -> None:
        raise FileNotFoundError("no such folder: data")


def shards(folder: str):
    """Parquet files of numbers, in streaming form."""
    import datasets

    files = sorted(str(file) for file in Path(folder).glob("*.parquet"))
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True).with_format("torch")


class OneFails(Patches):
    """In the second of several processes an item cannot be read."""

    def __getitem__(self, k: int):
        if os.environ.get("LOCAL_RANK") == "1" and k == 30:
            raise OSError("the disk is gone")
        return super().__getitem__(k)


class FailsLater(Patches):
    """In the fourth step of a run, if the file `fail` is there: it knows the step by what is drawn there for the first time."""

    def __getitems__(self, places: list[int]):
        from fewstep.streams import stream_seed

        if self.fail and Path(self.fail).exists() and torch.initial_seed() == stream_seed(0, "items", 3, 0, 0):
            raise OSError("the disk is gone")
        return [super(FailsLater, self).__getitem__(k) for k in places]
