"""A generator as a page, in a real browser: its pixels, its noise, its controls, what it loads, and what is refused."""

import functools
import http.server
import json
import math
import os
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from browser import CHROMIUM, Browser
from fewstep.generator import Generator
from fewstep.interop import export_onnx, export_page
from fewstep.interop.export_onnx import SamplingGraph
from fewstep.interop.export_page import RUNTIME, SCRIPT, VERSION, WASM, runtime_files, teacher_evaluations
from fewstep.maths.schedules import student_sigmas
from fewstep.recipe import load_recipe, resolved
from fewstep.training.run_folder import RunFolder
from web_runtime import web_runtime

DIT = {"name": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2}
PUSH = {"name": "push_forward"}
HEUN = {"name": "heun", "steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
NAMES = ["cat", "a <b>dog</b> & co", "bird"]
INFO = {"class_names": NAMES, "method": "dmd2", "data": "pets"}
FLOW = {"name": "two_time", "steps": 3, "sigma_max": 80.0, "middle": 0.5, "churn": 0.6}
POSTERIOR = {"name": "distributional", "steps": 3, "churn": 0.7}
# three steps with noise between them, three channels, classes; one step, one channel; points; a flow map; a second noise in each step
GENERATORS = {
    "steps": ((3, 8, 8), 3, DIT, {"name": "few_step", "sigmas": student_sigmas(3, 5.0).tolist()}, INFO, None),
    "grey": ((1, 4, 4), None, {"name": "latent_mlp", "widths": [16, 16], "latent": 5}, PUSH, None, PUSH),
    "points": ((2,), None, {"name": "coded_mlp", "widths": [16], "latent": 6, "bits": 3}, PUSH, {"data": "ring"}, PUSH),
    "flow": ((1, 8, 8), 3, DIT | {"condition": 8}, FLOW, INFO, {"name": "two_time", "gain": 3.0}),
    "posterior": ((3, 8, 8), 3, DIT | {"xi_channels": 2}, POSTERIOR, INFO, {"name": "distributional"}),
}
COMPLAINTS = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed")
SETTLED = "document.querySelector('#caption').textContent !== '' && document.querySelectorAll('.stale').length === 0"


def made(shape, classes, network, sampler, info=None, denoiser=None) -> Generator:
    torch.manual_seed(0)
    generator = Generator(shape, classes, 0.5, network, sampler, info, denoiser).eval()
    for weight in generator.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return generator


class Server:
    """A web server of `folder`, any page of which may ask it; `asked` are the paths that it was asked for.

    A browser keeps nothing of it, unless with `keep`: then it guesses from a file's age how long the file stays as it is.
    """

    def __init__(self, folder: Path, keep: bool = False) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments):
                asked.append(self.path)

            def end_headers(self):
                self.send_header("Access-Control-Allow-Origin", "*")
                if not keep:
                    self.send_header("Cache-Control", "no-store")
                super().end_headers()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def runtime() -> Path:
    try:
        return web_runtime()
    except OSError as error:
        pytest.skip(f"onnxruntime-web cannot be fetched from registry.npmjs.org ({error})")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    found = Browser(tmp_path_factory.mktemp("profile"))
    found.ask("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)  # workers, which have a console each
    yield found
    found.close()


@pytest.fixture(scope="module")
def pages(runtime, done, tmp_path_factory):
    """(the web server of all pages, the generators, the folder, what the command said of each); "steps" is of a run with a teacher."""
    root = tmp_path_factory.mktemp("pages")
    generators, said = {}, {}
    for name, arguments in GENERATORS.items():
        generators[name] = made(*arguments)
        run = root / f"{name}.run"
        generators[name].save_pretrained(run / "model")
        if name == "steps":
            made((3, 8, 8), 3, DIT, HEUN).save_pretrained(run / "teacher")
            tree = {**resolved(load_recipe("dmd2/digits", ["method.teacher=x"])), "made_by": {"recipe": "dmd2/digits"}}
            (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
        path = run if name == "steps" else run / "model"
        said[name] = done("export", path, "--format", "page", "--runtime", runtime, "--out", root / name).out
    server = Server(root)
    yield server, generators, root, said
    server.close()


def opened(browser, address, width=1280, dark=False):
    """A page, when it has drawn its samples."""
    browser.open(address, width, dark)
    until(browser, SETTLED)


def until(browser, condition):
    """Look until `condition` holds in the page: what a promise waits for is told, or collected as garbage before."""
    ended = time.monotonic() + 60
    while not browser.tell(condition):
        assert time.monotonic() < ended, browser.tell("document.body.innerText")
        time.sleep(0.02)


def settled(browser):
    """Look until the grid shows what the controls say."""
    browser.tell("0")  # what they asked for has begun
    until(browser, SETTLED)


def promised(browser, expression):
    """What `expression`, a promise, comes to in the page: its value, or the message of its error."""
    ends = "value => { window.told = [value]; }, error => { window.told = [error.message]; }"
    browser.tell(f"window.told = null; ({expression}).then({ends}); 0")
    until(browser, "window.told !== null")
    return browser.tell("window.told")[0]


def workers_told(browser):
    """What the consoles of the page's workers hold, among the browser's events."""
    page = browser.session
    for told in [told for method, told in browser.events if method == "Target.attachedToTarget"]:
        browser.session = told["sessionId"]
        browser.ask("Runtime.enable")
        browser.ask("Log.enable")
    browser.session = page


def drawn(browser, noises, labels=None):
    """What the page draws from given noise, as the samples that the script gives."""
    inputs = {name: values.flatten().tolist() for name, values in noises.items()}
    if labels is not None:
        inputs["labels"] = labels
    told = promised(browser, f"fewstep.draw({json.dumps(inputs)}).then(({{samples, shape}}) => [[...samples], shape])")
    return torch.tensor(told[0]).reshape(told[1])


def pixels(browser, shape):
    """The images that are seen, uint8 [N, 3, H, W]."""
    height, width = shape[1:]
    data = f"[...c.getContext('2d').getImageData(0, 0, {width}, {height}).data]"
    told = browser.tell(f"[...document.querySelectorAll('#picture canvas')].map(c => {data})")
    return torch.tensor(told).reshape(-1, height, width, 4)[..., :3].permute(0, 3, 1, 2)


def same_pixels(seen, samples):
    wanted = (samples.expand(-1, 3, -1, -1) + 1) * 127.5
    assert seen.shape == wanted.shape
    assert (seen - wanted).abs().max() < 0.5 + 127.5e-3  # rounded to 8 bits, and 1e-3 of [-1, 1]


def noise_of(generator, num, seed):
    """What ``Generator.sample(num, seed=seed)`` draws from."""
    rng = torch.Generator().manual_seed(seed)
    latents = torch.randn(num, *generator.latent_shape, generator=rng)
    order, more = ["noise"] * (generator.default_steps() - 1), {}
    if generator.sampler["name"] == "distributional":
        order = ["xi", *(name for _ in order for name in ("noise", "xi"))]
    for name in order:
        shape = generator.shape if name == "noise" else generator.denoiser.xi_shape
        more.setdefault(name, []).append(torch.randn(num, *shape, generator=rng))
    return {"latents": latents} | {name: torch.stack(noises) for name, noises in more.items()}


@pytest.mark.parametrize("name", GENERATORS)
def test_the_page_draws_what_the_generator_draws(browser, pages, name):
    server, generators, _, _ = pages
    generator = generators[name]
    server.asked.clear()
    opened(browser, f"{server.address}{name}/")
    labels = None if generator.num_classes is None else [2, 1, 0, 0, 1, 2, 2]
    got = drawn(browser, noise_of(generator, 7, 5), labels)
    expected = generator.sample(7, labels, seed=5)
    assert expected.std() > 0.05
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    if len(generator.shape) == 3:
        same_pixels(pixels(browser, generator.shape), expected)
    workers_told(browser)
    assert [event for event in browser.events if event[0] in COMPLAINTS] == []
    files = [f"runtime/{SCRIPT}", f"runtime/{WASM}", "model.onnx"]
    assert sorted(server.asked) == sorted(f"/{name}/{file}" for file in ("", *files))
    asked = {told["request"]["url"] for method, told in browser.events if method == "Network.requestWillBeSent"}
    assert {address for address in asked if not address.startswith((server.address, f"blob:{server.address}", "data:"))} == set()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"latents": [0] * 7, "noise": []}, "latents holds 7 numbers; give 5 for each item"),
        ({"latents": [], "noise": []}, "latents holds 0 numbers; give 5 for each item"),
        ({"latents": [0] * 10, "noise": [1]}, "this generator draws from latents, and not from noise"),
    ],
)
def test_noise_of_another_size_or_kind_is_refused(browser, pages, given, said):
    opened(browser, f"{pages[0].address}grey/")
    assert promised(browser, f"fewstep.draw({json.dumps(given)})") == said


def test_noise_between_the_steps_has_its_size(browser, pages):
    opened(browser, f"{pages[0].address}posterior/")
    given = {"latents": [0] * 192, "noise": [0] * 384, "xi": [0] * 383}  # of three steps: two noises of 192 numbers, three xi of 128
    assert promised(browser, f"fewstep.draw({json.dumps(given)})") == "xi holds 383 numbers; give 384"


def test_points_lie_where_they_are_drawn(browser, pages):
    server, generators, _, _ = pages
    opened(browser, f"{server.address}points/")
    (point,) = drawn(browser, noise_of(generators["points"], 1, 3))
    extent = browser.tell("fewstep.config.extent")
    samples = generators["points"].sample(2000, seed=9)
    within = (samples - torch.tensor(extent["centre"])).abs().amax(1) < extent["half"]
    assert 0.97 < within.double().mean() <= 1
    x, y = ((point - torch.tensor(extent["centre"])) / extent["half"] + 1) / 2
    ink = browser.tell("""(() => {
        const canvas = document.querySelector("#picture canvas"), found = [];
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        for (let i = 0; i < data.length / 4; i++) if (data[4 * i + 3]) found.push([i % canvas.width, Math.floor(i / canvas.width)]);
        return found.map(([x, y]) => [(x + .5) / canvas.width, 1 - (y + .5) / canvas.height]);
    })()""")
    assert len(ink) > 20
    np.testing.assert_allclose(np.mean(ink, axis=0), [x, y], atol=1e-3)


def sfc32(seed, item, num):
    """`num` words of PractRand's sfc32 begun with three words and a counter of 1, after 20 that are thrown away."""
    a, b, c, count, found = seed, item, 0x9E3779B9, 1, []
    for _ in range(20 + num):
        word = (a + b + count) % 2**32
        a, b = b ^ (b >> 9), (c + (c << 3)) % 2**32
        c = ((c << 21 | c >> 11) + word) % 2**32
        count += 1
        found.append(word)
    return found[20:]


def row_of(seed, item, num):
    """The noise of an item, float32 [num], by Box and Muller."""
    words = np.array(sfc32(seed, item, num), np.float64).reshape(-1, 2)
    radius, angle = np.sqrt(-2 * np.log((words[:, 0] + 0.5) / 2**32)), 2 * math.pi * words[:, 1] / 2**32
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).flatten().astype(np.float32)


def test_the_noise_of_a_seed_is_the_same_everywhere_and_normal(browser, pages):
    server, _, _, _ = pages
    opened(browser, f"{server.address}points/")
    rows = np.array(browser.tell("[...fewstep.noise(12345, 3).latents]")).reshape(3, 6)
    for item in range(3):
        np.testing.assert_allclose(rows[item], row_of(12345, item, 6), rtol=1e-6, atol=1e-7)
    many = np.array([browser.tell(f"[...fewstep.noise({seed}, 4000).latents]") for seed in (0, 1, 2**32 - 1)]).reshape(3, -1)
    n = many.shape[1]  # 24,000: standard errors are (1, sqrt 2, sqrt 96) / sqrt n; five of them
    for power, expected, error in ((1, 0, 1), (2, 1, math.sqrt(2)), (4, 3, math.sqrt(96))):
        np.testing.assert_allclose((many**power).mean(axis=1), expected, atol=5 * error / math.sqrt(n))
    related = np.corrcoef([*many, *(np.roll(many[0], shift) for shift in (1, 6))])
    assert np.abs(related - np.eye(5)).max() < 5 / math.sqrt(n)


def between(a, b, place):
    """Spherical interpolation by its definition: the angle from a grows evenly in the plane of both, and so does the length."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    across = b - a * (a @ b) / (a @ a)
    angle = place * math.atan2(np.linalg.norm(across), (a @ b) / np.linalg.norm(a))
    length = (1 - place) * np.linalg.norm(a) + place * np.linalg.norm(b)
    return length * (math.cos(angle) * a / np.linalg.norm(a) + math.sin(angle) * across / np.linalg.norm(across))


def set_control(browser, name, value):
    browser.tell(
        f"(e => {{ e.value = {value}; e.dispatchEvent(new Event('input', {{bubbles: true}})); }})(document.querySelector('#{name}'))"
    )


def test_the_controls_say_what_is_drawn(browser, pages):
    server, generators, _, _ = pages
    generator = generators["steps"]
    opened(browser, f"{server.address}steps/")
    assert browser.tell("document.querySelectorAll('#picture b').length") == 0
    assert browser.tell("[...document.querySelectorAll('.classes label')].map(e => e.textContent)") == ["any", *NAMES]
    num = browser.tell("document.querySelectorAll('#picture canvas').length")
    assert num == 54  # six lines of nine, so that a class has columns of its own
    one, two = (np.stack([row_of(seed, item, 3 * 192) for item in range(num)]).reshape(num, 3, 192) for seed in (8, 4_000_000_000))

    def expected(place, labels):
        vectors = [[between(a, b, place) for a, b in zip(*rows, strict=True)] for rows in zip(one, two, strict=True)]
        first, *later = torch.tensor(np.array(vectors), dtype=torch.float32).reshape(num, 3, *generator.shape).unbind(1)
        with torch.no_grad():
            return SamplingGraph(generator)(first, torch.tensor(labels), torch.stack(later))

    for control, value, place, labels in (
        ("seed", 8, 0, [0, 1, 2] * 18),
        ("other-seed", 4_000_000_000, 0, [0, 1, 2] * 18),
        ("place", 0.3, 0.3, [0, 1, 2] * 18),
        ("place", 1, 1, [0, 1, 2] * 18),
        ("label-1", None, 1, [1] * 54),
    ):
        if control.startswith("label"):
            browser.tell(f"document.querySelector('#{control}').click()")
        else:
            set_control(browser, control, value)
        settled(browser)
        same_pixels(pixels(browser, generator.shape), expected(place, labels))
    assert (
        browser.tell("document.querySelector('#caption').textContent")
        == f"54 images of the class {NAMES[1]}, from noise of seed 4000000000"
    )
    lengths = re.findall(r"[\d.]+", browser.tell("document.querySelector('#length').textContent"))
    norm = np.linalg.norm(two[0, 0])
    assert float(lengths[0]) == pytest.approx(norm, abs=0.06)


def press(browser, key, code):
    for kind in ("keyDown", "keyUp"):
        browser.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def test_keys_alone_will_do(browser, pages):
    server, _, _, _ = pages
    opened(browser, f"{server.address}steps/")
    browser.tell("document.body.focus()")
    reached = []
    for _ in range(7):
        press(browser, "Tab", 9)
        reached.append(browser.tell("document.activeElement.id"))
    assert reached == ["seed", "new-seed", "place", "other-seed", "new-other-seed", "walk", "label-any"]
    press(browser, "ArrowRight", 39)
    settled(browser)
    assert browser.tell("document.querySelector('#caption').textContent") == "54 images of the class cat, from noise of seed 1"
    browser.tell("document.querySelector('#place').focus()")
    press(browser, "ArrowRight", 39)
    settled(browser)
    assert browser.tell("document.querySelector('#place').value") == "0.005"
    assert "between the seeds 1 and 2" in browser.tell("document.querySelector('#caption').textContent")


def test_the_walk_goes_on_until_it_is_stopped(browser, pages):
    server, _, _, _ = pages
    opened(browser, f"{server.address}grey/")
    place = "document.querySelector('#place').valueAsNumber"
    walk = "document.querySelector('#walk')"
    browser.tell(f"{walk}.click()")
    until(browser, f"{place} > .02")
    assert browser.tell(f"{walk}.textContent") == "Stop"
    browser.tell(f"{walk}.click()")
    stopped = browser.tell(place)
    promised(browser, "new Promise(told => setTimeout(told, 150))")
    assert browser.tell(place) == stopped
    assert browser.tell(f"{walk}.textContent") == "Walk"


LOOK = """(() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const luminance = text => {
    const [r, g, b] = numbers(text).slice(0, 3).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = e => {
    const colour = getComputedStyle(e).backgroundColor;
    return numbers(colour)[3] === 0 && e.parentElement ? behind(e.parentElement) : colour;
  };
  const contrast = e => {
    const [dim, bright] = [luminance(getComputedStyle(e).color), luminance(behind(e))].sort((a, b) => a - b);
    return (bright + .05) / (dim + .05);
  };
  const all = [...document.querySelectorAll("main *")].filter(e => e.getClientRects().length), told = e => e.outerHTML.slice(0, 80);
  const written = all.filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()));
  const controls = [...document.querySelectorAll("input, select, button")];
  return {
    width: innerWidth, scroll: document.documentElement.scrollWidth,
    paper: luminance(getComputedStyle(document.body).backgroundColor),
    beyond: all.filter(e => e.getBoundingClientRect().right > innerWidth + .5).map(told),
    faint: written.filter(e => contrast(e) < 4.5).map(told),
    unnamed: controls.filter(e => !(e.labels?.length || e.textContent || e.ariaLabel)).map(told),
    picture: document.querySelector("#picture").ariaLabel, lang: document.documentElement.lang,
    headings: [...document.querySelectorAll("h1, h2")].map(e => +e.tagName[1]),
  };
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("name", "width"), [("steps", 390), ("points", 390), ("steps", 1280)])
def test_it_fits_and_can_be_read(browser, pages, name, width, dark):
    server, _, _, _ = pages
    opened(browser, f"{server.address}{name}/", width, dark)
    seen = browser.tell(LOOK)
    assert (seen["width"], seen["scroll"], seen["beyond"], seen["faint"], seen["unnamed"]) == (width, seen["scroll"], [], [], [])
    assert seen["scroll"] <= width
    assert (seen["paper"] < 0.05) == dark
    assert (seen["lang"], seen["headings"]) == ("en", [1, 2])
    assert "from noise of seed 1" in seen["picture"]


def test_what_the_page_and_the_command_tell(browser, pages):
    server, _, root, said = pages
    opened(browser, f"{server.address}steps/")
    text = browser.tell("document.querySelector('main').innerText")
    assert "3 steps from noise to pets" in text
    assert "3 evaluations of the network make each image; the teacher takes 35." in text
    assert browser.tell("[...document.querySelectorAll('.dots')].map(e => e.children.length)") == [3, 35]
    assert "dmd2/digits, " in text
    assert f"onnxruntime-web {VERSION} (14.3 MB), which runs it, from its own folder" in text
    assert 0 < float(browser.tell("document.querySelector('#speed').textContent")) < 1000
    assert f"python -m http.server -d {root / 'steps'} 8000" in said["steps"]
    opened(browser, f"{server.address}points/")
    text = browser.tell("document.querySelector('main').innerText")
    assert "One evaluation of the network makes each point; how many a teacher takes is unknown." in text
    assert "a teacher\nunknown" in text
    assert "any" not in browser.tell("document.querySelector('.choice').innerText")


def test_the_folder_is_whole(pages):
    _, _, root, _ = pages
    files = {str(path.relative_to(root / "grey")) for path in (root / "grey").rglob("*") if path.is_file()}
    notices = {"runtime/LICENSE", "runtime/ThirdPartyNotices.txt"}
    assert files == {"index.html", "model.onnx", "README.md", "LICENCES.txt", *notices, *(f"runtime/{name}" for name in RUNTIME)}
    assert "http.server" in (root / "grey" / "README.md").read_text()
    assert "Licence: not stated" in (root / "grey" / "LICENCES.txt").read_text()
    page = (root / "grey" / "index.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)([^"]*)"', page) == ["README.md", "LICENCES.txt"]
    assert "https:" not in re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]


def test_a_page_from_the_disk_says_how_it_is_served(browser, pages):
    _, _, root, _ = pages
    browser.open((root / "grey" / "index.html").as_uri(), 390, False)
    said = browser.tell("document.querySelector('[role=alert]').textContent")
    assert f"python -m http.server -d '{root / 'grey'}' 8000" in said
    assert [event for event in browser.events if event[0] in COMPLAINTS] == []


def test_without_a_copy_the_runtime_comes_from_the_public_server(browser, pages, runtime, tmp_path):
    """Which is here another server, at the place of the public one."""
    _, generators, root, _ = pages
    public, own = Server(runtime), Server(tmp_path)
    (tmp_path / "real").mkdir()
    shutil.copyfile(root / "grey" / "model.onnx", tmp_path / "real" / "model.onnx")
    export_page.write_page(tmp_path / "real", generators["grey"], None, "mit", None, {})
    page = (tmp_path / "real" / "index.html").read_text()
    assert "from https://cdn.jsdelivr.net." in page
    assert f'"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/{WASM}"' in page
    assert not (tmp_path / "real" / "runtime").exists()
    page = page.replace(export_page.CDN, public.address).replace("https://cdn.jsdelivr.net", public.address.rstrip("/"))
    (tmp_path / "real" / "index.html").write_text(page)
    opened(browser, f"{own.address}real/")
    got = drawn(browser, noise_of(generators["grey"], 3, 1))
    torch.testing.assert_close(got, generators["grey"].sample(3, seed=1), rtol=0, atol=1e-3)
    assert sorted(public.asked) == sorted(f"/{name}" for name in RUNTIME)
    model = tmp_path / "real" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    browser.open(f"{own.address}real/?again", 1280, False)
    until(browser, "!document.querySelector('#message').hidden")
    said = browser.tell("document.querySelector('#message').textContent")
    assert said == "The generator cannot run here: model.onnx could not be loaded, or is not the file that this page was made with."
    public.close()
    own.close()


def test_a_page_exported_anew_does_not_meet_the_old_generator_in_the_cache(browser, runtime, done, tmp_path):
    old, new = made(*GENERATORS["grey"]), made(*GENERATORS["grey"])
    for weight in new.parameters():
        weight.data.mul_(0.9)
    server = Server(tmp_path, keep=True)
    for number, generator in enumerate((old, new)):
        generator.save_pretrained(tmp_path / f"model{number}")
        done("export", tmp_path / f"model{number}", "--format", "page", "--runtime", runtime, "--out", tmp_path / f"page{number}")
        shutil.copytree(tmp_path / f"page{number}", tmp_path / "page", dirs_exist_ok=True)
        long_ago = time.time() - (2 - number) * 10 * 24 * 3600  # of which a tenth, a day, a browser keeps a file without asking
        for file in (tmp_path / "page").rglob("*"):
            os.utime(file, (long_ago, long_ago))
        opened(browser, f"{server.address}page/?{number}")
        got = drawn(browser, noise_of(generator, 3, 1))
        torch.testing.assert_close(got, generator.sample(3, seed=1), rtol=0, atol=1e-3)
    server.close()


def test_a_runtime_that_is_not_the_pages_is_refused(runtime, mistake, tmp_path):
    model = made(*GENERATORS["grey"])
    model.save_pretrained(tmp_path / "model")
    command = ("export", tmp_path / "model", "--out", tmp_path / "out", "--runtime")
    assert "--runtime is for pages, and --format is onnx" in mistake(*command, runtime, "--format", "onnx")
    wrong = tmp_path / "dist"
    wrong.mkdir()
    assert f"holds no onnxruntime-web ({SCRIPT} and {WASM}); npm install onnxruntime-web@{VERSION}" in mistake(
        *command, wrong, "--format", "page"
    )
    script = (runtime / SCRIPT).read_bytes()
    (wrong / WASM).write_bytes(b"\0asm")
    (wrong / SCRIPT).write_bytes(script.replace(f"Web v{VERSION}".encode(), b"Web v1.19.2"))
    assert f"holds onnxruntime-web 1.19.2, and the page is made for {VERSION}" in mistake(*command, wrong, "--format", "page")
    (wrong / SCRIPT).write_bytes(script)
    assert f"{wrong / WASM} is not the file that onnxruntime-web {VERSION} has" in mistake(*command, tmp_path, "--format", "page")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dist", "model"]
    assert runtime_files(runtime) == {name: runtime / name for name in RUNTIME}
    assert runtime_files(None) == {}


@pytest.mark.parametrize("shape", [(2, 8, 8), (3,)])
def test_what_no_page_shows_is_refused(mistake, tmp_path, shape):
    network = {"name": "latent_mlp", "widths": [8], "latent": 3}
    made(shape, None, network, PUSH, None, PUSH).save_pretrained(tmp_path / "model")
    said = mistake("export", tmp_path / "model", "--format", "page", "--out", tmp_path / "out")
    assert f"has shape {list(shape)}, and a page shows images of one channel or three, or points of two numbers" in said
    assert not (tmp_path / "out").exists()


def test_what_visitors_would_wait_too_long_for_is_refused(mistake, monkeypatch, tmp_path):
    made(*GENERATORS["grey"]).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(export_page, "MOST_BYTES", 1000)
    assert "a page that visitors load has at most 0 MB" in mistake(
        "export", tmp_path / "model", "--format", "page", "--out", tmp_path / "out"
    )


def test_a_page_that_cannot_be_written_leaves_nothing(pages, mistake, monkeypatch, tmp_path):
    _, _, root, _ = pages

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_onnx, "write_onnx", lambda generator, folder: shutil.copy(root / "grey" / "model.onnx", folder))
    monkeypatch.setattr(export_page, "write_file", full)
    said = mistake("export", root / "grey.run", "--format", "page", "--out", tmp_path / "out")
    assert "No space left on device" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("recipe", "rows", "expected"),
    [
        (None, None, None),
        ({"method": {"name": "drift"}}, None, 0),
        ({"method": {"teacher": "runs/teacher"}}, None, None),
        ({"method": {"teacher": "runs/teacher"}}, {"a": {"role": "own", "evaluations": 1}, "b": {"role": "floor"}}, None),
        ({"method": {"teacher": "x"}}, {"a": {"role": "teacher", "evaluations": 1}, "b": {"role": "teacher", "evaluations": 70}}, 70),
    ],
)
def test_evaluations_of_a_teacher_that_is_not_there(tmp_path, recipe, rows, expected):
    if recipe:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert teacher_evaluations(RunFolder(tmp_path), rows and {"rows": rows}) == expected


def test_many_classes_are_a_list():
    text = export_page._classes([f"class {number}" for number in range(25)])
    assert text.startswith('<label for="label">Class</label><select id="label" name="label"><option value="">any</option>')
    assert text.count("<option") == 26
