"""What the package shows in a notebook: bars in the output of a cell, an evaluation as a table."""

import io
import sys

import IPython.display
import pytest

import fewstep
from fewstep import screen as screen_module
from fewstep.evaluation_text import Results, aligned, footnote, table
from fewstep.screen import Screen, in_notebook, size
from fewstep.training import progress as progress_module
from fewstep.training.progress import Progress

ROW = {"role": "own", "energy": 0.25, "modes": 8.0}
RESULTS = Results(
    n=100, seed=0, reference="10,000 exact samples of <ring>", rows={"exact": {**ROW, "energy": 0.0}, "drift": ROW}, warnings=["few"]
)


class Output:
    """A cell's output that has been displayed once and is updated: all texts that it has had."""

    def __init__(self, data):
        self.texts = [data["text/plain"]]

    def update(self, data, raw):
        assert raw
        self.texts.append(data["text/plain"])


@pytest.fixture
def cell(monkeypatch):
    """``cell()`` is a screen in a cell, and the outputs there, as a kernel would show them, in order."""
    shown, stream = [], type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()

    def display(data, raw, display_id):
        assert raw
        assert display_id
        shown.append(Output(data))
        return shown[-1]

    def make():
        monkeypatch.setattr(IPython.display, "display", display)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(screen_module, "OFTEN", 0.0)
        monkeypatch.setattr(progress_module, "SCREEN", screen := Screen())
        return screen, shown

    yield make
    assert stream.getvalue() == ""  # which notebooks show in red


def test_a_bar_is_one_output_that_is_replaced(cell, capsys):
    screen, shown = cell()
    assert in_notebook()
    assert size()[0] == 100
    screen.say("precision: fp32")
    assert capsys.readouterr().out == "precision: fp32\n"
    progress = Progress("ring", 4)
    progress.begin()
    progress.advance(2)
    progress.say("step 2: collapse")
    progress.show("spread 97%")
    with progress.nested("measuring", 3) as advance:
        advance(3)
        assert "measuring" in shown[0].texts[-1]
    progress.advance(2)
    progress.close()
    assert len(shown) == 1
    assert "0/4" in shown[0].texts[0]
    assert shown[0].texts[-1].count("ring") == 1
    said, bar, state = shown[0].texts[-1].split("\n")
    assert said == "step 2: collapse"
    assert "4/4" in bar
    assert state.strip() == "spread 97%"
    assert not any("\x1b" in text or "\r" in text for text in shown[0].texts)
    screen.say("trained")
    assert capsys.readouterr().out == "trained\n"
    Progress("another", 2).begin()
    assert len(shown) == 2
    assert "collapse" not in shown[1].texts[0]


def test_what_captures_a_cell_gets_lines(cell, monkeypatch):
    screen, shown = cell()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", captured := io.StringIO())
        screen.say("note")
    assert captured.getvalue() == "note\n"
    assert shown == []


def test_an_evaluation_is_a_table():
    html = RESULTS._repr_html_()
    assert html.count("<tr>") == 3
    assert "<th>energy distance</th>" in html
    assert "<td>drift</td><td>0.25000</td>" in html
    assert "&lt;ring&gt;" in html
    assert html.endswith("<br>warning: few</p>")
    printed = IPython.lib.pretty.pretty(RESULTS)
    assert printed == "\n".join([*aligned(table(RESULTS)), footnote(RESULTS)])
    assert dict(RESULTS)["n"] == 100


def test_a_table_wider_than_the_terminal_is_broken_into_parts_with_the_names_of_its_rows():
    lines = [["", "FD", "class asked for", "recall"], ["teacher", "1.5", "99.0%", "0.7"], ["student", "12.5", "98.0%", "0.6"]]
    assert aligned(lines, 13) == [
        *("           FD", "teacher   1.5", "student  12.5", ""),
        *("         class asked for", "teacher            99.0%", "student            98.0%", ""),
        *("         recall", "teacher     0.7", "student     0.6"),
    ]
    assert aligned(lines, 30)[:4] == [
        "           FD  class asked for",
        "teacher   1.5            99.0%",
        "student  12.5            98.0%",
        "",
    ]
    assert aligned(lines, 38) == aligned(lines)


def test_columns_are_aligned():
    assert aligned([["", "b"], ["long", "1"], ["c", "123"]]) == ["        b", "long    1", "c     123"]


def test_a_grid_is_one_picture():
    import torch

    picture = fewstep.image_grid(torch.tensor([-1.0, 1.0, 0.0]).view(3, 1, 1, 1).expand(3, 1, 8, 8), columns=2, side=8)
    assert picture.size == (2 * 10 + 2, 2 * 10 + 2)
    assert [picture.getpixel(place)[0] for place in ((5, 5), (15, 5), (5, 15), (15, 15))] == [0, 255, 128, 255]
    assert "image_grid" in dir(fewstep)
