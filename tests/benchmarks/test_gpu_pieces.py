"""benchmarks/gpu.py: pieces that go on where they stopped, whatever stopped them; every one of them, small, on the CPU."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import gpu  # noqa: E402
import gpu_data  # noqa: E402
import gpu_pieces  # noqa: E402
import gpu_steps  # noqa: E402
import gpu_tables  # noqa: E402
import gpu_training  # noqa: E402
from fewstep import costs  # noqa: E402
from fewstep.build import make_method  # noqa: E402
from fewstep.data.cifar import cifar10_of  # noqa: E402
from fewstep.data.images import ImageData  # noqa: E402
from fewstep.errors import UserError  # noqa: E402
from fewstep.recipe import load_recipe  # noqa: E402
from gpu_peaks import PEAKS, peak, share  # noqa: E402
from gpu_piece import Piece, Place, read_rows, united  # noqa: E402

H200 = {"cpu": "a CPU", "threads": 1, "accelerator": "NVIDIA H200", "torch": "2.8.0", "python": "3.11"}


# --- peaks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEAKS)
def test_peaks_are_the_dense_ones(name):
    known = PEAKS[name]
    if known.tf32 is None:
        assert share(name, "tf32", 5.0) is share(name, "bf16", 5.0) is None
        return
    assert known.bf16 == pytest.approx(2 * known.tf32, rel=0.02)  # on every generation that has both
    if sparse := re.search(r"TF32 ([\d,]+), BF16 ([\d,]+) with sparsity", known.source):
        assert [2 * known.tf32, 2 * known.bf16] == pytest.approx([float(n.replace(",", "")) for n in sparse.groups()], rel=0.002)
    assert share(name, "bf16", known.bf16 / 4) == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["NVIDIA H200 MIG 1g.18gb", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "cpu", ""])
def test_a_gpu_that_is_not_known_gets_no_share_rather_than_a_wrong_one(name):
    assert peak(name, "bf16") is None
    assert share(name, "bf16", 100.0) is None


# --- steps -----------------------------------------------------------------------------------------------------------


def linear(most, usual=2, wrong=None):
    """A network of 6 x 6 weights that a device has room for up to `most` items of; on `wrong` items it raises."""

    def inputs(items, device):
        if device != "meta" and items > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if device != "meta" and items == wrong:
            raise RuntimeError("no such kernel\nsecond line")
        return (torch.zeros(items, 6, device=device),), {}

    return gpu_steps.Work(lambda device: nn.Linear(6, 6, device=device), inputs, 1, usual)


@pytest.fixture
def measured(monkeypatch):
    """``measured(work, known)``: the rows that are sent, in the order in which they come."""

    def call(work, known=None):
        monkeypatch.setattr(gpu_steps, "works", lambda tiny: {"linear": lambda: work})
        rows = []
        place = SimpleNamespace(tiny=True, device="cpu", gpu="NVIDIA H200")
        assert gpu_steps.measure("linear", place, {} if known is None else known, rows.append)
        return [row for row in rows if not row.get("begun")]

    return call


def keys(rows):
    return [(row["precision"], row["compiled"], row["batch"]) for row in rows]


def test_batches_double_until_one_does_not_fit(measured):
    rows = measured(linear(most=4))
    assert keys(rows)[:8] == [(precision, False, n) for precision in ("tf32", "bf16") for n in (1, 2, 4, 8)]
    assert [row["batch"] for row in rows if row.get("out_of_memory")] == [8, 8]
    compiled = rows[8:]
    assert {row["batch"] for row in compiled} <= {1, 2, 4}
    assert 2 in {row["batch"] for row in compiled}  # the recipe's
    assert all(row["compiled"] for row in compiled)
    for row in rows:
        if "tflops" in row:
            # each weight twice forward and twice for its gradient; the input needs none
            assert row["flops_per_image"] == 4 * 6 * 6
            assert row["parameters"] == 42
            assert row["tflops"] == pytest.approx(144 * row["batch"] / row["step_ms"] * 1e3 / 1e12)
            assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["step_ms"])
            assert row["share"] == pytest.approx(row["tflops"] / peak("NVIDIA H200", row["precision"]))


def test_what_is_known_is_not_measured_again(measured):
    work, known = linear(most=2), {}
    first = measured(work, known)
    assert {(r["precision"], r["compiled"], r["batch"]) for r in first} == set(known)
    assert measured(work, known) == []
    last = keys(first)[-1]
    del known[last]
    assert keys(measured(work, known)) == [last]


def test_a_batch_that_fails_is_said_in_one_line_and_ends_its_precision(measured):
    rows = measured(linear(most=8, wrong=2))
    assert [row["failed"] for row in rows if "failed" in row] == ["no such kernel"] * 2
    assert keys(rows) == [(p, False, n) for p in ("tf32", "bf16") for n in (1, 2)] + [("bf16", True, 1)]


def test_operations_are_those_that_the_package_counts():
    pixels, label = torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.arange(20) % 10
    data = ImageData("cifar10", pixels, pixels, label, label, 127.5, tuple("abcdefghij"))
    method = make_method(load_recipe("teacher/cifar10_small", ("method.label_dropout=0",)), data)
    parameters, flops = gpu_steps.counted(gpu_steps.works(tiny=False)["small"]())
    assert parameters == sum(p.numel() for p in method.networks["denoiser"].parameters())
    assert flops == pytest.approx(costs.measure(method, data.shape, 10, 100, 2).step, rel=1e-3)


@pytest.mark.slow
def test_the_sdxl_shaped_network_has_the_published_size():
    parameters, flops = gpu_steps.counted(gpu_steps.works(tiny=False)["sdxl"]())
    assert parameters == 2_567_463_684  # of stabilityai/stable-diffusion-xl-base-1.0's U-Net
    assert 2.9 < flops / 6.76e12 < 3.1  # a backward pass costs two forward ones


# --- the pieces, one after the other ---------------------------------------------------------------------------------


class Counting(Piece):
    """A piece of five rows; after the second it may do something else first, such as waiting for longer than a test takes."""

    def __init__(self, place, name="counting", then=None) -> None:
        self.name, self.what, self.then = name, f"{name}, for tests", then
        super().__init__(place)

    def run(self, seconds, rows):
        for number in range(len(rows), 5):
            if self.then is not None and number == 2:
                self.then()
            with (self.folder / "rows.jsonl").open("a") as file:
                file.write(json.dumps({"number": number}) + "\n")
        return True

    def rows(self, known):
        return united(known, read_rows(self.folder / "rows.jsonl"), ("number",))

    def news(self, rows):
        return f"{len(rows)} rows"


@pytest.fixture
def calling(tmp_path, monkeypatch):
    """``calling(*pieces, budget=..., only=...)``: a call over pieces, each made by a function of the place: exit code, results."""
    monkeypatch.setattr(gpu, "GRACE", 1.0)

    def call(*makers, budget=60.0, only=None, stop=None, copy=None):
        monkeypatch.setattr(gpu, "all_pieces", lambda place: [make(place) for make in makers])
        place = Place(tmp_path / "out", None, tiny=True)
        context = multiprocessing.get_context("fork")
        made = gpu.Call(place, tmp_path / "gpu.json", copy, H200, context, stop or gpu.Stop())
        code = gpu.go_on(made, budget, only)
        return code, json.loads((tmp_path / "gpu.json").read_text())

    return call


def state(results, name="counting"):
    return results["pieces"][name]["states"]["cpu"]


def stuck():
    time.sleep(1000)


def test_a_piece_whose_time_is_over_is_gone_on_with(calling, capsys):
    code, results = calling(lambda place: Counting(place, then=stuck), budget=8.0)
    first = [row["number"] for row in results["pieces"]["counting"]["rows"]]
    assert code == 0
    assert first in ([0, 1], [0], [])  # as far as a busy machine came
    assert state(results)["state"] == "part"
    assert state(results)["why"] == "its time was over"
    assert "left:\n  counting" in capsys.readouterr().out
    code, results = calling(Counting)
    assert [row["number"] for row in results["pieces"]["counting"]["rows"]] == list(range(5))
    assert [sitting["ended"] for sitting in state(results)["sittings"]] == ["part", "done"]
    assert all(sitting["machine"] == H200 for sitting in state(results)["sittings"])
    assert "nothing is left" in capsys.readouterr().out
    assert calling(Counting)[1] == results  # a further call does nothing


def test_results_without_their_folder_are_gone_on_with(calling, tmp_path):
    known = [{"number": number} for number in range(3)]  # of a machine that is gone; the results came home
    before = {"what": "", "rows": known, "states": {"cpu": {"state": "part", "why": "", "seconds": 1.0, "sittings": []}}}
    (tmp_path / "gpu.json").write_text(json.dumps({"tiny": True, "pieces": {"counting": before}}))
    _, after = calling(Counting)
    assert [row["number"] for row in after["pieces"]["counting"]["rows"]] == list(range(5))
    assert [row["number"] for row in read_rows(tmp_path / "out" / "counting" / "rows.jsonl")] == [3, 4]


def raises(error):
    def call():
        raise error

    return call


ENDS = {
    "user's": (raises(UserError("the cable is out;\nput it in")), "the cable is out; put it in"),
    "ours": (raises(KeyError("width")), "KeyError: 'width'; see "),
    "exit": (lambda: os._exit(3), "its process ended with exit code 3; see "),
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "its process ended with signal 9 (SIGKILL); see "),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_piece_that_fails_says_why_and_the_next_goes_on(calling, capsys, end):
    then, reason = ENDS[end]
    makers = (lambda place: Counting(place, "broken", then=then), Counting)
    code, results = calling(*makers)
    assert code == 1
    assert state(results, "broken")["state"] == "failed"
    assert state(results, "broken")["why"].startswith(reason)
    assert "\n" not in state(results, "broken")["why"]
    assert state(results)["state"] == "done"
    assert [row["number"] for row in results["pieces"]["broken"]["rows"]] == [0, 1]
    assert f"failed: {reason}" in capsys.readouterr().out
    code, results = calling(*makers)  # it is not tried again by itself
    assert code == 0
    assert len(state(results, "broken")["sittings"]) == 1
    assert "again with --only broken" in capsys.readouterr().out
    code, results = calling(lambda place: Counting(place, "broken"), Counting, only=["broken"])
    assert code == 0
    assert state(results, "broken")["state"] == "done"


class StopAfter(gpu.Stop):
    """Asks to stop when a file holds two rows."""

    def __init__(self, file) -> None:
        self.file = file

    asked = property(lambda self: len(read_rows(self.file)) >= 2, lambda self, value: None)


def test_a_call_that_is_asked_to_stop_passes_it_on_and_leaves_the_results_whole(calling, tmp_path):
    stop = StopAfter(tmp_path / "out" / "counting" / "rows.jsonl")
    code, results = calling(lambda place: Counting(place, then=stuck), lambda place: Counting(place, "next"), stop=stop, budget=500.0)
    assert code == 130
    assert state(results)["state"] == "part"
    assert state(results)["why"] == "stopped"
    assert "next" not in results["pieces"]
    assert [row["number"] for row in results["pieces"]["counting"]["rows"]] == [0, 1]
    assert not list(tmp_path.glob(".*partial"))


def test_a_budget_that_nothing_fits_into_is_refused(calling):
    def long(place):
        piece = Counting(place, "long")
        piece.least = 60.0
        return piece

    with pytest.raises(UserError, match=r"^--budget is 5 s; long, the shortest that is left, needs at least 60 s: give more$"):
        calling(long, budget=5.0)
    code, results = calling(long, Counting, budget=5.0)  # what fits is done all the same
    assert code == 0
    assert state(results)["state"] == "done"


def test_a_piece_that_is_not_there_is_named(calling):
    with pytest.raises(UserError, match="--only is countign; allowed: counting"):
        calling(Counting, only=["countign"])


def test_copies_come_with_the_results(calling, tmp_path):
    (tmp_path / "copies").mkdir()
    pictures = tmp_path / "out" / "counting" / "run" / "samples"
    pictures.mkdir(parents=True)
    (pictures / "step_5.png").write_bytes(b"a picture")
    _, results = calling(Counting, copy=tmp_path / "copies")
    assert json.loads((tmp_path / "copies" / "gpu.json").read_text()) == results
    assert (tmp_path / "copies" / "counting.png").read_bytes() == b"a picture"


def test_tests_that_passed_are_not_run_again(tmp_path):
    tests = gpu_pieces.Tests(Place(tmp_path, None, tiny=False, device="cuda", gpu="NVIDIA H200"))
    tests.folder.mkdir()
    log = """
device: NVIDIA H200
collected 3 items
tests/test_gpu.py::test_a[cuda-dmd2, gan and r1] PASSED                  [ 33%]
tests/test_gpu.py::test_a[cuda-drift] FAILED                             [ 66%]
tests/test_gpu.py::test_b SKIPPED (fewer than two CUDA devices)          [100%]
FAILED tests/test_gpu.py::test_a[cuda-drift] - AssertionError: 3 is not 4
"""
    (tests.folder / "tests.log").write_text(log)
    rows = tests.rows([])
    assert [row["outcome"] for row in rows] == ["passed", "failed", "skipped"]
    assert rows[1]["reason"] == "AssertionError: 3 is not 4"
    assert tests.ended(0, rows) == ("done", "")
    kind, why = tests.ended(1, rows)
    assert kind == "failed"
    assert why == "1 of 3 tests fail, first tests/test_gpu.py::test_a[cuda-drift]: AssertionError: 3 is not 4"
    command = tests.command(rows)
    assert "--deselect=tests/test_gpu.py::test_a[cuda-dmd2, gan and r1]" in command
    assert not any("drift" in word for word in command)
    assert "tests/test_gpu.py" in command
    assert command[command.index("-m", 3) + 1] == "gpu"
    other = gpu_pieces.Tests(Place(tmp_path, None, tiny=False, device="cuda", gpu="NVIDIA A10"))
    assert not any(word.startswith("--deselect") for word in other.command(rows))


def test_every_test_that_is_marked_gpu_is_in_a_file_that_is_asked(tmp_path):
    files = {path.name for path in gpu_pieces.marked_files()}
    assert {"test_gpu.py", "test_kernels.py", "test_images.py"} <= files


def test_a_row_that_two_sittings_were_not_enough_for_is_given_up(tmp_path, monkeypatch):
    steps = gpu_pieces.Steps(Place(tmp_path, None, tiny=False, device="cuda", gpu="NVIDIA H200"), "edm", "EDM's")
    steps.folder.mkdir()
    row = {"network": "edm", "precision": "bf16", "compiled": True, "batch": 64, "device": "NVIDIA H200"}
    seen = []

    def measure(name, place, known, send):
        seen.append(known)
        if not known:
            send({**row, "begun": True})  # and then its time is over
        return bool(known)

    monkeypatch.setattr(gpu_steps, "measure", measure)
    for seconds in (400.0, 100.0, 100.0, 400.0):  # what a small budget cuts short is no try
        assert steps.run(seconds, steps.rows([])) is False
    assert steps.run(300.0, steps.rows([])) is True
    assert seen[:4] == [{}] * 4
    assert seen[4]["bf16", True, 64]["failed"] == "not done in 2 sittings, the last of 400 s"
    assert steps.rows([]) == [{**row, "failed": "not done in 2 sittings, the last of 400 s"}]


# --- training --------------------------------------------------------------------------------------------------------


def test_options_that_the_package_does_not_know_are_left_out():
    wanted = {"trainer.precision": ("no such", "bf16-mixed"), "trainer.quantum": (True,), "trainer.accelerator": ("auto",)}
    assert list(gpu_training.known_options(wanted)) == ['trainer.precision="bf16-mixed"', 'trainer.accelerator="auto"']


@pytest.mark.parametrize(("compiled", "pays"), [(1300.0, True), (1100.0, False), (0.0, False), (None, False)])
def test_a_run_is_compiled_where_that_was_measured_to_pay(tmp_path, compiled, pays):
    place = Place(tmp_path, None, tiny=False, device="cuda", gpu="NVIDIA H200")
    rows = [step_row(64, 900.0), step_row(128, 1000.0), step_row(128, 100.0, precision="tf32"), step_row(64, 1000.0, compiled=True)]
    rows += [step_row(128, 9000.0, compiled=True, device="NVIDIA A10")]
    rows += [] if compiled is None else [step_row(128, compiled, compiled=True)]
    (tmp_path / "steps_small").mkdir()
    (tmp_path / "steps_small" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert gpu_training.compiling_pays(place) is pays


@pytest.mark.parametrize("name", gpu_training.PLANS)
def test_what_is_changed_in_a_recipe_is_known_to_it(tmp_path, name):
    (tmp_path / "cifar10" / "cifar-10-batches-bin").mkdir(parents=True)
    piece = gpu_training.Training(Place(tmp_path, tmp_path / "cifar10", tiny=False, device="cuda", gpu="NVIDIA H200"), name, "")
    recipe = load_recipe(piece.plan.recipe, piece.overrides())
    assert recipe.data.name == "cifar10"
    assert recipe.trainer.accelerator == "cuda"
    assert "bf16" in recipe.trainer.precision or recipe.trainer.precision == "auto"


def test_rows_of_a_run_that_is_gone_stay_and_are_marked(tmp_path):
    piece = gpu_training.Training(Place(tmp_path, None, tiny=True), "teacher", "")
    old = [{"step": 5, "images_seen": 80, "seconds": 1.0, "eval.frechet": 2.0}]
    lost = piece.rows(old)
    assert lost == [{**old[0], "lost": True}]
    piece.run_folder.path.mkdir(parents=True)
    piece.run_folder.log({"step": 2, "images_seen": 32, "seconds": 0.5, "images_per_second": 64.0, "eval.frechet": 3.0, "denoiser.lr": 1.0})
    rows = piece.rows(lost)
    assert [row["step"] for row in rows] == [5, 2]
    assert "lost" not in rows[1]
    assert "denoiser.lr" not in rows[1]
    assert piece.rows(rows) == rows


# --- data ------------------------------------------------------------------------------------------------------------


def test_absent_data_says_what_to_download_and_where_to_put_it(tmp_path):
    (tmp_path / "empty").mkdir()
    for data, what in (
        (None, "there is no CIFAR-10 here: get "),
        (tmp_path / "no", "which is no folder: get "),
        (tmp_path / "empty", "which holds no CIFAR-10: get "),
    ):
        said = gpu_data.why_not(data)
        assert what in said
        assert "uoft-cs/cifar10" in said
        assert "--data" in said
    (tmp_path / "empty" / "train-00000-of-00001.parquet").touch()
    assert gpu_data.why_not(tmp_path / "empty") is None


def test_a_run_without_data_waits_and_says_so(tmp_path, monkeypatch):
    command = ["gpu.py", "--out", str(tmp_path / "out"), "--results", str(tmp_path / "gpu.json"), "--data", str(tmp_path / "nowhere")]
    monkeypatch.setattr(gpu, "asked_elsewhere", lambda context: H200)
    monkeypatch.setattr(gpu.Stop, "listen", lambda self: None)
    monkeypatch.setattr(sys, "argv", [*command, "--only", "teacher"])
    with pytest.raises(
        UserError, match=r"teacher cannot be begun: --data is .*nowhere, which is no folder: get train-00000-of-00001\.parquet"
    ):
        gpu.main()
    monkeypatch.setattr(sys, "argv", [*command, "--only", "student"])
    with pytest.raises(UserError, match="student cannot be begun: --data"):
        gpu.main()


def test_no_gpu_is_said_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "asked_elsewhere", lambda context: H200 | {"accelerator": "none"})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out")])
    with pytest.raises(
        UserError, match=r"^torch .* sees no CUDA device here; run this where there is one, or try every piece with --tiny$"
    ):
        gpu.main()
    assert not (tmp_path / "out").exists()


def test_tiny_results_do_not_mix_with_others(tmp_path, monkeypatch):
    (tmp_path / "gpu.json").write_text(json.dumps({"tiny": True, "pieces": {}}))
    monkeypatch.setattr(gpu, "asked_elsewhere", lambda context: H200)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out"), "--results", str(tmp_path / "gpu.json")])
    with pytest.raises(UserError, match="has results of tiny pieces; name another file by --results"):
        gpu.main()


@pytest.fixture(scope="module")
def as_large_as_cifar():
    rng = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (num, 3, 32, 32), dtype=torch.uint8, generator=rng) for num in (50_000, 10_000)]
    labels = [torch.randint(0, 10, (len(images),), generator=rng) for images in pixels]
    return ImageData("shades", *pixels, *labels, 127.5, tuple("abcdefghij"))


def test_what_is_decoded_once_is_read_as_it_was(tmp_path, as_large_as_cifar):
    data = as_large_as_cifar
    gpu_data.write_plain(data, tmp_path / "cifar10")
    read = cifar10_of(str(tmp_path / "cifar10"))
    assert torch.equal(read.train, data.train)
    assert torch.equal(read.heldout, data.heldout)
    assert torch.equal(read.train_label, data.train_label)
    assert torch.equal(read.heldout_label, data.heldout_label)
    assert read.class_names == data.class_names
    found = gpu_data.overrides(tmp_path / "cifar10", tmp_path, tiny=False)
    assert load_recipe("teacher/cifar10_small", found).data.dir == str(tmp_path / "cifar10")


def test_images_of_another_size_are_no_cifar(tmp_path):
    pixels, label = torch.zeros(20, 3, 16, 16, dtype=torch.uint8), torch.arange(20) % 10
    with pytest.raises(UserError, match=r"has 20 and 20 images \[3, 16, 16\] of 10 classes, and CIFAR-10 has 50,000 .*uoft-cs/cifar10"):
        gpu_data.write_plain(ImageData("small", pixels, pixels, label, label, 127.5, tuple("abcdefghij")), tmp_path / "cifar10")
    assert not (tmp_path / "cifar10").exists()


@pytest.mark.slow
@pytest.mark.skipif(gpu_data.found_data() is None, reason="there is no shared/data/cifar10")
def test_the_shared_images_become_plain_files(tmp_path):
    folder = gpu_data.decoded(gpu_data.found_data(), tmp_path / "cifar10")
    read = cifar10_of(str(folder))
    assert (len(read.train), len(read.heldout)) == (50_000, 10_000)
    assert read.class_names[:3] == ("airplane", "automobile", "bird")
    assert read.train_label.bincount().tolist() == [5_000] * 10


# --- tables ----------------------------------------------------------------------------------------------------------


def step_row(batch, rate, precision="bf16", compiled=False, **more):
    row = {"network": "edm", "precision": precision, "compiled": compiled, "batch": batch, "device": "NVIDIA H200"}
    if not rate:
        return row | {"out_of_memory": True} | more
    return row | {"step_ms": 1e3 * batch / rate, "images_per_second": rate, "tflops": rate / 100, "share": 0.1, "peak_mib": 2048.0} | more


def test_the_outlook_comes_from_what_was_measured():
    rows = [step_row(64, 5_000.0), step_row(128, 8_000.0), step_row(256, 0.0), step_row(128, 9_000.0, compiled=True)]
    rows += [step_row(64, 20_000.0, precision="tf32"), {**step_row(8, 1.0), "begun": True, "tflops": None}]
    del rows[-1]["tflops"]
    found = {"pieces": {"steps_edm": {"rows": rows, "states": {}}}}
    outlook = {"rows": [{"recipe": "a/b", "network": "edm", "published": "1.79", "images": 200_000_000, "flops_per_image": 1.8e11}]}
    heads, line = gpu_tables.outlook_lines(found, outlook)
    assert heads[-1] == "hours, NVIDIA H200 (measured)"
    # 3.6e19 operations at 90 TFLOP/s, and at two fifths of 989.5
    assert line[-1] == f"{3.6e19 / 9e13 / 3600:.1f}" == "111.1"
    assert line[-2] == f"{3.6e19 / (0.4 * 989.5e12) / 3600:.1f}" == "25.3"
    assert gpu_tables.outlook_lines({"pieces": {}}, outlook)[1][-1] == "not measured"
    assert gpu_tables.outlook_lines(found | {"tiny": True}, outlook)[1][-1] == "not measured"
    lines = gpu_tables.steps_lines(found)
    assert [line[0] for line in lines[1:]] == ["edm, bf16 (NVIDIA H200)", "edm, bf16, compiled (NVIDIA H200)", "edm, tf32 (NVIDIA H200)"]
    assert lines[1] == ["edm, bf16 (NVIDIA H200)", "128", "16.0", "8,000", "80", "10%", "2.0 GiB", "128"]
    assert {len(line) for line in lines} == {8}


def test_a_network_that_fits_nowhere_is_said():
    found = {"pieces": {"steps_sdxl": {"rows": [step_row(1, 0.0)], "states": {}}}}
    assert gpu_tables.steps_lines(found)[1][3] == "out of memory at 1"


def test_without_results_nothing_is_told(tmp_path):
    found = gpu_tables.results(tmp_path)
    assert gpu_tables.steps_lines(found) == gpu_tables.runs_lines(found) == []


# --- all of it -------------------------------------------------------------------------------------------------------


def call_script(*arguments, **options):
    whole = [sys.executable, str(BENCHMARKS / "gpu.py"), *map(str, arguments)]
    return subprocess.run(whole, **{"capture_output": True, "text": True, "timeout": 500, **options})


def finished(folder, *names):
    """The results in `folder`, of whose pieces `names` all have come to their end."""
    results = json.loads((folder / "gpu.json").read_text())
    assert list(results["pieces"]) == list(names)
    for name, piece in results["pieces"].items():
        assert piece["states"]["cpu"]["state"] == "done", (name, piece["states"])
        assert piece["rows"], name
    for name in {"teacher", "student", "flow_map"} & set(names):
        rows = results["pieces"][name]["rows"]
        assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
        assert all(row["images_seen"] == 16 * row["step"] and row["eval.frechet"] >= 0 for row in rows)
    for name in {"student_figures", "flow_map_figures"} & set(names):
        titles = {row["title"] for row in results["pieces"][name]["rows"]}
        assert "teacher, 35 evaluations" in titles
        assert any(title.startswith("student, ") for title in titles)
    return results


def test_a_teacher_and_its_student_small_on_the_cpu(tmp_path):
    names = ("teacher", "student", "student_figures")
    done = call_script("--tiny", "--out", tmp_path, "--budget", 400, *(word for name in names for word in ("--only", name)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is left" in done.stdout
    results = finished(tmp_path, *names)
    assert [line[0] for line in gpu_tables.runs_lines(results)[1:]].count("teacher") >= 2
    assert gpu_tables.outlook_lines(results, {"rows": []})[0][-1] == "hours, measured"  # of tiny results nothing is told


@pytest.mark.slow
def test_every_piece_small_on_the_cpu(tmp_path):
    done = call_script("--tiny", "--out", tmp_path, "--budget", 1000, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is left" in done.stdout
    results = finished(tmp_path, *(piece.name for piece in gpu_pieces.all_pieces(Place(tmp_path, None, tiny=True))))
    for network in ("small", "edm", "sdxl"):
        rows = results["pieces"][f"steps_{network}"]["rows"]
        assert {(row["precision"], row["compiled"]) for row in rows} == {("tf32", False), ("bf16", False), ("bf16", True)}
        assert all(row["images_per_second"] > 0 and row["share"] is None and row["peak_mib"] > 0 for row in rows)
    assert [row["outcome"] for row in results["pieces"]["tests"]["rows"]] == ["passed"]


def test_a_run_goes_on_from_its_folder_after_a_kill(tmp_path):
    """All processes killed at once, as by a machine that is gone: the next call goes on from the last checkpoint."""
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--out", str(tmp_path), "--only", "teacher"]
    (tmp_path / "teacher").mkdir()
    place = Place(tmp_path, None, tiny=True)
    piece = gpu_training.Training(place, "teacher", "")
    plan = [*piece.overrides(), "steps=100000", "trainer.log_every=5", "trainer.checkpoint_every=5", "trainer.evaluate_every=100000"]
    piece.file.write_text(json.dumps({"steps": 100000, "overrides": [*plan, "trainer.evaluate_samples=40"]}))
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        end = time.monotonic() + 300
        while not list(tmp_path.glob("teacher/run/checkpoints/step_*/state.json")) and time.monotonic() < end and process.poll() is None:
            time.sleep(0.1)
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout.split()
        for pid in [process.pid, *map(int, children)]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
    kept = max(int(path.name.removeprefix("step_")) for path in tmp_path.glob("teacher/run/checkpoints/step_*"))
    assert kept >= 5
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while f"going on from step {kept}" not in (tmp_path / "teacher" / "log.txt").read_text() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 130, out
    assert "to be gone on with" in out
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["pieces"]["teacher"]["states"]["cpu"]["state"] == "part"
    assert results["pieces"]["teacher"]["rows"][-1]["step"] >= kept
