"""What docs/scaling.md counts: by the structure of a step, and as a real step of the method takes; and the page is what was counted."""

import json
from pathlib import Path

import pytest

import scaling
import scaling_tables
import tables
from every_method import CASES, made
from fewstep.costs import measure

CONTENT = json.loads(scaling.RESULTS.read_text())
PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize(("more", "steps"), [((), 1), (("method.sampler_steps=4", "method.sampler_sigmas=[80.0, 9.0, 3.0, 1.0]"), 4)])
def test_operations_of_a_step_are_those_that_a_step_takes(more, steps, still_teacher):
    """Counted by the method's own losses on a tiny network, asked for new samples every time; which steps these take is chance."""
    own = ("method.loss=dmd", "method.dfake_gen_update_ratio=5", "method.reuse_generator_batch=false", "steps=100")
    found = measure(made(CASES["dmd2"].read(still_teacher, *more, *own))[1], (1, 8, 8), 10, 100, 16)
    teacher = measure(made(CASES["teacher"].read(still_teacher, "steps=100"))[1], (1, 8, 8), 10, 100, 16)
    one = {"forward": found.evaluation, "both": teacher.step, "encoder_forward": 0.0, "encoder_both": 0.0}
    counted = scaling.step_flops(one, steps, 5, guided=False, gan=False)
    anew = ((steps - 1) / 2 + 1) * one["forward"] / 5
    assert counted + anew == pytest.approx(found.step, rel=0.01 if steps == 1 else 0.1)


def test_a_published_run_reached_what_its_hours_say():
    """SD 1.5: 39,000 batches of 2,048 in 25 hours of 64 GPUs, and 3.6 TFLOP for each image."""
    run = CONTENT["runs"]["SD 1.5, one step"]
    one = CONTENT["networks"]["sd15"]
    by_hand = one["both"] + 0.9 * one["forward"] + 0.1 * (one["both"] + 3 * one["forward"])
    assert run["flops"] == pytest.approx(by_hand)
    assert run["rate"] == pytest.approx(by_hand * 2048 * 39_000 / 64 / 90_000)


def test_what_is_exchanged_in_a_step_by_hand():
    """Fake: forwards, backwards, gradients. Samples: a call of each of four steps; every fifth time one more, two others, gradients."""
    assert scaling.exchanged({"parameters": 10}, 4, 5) == pytest.approx(4 * 10 * (3 + 4 * 4 / 5 + (4 + 1 + 2 + 1) / 5))


def test_memory_in_shares():
    """36 bytes for each parameter of three copies, over 8 GPUs, and what is gathered."""
    one = CONTENT["networks"]["sdxl"]
    (row,) = [line for line in scaling_tables.memory_lines(CONTENT) if line[0] == "SDXL, copies"]
    assert row[1] == f"{36 * 2_567_463_684 / 1e9:.1f} GB"
    assert row[2] == f"{(36 * 2_567_463_684 / 8 + one['gathered']) / 1e9:.1f} GB"


@pytest.mark.parametrize("name", ["scaling_networks", "scaling_memory", "scaling_speed", "scaling_published"])
def test_the_page_is_what_was_counted(name):
    assert PAGE.split(f"<!-- table: {name} -->\n")[1].split("\n<!-- end -->")[0] == tables.TABLES[name]()


def test_a_network_of_the_true_size_is_counted_as_it_was():
    found = scaling.counted("sd15")
    assert found == pytest.approx(CONTENT["networks"]["sd15"])
