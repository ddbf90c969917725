"""The lessons of the documentation: their code, block by block in the page's order, without mkdocs; and that what they claim is so."""

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from matplotlib import rc_context

from fewstep.denoisers import MixtureDenoiser
from fewstep.maths.energy import generalized_energy_score
from fewstep.maths.kernels import barycenter
from fewstep.maths.matching import drift_field
from fewstep.metrics import frechet_distance
from fewstep.metrics.two_sample import energy_distance
from fewstep.samplers import two_time

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted((DOCS / "lessons").glob("*.md"))
BLOCK = re.compile(r'^```python (exec="1"[^\n]*)\n(.*?)^```$', re.M | re.S)
WIDEST, LONGEST, HEAVIEST = 110, 200, 200_000  # columns; lines of a page; characters of a figure


class Lesson(NamedTuple):
    """What a page's blocks have left behind: the names they share, and what each has printed."""

    names: dict[str, Any]
    printed: list[str]


@pytest.fixture(scope="module", autouse=True)
def apart() -> Iterator[None]:
    """The helper of the pages is found; the style of their figures, torch's own stream and its one thread stay theirs."""
    sys.path.insert(0, str(DOCS / "lessons"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with rc_context(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        sys.path.remove(str(DOCS / "lessons"))


def run(page: Path) -> Lesson:
    text, names, printed = page.read_text(), {"__name__": "lesson"}, []
    for block in BLOCK.finditer(text):
        said: list[str] = []
        names["print"] = lambda *words, said=said: said.append(" ".join(map(str, words)))
        before = text.count("\n", 0, block.start(2))
        exec(compile("\n" * before + block[2], page.name, "exec"), names)  # noqa: S102
        printed.append("\n".join(said))
    return Lesson(names, printed)


@pytest.fixture(scope="module")
def lessons() -> dict[str, Lesson]:
    return {page.stem: run(page) for page in PAGES}


def test_there_are_six():
    assert len(PAGES) == 6


def test_each_block_draws_one_figure(lessons):
    for stem, lesson in lessons.items():
        assert 2 <= len(lesson.printed) <= 3, stem
        for printed in lesson.printed:
            assert printed.count("<svg") == printed.count("</svg>") == printed.count("<figcaption") == 1
            caption = re.sub("<.*?>", "", printed[printed.index("<figcaption") :])
            assert re.search(r"\d", caption), f"{stem}: a caption without a number"
            assert not re.search(r"\bnan\b|\binf\b", caption), caption
            assert len(printed) < HEAVIEST, stem
            ids = re.findall(r'\bid="([^"]+)"', printed)
            assert set(re.findall(r"url\(#([^)]+)\)", printed)) <= set(ids)
        assert len({re.search('aria-label="(.*?)"', printed)[1] for printed in lesson.printed}) == len(lesson.printed)


def test_a_mean_lies_between_the_modes(lessons):
    names = lessons["mean-of-posteriors"].names
    assert abs(names["away"][80.0]) < 0.1 * names["spread"]  # under much noise, the mean of the class
    assert names["away"][0.2] > 0.5 * names["spread"]
    assert list(names["inside"].values()) == sorted(names["inside"].values())
    assert names["inside"][1] < 0.01
    assert names["inside"][80] > 0.9
    p = names["bimodal"]()
    mean = MixtureDenoiser(p.means, p.stds)(torch.tensor([[1.5, 0.0]]).double(), 10.0)
    between = p.log_prob(mean) - p.log_prob(p.means[:1])
    assert abs(mean[0, 0]) < 0.5
    assert between < math.log(0.01)  # a hundred times rarer than a mode


def test_drift_is_a_difference_of_denoisers(lessons):
    names = lessons["drift"].names
    real, fake, temperature = names["real"].double(), names["fake"].double(), 2.0
    b_real = MixtureDenoiser(real, 1e-6)(fake, (temperature / 2) ** 0.5)
    assert torch.allclose(b_real, barycenter(fake, real, temperature), atol=1e-6)
    others = torch.stack([MixtureDenoiser(torch.cat([fake[:i], fake[i + 1 :]]), 1e-6)(fake[i : i + 1], 1.0)[0] for i in range(20)])
    assert torch.allclose(drift_field(fake, real, fake, temperature)[:20], b_real[:20] - others, atol=1e-6)
    assert torch.allclose(names["pull"] + names["push"], names["V"], atol=1e-4)


def test_drift_stays_in_few_modes_unless_it_begins_hot(lessons):
    names = lessons["drift"].names
    cold, falling = names["filled"].values()
    assert cold["modes"].value < 4
    assert falling["modes"].value == 8
    assert names["annealed"] < 0.15 < 0.5 < names["filled"]["T = 0.1 throughout"]["weight_tv"].value


def test_drift_ends_where_its_closed_form_says(lessons):
    names = lessons["drift"].names
    s, h2 = 0.5, 0.1
    # 600 samples: the variance of a Gaussian by its median radius has a standard error of 6%
    for gamma, plain, both in zip(names["gammas"].tolist(), names["plain"], names["both"], strict=True):
        assert plain == pytest.approx(max(0.0, (s**2 + h2) / gamma - h2), abs=0.02 + 0.06 * s**2 / gamma)
        assert both == pytest.approx(s**2 / gamma, rel=0.18)


def test_the_gradient_points_from_fake_to_real(lessons):
    names = lessons["dmd2"].names
    assert names["cosine"] > 0.95
    lowest = names["lowest"]
    assert lowest[1.0] > -0.01  # a fake network that keeps up does not overshoot
    assert lowest[1.0] > lowest[0.1] > lowest[0.02] > lowest[0.0]
    assert abs(names["paths"][1.0][-1]) < 0.01
    step = names["paths"][0.0][0] - names["paths"][0.0][1]
    assert step == pytest.approx(0.1 * 3 / 2)  # rate m s^2 / (1 + s^2), and for ever


def test_only_a_fake_denoiser_that_keeps_up_arrives(lessons):
    names = lessons["dmd2"].names
    assert names["energy"]["kept up"][-1] < 0.05 < 1 < names["energy"]["frozen"][-1]
    assert all(values[-1] < 0.5 * values[0] for values in names["losses"].values())  # and the loss fell in both


def test_the_energy_score_is_least_at_the_posterior(lessons):
    names = lessons["dddm"].names
    best = names["best"]
    step = names["widths"][1].item()
    for beta in (0.5, 1, 1.5):
        assert abs(best[beta, 1] - 1) <= step + 1e-6
    assert best[2, 0] == 0
    assert best[1, 1] > best[1, 0.8] > best[1, 0.5] > best[1, 0]
    # not only among widths: other particles of the same mean and covariance do worse
    truth, others = names["truth"], names["others"]
    spread = others.std((0, 1))
    normal = truth.mean(0) + spread * torch.randn(others.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right, wrong = (generalized_energy_score(truth, particles, 1.0, 1.0).mean() for particles in (others, normal))
    assert right < wrong


def test_a_scoring_rule_makes_a_network_draw(lessons):
    names = lessons["dddm"].names
    averaged, drawn = names["spread"]
    assert averaged < 0.6
    assert 1.7 < drawn < 2.5  # of data of 2.06
    found = names["found"]
    assert max(found["exact draws"]) < 0.01  # at any number of steps
    assert found["exact mean"][0] > 1
    assert found["energy score, trained"][0] < 0.2
    assert found["exact mean"] == sorted(found["exact mean"], reverse=True)


def test_a_path_ends_in_a_mode_and_its_tangent_does_not(lessons):
    names = lessons["flows"].names
    assert names["slopes"][10.0][1] > 10 * names["slopes"][10.0][0]
    assert names["one"] + 0.01 < max(names["two"])
    assert abs(names["two"][-1] - names["one"]) < 0.02  # at the first level again the first answer is forgotten
    assert names["straight"] == sorted(names["straight"])
    assert names["straight"][0] < 0.01
    flow = names["flow"]

    def exact(x, sigma, label, rho):
        """The point that one straight step must aim at, for the exact flow."""
        ratio = (rho / sigma).item()
        return (flow(x, sigma.item(), rho.item())[-1] - ratio * x) / (1 - ratio)

    z = names["z"][:50].double()
    ends = [two_time(exact, z, levels) for levels in (torch.tensor([20.0]), torch.tensor([20.0, 1.0]), torch.tensor([20.0, 3, 0.4]))]
    for end in ends:
        assert torch.allclose(end, ends[0], atol=0.02)
        assert ((end.abs() - 1.5).abs() < 0.9).double().mean() > 0.9


def test_the_bias_of_a_frechet_distance_falls_with_n(lessons):
    names = lessons["distance-and-floor"].names
    means = names["biased"]
    assert means == sorted(means, reverse=True)
    assert means[0] > 4 * means[-1]
    assert names["C"] > 0
    assert means[-1] == pytest.approx(frechet_distance(names["f_train"], names["f_heldout"]), rel=1e-3)


def test_what_a_frechet_distance_does_not_see(lessons):
    names = lessons["distance-and-floor"].names
    (fd_blob, fd_moved), (energy_blob, energy_moved) = names["fd"], names["energy"]
    assert fd_blob < fd_moved
    assert energy_blob > energy_moved
    assert energy_blob == pytest.approx(energy_distance(names["blob"], names["points"]).value)


def test_class_accuracy_ranks_nothing(lessons):
    judged = lessons["distance-and-floor"].names["judged"]
    fd, accuracy, near = (dict(zip(judged, column, strict=True)) for column in zip(*judged.values(), strict=True))
    assert min(accuracy.values()) > 0.97
    assert fd["training images again"] == pytest.approx(1, abs=0.2)
    assert near["training images again"] == 0
    assert min(value for name, value in fd.items() if name.startswith(("one", "class", "half"))) > 5


@pytest.mark.parametrize("page", [*PAGES, DOCS / "glossary.md"], ids=lambda page: page.stem)
def test_pages_are_in_order(page):
    text = page.read_text()
    lines = text.splitlines()
    assert [number for number, line in enumerate(lines, start=1) if len(line) >= WIDEST] == []
    for target in re.findall(r"\]\(([^)#\s]*)(?:#[\w-]+)?\)", text):
        assert not target or target.startswith("https://") or (page.parent / target).is_file(), target
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([\w-]+)\)", text):
        other = (page.parent / target).read_text() if target else text
        assert f'id="{anchor}"' in other, anchor
    if page in PAGES:
        assert len(lines) <= LONGEST
        for part in ("**The question.**", "## Where it is in the code", "## Try it"):
            assert text.count(part) == 1, part
        assert "../glossary.md#" in text


def test_named_functions_and_tests_exist():
    """What a lesson says about where it is in the code."""
    from importlib import import_module

    for page in PAGES:
        table = page.read_text().split("## Where it is in the code")[1].split("## Try it")[0]
        for name in re.findall(r"`((?:maths|denoisers|samplers|methods|metrics)\.[\w.]+)`", table):
            *parts, last = name.split(".")
            for cut in range(len(parts), 0, -1):
                try:
                    found: Any = import_module(".".join(("fewstep", *parts[:cut])))
                    break
                except ModuleNotFoundError:
                    continue
            for part in (*parts[cut:], last):
                found = getattr(found, part) if hasattr(found, part) else import_module(f"{found.__name__}.{part}")
        for path in re.findall(r"`(tests/[\w/]+\.py)`", table):
            assert (DOCS.parent / path).is_file(), path
