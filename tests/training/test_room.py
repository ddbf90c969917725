"""Memory that runs out: what is tried, what is said, and that nothing is lost."""

import pytest
import torch

from every_method import CASES, made
from fewstep.errors import UserError
from fewstep.recipe import Trainer
from fewstep.run import make_fabric
from fewstep.training.batches import InMemory, Shuffled, on_the_device, random_batch
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.room import is_of_memory
from fewstep.training.run_folder import RunFolder


def full(most, error=torch.OutOfMemoryError):
    """A loss that has no room for more than so many items."""

    def limited(loss):
        def inside(self, turn, networks, batch, rng, scratch):
            if len(batch.x) > most:
                raise error("CUDA out of memory. Tried to allocate 20.00 MiB")
            return loss(self, turn, networks, batch, rng, scratch)

        return inside

    return limited


def out_of_memory(name, most, teacher, folder, monkeypatch, batch_size=24, accumulate=1, error=torch.OutOfMemoryError):
    recipe = CASES[name].read(teacher, "steps=4", batch_size=batch_size)
    data, method = made(recipe)
    monkeypatch.setattr(type(method), "loss", full(most, error)(type(method).loss))
    fabric = make_fabric(Trainer(accelerator="cpu"))
    loop = Loop(method, data, fabric, RunFolder(folder), LoopSettings(steps=4, batch_size=batch_size, accumulate=accumulate))
    with pytest.raises(UserError) as caught:
        loop.advance()
    assert caught.value.__cause__ is None
    assert loop.state.step == 0
    return str(caught.value)


@pytest.mark.parametrize(
    ("most", "accumulate", "parts", "items", "error"),
    [
        (12, 1, 2, 12, torch.OutOfMemoryError),
        (11, 1, 4, 6, MemoryError),
        (8, 2, 4, 6, RuntimeError),
        (5, 1, 8, 3, torch.OutOfMemoryError),
        (1, 1, 24, 1, torch.OutOfMemoryError),
    ],
)
def test_the_parts_that_fit_are_found(most, accumulate, parts, items, error, still_teacher, tmp_path, monkeypatch):
    text = out_of_memory("teacher", most, still_teacher, tmp_path, monkeypatch, accumulate=accumulate, error=error)
    now = "batch_size 24" + (f" and trainer.accumulate {accumulate}" if accumulate > 1 else "")
    assert text.startswith(f"step 1: out of memory with {now}, {24 // accumulate} items at once. Nothing is lost: no checkpoint had been")
    assert f"trainer.accumulate={parts} fits (a step of {items} items at once was tried)" in text
    assert "--resume" in text


def test_a_method_that_needs_the_whole_batch_gets_a_smaller_one(still_teacher, tmp_path, monkeypatch):
    text = out_of_memory("dmd2, gan and r1", 7, still_teacher, tmp_path, monkeypatch)
    assert "batch_size=6 fits (a step of 6 items at once was tried); train with that into another folder" in text
    assert "accumulate" not in text


def test_where_not_even_one_item_fits_the_network_is_too_large(still_teacher, tmp_path, monkeypatch):
    text = out_of_memory("teacher", 0, still_teacher, tmp_path, monkeypatch, batch_size=4)
    assert "take a smaller network (network.*), or trainer.precision=bf16-mixed" in text


def test_nothing_that_was_saved_is_touched(done, command, still_teacher, tmp_path, monkeypatch):
    options = ("steps=4", "batch_size=8", "trainer.accelerator=cpu", "trainer.checkpoint_every=2", *CASES["teacher"].overrides)
    done("train", "teacher/digits", *options, "steps=2", "--out", tmp_path / "run")
    files = {p: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").rglob("*") if p.is_file()}
    from fewstep.methods.teacher.method import Teacher

    with monkeypatch.context() as within:
        within.setattr(Teacher, "loss", full(4)(Teacher.loss))
        outcome = command("train", "teacher/digits", *options, "--out", tmp_path / "run", "--resume")
        assert outcome.code == 2
        assert "the last good checkpoint is step 2. trainer.accumulate=2 fits" in outcome.err
        assert files == {p: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").rglob("*") if p.is_file()}
        done("train", "teacher/digits", *options, "trainer.accumulate=2", "--out", tmp_path / "run", "--resume")


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_of_memory(error, is_one):
    assert is_of_memory(error) is is_one


# --- images that stay on the device ----------------------------------------------------------------------------------


def test_images_stay_on_a_gpu_where_they_are_a_tenth_of_what_is_free(still_teacher, monkeypatch):
    data, _ = made(CASES["teacher"].read(still_teacher))
    placed = []

    class Placed:
        nbytes = data.train.nbytes

        def to(self, device):
            placed.append(device)
            return data.train

    gpu = torch.device("cuda", 0)
    for free, wanted, moves in ((10, "auto", True), (9.9, "auto", False), (1, True, True), (1000, False, False)):
        placed.clear()
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * data.train.nbytes, 0))
        monkeypatch.setattr("fewstep.training.batches.replace", lambda data, train, train_label: ("moved", train, train_label))
        watched = type(data)(**{**data.__dict__, "train": Placed(), "train_label": None})
        found = on_the_device(watched, gpu, wanted)
        assert (placed == [gpu]) is moves
        assert (found is watched) is not moves


def test_on_a_cpu_and_for_points_nothing_is_moved(still_teacher):
    for name, device in (("teacher", "cpu"), ("teacher of points", "cuda")):
        data, _ = made(CASES[name].read(still_teacher))
        assert on_the_device(data, torch.device(device), True) is data


def test_a_random_batch_has_every_class_and_the_range_of_images():
    batch = random_batch(25, (1, 4, 4), 10, torch.Generator().manual_seed(0))
    assert batch.x.shape == (25, 1, 4, 4)
    assert -1 <= batch.x.min() < -0.9 < 0.9 < batch.x.max() <= 1
    assert batch.label.bincount().tolist() == [3] * 5 + [2] * 5
    assert random_batch(2, (2,), None, torch.Generator()).label is None


def test_where_images_lie_changes_no_batch(still_teacher):
    """`InMemory` indexes with an index on the images' own device; on the CPU that is what it always was."""
    data, _ = made(CASES["teacher"].read(still_teacher))
    batches = InMemory(data, Shuffled(len(data.train), 8, 0), 0, 1, 1, torch.Generator().manual_seed(0), torch.device("cpu"))
    index = Shuffled(len(data.train), 8, 0)(3)
    (batch,) = batches(3)
    assert batch.x.equal(data.train[index].float() / data.half - 1)
    assert batch.label.equal(data.train_label[index])
