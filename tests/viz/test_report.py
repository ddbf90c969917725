"""report.html of real runs, opened from the disk in a real browser, on a phone and a desk, light and dark."""

import html
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import fewstep
import fewstep.run
import fewstep.viz.report
from browser import CHROMIUM, Browser
from fewstep import registry
from fewstep.methods.base import Alarm
from fewstep.metrics.figures import FIGURES
from fewstep.recipe import load_recipe, resolved
from fewstep.run_report import changed, raised_alarms, report, told
from fewstep.training.health import Course, alarms
from fewstep.viz.plots import curves


@pytest.fixture(scope="module", autouse=True)
def _curves_are_drawn(_quick):
    """Elsewhere they are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fewstep.viz.report, "curves", curves)
        yield


METHODS = sorted(registry.BUILT_IN["methods"])
STEPS = 1000


def records(alarms):
    """A record every tenth step; `alarms` are names by steps."""
    figures = {"health.spread": 0.44, "health.shift": 0.31, "health.saturation": 0.02, "generator.gap": 1.9, "generator.dm": -0.1}
    found = []
    for step in range(10, STEPS + 1, 10):
        names = [name for name, steps in alarms.items() if step in steps]
        logged = {name: value + 1e-4 * step for name, value in figures.items()} | {"guidance.fake": 1.0, "generator.grad_norm": 0.1 * step}
        measured = {"eval.frechet_over_floor": 2000 / step, "eval.kernel": 1 / step} if step % 200 == 0 else {}
        counts = {"step": step, "seconds": 2.0 * step, "images_seen": 64 * step, "images_per_second": 32.0}
        found.append({**counts, **logged, **measured, "alarms": names})
    return found


def make_run(folder: Path, source="dmd2/digits", overrides=(), alarms=None, results=True, audit=("240 images found, 12 left out.",)):
    """A run folder as training leaves it, without the training."""
    recipe = load_recipe(source, [f"steps={STEPS}", "method.teacher=runs/teacher", "trainer.evaluate_every=200", *overrides])
    (folder / "samples").mkdir(parents=True)
    (folder / "model").mkdir()
    tree = {"format": 3, **resolved(recipe), "made_by": {"fewstep": "0.1.0", "commit": "0123456789ab", "recipe": source}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(alarms or {})))
    (folder / "model" / "config.json").write_text(json.dumps({"info": {"step": STEPS, "data_audit": list(audit)}}))
    for step in range(50, STEPS + 1, 50):
        Image.fromarray(np.full((102, 502, 3), step % 256, np.uint8)).save(folder / "samples" / f"step_{step}.png")
    if results:
        figures = {figure.key: 1.2345 for figure in FIGURES if figure.family in ("images", "cost")}
        rows = {"real train split": {"role": "floor", **figures}, "student, 1 evaluation": {"role": "own", **figures}}
        known = {
            "data": "digits",
            "n": 100,
            "seed": 0,
            "reference": "360 held-out images",
            "features": "digits-v1",
            "floor_of": "real train split",
        }
        (folder / "results.json").write_text(
            json.dumps({**known, "protocol": {"seeds": [0]}, "warnings": ["n = 100 is few"], "rows": rows})
        )
    return folder


def text_of(run: Path) -> str:
    """What a reader reads: tags away."""
    return " ".join(html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", (run / "report.html").read_text(), flags=re.DOTALL)).split())


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """A run with alarms of all kinds of length, one of them of another version."""
    alarms = {"collapse": range(300, 1001), "shift": [*range(200, 410), *range(600, 650)], "disagreement": [500], "forgotten": [700]}
    return make_run(tmp_path_factory.mktemp("troubled") / "a run, whose name is <long> & strange", alarms=alarms)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


LOOK = """(() => {
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const luminance = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  const contrast = text => {
    const ink = luminance(text);
    return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
  };
  const colour = e => e.closest('svg') ? getComputedStyle(e).fill : getComputedStyle(e).color;
  const all = [...document.querySelectorAll('main *')], told = e => e.outerHTML.slice(0, 80);
  const written = all.filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) && e.getClientRects().length);
  const boxes = all.filter(e => !e.closest('.scroll *') && !e.closest('svg *'));
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  return {
    width: innerWidth, scroll: document.documentElement.scrollWidth, paper,
    beyond: boxes.filter(e => e.getBoundingClientRect().right > WIDTH + .5).map(told),
    faint: written.filter(e => contrast(colour(e)) < 4.5).map(told),
    dim: [...document.querySelectorAll('svg path[style*="--line"]')].filter(e => contrast(getComputedStyle(e).stroke) < 3).length,
    small: [...document.querySelectorAll('svg text')].filter(e => e.getBoundingClientRect().height < 8).length,
    lines: document.querySelectorAll('svg path[style*="--line"]').length,
    large: document.querySelector('.large img').getBoundingClientRect().width / document.querySelector('main').clientWidth,
    unnamed: document.querySelectorAll('img:not([alt]), [role=img]:not([aria-label]), img[alt=""]').length,
    twice: ids.filter((id, i) => ids.indexOf(id) != i),
    headings: [...document.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1]),
    broken: [...document.images].filter(e => !e.naturalWidth).length,
    scrolls: [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length,
    scripts: document.scripts.length, lang: document.documentElement.lang,
  };
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(browser, troubled, width, dark):
    report(troubled)
    browser.open((troubled / "report.html").as_uri(), width, dark)
    seen = browser.tell(LOOK.replace("WIDTH", str(width)))
    assert (seen["scripts"], seen["lang"], seen["width"]) == (0, "en", width)
    assert seen["scroll"] <= width
    assert seen["beyond"] == []
    assert seen["scrolls"] > 0 or width > 390  # the table, in its box
    assert seen["lines"] > 5
    assert (seen["paper"] < 0.05) == dark
    assert (seen["faint"], seen["dim"], seen["small"]) == ([], 0, 0)
    assert (seen["unnamed"], seen["broken"], seen["twice"]) == (0, 0, [])
    assert seen["large"] > 0.95
    levels = seen["headings"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    asked = [told["request"]["url"] for method, told in browser.events if method == "Network.requestWillBeSent"]
    assert [address for address in asked if not address.startswith("data:")] == [(troubled / "report.html").as_uri()]
    complaints = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed")
    assert [event for event in browser.events if event[0] in complaints] == []


def test_the_browser_sees_what_is_wrong(browser, tmp_path):
    """The check's own check: a page that is too wide, fetches, complains, and is faint."""
    page = tmp_path / "page.html"
    page.write_text(
        '<html><body style="background:#fff"><main><div style="width:600px;color:#ddd">a</div><p class="large"><img src="http://127.0.0.1:9/x.png">'
        "</p></main><script>console.error(1)</script></body></html>"
    )
    browser.open(page.as_uri(), 390, False)
    seen = browser.tell(LOOK.replace("WIDTH", "390"))
    assert seen["scroll"] > 390
    assert any("600px" in box for box in seen["beyond"])
    assert (len(seen["faint"]), seen["unnamed"], seen["broken"], seen["scripts"]) == (1, 1, 1, 1)
    told = {method for method, _ in browser.events}
    assert {"Runtime.consoleAPICalled", "Network.loadingFailed"} <= told


def test_what_stands_in_it_and_in_which_order(troubled):
    report(troubled)
    page, text = (troubled / "report.html").read_text(), text_of(troubled)
    headings = [html.unescape(heading) for heading in re.findall(r"<h2[^>]*>(.*?)</h2>", page)]
    assert headings == ["Samples", "Measured", "Curves", "Samples during training", "Alarms", "Data", "Recipe"]
    assert "Check: collapse. Raised after all 1,000 steps." in text
    assert "240 images found, 12 left out." in text
    assert "n = 100 samples a row, seed 0, against 360 held-out images; features: digits-v1." in text
    assert "n = 2,000 samples of the averaged weights, seed 0 each time" in text
    assert "12 of 19 pictures; all are in samples/." in text
    assert page.count("<img") == 1 + 12
    assert "Note: n = 100 is few." in text
    for figure in FIGURES:
        if figure.is_column and figure.family != "points":
            ending = {"least": "Lower is better.", "greatest": "Higher is better.", "nearest 1": "Best at 1 (100%).", None: "Tells"}[
                figure.best
            ]
            assert f"{figure.heading} {figure.what} {ending}" in text
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert len(page) < 250_000


def test_alarms_stand_on_a_time_line_with_their_advice(troubled):
    report(troubled)
    page, text = (troubled / "report.html").read_text(), text_of(troubled)
    method = registry.room("methods", "dmd2")
    assert 'aria-label="shift: raised at steps 200 to 400, steps 600 to 640 of 1,000"' in page
    assert 'style="left:20.00%;right:60.00%"' in page
    assert 'style="left:60.00%;right:36.00%"' in page
    assert "collapse Raised at steps 300 to 1,000; still raised at the end. At step 300: samples of a class differ 47% as much" in text
    latest = "At step 1,000: samples of a class differ 54% as much as real ones: diversity is being lost."
    unmoved = "It has hardly moved since the start (44%). Train longer (steps), or raise method.generator_optimizer.lr."
    assert f"{latest} What to do: {unmoved}" in text
    assert f"disagreement Raised at step 500; passed. At step 500: {method.alarms[0].message.format(value=1.95)}" in text
    assert method.alarms[0].advice in text
    assert "forgotten Raised at step 700; passed. At step 700: this version of fewstep knows no alarm of this name." in text


def test_pictures_of_the_user_s_own_beside_those_of_the_run_do_no_harm(tmp_path):
    run = make_run(tmp_path / "run")
    report(run)
    before = (run / "report.html").read_text()
    for name in ("step_final.png", "step_1 (copy).png"):
        (run / "samples" / name).write_bytes(b"no picture")
    report(run)
    assert (run / "report.html").read_text() == before


@pytest.mark.parametrize(("step", "is_said"), [(400, True), (STEPS, False), (None, False)])
def test_what_was_measured_of_an_earlier_model_is_said(step, is_said, tmp_path):
    run = make_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | ({} if step is None else {"step": step})))
    report(run)
    assert (
        f"measured at step {step}, and then trained on to step {STEPS}: the table below is of the earlier model" in text_of(run)
    ) is is_said
    assert "student, 1 evaluation" in text_of(run)


def test_without_alarms_results_data_or_pictures(tmp_path):
    run = make_run(tmp_path / "run", results=False, audit=())
    for still in (run / "samples").iterdir():
        still.unlink()
    report(run)
    text = text_of(run)
    assert "Healthy. No alarm has been raised, after all 1,000 steps." in text
    assert "No alarm was raised. Alarms are raised only from step 200 on" in text
    assert "Nothing has been measured yet: fewstep evaluate" in text
    assert "No picture of samples has been drawn yet." in text
    assert 'id="data"' not in (run / "report.html").read_text()
    (run / "metrics.jsonl").write_text('{"broken\n{"step": 10, "alarms": []}\n')
    report(run)
    assert "1 line of metrics.jsonl cannot be read, and is not shown here." in text_of(run)


@pytest.mark.parametrize(
    ("step", "alarms", "expected"),
    [
        (None, (), ("wait", "Too early to say.")),
        (100, (), ("wait", "Too early to say.")),
        (200, (), ("good", "Healthy.")),
        (1000, (), ("good", "Healthy.")),
        (1000, (300,), ("good", "Healthy at the end.")),
        (1000, (300, 1000), ("bad", "Check: collapse.")),
        (300, (300,), ("bad", "Check: collapse.")),
    ],
)
def test_the_verdict(step, alarms, expected):
    logged = [{"step": at, "alarms": ["collapse"] * (at in alarms)} for at in range(100, (step or 0) + 1, 100)]
    state, (name, sentence) = told(logged, raised_alarms(logged, registry.room("methods", "teacher")), 1000)
    assert (state, name) == expected
    assert step is None or ("after all" in sentence) == (step == 1000)


def test_an_alarm_whose_figure_is_not_known_again_has_not_passed():
    method = registry.room("methods", "dmd2")
    spread, shift = {"health.spread": 0.4}, {"health.shift": 0.0}
    logged = [
        {"step": 300, **spread, **shift, "alarms": ["collapse"]},
        {"step": 600, **shift, "alarms": []},
        {"step": 900, **spread, **shift, "alarms": ["collapse"]},
        {"step": 1000, **shift, "alarms": []},
    ]
    (alarm,) = raised_alarms(logged, method)
    assert [(span.first, span.last) for span in alarm.spans] == [(300, 900)]
    state, (name, sentence) = told(logged, [alarm], 1000)
    assert (state, name) == ("bad", "Check: collapse.")
    assert sentence == "The run is after all 1,000 steps. No record has had the figure of collapse since step 900."
    logged[-1] |= {"health.spread": 1.0}
    assert told(logged, raised_alarms(logged, method), 1000)[1][0] == "Healthy at the end."


def test_an_alarm_of_a_method_of_ones_own():
    method = type(
        "Own", (registry.room("methods", "teacher"),), {"alarms": (Alarm("odd", "a.b", "b is {value:.1f}", "Raise c", high=1.0),)}
    )
    (alarm,) = raised_alarms([{"step": 5, "a.b": 2.25, "alarms": ["odd"]}, {"step": 6, "a.b": 0.5, "alarms": []}], method)
    assert (alarm.message, alarm.advice, alarm.lasts) == ("b is 2.2", "Raise c", False)
    assert [(span.first, span.last) for span in alarm.spans] == [(5, 5)]


@pytest.mark.parametrize(
    ("spread", "says"),
    [
        ([2.0, 2.0, 1.9], "It has hardly moved since the start (200%). Train longer (steps), or raise method.generator_optimizer.lr"),
        ([1.4, 1.1, 1.9], "It was better before (110%). Lower method.generator_optimizer.lr"),
        ([9.0, 4.0, 2.0], "It has improved from 900%: train longer (steps). If the alarm stays: Lower method.generator_optimizer.lr"),
    ],
)
def test_a_report_advises_what_the_terminal_did(spread, says):
    method, course = registry.room("methods", "dmd2"), Course()
    logged = []
    for step, value in enumerate(spread, start=1):
        figures = {"health.spread": value, "health.spread_error": 0.01}
        course.follow(figures, method.alarms)
        raised = alarms(figures, step / len(spread), method.alarms, method.advice, course, method.rate)
        logged.append({"step": step, **figures, "alarms": [alarm.name for alarm in raised]})
    (alarm,) = raised_alarms(logged, method)
    assert alarm.advice == raised[-1].advice
    assert alarm.advice.startswith(says)


def test_the_recipe_as_changes(tmp_path):
    run = make_run(tmp_path / "run", overrides=["batch_size=96", "method.generator_optimizer.lr=0.01"])
    report(run)
    page, text = (run / "report.html").read_text(), text_of(run)
    assert "This is dmd2/digits, as fewstep" in text
    for line in ("steps 1400 1000", "batch_size 64 96", "method.generator_optimizer.lr 0.0002 0.01", "method.teacher not set runs/teacher"):
        assert line in text
    assert "<details><summary>The whole recipe (recipe.yaml)</summary>" in page


@pytest.mark.parametrize(
    ("info", "changes", "sentence"),
    [
        ({"recipe": "teacher/digits"}, [], "This is teacher/digits, unchanged"),
        ({"recipe": "mine/own.yaml"}, None, "came from mine/own.yaml, which is no shipped recipe"),
        ({}, None, "is not recorded"),
    ],
)
def test_where_a_recipe_came_from(info, changes, sentence):
    found, said = changed(load_recipe("teacher/digits"), info)
    assert found == changes
    assert sentence in said


def test_a_run_records_where_its_recipe_came_from(tmp_path, monkeypatch):
    """A loaded recipe does not know it; tests/test_cli.py looks at what the folder has."""
    told = []
    with monkeypatch.context() as patch:
        patch.setattr(fewstep.run, "_train_recipe", lambda recipe, run, resume, title, after, source, held: told.append(source))
        fewstep.train("teacher/ring", tmp_path / "run", steps=2)
        fewstep.train(load_recipe("teacher/ring"), tmp_path / "run")
    assert told == ["teacher/ring", None]


def test_the_dashboard_of_points_keeps_a_width_at_which_it_can_be_read(tmp_path, browser):
    run = make_run(tmp_path / "run")
    (run / "dashboard").mkdir()
    Image.fromarray(np.zeros((162, 270, 3), np.uint8)).save(run / "dashboard" / "dashboard.png")
    report(run)
    assert "The last samples on the target density" in text_of(run)
    browser.open((run / "report.html").as_uri(), 390, False)
    seen = browser.tell(LOOK.replace("WIDTH", "390"))
    assert seen["scroll"] == 390
    assert seen["large"] > 1.5  # and scrolls in its box


@pytest.mark.parametrize("name", METHODS)
def test_each_family_of_curves_says_how_to_read_it(name):
    method = registry.room("methods", name)
    assert set(method.readings) == set(method.drawn)
    assert all(len(text) > 40 and text.endswith(".") for text in method.readings.values())


def test_curves_take_what_runs_log():
    """Nothing, one value, what is missing, and more lines than there are colours."""
    logged = [{"step": 1, "a.x": 1.0}, {"step": 2}, {"step": 3, "a.x": 2.0, "a.y": None}]
    drawn = curves(logged, ["a.x", "a.y"])
    assert drawn.startswith("<svg")
    assert "<style" not in drawn
    assert "DejaVu" not in drawn
    many = [f"a.{number}" for number in range(20)]
    drawn = curves([dict.fromkeys(many, 1.0) | {"step": step} for step in range(3)], many, log=True)
    assert {f"var(--line-{number})" for number in range(8)} <= set(re.findall(r"var\(--line-\d\)", drawn))
    assert not re.search(r"#[0-9a-f]{6}\b", drawn)
