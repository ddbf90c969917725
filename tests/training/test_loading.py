"""Batches of data that does not lie in memory: the same with any number of workers, nothing twice, exact when gone on with."""

import itertools
import os
import random
import sys
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "data"))
import own_sets
from fewstep.data import DataError, PointData
from fewstep.data.iterables import stream_data
from fewstep.data.own import item_data
from fewstep.training.loading import Dealt, make_batches
from own_sets import Feed, Noisy, Plain, Plane, shards

CPU = torch.device("cpu")


def batches_of(data, **dealt):
    return make_batches(data, Dealt(**{"batch_size": 12, "seed": 3, **dealt}), torch.Generator().manual_seed(0), CPU)


def numbers(batches, steps) -> list[list[int]]:
    """First coordinates of what each of `steps` learns from, parts one after another."""
    try:
        return [[int(x) for part in batches(step) for x in part.x[:, 0]] for step in steps]
    finally:
        batches.close()


# --- items by number -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "world_size", "accumulate"), [(0, 1, 1), (0, 2, 3), (2, 2, 2)])
def test_rows_are_those_that_a_set_in_memory_would_get(workers, world_size, accumulate):
    data = item_data(Plane(50), "plane", holdout=0.2)
    memory = PointData("plane", torch.stack([data.train.dataset[k] for k in data.train.index.tolist()]), torch.zeros(1, 2))
    for rank in range(world_size):
        dealt = {"rank": rank, "world_size": world_size, "accumulate": accumulate}
        assert numbers(batches_of(data, workers=workers, **dealt), range(9)) == numbers(batches_of(memory, **dealt), range(9))


def test_no_item_comes_twice_in_an_epoch():
    data = item_data(Plane(100), "plane", holdout=0.04)  # 96 to train on: eight steps an epoch
    seen = [numbers(batches_of(data, rank=rank, world_size=2, workers=2), range(16)) for rank in range(2)]
    held = set(data.heldout.index.tolist())
    for epoch in range(2):
        items = list(itertools.chain.from_iterable(step for rank in seen for step in rank[8 * epoch : 8 * epoch + 8]))
        assert sorted(items) == sorted(set(range(100)) - held)
    assert seen[0][:8] != seen[0][8:]


def test_what_items_draw_at_random_depends_on_the_step_alone():
    """Not on workers, nor on where the run was begun; and the process's own generators stay where they are."""
    data = item_data(Noisy(40), "noisy")
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    whole = batches_of(data)
    expected = [whole(step)[0] for step in range(5)]
    for workers in (0, 2):
        later = batches_of(data, workers=workers)
        for step in (3, 4):
            (batch,) = later(step)
            assert torch.equal(batch.x, expected[step].x)
            assert torch.equal(batch.label, expected[step].label)
        later.close()
    same = Noisy(40)
    same.__class__ = type("Same", (Noisy,), {"__getitem__": lambda self, k: Noisy.__getitem__(self, 0)})
    drawn = batches_of(item_data(same, "same"))
    assert not torch.equal(drawn(0)[0].x, drawn(1)[0].x)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_that_fails_is_named_and_can_be_asked_again(workers, tmp_path):
    class Fails(Plane):
        def __getitem__(self, k):
            if (tmp_path / "gone").exists():
                raise OSError("the disk is gone\nand more")
            return super().__getitem__(k)

    batches = batches_of(item_data(Fails(40), "fails"), workers=workers)
    expected = batches(0)[0].x
    (tmp_path / "gone").touch()
    with pytest.raises(DataError, match=r"^the data set fails raised OSError: the disk is gone, at item \d+$"):
        deque(map(batches, range(1, 9)), 0)  # workers read ahead
    (tmp_path / "gone").unlink()
    assert torch.equal(batches(0)[0].x, expected)
    batches.close()


def test_a_worker_that_dies_is_told_in_one_sentence():
    class Dies(Plane):
        def __getitem__(self, k):
            if torch.utils.data.get_worker_info() is not None:
                os._exit(3)
            return super().__getitem__(k)

    batches = batches_of(item_data(Dies(40), "dies"), workers=2)
    with pytest.raises(DataError, match=r"^the data set dies: a worker has died"):
        batches(0)
    batches.close()


def private_bytes() -> int:
    """Of this process: pages of a mapped file, which the system takes back when it likes, do not count."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_set_that_is_larger_than_what_may_be_held(tmp_path):
    """A memory-mapped file of 200,000 images, 614 MB: opened, split, read and measured in a tenth of that."""
    (tmp_path / "pixels").touch()
    os.truncate(tmp_path / "pixels", 200_000 * 3 * 32 * 32)

    class Mapped:
        pixels = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=(200_000, 3, 32, 32))

        def __len__(self):
            return len(self.pixels)

        def __getitem__(self, k):
            return torch.from_numpy(self.pixels[k].copy())

    batches_of(item_data(own_sets.Patches(), "warm"), batch_size=128)(0)
    before = private_bytes()
    data = item_data(Mapped(), "mapped")
    batches = batches_of(data, batch_size=128)
    peak = before
    for step in range(60):
        batches(step)
        peak = max(peak, private_bytes())
    assert peak - before < 25e6
    assert (data.train_size, data.heldout_size) == (180_000, 20_000)
    excerpt = data.excerpt()
    assert (len(excerpt.train), len(excerpt.heldout)) == (10_000, 10_000)
    assert private_bytes() - before < 110e6  # 61 MB of pixels


# --- one after another -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> str:
    """Five shards of 24 numbered points."""
    import datasets

    folder = tmp_path_factory.mktemp("shards")
    for shard in range(5):
        rows = {"x": [[float(24 * shard + k), 0.0] for k in range(24)]}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{shard}.parquet")
    return str(folder)


def stream_of(kind, parquet, **options):
    source = shards(parquet) if kind == "shards" else kind(120)
    return stream_data(source, "feed", **{"heldout_items": 10, "buffer": 16, **options})


KINDS = pytest.mark.parametrize("kind", [Feed, Plain, "shards"])


@KINDS
@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (0, 2), (2, 2), (3, 2)])
def test_readers_share_a_stream_without_repeats(kind, workers, world_size, parquet):
    """Two epochs: each of the items that are not held out comes once in each, whoever reads it."""
    readers = max(1, workers) * world_size
    data = stream_of(kind, parquet)
    held = {int(x) for x in data.excerpt().heldout[:, 0]}
    assert len(held) == 10
    items, sizes = [], []
    for number in range(readers):
        share = data.share(number, readers, seed=1)
        each, left = (22, range(share.whole, 5)) if kind == "shards" else (110, range(share.whole, 1))
        size = each * (share.whole // readers) + sum(len(range((number + shard) % readers, each, readers)) for shard in left)
        epochs = [[int(x) for x in share.take(size)[0][:, 0]] for _ in range(2)]
        assert sorted(epochs[0]) == sorted(epochs[1])
        assert epochs[0] != epochs[1]
        items += epochs[0]
        sizes.append(size)
    assert max(sizes) - min(sizes) <= 1  # they come to the end together
    assert sorted(items) == sorted(set(range(120)) - held)
    # and through the loader, workers and all
    for rank in range(world_size):
        first = numbers(batches_of(data, rank=rank, world_size=world_size, workers=workers), range(3))
        shares = [data.share(rank * max(1, workers) + w, readers, seed=3) for w in range(max(1, workers))]
        assert first == [[int(x) for x in shares[step % len(shares)].take(12 // world_size)[0][:, 0]] for step in range(3)]


@KINDS
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_stood(kind, workers, parquet):
    """After every step, in every epoch, as a new process would from a checkpoint; and again from a checkpoint soon after that."""
    dealt = {"workers": workers, "batch_size": 7, "accumulate": 1}
    whole = batches_of(stream_of(kind, parquet), **dealt)
    steps = 40  # of 110 items: past the second epoch
    states, expected = [], []
    for step in range(steps):
        expected += numbers_of(whole, step)
        states.append(whole.state_dict())
    whole.close()
    for stop in (0, 1, 2, 9, 15, 16, 23, 31):
        state = states[stop]
        for more in (1, 2):  # a second checkpoint may come before the block ends
            later = batches_of(stream_of(kind, parquet), **dealt)
            assert later.load_state_dict([state]) is None
            found = [numbers_of(later, step)[0] for step in range(stop + 1, stop + 1 + more)]
            assert found == expected[stop + 1 : stop + 1 + more]
            state, stop = later.state_dict(), stop + more
            later.close()


class NoisyFeed(Feed):
    """What it draws is part of the item."""

    def __iter__(self):
        for item in super().__iter__():
            yield item["x"] + torch.rand(2) + random.random() + np.random.rand()


class NoisyPlain:
    """The same without a state: it is read again."""

    def __iter__(self):
        return ((k + torch.rand(2) + random.random() + np.random.rand()) for k in range(120))


@pytest.mark.parametrize("kind", [lambda: NoisyFeed(120), NoisyPlain])
def test_what_a_stream_draws_at_random_goes_on_too(kind):
    def made():
        return batches_of(stream_data(kind(), "noisy", heldout_items=10, buffer=16))

    whole = made()
    expected = [whole(step)[0].x for step in range(4)]
    before = torch.get_rng_state(), random.getstate()
    again = made()
    again(0)
    later = made()
    later.load_state_dict([again.state_dict()])
    for step in (1, 2, 3):
        assert torch.equal(later(step)[0].x, expected[step])
    assert torch.equal(before[0], torch.get_rng_state())
    assert random.getstate() == before[1]


def numbers_of(batches, step) -> list[list[int]]:
    return [[int(x) for part in batches(step) for x in part.x[:, 0]]]


def test_parts_of_a_stream_and_other_readers_than_before(parquet):
    data = stream_of("shards", parquet)
    one, parts = batches_of(data), batches_of(data, accumulate=3)
    for step in range(4):
        assert numbers_of(one, step) == numbers_of(parts, step)
    said = batches_of(data, workers=2).load_state_dict([one.state_dict()])
    assert said == "feed is read by other processes or workers than before: going on at the beginning of epoch 2"


def test_order_within_a_stream_is_a_function_of_the_seed(parquet):
    data = stream_of("shards", parquet)
    one, again, other = (numbers(batches_of(data, seed=seed), range(3)) for seed in (1, 1, 2))
    assert one == again != other
    assert one[0] != sorted(one[0])


def test_a_stream_that_ends_in_a_mistake_says_where(parquet, tmp_path):
    class Bad(Plain):
        def __iter__(self):
            for k in range(40):
                yield torch.tensor([float(k), float("nan") if k == 30 else 0.0])

    batches = batches_of(stream_data(Bad(), "bad", heldout_items=2, buffer=5))
    with pytest.raises(DataError, match=r"^the data set bad: item 30 holds NaN"):
        deque(map(batches, range(4)), 0)


def test_a_state_that_a_checkpoint_cannot_hold():
    class Tensors(Feed):
        def state_dict(self):
            return {"position": torch.tensor(self.position)}

    with pytest.raises(DataError, match=r"the data set feed: its state_dict\(\) holds more than"):
        stream_data(Tensors(), "feed")


def test_more_held_out_than_there_are_items():
    data = stream_data(Plain(20), "plain", heldout_items=30)
    with pytest.raises(DataError, match=r"too few items to train on, 30 held out of 20 found; data\.heldout_items=2 would do"):
        data.excerpt()
    assert len(stream_data(Plain(20), "plain", heldout_items=2).excerpt().train) > 0
    with pytest.raises(DataError, match="no item is left for reader 1"):
        batches_of(data)(0)
