"""Two runs compared, and one damaged."""

import json

import torch
from safetensors.torch import load_file

from fewstep.training.checkpoint import checkpoints
from fewstep.training.run_folder import RunFolder

TIMES = ("seconds", "images_per_second")
CLOCK = ("seconds", "logged")


def assert_same_run(one, other) -> None:
    """Bit for bit the same weights, averages, optimisers, random states, pictures and metrics (but for the times)."""
    last = [checkpoints(run / "checkpoints")[0] for run in (one, other)]
    assert last[0].name == last[1].name
    names, others = (sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) for folder in last)
    assert names == others
    for name in names:
        if name.endswith(".safetensors"):
            tensors, others = (load_file(folder / name) for folder in last)
            assert tensors.keys() == others.keys()
            for key in tensors:
                assert torch.equal(tensors[key], others[key]), f"{name}: {key}"
    optimizers = [torch.load(folder / "optimizers.pt", weights_only=True) for folder in last]
    assert_equal_trees(*optimizers)
    states = [json.loads((folder / "state.json").read_text()) for folder in last]
    assert {k: v for k, v in states[0].items() if k not in CLOCK} == {k: v for k, v in states[1].items() if k not in CLOCK}
    models = [{path.name: path.read_bytes() for path in (run / "model").iterdir()} for run in (one, other)]
    assert models[0] == models[1]
    records = [[{k: v for k, v in record.items() if k not in TIMES} for record in RunFolder(run).metrics()] for run in (one, other)]
    assert records[0] == records[1]
    pictures = [{path.name: path.read_bytes() for path in (run / "samples").iterdir()} for run in (one, other)]
    assert pictures[0] == pictures[1]


def assert_equal_trees(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal_trees(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal_trees(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def snapshot(run) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-7])
