"""Where the log goes besides metrics.jsonl: wandb or tensorboard, both optional."""

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fewstep.errors import UserError, first_line
from fewstep.files import replace_file
from fewstep.pil import opened


class Tracker(Protocol):
    """Takes what the loop logs."""

    def log(self, record: Mapping[str, Any]) -> None:
        """One record of metrics.jsonl; its ``step`` is the axis."""
        ...

    def image(self, path: Path, step: int) -> None:
        """A grid of samples, already saved at `path`."""
        ...

    def alarm(self, name: str, message: str, step: int) -> None:
        """An alarm that was raised for the first time."""
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

    def alarm(self, name: str, message: str, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class WandbTracker:
    """Weights & Biases, in the mode that WANDB_MODE says (``offline`` needs no account); its files go into the run folder.

    Raises UserError where it cannot begin.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self.wandb = wandb
        where = config.get("trainer", {}).get("wandb") or {}
        if _is_offline() and list((folder / "wandb").glob("offline-run-*")):
            sys.stderr.write(
                f"note: wandb is offline, and keeps this part of the run in a folder of its own; `wandb sync --append {folder}/wandb/"
                "offline-run-*` puts the parts into one\n"
            )
        try:
            # one id a folder, so that a resumed run goes on with its own curves
            self.run = wandb.init(
                project=where.get("project", "fewstep"),
                entity=where.get("entity"),
                tags=where.get("tags") or None,
                dir=str(folder),
                name=folder.name,
                config=dict(config),
                resume="allow",
                id=_run_id(folder),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"trainer.tracker is 'wandb', which cannot begin ({first_line(error)}); nothing is lost: go on with --resume, and with "
                "WANDB_MODE=offline, or trainer.tracker=none"
            ) from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Numbers under their own names."""
        self.run.log(_numbers(record), step=record["step"])

    def image(self, path: Path, step: int) -> None:
        """Under "samples"."""
        self.run.log({"samples": self.wandb.Image(str(path))}, step=step)

    def alarm(self, name: str, message: str, step: int) -> None:
        """As an alert, which the account's settings may send on, and in the log."""
        self.run.alert(title=name, text=f"step {step}: {message}")
        self.run.log({f"alarm/{name}": message}, step=step)

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
        """Numbers under their own names, a turn's in one group."""
        for key, value in _numbers(record).items():
            self.writer.add_scalar(key.replace(".", "/", 1), value, record["step"])

    def image(self, path: Path, step: int) -> None:
        """Under "samples"."""
        import numpy as np

        with opened(path) as image:
            self.writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def alarm(self, name: str, message: str, step: int) -> None:
        """As a text under "alarms"."""
        self.writer.add_text(f"alarms/{name}", message, step)

    def close(self) -> None:
        """Write what is buffered."""
        self.writer.close()


def _is_offline() -> bool:
    return os.environ.get("WANDB_MODE", "").lower() in ("offline", "dryrun", "disabled")


def check_tracker(name: str) -> None:
    """Raise UserError where the package that the tracker called `name` needs is not installed, or wandb has no account to send to."""
    package = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}.get(name)
    try:
        if package:
            importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"trainer.tracker is {name!r}, which is not installed: pip install 'fewstep[{name}]'") from error
    if name == "wandb" and not _is_offline():
        import wandb

        if not wandb.api.api_key:
            raise UserError(
                "trainer.tracker is 'wandb', and there is no key of an account; run `wandb login`, set WANDB_API_KEY, or set "
                "WANDB_MODE=offline"
            )


def make_tracker(name: str, folder: Path, config: Mapping[str, Any]) -> Tracker:
    """The tracker called `name` for the run in `folder`. Raises UserError as `check_tracker` does."""
    check_tracker(name)
    if name == "wandb":
        return WandbTracker(folder, config)
    if name == "tensorboard":
        return TensorBoardTracker(folder)
    return NoTracker()
