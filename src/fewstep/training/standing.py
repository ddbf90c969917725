"""Health figures that are known from a run's first step on, above all whether its teacher was trained on data like the run's.

At a noise level ``s`` the best linear denoiser of items with standard deviation ``sigma`` has the squared error
``s^2 sigma^2 / (s^2 + sigma^2)`` per element, and a network trained on such items has a smaller one. A network trained on other data pulls
every item towards that data, and is far worse at low noise. The fit of a teacher is therefore

    mean over items and levels of |D(x + s n, s, label) - x|^2 (s^2 + sigma^2) / (s^2 sigma^2 D)

with the weight of `fewstep.maths.parametrization.edm_weight`: 1 is the error of the linear denoiser. The noise ``n`` is the same for all
items and in all runs, so that no random numbers are drawn, and an item contributes the same whichever part of a batch it is in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.generator import Generator
from fewstep.maths.parametrization import edm_weight
from fewstep.methods.base import Batch, Method, Turn
from fewstep.methods.devices import whole_items
from fewstep.training.sharding import whole_tensor

# noise levels, in units of sigma_data: a briefly trained teacher has not learned lower ones, and at higher ones all data look alike
LEVELS = (0.08, 0.15, 0.3)
ITEMS = 256  # items on which the teacher's fit is measured, at most
FEWEST = 100  # updates of a turn below which its reach is not reported
VALUES = 64  # smallest number of noise values per level: for points of few dimensions, several draws


def standing(method: Method, steps: int, batch_size: int, batches: Sequence[Batch]) -> dict[str, float]:
    """Return the figures of a run of `steps` steps that are known at its first step, by name.

    They are the method's own, ``health.batch`` for a method that small batches harm, ``health.teacher`` if a teacher is kept, and
    ``TURN.reach`` of each turn with at least `FEWEST` updates; that of the turn that trains the shipped network is also ``health.reach``.
    `batches` are this process's parts of the first step's batch; empty where they hold no items that a teacher could denoise.
    """
    found = {**method.standing, **({"health.batch": peers(batches, batch_size)} if method.compares_batch else {})}
    if batches and (teacher := method.kept_teacher) is not None:
        found["health.teacher"] = teacher_fit(teacher, batches)
    return found | reaches(method, steps)


def peers(batches: Sequence[Batch], batch_size: int) -> float:
    """Return how many items of its own class, itself included, an item of the first step's batch finds in it on average.

    Without classes, or where `batches` is empty, that is `batch_size`.
    """
    labels = [batch.label for batch in batches if batch.label is not None]
    if not labels:
        return float(batch_size)
    count = whole_items((label, None) for label in labels)[0].bincount().double()
    return (count.square().sum() / count.sum()).item()


def reaches(method: Method, steps: int) -> dict[str, float]:
    """Return the figures of `standing` that depend on the length of the run: the reach of each turn, at the present weights."""
    found = {}
    for turn in method.turns:
        if turn.updates(steps) >= FEWEST:
            found[f"{turn.name}.reach"] = reach(method, turn, steps)
            if method.ships in turn.trains:
                found["health.reach"] = found[f"{turn.name}.reach"]
    return found


def reach(method: Method, turn: Turn, steps: int) -> float:
    """Return how far `turn` can move a weight in a run of `steps` steps, in units of the weights' root mean square.

    An update of Adam moves a weight by about the learning rate, so that all updates move it by at most about the sum of the rates.
    """
    updates = turn.updates(steps)
    rates = sum(turn.optimizer.lr_at(update, updates) for update in range(updates))
    weights = [whole_tensor(x.detach()).float() for name in turn.trains for x in method.networks[name].parameters()]
    mean = sum(x.square().sum().item() for x in weights) / max(1, sum(x.numel() for x in weights))
    return rates / max(mean**0.5, 1e-12)


@torch.no_grad()
def teacher_fit(teacher: Generator, batches: Sequence[Batch]) -> float:
    """Return the fit of `teacher` to the items of one step, of which this process has `batches`; 1 is that of the best linear denoiser."""
    x, label = whole_items((batch.x, batch.label) for batch in batches)
    x, label = x[:ITEMS], None if label is None else label[:ITEMS]
    rng = torch.Generator().manual_seed(0)
    num = -(-VALUES // x[0].numel())
    noise = torch.randn(len(LEVELS), num, *x.shape[1:], generator=rng).to(x)
    found: list[Tensor] = []
    was_learning = teacher.denoiser.training
    teacher.denoiser.eval()  # dropout would draw random numbers
    for level, draws in zip(LEVELS, noise, strict=True):
        s = torch.full((len(x),), level * teacher.sigma_data, dtype=x.dtype, device=x.device)
        for n in draws:
            denoised = teacher.denoiser(x + s[0] * n, s, label)
            found.append((edm_weight(s, teacher.sigma_data)[0] * (denoised - x).square()).mean())
    teacher.denoiser.train(was_learning)
    return torch.stack(found).mean().item()
