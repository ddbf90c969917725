"""Experiment trackers that get the log beside metrics.jsonl: Weights & Biases (wandb) or TensorBoard, both optional."""

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
    """The interface of an experiment tracker to the training loop."""

    def begin(self, step: int) -> None:
        """Get ready for what follows `step`, 0 at the start of a run. What was logged after it is made again, and must not stand twice."""
        ...

    def log(self, record: Mapping[str, Any]) -> None:
        """Log one record of metrics.jsonl, at its ``step``."""
        ...

    def image(self, path: Path, step: int) -> None:
        """Log the picture of samples that is saved at `path`."""
        ...

    def alarm(self, name: str, message: str, step: int) -> None:
        """Log an alarm, at the step at which it is first raised."""
        ...

    def close(self) -> None:
        """Finish logging at the end of the run."""
        ...


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in record.items() if isinstance(value, int | float) and key != "step"}


class NoTracker:
    """A tracker that logs nothing, for runs that keep only metrics.jsonl."""

    def begin(self, step: int) -> None:
        """Do nothing."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def image(self, path: Path, step: int) -> None:
        """Do nothing."""

    def alarm(self, name: str, message: str, step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class WandbTracker:
    """A tracker that logs to Weights & Biases, in the mode given by WANDB_MODE (``offline`` needs no account).

    wandb's files go into the run folder. Raises UserError where the wandb run cannot be started.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self.wandb, self.first = wandb, 0
        where = config.get("trainer", {}).get("wandb") or {}
        if _is_offline() and list((folder / "wandb").glob("offline-run-*")):
            sys.stderr.write(
                f"note: wandb is offline, and keeps this part of the run in a folder of its own; `wandb sync --append {folder}/wandb/"
                "offline-run-*` puts the parts into one\n"
            )
        try:
            # one run id per folder, so that a resumed run continues its curves
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

    def begin(self, step: int) -> None:
        """Pass over the steps that the wandb run has already: it takes none a second time, and would warn of each."""
        self.first = self.run.step if self.run.resumed else 0

    def log(self, record: Mapping[str, Any]) -> None:
        """Log the numbers in `record` under their own names."""
        if record["step"] >= self.first:
            self.run.log(_numbers(record), step=record["step"])

    def image(self, path: Path, step: int) -> None:
        """Log the picture at `path` under the key "samples"."""
        if step >= self.first:
            self.run.log({"samples": self.wandb.Image(str(path))}, step=step)

    def alarm(self, name: str, message: str, step: int) -> None:
        """Send the alarm as a wandb alert, which the account may forward, and log its message under ``alarm/NAME``."""
        if step < self.first:
            return
        self.run.alert(title=name, text=f"step {step}: {message}")
        self.run.log({f"alarm/{name}": message}, step=step)

    def close(self) -> None:
        """Finish the wandb run."""
        self.run.finish()


def _run_id(folder: Path) -> str:
    """Return the wandb run id stored in `folder`; a new one is made and stored if there is none."""
    import secrets

    file = folder / "wandb_id"
    if not file.exists():
        replace_file(file, secrets.token_hex(8).encode())
    return file.read_text()


class TensorBoardTracker:
    """A tracker that writes TensorBoard event files into the run folder's subfolder ``tensorboard``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"
        self.writer: Any = None

    def begin(self, step: int) -> None:
        """Open a new event file, by which TensorBoard forgets what earlier ones have logged after `step`."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def log(self, record: Mapping[str, Any]) -> None:
        """Log the numbers in `record` under their own names, those of one turn as a group."""
        for key, value in _numbers(record).items():
            self.writer.add_scalar(key.replace(".", "/", 1), value, record["step"])

    def image(self, path: Path, step: int) -> None:
        """Log the picture at `path` under the tag "samples"."""
        import numpy as np

        with opened(path) as image:
            self.writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def alarm(self, name: str, message: str, step: int) -> None:
        """Log the alarm's message as text under the tag ``alarms/NAME``."""
        self.writer.add_text(f"alarms/{name}", message, step)

    def close(self) -> None:
        """Write all buffered events, and close the event file."""
        if self.writer is not None:
            self.writer.close()


def _is_offline() -> bool:
    return os.environ.get("WANDB_MODE", "").lower() in ("offline", "dryrun", "disabled")


def check_tracker(name: str) -> None:
    """Raise UserError where the package of the tracker called `name` is not installed, or wandb is online and has no API key."""
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
    """Return the tracker called `name` ("wandb", "tensorboard" or "none") for the run in `folder`.

    `config` is the recipe, which wandb records with the run. Raises UserError as `check_tracker` does.
    """
    check_tracker(name)
    if name == "wandb":
        return WandbTracker(folder, config)
    return TensorBoardTracker(folder) if name == "tensorboard" else NoTracker()
