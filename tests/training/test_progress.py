"""What a person sees: a real pseudo-terminal of many widths, and what a terminal emulator makes of what is written to it."""

import contextlib
import fcntl
import os
import pty
import select
import struct
import sys
import termios

import pyte
import pytest

from fewstep import screen as screen_module
from fewstep.screen import Screen
from fewstep.training import progress as progress_module
from fewstep.training.progress import Progress
from linear_method import Linear, run_loop

STATE = "check: collapse, noise, saturation, spread 43%, dm 0.113, fake 0.427, gan 0.693, 51234 images/s"


class Terminal:
    """The one on stderr; `lines` are what stands on it, those that have scrolled away first."""

    def __init__(self, columns: int, rows: int = 24) -> None:
        self.master, self.slave = pty.openpty()
        self.file = os.fdopen(os.dup(self.slave), "w", encoding="utf-8")
        self.screen = pyte.HistoryScreen(columns or 80, rows, history=10_000, ratio=1.0)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int = 24) -> None:
        self.drain()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns or 80)

    def drain(self) -> None:
        while select.select([self.master], [], [], 0.003)[0]:
            new = os.read(self.master, 65536)
            self.raw += new
            self.stream.feed(new)

    def lines(self) -> list[str]:
        self.drain()
        past = ["".join(row[column].data for column in range(self.screen.columns)) for row in self.screen.history.top]
        return [line.rstrip() for line in [*past, *self.screen.display] if line.strip()]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [1000.0]
    for module in (screen_module, progress_module):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def later(seconds):
        now[0] += seconds

    return later


@pytest.fixture
def terminal(monkeypatch):
    made = []

    def make(columns, kind="xterm", rows=24):
        made.append(Terminal(columns, rows))
        monkeypatch.setattr(sys, "stderr", made[-1].file)
        monkeypatch.setenv("TERM", kind)
        monkeypatch.setattr(screen_module, "SCREEN", fresh := Screen())
        monkeypatch.setattr(progress_module, "SCREEN", fresh)
        return made[-1]

    yield make
    for each in made:
        with contextlib.suppress(OSError):
            each.file.close()
        os.close(each.slave)
        os.close(each.master)


def test_the_emulator_shows_what_a_terminal_would(terminal):
    """The check's own check: what is too long for a line is seen as broken."""
    seen = terminal(60)
    sys.stderr.write("a" * 61 + "\n")
    sys.stderr.flush()
    assert seen.lines() == ["a" * 60, "a"]


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("title", ["dmd2/digits", "somebody's very long file of a recipe/for_a_run_of_which_the_name_has_no_end.yaml"])
@pytest.mark.parametrize("state", ["", STATE, "healthy, spread 97%, loss 0.012, 8 images/s"])
def test_nothing_that_matters_is_cut(terminal, clock, columns, title, state):
    seen = terminal(columns)
    progress = Progress(title, 140_000)
    progress.begin()
    for _ in range(7):
        clock(600)
        progress.advance(10_000)
    progress.show(state)
    lines = seen.lines()
    told = " ".join(line.strip() for line in lines)
    assert told.count("%") == 1 + state.count("%")  # drawn over, not under each other
    assert "50%" in told
    assert told.endswith(f"1:10:00 to go {state}".strip())
    if columns >= 60:
        assert "70000/140000" in told
        assert state or "17/s" in told
        assert title[-10:] + "  50%" in told
    if columns >= 80 and len(title) < 20:
        assert f"{title}  50%|█" in told
        assert "1:10:00 gone" in told
    assert all(line.startswith("  ") for line in lines[1:])
    clock(4200)
    progress.advance(70_000)
    progress.close()
    assert "100%" in seen.lines()[0]
    assert "in 2:20:00" in seen.lines()[0]


@pytest.mark.parametrize(("columns", "kind"), [(0, "xterm"), (80, "dumb"), (7, "xterm")])
def test_lines_where_no_bar_can_be_drawn(terminal, clock, columns, kind):
    seen = terminal(columns, kind)
    progress = Progress("drift/ring", 100)
    progress.begin()
    progress.show("healthy")
    for _ in range(40):
        clock(1)
        progress.advance()
    progress.say("step 40: a line that stays")
    progress.close()
    seen.drain()
    assert seen.raw.decode().splitlines() == [
        "drift/ring: 16/100, 01:24 to go; healthy",
        "drift/ring: 32/100, 01:08 to go; healthy",
        "step 40: a line that stays",
    ]


def test_lines_that_are_said_stay_above(terminal, clock):
    seen = terminal(60, rows=10)
    progress = Progress("drift/ring", 100)
    progress.begin()
    progress.show(STATE)
    for step in range(30):
        clock(1)
        progress.advance()
        progress.say(f"line {step} " + "x" * 70)  # of two lines each, and more than the terminal holds
    progress.close()
    lines = seen.lines()
    assert [line.split()[1] for line in lines if line.startswith("line")] == [str(step) for step in range(30)]
    assert sum("%|" in line for line in lines) == 1
    assert lines[-1].endswith("images/s")


def test_a_terminal_that_is_resized(terminal, clock):
    seen = terminal(120)
    progress = Progress("dmd2/digits", 100)
    progress.begin()
    progress.show(STATE)
    for columns in (80, 60, 40, 0, 60, 120):
        seen.resize(columns)
        clock(1)
        progress.advance()
        if columns:
            told = " ".join(line.strip() for line in seen.lines())
            assert told.endswith(f" to go {STATE}")
            assert told.count("to go") == 1
    clock(16)
    seen.resize(0)
    progress.advance()
    seen.drain()
    assert f"dmd2/digits: 7/100, 04:52 to go; {STATE}" in seen.raw.decode()


@pytest.mark.parametrize("rows", [1, 2, 3, 24, 0])
def test_a_terminal_of_few_lines_shows_the_bar(terminal, clock, rows):
    seen = terminal(60, rows=rows or 24)
    seen.resize(60, rows or 24)
    if not rows:
        fcntl.ioctl(seen.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 60, 0, 0))
    progress = Progress("drift/ring", 10)
    progress.begin()
    progress.show(STATE)
    for _ in range(5):
        clock(1)
        progress.advance()
    assert sum(" 50%" in line for line in seen.lines()) == 1
    assert sum("%|" in line for line in seen.lines()) == 1


def test_a_nested_bar_stands_below_and_vanishes(terminal, clock):
    seen = terminal(80)
    progress = Progress("drift/ring", 100)
    progress.begin()
    progress.show("healthy")
    before = seen.lines()
    with progress.nested("measuring", 2000) as advance:
        for _ in range(3):
            clock(1)
            advance(100)
        inside = seen.lines()
        progress.say("a line that stays")
    assert len(inside) == 3
    assert inside[1] == "  healthy"
    assert inside[2].startswith("  measuring  15%|")
    assert "300/2000" in inside[2]
    assert "00:17 to go" in inside[2]
    after = seen.lines()
    assert after[0] == "a line that stays"
    assert [line.split("|")[0] for line in after[1:]] == [line.split("|")[0] for line in before]


def test_a_nested_bar_that_fails_is_gone(terminal, clock):
    seen = terminal(80)
    progress = Progress("drift/ring", 100)
    progress.begin()
    with pytest.raises(RuntimeError), progress.nested("measuring", 2000):
        raise RuntimeError
    assert "measuring" not in " ".join(seen.lines())


@pytest.mark.parametrize(("seconds", "expected"), [(14, []), (40, ["measuring: 16/40, 00:24 to go", "measuring: 32/40, 00:08 to go"])])
def test_a_nested_piece_in_plain_lines_tells_when_it_is_long(terminal, clock, seconds, expected):
    seen = terminal(0)
    progress = Progress("drift/ring", 100)
    progress.begin()
    with progress.nested("measuring", seconds) as advance:
        for _ in range(seconds):
            clock(1)
            advance(1)
    assert seen.lines() == expected


def test_a_quiet_one_shows_nothing(terminal, clock):
    seen = terminal(80)
    progress = Progress("drift/ring", 3, quiet=True)
    progress.begin()
    progress.show("healthy")
    progress.say("a line")
    with progress.nested("measuring", 5) as advance:
        clock(20)
        advance(5)
    progress.advance()
    progress.close()
    seen.drain()
    assert seen.raw == b""


def test_a_signal_in_the_middle_of_a_drawing_is_told(terminal, clock, monkeypatch):
    """What a signal's handler says while the screen is being written comes out whole, after it."""
    seen = terminal(80)
    progress = Progress("drift/ring", 3)
    progress.begin()
    write, once = sys.stderr.write, ["finishing this step"]

    class Interrupted:
        encoding = "utf-8"

        def write(self, text):
            write(text[:5])
            while once:
                progress.say(once.pop())
            write(text[5:])

        def __getattr__(self, name):
            return getattr(seen.file, name)

    monkeypatch.setattr(sys, "stderr", Interrupted())
    clock(1)
    progress.advance()
    assert seen.lines()[0] == "finishing this step"
    assert seen.lines()[1].startswith("drift/ring  33%|")
    assert len(seen.lines()) == 2


def test_a_terminal_that_is_gone_does_not_end_the_work(terminal, clock):
    """As when a connection breaks: SIGHUP may be blocked (nohup), and every write fails."""
    seen = terminal(80)
    progress = Progress("drift/ring", 3)
    progress.begin()
    os.close(seen.master)
    try:
        for _ in range(3):
            clock(1)
            progress.advance()
            progress.say("a line")
        progress.close()
    finally:
        seen.master = os.open(os.devnull, os.O_RDONLY)
    assert progress.done == 3


@pytest.mark.parametrize("columns", [0, 60, 80, 120])
def test_a_training_run(terminal, clock, monkeypatch, tmp_path, columns):
    """What is shown of a run while it goes on, and to its last step: steps of a second each."""
    seen, shown = terminal(columns), []
    advance = Progress.advance

    def advance_and_look(self):
        clock(1)
        advance(self)
        shown.append(" ".join(line.strip() for line in seen.lines()))

    monkeypatch.setattr(Progress, "advance", advance_and_look)
    run_loop(tmp_path / "run", Linear(), steps=20, log_every=5, checkpoint_every=20)
    if not columns:
        assert len(seen.lines()) == 1
        assert "training: 16/20, 00:04 to go; healthy, " in seen.lines()[0]
        assert seen.lines()[0].endswith(" images/s")
        return
    assert "training  60%|" in shown[11]
    assert "12/20, " in shown[11]
    assert shown[11].endswith(" 00:08 to go healthy, 16 images/s")
    assert seen.lines()[0].startswith("training 100%|")
    assert seen.lines()[0].endswith("20/20, in 00:20")
    assert len(seen.lines()) == 2
