"""Where the log goes besides metrics.jsonl: wandb or tensorboard, both optional."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fewstep.errors import UserError
from fewstep.files import replace_file


class Tracker(Protocol):
    """Takes what the loop logs."""

    def log(self, record: Mapping[str, Any]) -> None:
        """One record of metrics.jsonl; its ``step`` is the axis."""
        ...

    def image(self, path: Path, step: int) -> None:
        """A grid of samples, already saved at `path`."""
        ...

    def close(self) -> None:
        """The run ends."""
        ...


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in record.items() if isinstance(value, int | float) and key != "step"}


class NoTracker:
    """metrics.jsonl is enough."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Nothing."""

    def image(self, path: Path, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class WandbTracker:
    """Weights & Biases, in the mode that WANDB_MODE says (``offline`` needs no account); its files go into the run folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self.wandb = wandb
        # one id a folder, so that a resumed run goes on with its own curves
        self.run = wandb.init(project="fewstep", dir=str(folder), name=folder.name, config=dict(config), resume="allow", id=_run_id(folder))

    def log(self, record: Mapping[str, Any]) -> None:
        """Numbers under their own names."""
        self.run.log(_numbers(record), step=record["step"])

    def image(self, path: Path, step: int) -> None:
        """Under "samples"."""
        self.run.log({"samples": self.wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


def _run_id(folder: Path) -> str:
    """A run id kept in `folder`: made once."""
    import secrets

    file = folder / "wandb_id"
    if not file.exists():
        replace_file(file, secrets.token_hex(8).encode())
    return file.read_text()


class TensorBoardTracker:
    """TensorBoard event files in the run folder's ``tensorboard``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, record: Mapping[str, Any]) -> None:
        """Numbers under their own names."""
        for key, value in _numbers(record).items():
            self.writer.add_scalar(key, value, record["step"])

    def image(self, path: Path, step: int) -> None:
        """Under "samples"."""
        import numpy as np
        from PIL import Image

        self.writer.add_image("samples", np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is buffered."""
        self.writer.close()


def check_tracker(name: str) -> None:
    """Raise UserError where the package that the tracker called `name` needs is not installed."""
    package = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}.get(name)
    try:
        if package:
            importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"trainer.tracker is {name!r}, which is not installed: pip install 'fewstep[{name}]'") from error


def make_tracker(name: str, folder: Path, config: Mapping[str, Any]) -> Tracker:
    """The tracker called `name` for the run in `folder`. Raises UserError as `check_tracker` does."""
    check_tracker(name)
    if name == "wandb":
        return WandbTracker(folder, config)
    if name == "tensorboard":
        return TensorBoardTracker(folder)
    return NoTracker()
