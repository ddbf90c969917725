"""Make the run folders that lie beside this file: each stopped after step 2 of 4, as version 0.1.0 leaves it.

This needs revision 034b449, the last of 0.1.0, and is not meant to be run with any other:

    git worktree add --detach ../old 034b449
    PYTHONPATH=../old/src OMP_NUM_THREADS=1 python tests/old_runs/make.py
    git worktree remove ../old

A run is stopped by a SIGTERM that it sends to itself when it logs step 2. What a resume and a load need is packed into
NAME/run.tar.xz. Then the run goes on to step 4, and NAME/expected.json keeps how that went.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import fewstep
from fewstep import cli
from fewstep.build import made_by
from fewstep.training.run_folder import RunFolder

REVISION = "034b449"
HERE = Path(__file__).resolve().parent
STOP, STEPS = 2, 4
KEPT = ("recipe.yaml", "metrics.jsonl", "checkpoints", "model", "teacher")
TIMES = ("seconds", "images_per_second")

SHORT = (f"steps={STEPS}", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.log_every=1", "trainer.checkpoint_every=4")
RATES = ("method.beta1=.8", "method.beta2=.95", "method.weight_decay=.1", "method.clip=1.0", "method.ema_decay=.9", "method.ema_warmup=2.0")
UNET = ("network.channels=[4]", "network.groups=2", "network.head_dim=4")

# settings that are not the recipe's, so that a key which is lost on its way into a newer form is missed
COMMANDS = {
    "teacher": [
        *("train", "teacher/digits", *UNET, *SHORT, *RATES, "batch_size=16", "seed=3"),
        *("method.lr=3e-3", "method.warmup=3", "method.decay_from=.5", "method.final=.1", "method.label_dropout=.2"),
        *("method.sigma_std=1.4", "method.sampler_steps=5"),
    ],
    "dmd2": [
        *("train", "dmd2/digits", "method.teacher=runs/teacher", *SHORT, *RATES, "batch_size=16", "seed=4"),
        *("method.generator_lr=1e-3", "method.generator_warmup=2", "method.generator_decay=cosine", "method.generator_decay_from=.1"),
        *("method.generator_final=.3", "method.guidance_lr=2e-3", "method.loss=dmd", "method.min_step_start=.4"),
        *("method.gan=true", "method.gan_weight_generator=.5", "method.gan_weight_guidance=.05"),
        *("method.r1_weight=.5", "method.r1_alpha=.2", "method.f_divergence=js"),
    ],
    "dmd2_ring": [
        *("train", "dmd2/ring", *SHORT, *RATES, "batch_size=32", "seed=5", "data.size=500", "method.table_scale=3.0"),
        *("network.widths=[16]", "network.bits=3", "network.embedding=4", "network.latent=4", "method.fake_widths=[16]"),
        *("method.generator_lr=2e-3", "method.generator_warmup=2", "method.generator_decay=linear", "method.generator_decay_from=.2"),
        *("method.generator_final=.5", "method.guidance_lr=2e-3", "method.gamma=1.5"),
    ],
    "drift": [
        *("train", "drift/digits", *SHORT, *RATES, "batch_size=40", "seed=6", "network.widths=[16]", "network.latent=4"),
        *("network.embedding=4", "method.field=drifting", "method.guidance_scale=1.5", "method.temperatures=[2.0, 10.0]"),
        *("method.temperature_start=20.0", "method.temperature_warmup=.75", "method.temperature_schedule=log"),
        *("method.lr=2e-3", "method.warmup=3", "method.decay=linear", "method.decay_from=.5", "method.final=.2"),
    ],
    "dddm": [
        *("train", "dddm/digits", *SHORT, *RATES, "batch_size=16", "seed=7", "method.m=3", "method.lam=.8", "method.lam_warmup=.75"),
        *("network={name: dit, sigma_data: .75, patch: 4, width: 8, depth: 1, heads: 2}", "method.output=edm", "method.sampler_steps=3"),
        *("method.lr=3e-3", "method.warmup=3", "method.decay=cosine", "method.decay_from=.5", "method.final=.1"),
    ],
}


def call(*arguments: str) -> int:
    """The command line in this process, silent; its exit code."""
    sys.argv, text = ["fewstep", *arguments], io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            cli.main()
    except SystemExit as end:
        if end.code not in (0, 130, None):
            sys.exit(text.getvalue())
        return int(end.code or 0)
    return 0


@contextlib.contextmanager
def stopped_at(step: int):
    """Runs get a SIGTERM when they log `step`."""
    log = RunFolder.log

    def logging(run, record):
        log(run, record)
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    RunFolder.log = logging
    try:
        yield
    finally:
        RunFolder.log = log


def samples(run: Path) -> list[float]:
    """Two samples of seed 0, flat, six digits after the point."""
    return [round(value, 6) for value in fewstep.load(run).sample(2, seed=0).flatten().tolist()]


def weights(run: Path) -> str:
    """SHA-256 over all weights, in the order of their names."""
    tensors = load_file(run / "model" / "model.safetensors")
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


def pack(run: Path, file: Path) -> None:
    """The parts of `run` that are needed, in their order, without dates and owners."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
        return entry

    with tarfile.open(file, "w:xz", preset=9) as archive:
        for name in KEPT:
            if (run / name).exists():
                archive.add(run / name, name, filter=plain)


def make(name: str) -> None:
    """Write NAME/run.tar.xz and NAME/expected.json; the finished run stays in runs/NAME, where ``dmd2`` finds its teacher."""
    command, run, folder = COMMANDS[name], Path("runs") / name, HERE / name
    with stopped_at(STOP):
        assert call(*command, "--out", str(run)) == 130
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step_{STOP}"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pack(run, folder / "run.tar.xz")
    at_stop = samples(run)
    assert call(*command, "--out", str(run), "--resume") == 0
    records = [{k: v for k, v in record.items() if k not in TIMES} for record in RunFolder(run).metrics()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    expected = {
        "command": command,
        "made_by": made_by(),
        "metrics": records[STOP:],
        "weights_sha256": weights(run),
        f"samples_at_{STOP}": at_stop,
        f"samples_at_{STEPS}": samples(run),
    }
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in expected.items())
    (folder / "expected.json").write_text(f"{{\n{lines}\n}}\n")


def main() -> None:
    """Make all of them, in a temporary folder."""
    torch.set_num_threads(1)
    revision = str(made_by()["commit"])
    if not revision.startswith(REVISION) or revision.endswith("dirty"):
        sys.exit(f"this is fewstep at {revision}; run it with revision {REVISION}, as the first lines of {Path(__file__).name} say")
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        Path("runs").mkdir()
        for name in COMMANDS:
            make(name)
        os.chdir(HERE)


if __name__ == "__main__":
    main()
