"""Compare settings of the recipes of MNIST and small CIFAR-10 in short runs: every arm trains for equal CPU time, on one thread.

    python benchmarks/image_sweep.py teacher/mnist --data ../shared/data/mnist --list
    python benchmarks/image_sweep.py teacher/mnist --data ../shared/data/mnist --seconds 600
    python benchmarks/image_sweep.py dmd2/mnist --data ../shared/data/mnist --teacher runs/images/mnist/teacher_0 --arms "as it is"
    python benchmarks/image_sweep.py dmd2/mnist --data ../shared/data/mnist --teacher runs/images/mnist/teacher_1 --arms "uni" --seed 1
    python benchmarks/image_sweep.py dmd2/cifar10_cpu --data ../shared/data/cifar10 --teacher runs/images/cifar10_16/teacher_0

A teacher is measured by its denoising error on the test split, weighted as in training, on 1,500 images whose noise levels (at even
quantiles) and noise are the same for every arm, and by FD / floor of 1,000 samples at `HEUN` levels with the recipe's guidance. A student
is measured by FD / floor of 2,000 samples, also at the further numbers of steps in `MORE`. Images of CIFAR-10 are 16x16. A run that the
results hold already is skipped; two processes with different arms may run side by side. Writes results/sweep_RECIPE.json.
"""

import argparse
import itertools
import json
import shutil
from pathlib import Path

import torch

from equal_time import trained_for
from fewstep.build import in_memory, load_data
from fewstep.data import ImageData
from fewstep.engine import use_threads
from fewstep.generator import Generator, load
from fewstep.machine import machine
from fewstep.maths.parametrization import edm_weight
from fewstep.measurement import measure, suite_for
from fewstep.recipe import load_recipe
from fewstep.training.run_folder import RunFolder
from images import folder_of, shared

HERE = Path(__file__).parent
HEUN = 10  # noise levels of the sampler: 19 evaluations, with guidance 38
ITEMS = 1_500
# numbers of sampling steps that are measured beside the recipe's own
MORE = {"flow_map/mnist": (2, 4), "consistency/mnist": (2,), "dddm/mnist": (4, 1)}
QUANTILES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # edges of the ranges of sigma for which the error is reported
# recipe -> title -> what differs from the recipe
ARMS: dict[str, dict[str, tuple[str, ...]]] = {
    "teacher/mnist": {
        "as it is": (),
        "(64, 128)": ("network.channels=[64,128]",),
        "(32, 64, 128) without patches": ("network.channels=[32,64,128]", "network.patch=1"),
        "(32, 64)": ("network.channels=[32,64]",),
        "lr 4e-3": ("method.optimizer.lr=4e-3",),
        "lr 1e-3": ("method.optimizer.lr=1e-3",),
        "batch 16": ("batch_size=16",),
        "batch 64": ("batch_size=64",),
        "two layers a block": ("network.layers_per_block=2",),
        "sigma_mean 0": ("method.sigma_mean=0",),
        "sigma_mean -1.2": ("method.sigma_mean=-1.2",),
        "sigma_mean 0.5": ("method.sigma_mean=0.5",),
        "sigma_mean 1": ("method.sigma_mean=1",),
        "sigma_mean 0.5, sigma_std 1.6": ("method.sigma_mean=0.5", "method.sigma_std=1.6"),
        "sigma_mean 0.5, (32, 64)": ("method.sigma_mean=0.5", "network.channels=[32,64]"),
        "sigma_mean 0.5, (64, 128)": ("method.sigma_mean=0.5", "network.channels=[64,128]"),
        "sigma_mean 0.5, two layers a block": ("method.sigma_mean=0.5", "network.layers_per_block=2"),
        "sigma_mean -0.4, sigma_std 1.6": ("method.sigma_mean=-0.4", "method.sigma_std=1.6"),
        "sigma_mean 1, smooth in time": ("method.sigma_mean=1", "network.time_scale=50"),
        "sigma_mean 1, (32, 128)": ("method.sigma_mean=1", "network.channels=[32,128]"),
        "sigma_mean 1.5": ("method.sigma_mean=1.5",),
        "sigma_std 1.8": ("method.sigma_std=1.8",),
        "sigma_mean 0.5, sigma_std 1.8": ("method.sigma_mean=0.5", "method.sigma_std=1.8"),
    },
    "dmd2/mnist": {
        "as it is": (),
        "rates x 2": ("method.generator_optimizer.lr=4e-4", "method.guidance_optimizer.lr=1e-3"),
        "rates x .5": ("method.generator_optimizer.lr=1e-4", "method.guidance_optimizer.lr=2.5e-4"),
        "fake lr 1e-3": ("method.guidance_optimizer.lr=1e-3",),
        "batch 64": ("batch_size=64",),
        "alpha 1.2": ("method.sid_alpha=1.2",),
        "first level 80": ("method.conditioning_sigma=80",),
        "first level 30": ("method.conditioning_sigma=30",),
        "first level 10": ("method.conditioning_sigma=10",),
        "first level 5": ("method.conditioning_sigma=5",),
        "first level 2.5": ("method.conditioning_sigma=2.5",),
        "first level 2.5, GAN": ("method.conditioning_sigma=2.5", "method.gan=true", "method.gan_weight_generator=auto"),
        "first level 2.5, levels to 80%": ("method.conditioning_sigma=2.5", "method.max_step_percent=0.8"),
        "first level 2.5, rates x 2": (
            "method.conditioning_sigma=2.5",
            "method.generator_optimizer.lr=4e-4",
            "method.guidance_optimizer.lr=1e-3",
        ),
        "first level 2.5, alpha 1.2": ("method.conditioning_sigma=2.5", "method.sid_alpha=1.2"),
        "first level 2.5, batch 64": ("method.conditioning_sigma=2.5", "batch_size=64"),
        "first level 1.5": ("method.conditioning_sigma=1.5",),
        "levels to 80%": ("method.max_step_percent=0.8",),
        "guidance 1.2": ("method.guidance_scale=1.2",),
        "no guidance": ("method.guidance_scale=1",),
        "fake lr falls": ("method.guidance_optimizer.decay_from=0.4", "method.guidance_optimizer.final=0.1"),
        "guidance 1.2, fake lr falls": (
            "method.guidance_scale=1.2",
            "method.guidance_optimizer.decay_from=0.4",
            "method.guidance_optimizer.final=0.1",
        ),
        "DMD loss": ("method.loss=dmd",),
        "uni": ("method.loss=uni",),
        "gamma 0.9": ("method.gamma=0.9",),
        "ratio 3": ("method.dfake_gen_update_ratio=3",),
        "GAN": ("method.gan=true", "method.gan_weight_generator=auto"),
    },
    "dmd2/mnist_4step": {
        "as it is": (),
        "usual levels from 80": ("method.conditioning_sigma=80", "method.sampler_sigmas=null"),
        "usual levels from 10": ("method.sampler_sigmas=null",),
        "levels at equal angles from 2.5": ("method.conditioning_sigma=2.5", "method.sampler_sigmas=[2.5,0.96,0.49,0.21]"),
        "levels from 10 to 0.9": ("method.sampler_sigmas=[10,4.5,2,0.9]",),
        "guidance 1.25": ("method.guidance_scale=1.25",),
        "no guidance": ("method.guidance_scale=1",),
    },
    "dmd2/cifar10_cpu": {
        "as it is": (),
        "first level 2.5": ("method.conditioning_sigma=2.5",),
        "first level 10": ("method.conditioning_sigma=10",),
        "no guidance": ("method.guidance_scale=1",),
        "guidance 1.5": ("method.guidance_scale=1.5",),
        "rates x 2": ("method.generator_optimizer.lr=4e-4", "method.guidance_optimizer.lr=1e-3"),
        "rates x 4": ("method.generator_optimizer.lr=8e-4", "method.guidance_optimizer.lr=2e-3"),
        "rates x 4, generator at every step": (
            "method.generator_optimizer.lr=8e-4",
            "method.guidance_optimizer.lr=2e-3",
            "method.dfake_gen_update_ratio=1",
        ),
        "DMD loss": ("method.loss=dmd",),
        "GAN": ("method.gan=true", "method.gan_weight_generator=auto"),
    },
    "flow_map/mnist": {
        "as it is": (),
        "sigma_mean 1": ("method.sigma_mean=1",),
        "sigma_mean 1, sigma_std 1.2": ("method.sigma_mean=1", "method.sigma_std=1.2"),
        "rate x 3": ("method.optimizer.lr=3e-3",),
        "rate x .3": ("method.optimizer.lr=3e-4",),
        "no guidance": ("method.guidance_scale=1",),
        "sigma_mean 1, gain 10": ("method.sigma_mean=1", "method.gap_gain=10"),
        "sigma_mean 1, gain 3": ("method.sigma_mean=1", "method.gap_gain=3"),
        "zero 0.25": ("method.zero=0.25",),
        "sigma_mean 1, gain 3, anchor 0.25": ("method.sigma_mean=1", "method.gap_gain=3", "method.anchor=0.25"),
        "sigma_mean 1, gain 3, churn": ("method.sigma_mean=1", "method.gap_gain=3", "method.churn=1"),
        "sigma_mean 1, gain 3, churn, all to data": ("method.sigma_mean=1", "method.gap_gain=3", "method.churn=1", "method.zero=1"),
        "sigma_mean 1, gain 3, no guidance": ("method.sigma_mean=1", "method.gap_gain=3", "method.guidance_scale=1"),
        "sigma_mean 1, gain 3, first level 10": (
            "method.sigma_mean=1",
            "method.gap_gain=3",
            "method.first_level=10",
            "method.sigma_max=20",
        ),
    },
    "consistency/mnist": {
        "as it is": (),
        "sigma_mean 1": ("method.sigma_mean=1",),
        "rate x 3": ("method.optimizer.lr=3e-3",),
    },
    "drift/mnist": {
        "as it is": (),
        "evaluator": ("method.features=evaluator",),
        "field of the paper": ("method.field=drifting", "method.temperatures=[0.02,0.05,0.2]"),
        "field of the paper, evaluator": ("method.field=drifting", "method.temperatures=[0.02,0.05,0.2]", "method.features=evaluator"),
        "W-Flow": ("method.field=wasserstein", "method.temperature_unit=distance", "method.temperatures=[0.1,0.3]"),
    },
    "dddm/mnist": {
        "as it is": (),
        "EDM's output": ("method.output=edm",),
        "bias -1": ("method.bias=-1",),
        "rate x 2": ("method.optimizer.lr=2e-3",),
        "batch 64": ("batch_size=64",),
        "four particles, batch 16": ("method.m=4", "batch_size=16"),
        "EDM's output, bias -1": ("method.output=edm", "method.bias=-1"),
        "bias -2, rate x 2": ("method.bias=-2", "method.optimizer.lr=2e-3"),
        "bias -4, rate x 2": ("method.bias=-4", "method.optimizer.lr=2e-3"),
    },
    "teacher/cifar10_cpu": {
        "as it is": (),
        "(64, 128)": ("network.channels=[64,128]",),
        "(128, 256)": ("network.channels=[128,256]",),
        "lr 2e-3": ("method.optimizer.lr=2e-3",),
        "lr 5e-4": ("method.optimizer.lr=5e-4",),
        "batch 32": ("batch_size=32",),
    },
}


@torch.no_grad()
def denoising_error(generator: Generator, data: ImageData) -> dict[str, float]:
    """Return the weighted error of a denoiser on the test split: over all noise levels, and in each range of sigma."""
    rng = torch.Generator().manual_seed(0)
    index = torch.randperm(len(data.heldout), generator=rng)[:ITEMS]
    x, label = data.images("heldout")[index], data.heldout_label
    noise = torch.randn(x.shape, generator=rng)
    quantiles = (torch.randperm(len(x), generator=rng) + 0.5) / len(x)
    sigma = torch.exp(-1.2 + 1.2 * torch.special.ndtri(quantiles)).float()
    parts = []
    for some in torch.arange(len(x)).split(250):
        noised = x[some] + sigma[some, None, None, None] * noise[some]
        error = (generator.denoiser(noised, sigma[some], None if label is None else label[index[some]]) - x[some]).square()
        parts.append(edm_weight(sigma[some], generator.sigma_data) * error.flatten(1).mean(1))
    error = torch.cat(parts)
    edges = [0.0, *QUANTILES, float("inf")]
    ranges = {f"{a:g} to {b:g}": error[(sigma >= a) & (sigma < b)].mean().item() for a, b in itertools.pairwise(edges)}
    return {"all": error.mean().item(), **ranges}


def main() -> None:
    """Train and measure every arm that is asked for, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=list(ARMS))
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", help="run folder of the teacher, for students")
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--seed", type=int, default=0, help="training seed; sampling is always with seed 0")
    parser.add_argument("--suffix", default="", help="of the titles in the results, where arms are run again, such as with another teacher")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    arms = ARMS[arguments.recipe]
    name = arguments.recipe.replace("/", "_")
    results = HERE / "results" / f"sweep_{name}.json"
    use_threads(1)
    common = [
        f"seed={arguments.seed}",
        f"data.dir={json.dumps(arguments.data)}",
        "trainer.threads=1",
        "trainer.precision=32-true",
        "trainer.log_every=100",
    ]
    common.append("trainer.sample_every=1000000")  # samples are drawn at the end alone
    if arguments.recipe.endswith("cifar10_cpu"):
        common.append("data.size=16")  # a step takes a quarter of the time
    if arguments.teacher:
        common.append(f"method.teacher={json.dumps(arguments.teacher)}")
    data, suite = None, None
    for arm in arguments.arms or arms:
        title = arm + arguments.suffix
        with shared(results) as content:
            done = any(
                (run["title"], run["asked_seconds"], run["training_seed"]) == (title, arguments.seconds, arguments.seed)
                for run in content.get("runs", [])
            )
        if done or arguments.list:
            print(f"{title:32} {'done' if done else 'to do'}")
            continue
        if data is None:
            data = in_memory(load_data(load_recipe(arguments.recipe, common).data))
            assert isinstance(data, ImageData)
        overrides = [*arms[arm], *common]
        folder = folder_of(arguments.folder, f"{name} {title}", arguments.seed)
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run has left
        steps, seconds = trained_for(arguments.seconds, arguments.recipe, folder, *overrides)
        generator = load(folder)
        teaches = arguments.recipe.startswith("teacher/")
        num = 1_000 if teaches else 2_000
        suite = suite or suite_for(data, num=num)
        row = measure(suite, generator, num, 0, HEUN if teaches else None, speed=False)
        more = {count: measure(suite, generator, num, 0, count, speed=False) for count in MORE.get(arguments.recipe, ())}
        run = {
            "title": title,
            "overrides": list(arms[arm]),
            "asked_seconds": arguments.seconds,
            "training_seed": arguments.seed,
            "cpu_seconds": seconds,
            "steps": steps,
            "images_seen": RunFolder(folder).metrics()[-1]["images_seen"],
            "n": num,
            "seed": 0,
            "row": row,
            "more": more,
            "denoising_error": denoising_error(generator, data) if teaches else None,
        }
        with shared(results) as content:
            content |= {"command": f"python benchmarks/image_sweep.py {arguments.recipe} --data DIR", "machine": machine()}
            content.setdefault("runs", []).append(run)
        also = "".join(f", {found['frechet_over_floor']:.2f} in {count} steps" for count, found in more.items())
        error = f", error {run['denoising_error']['all']:.4f}" if teaches else ""
        print(f"{title:32} {steps} steps in {seconds:.0f} s: {row['frechet_over_floor']:.2f} x the floor{also}{error}", flush=True)


if __name__ == "__main__":
    main()
