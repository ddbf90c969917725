"""What of a run's health is known from its first step on; above all whether its teacher was made for the data at hand.

At a noise level ``s`` the best straight line denoises items of standard deviation ``sigma`` with the error
``s^2 sigma^2 / (s^2 + sigma^2)`` an element, and a network that has learned them is better. One that was made for other data pulls every
item to those, and is far worse where noise is low. So the fit is

    mean over items and levels of |D(x + s n, s, label) - x|^2 (s^2 + sigma^2) / (s^2 sigma^2 D)

in the unit of `fewstep.maths.parametrization.edm_weight`: 1 is what can be had without a network. The noise ``n`` is the same for all items
and in all runs, so that nothing is drawn, and a part of a batch gives the same for its items as the whole.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.generator import Generator
from fewstep.maths.parametrization import edm_weight
from fewstep.methods.base import Batch, Method, Turn
from fewstep.methods.devices import whole_items
from fewstep.training.sharding import whole_tensor

LEVELS = (0.08, 0.15, 0.3)  # of sigma_data: below, a teacher that was trained for a short time has not learned; above, any data look alike
ITEMS = 256
FEWEST = 100  # updates, of fewer of which nothing is expected
VALUES = 64  # of noise, at least, for each level: points of few dimensions see several draws


def standing(method: Method, steps: int, batch_size: int, batches: Sequence[Batch]) -> dict[str, float]:
    """``health.teacher``, where there is one, ``health.batch``, where few items harm, ``TURN.reach`` in a run of `steps`; the method's own.

    `batches` are this process's of the step; none where they hold no items that a teacher could denoise.
    """
    found = {**method.standing, **({"health.batch": float(batch_size)} if method.compares_batch else {})}
    if batches and (teacher := method.kept_teacher) is not None:
        found["health.teacher"] = teacher_fit(teacher, batches)
    for turn in method.turns:
        if turn.updates(steps) >= FEWEST:
            found[f"{turn.name}.reach"] = reach(method, turn, steps)
            if method.ships in turn.trains:
                found["health.reach"] = found[f"{turn.name}.reach"]
    return found


def reach(method: Method, turn: Turn, steps: int) -> float:
    """How far `turn` can take a weight in a run of so many `steps`, in units of the weights' root mean square.

    A step of Adam moves a weight by about the learning rate, so that all of them move it by their sum at the most.
    """
    updates = turn.updates(steps)
    rates = sum(turn.optimizer.lr_at(update, updates) for update in range(updates))
    weights = [whole_tensor(x.detach()).float() for name in turn.trains for x in method.networks[name].parameters()]
    mean = sum(x.square().sum().item() for x in weights) / max(1, sum(x.numel() for x in weights))
    return rates / max(mean**0.5, 1e-12)


@torch.no_grad()
def teacher_fit(teacher: Generator, batches: Sequence[Batch]) -> float:
    """The fit of `teacher` to the items of a step, of which this process has `batches`; 1 is what can be had without a network."""
    x, label = whole_items((batch.x, batch.label) for batch in batches)
    x, label = x[:ITEMS], None if label is None else label[:ITEMS]
    rng = torch.Generator().manual_seed(0)
    num = -(-VALUES // x[0].numel())
    noise = torch.randn(len(LEVELS), num, *x.shape[1:], generator=rng).to(x)
    found: list[Tensor] = []
    was_learning = teacher.denoiser.training
    teacher.denoiser.eval()  # dropout would draw
    for level, draws in zip(LEVELS, noise, strict=True):
        s = torch.full((len(x),), level * teacher.sigma_data, dtype=x.dtype, device=x.device)
        for n in draws:
            denoised = teacher.denoiser(x + s[0] * n, s, label)
            found.append((edm_weight(s, teacher.sigma_data)[0] * (denoised - x).square()).mean())
    teacher.denoiser.train(was_learning)
    return torch.stack(found).mean().item()
