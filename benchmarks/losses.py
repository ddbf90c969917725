"""Compare the losses of DMD2 on real digits at equal training time: dmd, sid and uni, with other divergences and with a GAN.

    python benchmarks/losses.py                               every arm, 3 seeds; 300 CPU seconds a run, on one thread
    python benchmarks/losses.py --arms "sid" "uni, KL" --seeds 0
    python benchmarks/losses.py --seconds 60 --results /tmp/short.json

Each arm is dmd2/digits with the overrides in `ARMS`, trained for as many steps as take --seconds of CPU; all arms of a seed are distilled
from the same teacher (teacher/digits). Figures are means over `SAMPLINGS` sets of 2,000 samples. Writes results/losses_digits.json after
each run; a run that the file holds with the same --seconds is skipped.
"""

import argparse
from pathlib import Path

import torch

from dmd2 import train
from equal_time import studied
from fewstep.build import load_data
from fewstep.measurement import suite_for
from fewstep.recipe import load_recipe

SAMPLINGS = 4
RESULTS = Path(__file__).parent / "results" / "losses_digits.json"
HEAD = ("method.gan=true", "method.gan_weight_generator=auto")
# title -> overrides
ARMS: dict[str, tuple[str, ...]] = {
    "dmd": ("method.loss=dmd",),
    "sid": (),
    "uni, reverse KL": ("method.loss=uni",),
    "uni, KL": ("method.loss=uni", "method.f_divergence=kl", *HEAD),
    "uni, JS": ("method.loss=uni", "method.f_divergence=js", *HEAD),
    "uni, Hellinger": ("method.loss=uni", "method.f_divergence=hellinger", *HEAD),
    "uni, KL, the head as a ratio only": ("method.loss=uni", "method.f_divergence=kl", "method.gan=true", "method.gan_weight_generator=0"),
    "sid, GAN": HEAD,
    "dmd, GAN": ("method.loss=dmd", *HEAD),
}


def main() -> None:
    """Train and measure every arm that is asked for, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/losses"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    suite = suite_for(load_data(load_recipe("dmd2/digits").data))
    for seed in arguments.seeds:
        teacher = arguments.folder / f"teacher_{seed}"
        train("teacher/digits", teacher, f"seed={seed}")
        for arm in arguments.arms:
            studied(
                arguments.results,
                "python benchmarks/losses.py",
                arm,
                seed,
                arguments.seconds,
                "dmd2/digits",
                arguments.folder / f"{arm.replace(', ', '_').replace(' ', '_')}_{seed}",
                suite,
                SAMPLINGS,
                ARMS[arm],
                (f"method.teacher={teacher}",),
            )


if __name__ == "__main__":
    main()
