"""The smallest method that the loop can drive: two linear maps that learn in turns, and one that never does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fewstep.methods import LossOutput, Method, Optimizer, Turn
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder

WIDTH = 3


class Data:
    """Forty rows of numbers."""

    def __init__(self, size: int = 40) -> None:
        self.train = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor | None]:
        return self.train[index].to(device), None


class Shipped(nn.Module):
    """What stands for a generator."""

    def __init__(self, network: nn.Module, step: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(network[0].weight.detach().clone())
        self.config = {"step": step}

    def saved_tensors(self) -> dict[str, Tensor]:
        """What a model folder holds."""
        return dict(self.state_dict())


class Linear(Method):
    """``model`` learns to give back its input through ``frozen``, at every second step; ``critic`` learns what ``model`` gives.

    `noise` draws from the loop's generator and `dropout` from the process's. `before` is called with each turn's name and the
    number of its calls so far, from 1; where it returns a tensor, that is added to the loss.
    """

    ships = "model"

    def __init__(
        self,
        every: int = 2,
        noise: float = 0.0,
        dropout: float = 0.0,
        optimizer: Optimizer | None = None,
        before: Callable[[str, int], Tensor | None] = lambda turn, call: None,
    ) -> None:
        optimizer = optimizer or Optimizer(lr=0.05, beta2=0.999, warmup=2, decay_from=0.5, final=0.1)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.networks = {
                name: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout)).double() for name in ("model", "critic", "frozen")
            }
        self.turns = (Turn("first", ("model",), optimizer, every), Turn("second", ("critic",), optimizer))
        self.noise, self.before = noise, before
        self.calls = {"first": 0, "second": 0}
        self.seen: list[dict[str, Any]] = []

    @classmethod
    def make(cls, settings, given):
        raise NotImplementedError

    def loss(self, turn, networks, batch, rng, scratch):
        self.calls[turn] += 1
        added = self.before(turn, self.calls[turn])
        learns = {name: all(p.requires_grad for p in module.parameters()) for name, module in self.networks.items()}
        self.seen.append({"turn": turn, "x": batch.x, "learns": learns, "scratch": dict(scratch)})
        x = batch.x + self.noise * torch.randn(batch.x.shape, generator=rng, dtype=batch.x.dtype)
        made = networks["model"](x)
        if turn == "first":
            scratch["made"] = made.detach()
            error = (networks["frozen"](made) - batch.x).square().mean()
        else:
            error = (networks["critic"](x) - made.detach()).square().mean()
        total = error if added is None else error + added
        return LossOutput(total, {"error": error.detach()} | ({} if added is None else {"added": added.detach()}))

    def ship(self, network, step):
        return Shipped(network, step)

    def state_dict(self):
        return {"calls": dict(self.calls)}

    def load_state_dict(self, state):
        self.calls = dict(state["calls"])


RECIPE = {"method": {"name": "linear"}}
SETTINGS = {"steps": 8, "batch_size": 16, "seed": 3, "log_every": 2, "sample_every": 3, "checkpoint_every": 2, "ema_warmup": 1.0}


def run_loop(
    path: Path,
    method: Method,
    resume: bool = False,
    fabric: Fabric | None = None,
    on_sample=None,
    on_evaluate=None,
    tracker=None,
    on_begin=None,
    **settings,
) -> RunFolder:
    """Drive `method` into `path` by the loop alone."""
    if fabric is None:
        fabric = Fabric(accelerator="cpu", devices=1)
    run = RunFolder(path)
    if fabric.is_global_zero:
        run.check(RECIPE, resume)
        run.open(RECIPE, {})
    fabric.barrier()
    own = {"on_sample": on_sample, "on_begin": on_begin}
    options = {"on_evaluate": on_evaluate, "tracker": tracker} | {name: call for name, call in own.items() if call is not None}
    Loop(method, Data(), fabric, run, LoopSettings(**{**SETTINGS, **settings}), **options).train(resume)
    return run
