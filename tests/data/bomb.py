"""Opens files as the package does, in a process that may take only so much more memory: ``python bomb.py BYTES``, then requests.

A request is a line ``["kind", "path"]``, and an answer a line ``[opened, what was said, on standard error, bytes taken at the peak]``.
"""

import contextlib
import importlib
import io
import json
import os
import resource
import sys
import traceback
from pathlib import Path

import torch

import fewstep.pil

IMPORTED = (
    "datasets.packaged_modules.webdataset.webdataset",
    "datasets.packaged_modules.parquet.parquet",
    "datasets.packaged_modules.imagefolder.imagefolder",
    "fewstep.data.image_sets",
    "fewstep.data.stream",
    "fewstep.generator",
    "fewstep.measurement",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "sklearn.model_selection",
)


def images(path):
    from fewstep.data.image_sets import image_folder

    data = image_folder(path, 8, holdout=0.5)
    return f"{len(data.train)} and {len(data.heldout)} images"


def stream(path):
    from fewstep.data.stream import image_stream

    data = image_stream(path, 8, heldout_items=2, label_column="none")
    return f"{len(data.excerpt().train)} images"


def points(path):
    from fewstep.data.points import point_file

    return f"{len(point_file(path, 0.25).train)} points"


def statistics(path):
    from fewstep.metrics.statistics import load_statistics

    return f"{len(load_statistics(Path(path))[0].gaussian.mean)} features"


def recipe(path):
    from fewstep.recipe import load_recipe

    return f"{load_recipe(path).steps} steps"


def results(path):
    from fewstep.metrics.results import read_results

    return f"{len(read_results(Path(path))['rows'])} rows"


def metrics(path):
    from fewstep.training.run_folder import RunFolder

    return f"{len(RunFolder(Path(path)).metrics())} records"


def model(path):
    from fewstep.generator import load

    return f"{load(path).shape}"


def checkpoint(path):
    from fewstep.training.checkpoint import load_checkpoint

    return f"step {load_checkpoint(Path(path)).state['step']}"


def features(path):
    from fewstep.metrics.inception import ScriptedFeatures

    return ScriptedFeatures(Path(path)).name


KINDS = {f.__name__: f for f in (images, stream, points, statistics, recipe, results, metrics, model, checkpoint, features)}


def opened(kind, path):
    """(whether it was opened, what was said): an error that is not one of the package's own goes through."""
    from fewstep.data.errors import DataError
    from fewstep.errors import UserError
    from fewstep.metrics.inception import FeatureError
    from fewstep.training.checkpoint import Damaged

    try:
        return True, KINDS[kind](path)
    except (DataError, UserError, FeatureError, Damaged) as error:
        return False, str(error)
    except BaseException:
        return None, traceback.format_exc()


def status(name):
    """A figure of this process in bytes, as the kernel has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def main():
    """Serve a request a line, each in a copy of this process: what is imported is imported once."""
    for name in IMPORTED:
        importlib.import_module(name)
    fewstep.pil._formats()
    torch.set_num_threads(1)
    for line in sys.stdin:
        if not os.fork():
            answer(*json.loads(line))
            os._exit(0)
        if os.wait()[1]:
            return


def answer(kind, path):
    """Open a file in this process, and say what came of it."""
    limit = status("VmSize") + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = status("VmRSS")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        fine, text = opened(kind, path)
    sys.stdout.write(json.dumps([fine, text, said.getvalue(), status("VmHWM") - before]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
