"""Compare the same short runs by two revisions bit for bit: what a refactoring must not change.

    python tools/seeded_losses.py --against main                 # this tree and `main` in turn, on this machine
    python tools/seeded_losses.py --against main --only 'dmd2/*'  # some of the cases, and the teachers that they need
    python tools/seeded_losses.py --out losses.json              # this tree alone, every number kept

A case is a recipe with overrides, trained for a few steps in full precision on one thread. Compared are every term that it
logged at every step, and the checksum of the weights that it ships. The cases are all shipped recipes that need no
download, and those options of each method that no recipe turns on. Only the command line is used, with the keys of version
0.1.0, so the two revisions may differ in anything inside; a newer revision translates such keys itself.

Each revision runs in one process of its own (this file with ``--child``), which imports that revision once. Exit code: 0 if
all bits are equal, 1 if not, or if a case failed; recipes that only one revision has are named, and do not count.
"""

import argparse
import contextlib
import fnmatch
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCAL = ("digits", "photos", "toy")  # the data sets that need no download
# every step is logged, and nothing is drawn or saved before the last one
TRAINER = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "threads": 1, "log_every": 1}
TRAINER |= {"sample_every": 1_000_000, "checkpoint_every": 1_000_000, "evaluate_every": "null"}
# recipes of photos have the U-Net of CIFAR-10, 41 M parameters; this one has as many levels and trains in seconds
SMALLER = {"photos": ("batch_size=4",), "teacher/photos": ("network.channels=[32,64,64,64]",)}
SMALLER_OPTIONS = {"drift/digits": ("batch_size=120",)} | dict.fromkeys(
    ("teacher/digits", "dmd2/digits", "dddm/digits"), ("batch_size=32",)
)
NO_TERMS = ("step", "seconds", "images_per_second")  # of a line of metrics.jsonl: the step, and how fast it was
RATES = ("beta1=.8", "beta2=.95", "weight_decay=.05", "clip=.5", "ema_decay=.9", "ema_warmup=5.0")


@dataclass(frozen=True)
class Case:
    """A short run: `recipe` with `overrides`, in which ``{run}`` is the folder of the case `after`."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    after: str | None = None


def _option(recipe: str, what: str, *settings: str, after: str | None = None) -> Case:
    """Return a case of `recipe` called ``recipe: what`` with `settings` of its method, or of another section whose name they begin with."""
    elsewhere = ("network", "trainer", "batch_size")
    overrides = tuple(s if s.startswith(elsewhere) else f"method.{s}" for s in settings)
    return Case(f"{recipe}: {what}", recipe, (*SMALLER_OPTIONS.get(recipe.partition("_")[0], ()), *overrides), after)


GAN = ("loss=dmd", "gan=true", "gan_levels=2", "r1_weight=1.0")
SEVERAL = ("sampler_steps=2", "sampler_sigmas=[80.0, 2.0]")
# options that no shipped recipe turns on
OPTIONS = (
    _option("teacher/digits", "karras", "sigma_sampling=karras", "num_train_timesteps=100"),
    _option("teacher/digits", "accumulate", "trainer.accumulate=2"),
    _option("teacher/digits", "dropout", "network.dropout=.2"),
    _option("teacher/digits", "rates", "lr=3e-3", "warmup=3", "decay_from=.3", "final=.2", *RATES),
    _option("teacher/digits", "edm_unet", "network={name: edm_unet, sigma_data: .75, channels: 16, multipliers: [1, 2], blocks: 1}"),
    _option("dmd2/digits", "gan, r1, js", *GAN, "f_divergence=js", "gan_weight_generator=auto", "guidance_scale=1.5"),
    _option("dmd2/digits", "exact r1, teacher's features", *GAN, "r1=exact", "gan_features=teacher", "f_divergence=jeffreys"),
    _option("dmd2/digits", "sid with gan", "gan=true", "gan_weight_generator=.01", "reuse_generator_batch=false"),
    _option("dmd2/digits", "accumulate", *GAN, "r1=exact", "trainer.accumulate=2"),
    _option("dmd2/digits", "rates", "generator_lr=3e-4", "generator_warmup=3", "generator_decay_from=.3", "generator_final=.2", *RATES),
    _option("dmd2/digits", "rates of the heads", *GAN, "generator_decay=cosine", "guidance_lr=2e-4", *RATES),
    _option("dmd2/digits", "ranges of levels", "gamma=1.5", "min_step_start=.5", "max_step_percent=.9", "fake_min_step_percent=.1"),
    _option("dmd2/digits", "uni", "gan=true", "loss=uni", "f_divergence=kl"),
    _option("dmd2/digits", "two steps, gan", *SEVERAL, *GAN, "f_divergence=kl"),
    _option("dmd2/digits_4step", "one fake for all", "fake_per_step=false"),
    _option("dmd2/digits_4step", "noised data", "inputs=noised_data", "conditioning_sigma=40.0"),
    _option("dmd2/ring", "a teacher's run", "teacher={run}", after="teacher/ring"),
    _option("dmd2/ring", "latent_mlp, small fake", "network={name: latent_mlp}", "fake_widths=[32, 32]", "loss=dmd"),
    _option("drift/digits", "sinkhorn", "plan=sinkhorn"),
    _option("drift/digits", "sinkhorn, drifting", "plan=sinkhorn", "field=drifting", "memory=600"),
    _option("drift/digits", "wasserstein", "field=wasserstein", "temperature_unit=distance", "temperatures=[.1, 1.0]"),
    _option("drift/digits", "guidance", "field=drifting", "guidance_scale=2.0", "affinity_floor=1e-3"),
    _option("drift/digits", "features random", "features=random", "temperatures=[.02, .2]", "field=drifting"),
    _option("drift/digits", "features evaluator", "features=evaluator", "temperatures=[.02, .2]", "field=drifting"),
    _option("drift/digits", "features pooled", "features=pooled", "temperatures=auto"),
    _option("drift/digits", "features of a teacher", "features={run}", "temperatures=[1.0, 10.0]", after="teacher/digits"),
    _option("drift/digits", "latent_unet", "network={name: latent_unet, channels: [16, 32], groups: 8, head_dim: 16}", "batch_size=64"),
    _option(
        "drift/ring",
        "two_temperature, laplace",
        "field=two_temperature",
        "kernel=laplace",
        "gamma_by=field",
        "gamma=1.5",
        "gamma_start=.5",
        "gamma_warmup=.5",
    ),
    _option("drift/ring", "toy", "field=toy", "temperatures=[.1, .3]", "temperature_schedule=linear"),
    _option("drift/ring", "gamma of the data", "gamma=2.0", "table_scale=3.0"),
    _option("drift/ring", "rates", "lr=3e-3", "warmup=3", "decay=linear", "decay_from=.3", "final=.2", *RATES),
    _option("dddm/digits", "label dropout, ramp of lam", "label_dropout=.5", "lam_warmup=.5", "beta=.5", "bias=1.0"),
    _option("dddm/digits", "edm's output, xi of 2 channels", "output=edm", "xi_channels=2", "m=3", "lam=.5"),
    _option("dddm/digits", "dit", "network={name: dit, sigma_data: .75, patch: 2, width: 32, depth: 3, heads: 2, xi_block: 1}"),
    _option("dddm/digits", "plain diffusion, accumulate", "m=1", "lam=0.0", "beta=2.0", "trainer.accumulate=2"),
    _option("dddm/ring", "rates", "lr=3e-3", "warmup=3", "decay=linear", "decay_from=.3", "final=.2", *RATES),
)


def cases(root: Path) -> dict[str, Case]:
    """Return the cases of the revision whose tree is at `root`, by name, each after the case whose run it needs."""
    import yaml

    folder, found = root / "src" / "fewstep" / "recipes", {}
    trees = {str(path.relative_to(folder).with_suffix("")): yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*/*.yaml"))}
    local = {name: tree for name, tree in trees.items() if tree["data"]["name"] in LOCAL}
    for name, tree in local.items():
        distils = "teacher" in tree["method"] and tree["method"]["teacher"] is None
        smaller = (*SMALLER.get(tree["data"]["name"], ()), *SMALLER.get(name, ()))
        if not distils:
            found[name] = Case(name, name, smaller)
            continue
        data = name.split("/")[1]  # a teacher of the same name, or of that before the last underscore
        teacher = next((t for t in (f"teacher/{data}", f"teacher/{data.rpartition('_')[0]}") if t in local), None)
        if teacher is not None:
            found[name] = Case(name, name, (*smaller, "method.teacher={run}"), teacher)
    for case in OPTIONS:
        if (shipped := found.get(case.recipe)) is not None:
            # the options come last, for they may replace what the shipped case sets
            found[case.name] = Case(case.name, case.recipe, (*shipped.overrides, *case.overrides), case.after or shipped.after)
    return dict(sorted(found.items(), key=lambda item: (item[1].after is not None, item[0])))


def selected(every: Mapping[str, Case], pattern: str | None) -> dict[str, Case]:
    """Return the cases of `every` whose name has a part like `pattern`, and the cases whose runs they need."""
    names = {name for name in every if pattern is None or fnmatch.fnmatchcase(name, f"*{pattern}*")}
    names |= {after for name in names if (after := every[name].after) is not None}
    return {name: case for name, case in every.items() if name in names}


# --- one revision, in a process of its own -------------------------------------------------------------------------------


def terms(metrics: Path) -> list[dict[str, float]]:
    """Return ``step`` and every number that was logged, one dict for each line of metrics.jsonl."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [
        {"step": record["step"]}
        | {k: v for k, v in record.items() if isinstance(v, int | float) and not isinstance(v, bool) and k not in NO_TERMS}
        for record in records
    ]


def weights(file: Path) -> str:
    """Return the SHA-256 over the bytes of all tensors of a safetensors `file`, in the order of their names."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    places = {name: entry["data_offsets"] for name, entry in json.loads(content[8:start]).items() if name != "__metadata__"}
    digest = hashlib.sha256()
    for name in sorted(places):
        first, last = places[name]
        digest.update(content[start + first : start + last])
    return digest.hexdigest()


def train(case: Case, steps: int, folder: Path) -> dict[str, Any]:
    """Train `case` with the `fewstep` on the import path; return its terms and the checksum of its weights, or ``{"error": ...}``."""
    from fewstep import cli

    run = folder / _file_name(case.name)
    shared = [f"steps={steps}", *(f"trainer.{key}={value}" for key, value in TRAINER.items())]
    own = [o.replace("{run}", str(folder / _file_name(case.after or ""))) for o in case.overrides]
    output = io.StringIO()
    sys.argv = ["fewstep", "train", case.recipe, *shared, *own, "--out", str(run)]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                cli.main()
            except SystemExit as end:
                if end.code not in (None, 0):
                    return {"error": _last_lines(output.getvalue()) or f"exit code {end.code}"}
        return {"terms": terms(run / "metrics.jsonl"), "weights": weights(run / "model" / "model.safetensors")}
    except Exception:  # whatever the error is, the other cases go on
        return {"error": _last_lines(traceback.format_exc())}


def child(spec: Mapping[str, Any]) -> None:
    """Run the cases of `spec` in turn; a line of JSON for each goes to its file ``results``."""
    import fewstep

    if not Path(fewstep.__file__).is_relative_to(spec["root"]):
        sys.exit(f"fewstep is imported from {fewstep.__file__}, and not from {spec['root']}")
    todo, folder = [Case(**{**case, "overrides": tuple(case["overrides"])}) for case in spec["cases"]], Path(spec["folder"])
    for number, case in enumerate(todo, 1):
        began = time.monotonic()
        result = train(case, spec["steps"], folder)
        seconds = time.monotonic() - began
        with Path(spec["results"]).open("a") as file:
            file.write(json.dumps({"name": case.name, **result, "seconds": round(seconds, 2)}) + "\n")
        failed = f"   failed: {result['error'].splitlines()[-1]}" if "error" in result else ""
        say(f"{spec['title']:>10} {number:3}/{len(todo)}  {case.name:48} {seconds:5.1f} s{failed}")
        if not any(other.after == case.name for other in todo):  # a folder may have many megabytes
            shutil.rmtree(folder / _file_name(case.name), ignore_errors=True)


def run_tree(title: str, root: Path, chosen: Mapping[str, Case], steps: int, folder: Path) -> dict[str, Any]:
    """Run the `chosen` cases with the revision at `root`, and return for each ``terms``, ``weights`` and ``seconds``, or ``error``."""
    folder.mkdir()
    results = folder / "results.jsonl"
    results.touch()
    spec = {"title": title, "root": str(root), "folder": str(folder), "results": str(results), "steps": steps}
    spec["cases"] = [asdict(case) for case in chosen.values()]
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg"}
    path = os.pathsep.join(filter(None, [str(root / "src"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **one, **offline, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(spec)]
    # a session of its own: Ctrl-C reaches this process alone, which then ends all that the child has started
    process = subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True)
    try:
        code = process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = {result.pop("name"): result for result in map(json.loads, results.read_text().splitlines())}
    return {name: found.get(name, {"error": f"the process ended with code {code} before this case was through"}) for name in chosen}


# --- two revisions -------------------------------------------------------------------------------------------------------


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any], allow_new_terms: bool = False) -> str | None:
    """Return the first difference between two results of one case, old -> new; None if every bit is equal.

    `allow_new_terms` lets `here` log terms that `there` does not know; a term that only `there` logged is a difference even then.
    """
    if "error" in there or "error" in here:
        failed = [
            f"{where}: {result['error'].splitlines()[-1]}" for where, result in (("there", there), ("here", here)) if "error" in result
        ]
        return "failed " + "; ".join(failed)
    for old, new in zip(there["terms"], here["terms"], strict=False):
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in old and allow_new_terms:
                continue
            values = [_exact(record[name]) if name in record else "nothing" for record in (old, new)]
            if values[0] != values[1]:
                return f"differs at step {min(old['step'], new['step'])}: {name} {values[0]} -> {values[1]}"
    if len(there["terms"]) != len(here["terms"]):
        return f"differs in length: {len(there['terms'])} -> {len(here['terms'])} records"
    if there["weights"] != here["weights"]:
        return f"differs in the weights that ship: sha256 {there['weights'][:12]} -> {here['weights'][:12]}, with all terms equal"
    return None


def _exact(value: float) -> str:
    """Return a text of `value` that is the same for two numbers if and only if their bits are; all NaNs are the same."""
    return repr(float(value))


def verdicts(there: Mapping[str, Any], here: Mapping[str, Any], allow_new_terms: bool = False) -> dict[str, str]:
    """Return for each case "equal", "only here", "only there", or its first difference."""
    found = {}
    for name in [*there, *(name for name in here if name not in there)]:
        if name in there and name in here:
            found[name] = first_difference(there[name], here[name], allow_new_terms) or "equal"
        else:
            found[name] = "only there" if name in there else "only here"
    return found


@contextlib.contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """Check out `revision` as a work tree at `folder` inside the context, and yield its path."""
    try:
        _git("worktree", "add", "--detach", str(folder), revision)
        yield folder
    finally:  # also after an interrupt while it was being made, when there may be nothing to remove
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(folder)], capture_output=True)


def _git(*arguments: str) -> str:
    """Return the output of git. Exits with git's message if it fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _file_name(case: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in case)


def _last_lines(text: str, count: int = 8) -> str:
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-count:])


def say(text: str) -> None:
    """Print progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Run this tree as "here" and, with --against, the other revision as "there".

    Returns for each side its ``revision`` and its ``cases``, as `run_tree` gives them.
    """
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seeded_losses_")))
        roots = {}
        if options.against is not None:
            commit = _git("rev-parse", "--verify", "--short", f"{options.against}^{{commit}}")
            roots["there"] = (commit, stack.enter_context(checked_out(commit, work / "tree")))
        roots["here"] = (_git("describe", "--always", "--dirty"), ROOT)
        chosen = {side: selected(cases(root), options.only) for side, (_, root) in roots.items()}
        if not any(chosen.values()):
            sys.exit(f"--only is {options.only!r}, which is like none of: {', '.join(cases(ROOT))}")
        for side, (revision, root) in roots.items():
            began = time.monotonic()
            found[side] = {"revision": revision, "cases": run_tree(side, root, chosen[side], options.steps, work / side)}
            say(f"{side:>5}: {len(chosen[side])} cases of {revision} in {time.monotonic() - began:.0f} s")
    return found


def report(found: Mapping[str, Any], allow_new_terms: bool = False) -> int:
    """Print a line for each case, and return the exit code."""
    here = found["here"]["cases"]
    if "there" in found:
        lines = verdicts(found["there"]["cases"], here, allow_new_terms)
    else:
        lines = {name: f"failed: {r['error']}" if "error" in r else f"sha256 {r['weights'][:12]}" for name, r in here.items()}
    for name, line in lines.items():
        print(f"{name:48} {line}")
    bad = [name for name, line in lines.items() if line.startswith(("differs", "failed"))]
    if "there" in found:
        names = " -> ".join(found[side]["revision"] for side in ("there", "here"))
        print(f"{names}: {sum(line == 'equal' for line in lines.values())} of {len(lines)} cases equal, {len(bad)} differ or failed")
    return int(bool(bad))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=about, epilog=more, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for all numbers, as JSON")
    parser.add_argument("--only", metavar="PATTERN", help="run cases whose name has a part like this, such as 'dmd2/*' or gan")
    parser.add_argument("--steps", type=int, default=20, help="steps of each run (default 20)")
    parser.add_argument("--against", metavar="REVISION", help="compare with this revision of git")
    parser.add_argument("--allow-new-terms", action="store_true", help="let this tree log more terms than REVISION does")
    parser.add_argument("--child", metavar="JSON", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        child(json.loads(options.child))
        return 0
    if options.steps < 1:
        parser.error(f"--steps is {options.steps}; give at least 1")
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"--out is {options.out}, but there is no folder {options.out.parent}; make it first")
    found = run_all(options)
    if options.out is not None:
        options.out.write_text(json.dumps({"steps": options.steps, **found}, indent=1))
    return report(found, options.allow_new_terms)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
