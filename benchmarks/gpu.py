"""Run everything that needs a GPU, in pieces of at most eight minutes: each call resumes where the last one stopped and lists what is left.

    python benchmarks/gpu.py --budget 540          on a machine with a GPU: as many pieces as nine minutes allow
    python benchmarks/gpu.py --list                the pieces, and the state of each
    python benchmarks/gpu.py --only teacher        this piece alone, even if it has failed before
    python benchmarks/gpu.py --tiny                every piece at a small size, on the CPU

The pieces, in this order: the GPU tests; time and memory of a training step of the small U-Net and of EDM's network; a teacher of
CIFAR-10; its one-step student and the student's figures; its flow map and the flow map's figures; the steps of an SDXL-shaped network.

Each piece has a process and a folder of its own under --out, and writes result rows there while it works; results/gpu.json gathers the
rows of all pieces every few seconds. Whatever ends a call - its budget, a signal, the loss of the machine - the next call resumes from
these rows. A piece that fails is recorded with its reason, and the call continues with the next piece; --only NAME tries it again.
"""

import os

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # without it, asking for a GPU spoils it for forked processes

import argparse
import json
import multiprocessing
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from fewstep.errors import UserError
from fewstep.files import at_home, held_folder, replace_file
from fewstep.machine import machine
from fewstep.text import read_json
from gpu_data import found_data
from gpu_piece import Piece, Place, work
from gpu_pieces import all_pieces

RESULTS = Path(__file__).parent / "results" / "gpu.json"
WRITE_EVERY, SAY_EVERY = 5.0, 20.0  # seconds
GRACE = 15.0  # seconds that a piece has to end after it was asked to stop
FORK = "fork" if sys.platform == "linux" else "spawn"  # a forked process has torch imported already


@dataclass
class Stop:
    """Whether somebody has asked this call to stop."""

    asked: bool = False

    def listen(self) -> None:
        """Set `asked` when SIGINT, SIGTERM or SIGHUP arrives."""

        def ask(number: int, frame: FrameType | None) -> None:
            self.asked = True

        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), ask)


def device_facts(say: Callable[[dict[str, Any]], None]) -> None:
    """Pass the properties of the machine and its GPU to `say`. Needs a process of its own: one that has used a GPU cannot be forked."""
    facts: dict[str, Any] = machine()
    if torch.cuda.is_available():
        of = torch.cuda.get_device_properties(0)
        torch.zeros(1, device="cuda")
        facts |= {"memory_mib": of.total_memory // 2**20, "cuda": torch.version.cuda, "capability": f"{of.major}.{of.minor}"}
        facts["count"] = torch.cuda.device_count()
    say(facts)


def asked_elsewhere(context: Any) -> dict[str, Any]:
    """Return what `device_facts` says in another process; empty if that process fails."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=device_facts, args=(sender.send,))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return {}
    finally:
        process.join()


def begun(piece: Piece, seconds: float, rows: list[dict[str, Any]], sender: Connection) -> None:
    """Run a piece in the process that was started for it: signals act on this process as usual, and it ends when its parent is gone."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # Ctrl-C then reaches the parent process alone, which passes it on
    _end_with(os.getppid())
    work(piece, seconds, rows, sender.send)


def _end_with(parent: int) -> None:
    """Send SIGTERM to this process when the process `parent` is gone."""
    import threading

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@dataclass
class Call:
    """One call of this script: where it works, the results so far, and which pieces have failed in it."""

    place: Place
    results_file: Path
    copy: Path | None
    facts: dict[str, Any]
    context: Any
    stop: Stop
    results: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pieces = all_pieces(self.place)
        found = read_json(self.results_file) if self.results_file.exists() else {}
        if found and found.get("tiny") != self.place.tiny:
            kinds = ("tiny pieces", "pieces of full size")
            raise UserError(f"{self.results_file} has results of {kinds[self.place.tiny]}; name another file by --results")
        self.results = {"command": "python benchmarks/gpu.py", "tiny": self.place.tiny, "pieces": found.get("pieces", {})}
        self.results["machine"] = self.facts or found.get("machine")
        for piece in self.pieces:
            self.collect(piece)

    def record(self, piece: Piece) -> dict[str, Any]:
        """Return the results of `piece`, which are added, empty, if there are none."""
        return self.results["pieces"].setdefault(piece.name, {"what": piece.what, "rows": [], "states": {}})

    def state(self, piece: Piece) -> dict[str, Any]:
        """Return the state of `piece` on this device, which is added if there is none."""
        return self.record(piece)["states"].setdefault(self.place.gpu, {"state": "none", "why": "", "seconds": 0.0, "sittings": []})

    def collect(self, piece: Piece) -> None:
        """Take the rows in the folder of `piece` into the results."""
        if piece.folder.is_dir() or piece.name in self.results["pieces"]:
            self.record(piece)["rows"] = piece.rows(self.record(piece)["rows"])

    def write(self) -> None:
        """Write the results file in one piece, and to the folder `copy` a copy of it and the newest picture of each piece."""
        content = (json.dumps(self.results, indent=1) + "\n").encode()
        places = [self.results_file] if self.copy is None else [self.results_file, self.copy / self.results_file.name]
        for file in places:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, content)
        for piece in self.pieces if self.copy is not None else ():
            pictures = sorted((piece.folder / "run" / "samples").glob("step_*.png"), key=lambda path: path.stat().st_mtime)
            if pictures and self.copy is not None:
                shutil.copyfile(pictures[-1], self.copy / f"{piece.name}.png")

    def why_not(self, piece: Piece, again: bool) -> str | None:
        """Return why `piece` is not begun, or None if it can be; with `again`, a piece that has failed can be."""
        if piece.done(self.results):
            return "done"
        state = self.results["pieces"].get(piece.name, {}).get("states", {}).get(self.place.gpu, {})
        if state.get("state") == "failed" and not again:
            return f"failed: {state['why']} (again with --only {piece.name})"
        return piece.waits(self.results)

    def sit(self, piece: Piece, seconds: float) -> None:
        """Let `piece` work for at most `seconds` in a process of its own, and take its rows into the results meanwhile."""
        piece.folder.mkdir(parents=True, exist_ok=True)
        say(f"{piece.name}: {piece.what}; at most {seconds:.0f} s")
        receiver, sender = self.context.Pipe(duplex=False)
        rows = self.record(piece)["rows"]
        process = self.context.Process(target=begun, args=(piece, seconds, rows, sender))
        began, busy = time.monotonic(), processor_seconds()
        process.start()
        sender.close()
        asked = written = said = began
        told = False
        while process.is_alive():
            process.join(0.1)
            now = time.monotonic()
            if now - written > WRITE_EVERY:
                self.collect(piece)
                self.write()
                written = now
            if now - said > SAY_EVERY:
                say(f"  {piece.news(self.record(piece)['rows'])}; {max(0.0, seconds - (now - began)):.0f} s left")
                said = now
            if not told and (self.stop.asked or now - began > seconds - piece.saving):
                process.terminate()
                told, asked = True, now
            if told and now - asked > GRACE + piece.saving:
                process.kill()
        ended = self._how(piece, process.exitcode, receiver, told)
        took = time.monotonic() - began
        state = self.state(piece)
        state |= {"state": ended[0], "why": ended[1], "seconds": round(state["seconds"] + took, 1)}
        sitting = {"at": time.strftime("%Y-%m-%d %H:%M:%S"), "seconds": round(took, 1), "cpu_seconds": round(processor_seconds() - busy, 1)}
        state["sittings"].append({**sitting, "ended": ended[0], "machine": self.facts})
        self.write()
        words = {"done": "done", "part": "to be gone on with", "failed": f"failed: {ended[1]}"}[ended[0]]
        say(f"  {piece.news(self.record(piece)['rows'])}; {took:.0f} s; {words}")
        if ended[0] == "failed":
            self.failed.append(piece.name)

    def _how(self, piece: Piece, code: int | None, receiver: Connection, told: bool) -> tuple[str, str]:
        """Return (state, reason) of a piece whose process has ended: what the process reported, or else what its exit code says."""
        self.collect(piece)
        try:
            if receiver.poll():
                return receiver.recv()
        except EOFError:
            pass
        if told and code in (-signal.SIGTERM, -signal.SIGKILL):
            return "part", "its time was over" if not self.stop.asked else "stopped"
        return piece.ended(code or 0, self.record(piece)["rows"])

    def listing(self) -> list[str]:
        """Return one line for each piece: its name, its state and its latest figures."""
        lines = []
        for piece in self.pieces:
            why = self.why_not(piece, again=False)
            known = self.results["pieces"].get(piece.name)
            news = piece.news(known["rows"]) if known else ""
            rest = "begun" if known and known["states"] and why is None else "to do" if why is None else why
            lines.append(f"{piece.name:16} {rest}" + (f" ({news})" if news and news != "none yet" else ""))
        return lines


def processor_seconds() -> float:
    """Return the processor time in seconds of all child processes that have ended."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def say(text: str) -> None:
    """Print `text` without delay."""
    print(text, flush=True)


def chosen(call: Call, only: list[str] | None) -> list[Piece]:
    """Return the pieces named in `only`, or all pieces. Raises UserError for a name that no piece has."""
    names = [piece.name for piece in call.pieces]
    if wrong := [name for name in only or () if name not in names]:
        raise UserError(f"--only is {', '.join(wrong)}; allowed: {', '.join(names)}")
    return [piece for piece in call.pieces if not only or piece.name in only]


def go_on(call: Call, budget: float, only: list[str] | None) -> int:
    """Work through the pieces while `budget` seconds last, and return the exit code. Raises UserError if no piece can be begun with it."""
    began, pieces, sat = time.monotonic(), chosen(call, only), 0
    for piece in pieces:
        why = call.why_not(piece, again=bool(only))
        if why is not None and why != "done" and only:
            raise UserError(f"{piece.name} cannot be begun: {why}")
        known = None
        # a piece that ends before its time is over, and has added rows, is resumed in a new process
        while why is None and not call.stop.asked and (left := budget - (time.monotonic() - began)) >= piece.least:
            rows, sat = len(call.record(piece)["rows"]), sat + 1
            if rows == known:
                break
            known = rows
            call.sit(piece, min(piece.budget, left))
            why = call.why_not(piece, again=False)
    rest = [piece for piece in pieces if not piece.done(call.results)]
    startable = [piece for piece in rest if call.why_not(piece, again=bool(only)) is None]
    call.write()
    if not sat and startable and not call.stop.asked:
        need = min(startable, key=lambda piece: piece.least)
        raise UserError(f"--budget is {budget:g} s; {need.name}, the shortest that is left, needs at least {need.least:g} s: give more")
    say("\nleft:" if rest else "\nnothing is left")
    for line in call.listing() if rest else ():
        if line.split()[0] in {piece.name for piece in rest}:
            say(f"  {line}")
    say(f"results: {call.results_file}")
    return 130 if call.stop.asked else 1 if call.failed else 0


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=540.0, help="seconds that this call may take; default 540")
    parser.add_argument("--list", action="store_true", help="print the state of each piece, and stop")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this piece alone; may be repeated")
    parser.add_argument("--tiny", action="store_true", help="run every piece at a small size, on the CPU")
    parser.add_argument("--data", type=Path, default=found_data(), help="folder of CIFAR-10; default ../shared/data/cifar10")
    parser.add_argument("--out", type=Path, default=None, help="folder of the runs; default runs/gpu, with --tiny runs/gpu_tiny")
    parser.add_argument("--results", type=Path, help="results file; default benchmarks/results/gpu.json, with --tiny gpu.json in --out")
    parser.add_argument("--copy", type=Path, help="folder to which results and newest pictures are copied while the pieces work")
    parser.add_argument("--train-minutes", type=float, default=6.0, help="minutes of training that each run is planned for; default 6")
    return parser.parse_args()


def main() -> int:
    """Make one call; return 0, 1 if a piece has failed, or 130 if the call was stopped. Raises UserError for a mistake in the arguments."""
    given, stop, context = arguments(), Stop(), multiprocessing.get_context(FORK)
    if given.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also where there is a GPU
    if not (given.budget > 0 and given.train_minutes > 0):
        raise UserError(f"--budget is {given.budget:g} and --train-minutes {given.train_minutes:g}; give more than 0")
    facts = asked_elsewhere(context)
    if not facts and FORK == "fork":  # a GPU that a forked process cannot use
        context = multiprocessing.get_context("spawn")
        facts = asked_elsewhere(context)
    there = facts.get("accelerator", "none") != "none"
    if not there and not given.tiny and not given.list:
        raise UserError(f"torch {torch.__version__} sees no CUDA device here; run this where there is one, or try every piece with --tiny")
    out = at_home(given.out or Path("runs") / ("gpu_tiny" if given.tiny else "gpu")).resolve()
    gpu = facts["accelerator"] if there and not given.tiny else "cpu"
    data = None if given.data is None else at_home(given.data).resolve()
    minutes = given.train_minutes if not given.tiny else min(given.train_minutes, 0.02)
    place = Place(out, data, given.tiny, "cpu" if gpu == "cpu" else "cuda", gpu, minutes)
    results = at_home(given.results or (out / "gpu.json" if given.tiny else RESULTS)).resolve()
    call = Call(place, results, given.copy and at_home(given.copy).resolve(), facts, context, stop)
    if given.list:
        say("\n".join(call.listing()))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    stop.listen()
    with held_folder(out):
        return go_on(call, given.budget, given.only)


if __name__ == "__main__":
    try:
        code = main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        code = 2
    sys.exit(code)
