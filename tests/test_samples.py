"""Samples are written as they are drawn: the same bits whatever the batch, in a batch's memory, whole or not at all."""

import os
import resource
import shutil
import signal
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from copies import begun, ended, in_a_copy
from fewstep import drawing
from fewstep import samples as writing
from fewstep.data.units import Units
from fewstep.errors import Interrupted, UserError
from fewstep.generator import Generator, load
from fewstep.samples import write_samples

SAMPLER = {"name": "heun", "steps": 2, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}


def points(units=None, columns=2) -> Generator:
    torch.manual_seed(0)
    return Generator((columns,), None, 0.5, {"name": "mlp", "widths": [8]}, SAMPLER, units=units).eval()


def arrays(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


FAR = {"location": [1e9, -3.0], "scale": [1e-3, 2.0]}  # float32 cannot tell such points apart


@pytest.mark.parametrize("num", [1, 7, 20])
@pytest.mark.parametrize("batch_size", [1, 3, 7, None])
@pytest.mark.parametrize("kind", ["images", "points", "near", "far"])
def test_what_is_written_is_what_is_drawn(kind, batch_size, num, teacher_run, tmp_path):
    generator = load(teacher_run) if kind == "images" else points({"near": {**FAR, "location": [5.0, -3.0]}, "far": FAR}.get(kind))
    labels = [3, 1][:num] if kind == "images" else None
    drawn = generator.sample(num, labels, seed=5, steps=2, batch_size=batch_size)
    write_samples(generator, num, tmp_path / "a.npz", labels, seed=5, steps=2, batch_size=batch_size)
    found = arrays(tmp_path / "a.npz")
    assert found["samples"].dtype == (np.float64 if kind == "far" else np.float32)
    np.testing.assert_array_equal(found["samples"], drawn.numpy())
    assert ("labels" in found) == (kind == "images")
    if kind == "images":
        np.testing.assert_array_equal(found["labels"], np.resize([3, 1], num))
        assert found["labels"].dtype == np.int64
    np.savez(tmp_path / "b.npz", **found)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()  # as numpy itself writes it
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "b.npz"}


def test_labels_for_which_there_is_no_sample_are_refused(teacher_run, mistake, tmp_path):
    told = mistake("sample", teacher_run, "-n", 2, "--labels", "1,2,3", "--out", tmp_path / "a.npz")
    assert "-n is 2, and --labels ask for 3 samples; give -n 3 or more, or ask for fewer" in told
    assert not (tmp_path / "a.npz").exists()


def test_labels_in_turn_go_on_over_batches(teacher_run, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "LABELS", 7)
    write_samples(load(teacher_run), 33, tmp_path / "a.npz", None, seed=0, steps=1, batch_size=8)
    np.testing.assert_array_equal(arrays(tmp_path / "a.npz")["labels"], np.arange(33) % 10)


def test_memory_is_that_of_a_batch(tmp_path, monkeypatch):
    generator, num = points(columns=500), 40_000
    sampled = 0

    def drawn(start, count):
        nonlocal sampled
        sampled += count
        return torch.zeros(count, 500)

    monkeypatch.setattr(
        drawing, "_each", lambda generator, _, num, batch: (drawn(first, min(batch, num - first)) for first in range(0, num, batch))
    )
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_samples(generator, num, tmp_path / "a.npz", None, seed=0, batch_size=500)
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sampled == num
    assert (tmp_path / "a.npz").stat().st_size > 80e6
    assert traced < 8e6
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 30e6


def test_more_than_the_disk_holds_is_refused_at_once(tmp_path, monkeypatch):
    generator = points()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    monkeypatch.setattr(generator, "batches", None)
    with pytest.raises(UserError, match=r"so many samples take 1\.6 MB, and the disk of .* has 1 MB free; give at most 124,488, or"):
        write_samples(generator, 200_000, tmp_path / "a.npz", None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_asked_for_is_checked_before_anything_is_written(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"old")
    for options in (
        {"seed": 2**70},
        {"steps": 0},
        {"steps": 10**12},
        {"guidance_scale": float("nan")},
        {"batch_size": 0},
        {"sampler": "x"},
    ):
        with pytest.raises(UserError):
            write_samples(points(), 4, tmp_path / "a.npz", None, **options)
        with pytest.raises(UserError):
            points().batches(4, **options)
    assert (tmp_path / "a.npz").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("mishap", [KeyboardInterrupt, OSError, "nan"])
@pytest.mark.parametrize("old", [b"old", None])
def test_what_is_not_whole_is_not_there(mishap, old, tmp_path, monkeypatch):
    generator, out = points(), tmp_path / "a.npz"
    if old:
        out.write_bytes(old)
    real, count = generator.denoiser.forward, 0

    def forward(x, *arguments):
        nonlocal count
        count += 1
        if count > 5 and mishap == "nan":
            return x * float("nan")
        if count > 5:
            raise mishap(28, "No space left on device")
        return real(x, *arguments)

    monkeypatch.setattr(generator.denoiser, "forward", forward)
    expected = {KeyboardInterrupt: Interrupted, OSError: OSError, "nan": UserError}[mishap]
    with pytest.raises(expected) as caught:
        write_samples(generator, 40, out, None, seed=0, batch_size=10)
    if mishap is KeyboardInterrupt:
        assert str(caught.value) == f"stopped after 10 of 40 samples, of which none is kept; {out} was not written"
    if mishap == "nan":
        assert "10 of 10 samples are not finite" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"] * bool(old)
    assert not generator.training


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_a_sentence(number, tmp_path, teacher_run, command):
    folder, said = tmp_path / "out", tmp_path / "said"
    folder.mkdir()
    said.mkdir()

    def drawn() -> None:
        outcome = command("sample", teacher_run, "-n", "10000000", "--out", folder / "a.npz")
        sys.stdout.write(outcome.out)
        sys.stderr.write(outcome.err)
        sys.exit(outcome.code)

    running = begun(drawn, said)
    began = time.monotonic()
    while not any(path.stat().st_size > 1000 for path in folder.iterdir()) and time.monotonic() - began < 60:
        time.sleep(0.02)
    os.kill(running, number)
    code, out, err = ended([running], said, 30)
    assert code == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("stopped after ")
    assert err.splitlines()[-1].endswith(f" of 10,000,000 samples, of which none is kept; {folder / 'a.npz'} was not written")
    assert list(folder.iterdir()) == []


def test_a_limit_on_the_size_of_files_ends_it_in_a_sentence(tmp_path, teacher_run, command):
    folder = tmp_path / "out"
    folder.mkdir()
    for out in ("a.npz", "a.png"):

        def limited(out=out) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))
            outcome = command("sample", teacher_run, "-n", "3000", "--steps", "1", "--out", folder / out)
            sys.stderr.write(outcome.err)
            sys.exit(outcome.code)

        ended = in_a_copy(limited, tmp_path / "said")
        assert ended.code == 2, ended.err
        assert "Traceback" not in ended.err
        assert "error: File too large" in ended.err
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder.npz", "which is a folder; give the name of a file"),
        ("folder.png", "which is a folder; give the name of a file"),
        ("no/a.npz", "there is no folder"),
        ("file/a.npz", "there is no folder"),
        ("x" * 300 + ".npz", "File name too long"),
        ("x" * 250 + ".png", "File name too long"),
    ],
)
def test_a_place_that_takes_no_file_is_a_sentence(name, said, mistake, teacher_run, tmp_path):
    for folder in ("folder.npz", "folder.png"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    assert said in mistake("sample", teacher_run, "-n", 2, "--steps", 1, "--out", f"{tmp_path}/{name}")
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_beyond_32_bits_can_be_written(tmp_path):
    """Its entry has the longer form from the start, since its length is not known to zipfile beforehand."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        writing._write_member(archive, "samples", (2, 2), np.dtype(np.float32), iter([np.ones((2, 2), np.float32)]))
    assert (tmp_path / "a.npz").read_bytes()[26:30] == b"\x0b\x00\x14\x00"  # a name of 11, and 20 more bytes for the lengths


def test_units_of_an_odd_type_keep_it():
    assert Units.of(FAR).dtype == torch.float64
