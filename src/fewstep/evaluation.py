"""Measure the samples of a run beside real data (the floor) and the run's teacher, and write results.json."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep import registry
from fewstep.build import in_memory, load_data
from fewstep.compiling import compile_to_sample
from fewstep.data import ImageData, PointData
from fewstep.data.audit import audit, changes
from fewstep.data.prompts import PromptData
from fewstep.data.protocol import Data
from fewstep.engine import choose_threads, use_threads
from fewstep.errors import UserError
from fewstep.evaluation_sampling import churn, guide, step_counts
from fewstep.evaluation_text import HALF, Results
from fewstep.files import at_home, replace_file
from fewstep.generator import Generator, load
from fewstep.kept_figures import figures_folder, keep_row, kept_row, model_sha256
from fewstep.machine import machine
from fewstep.measurement import (
    Row,
    as_drawn,
    check_samples,
    floor_row,
    measure,
    measure_by,
    on_one_network,
    protocol_record,
    suite_for,
    usual_samples,
)
from fewstep.metrics.judging import disagreement, not_shared
from fewstep.metrics.least import summed_up
from fewstep.metrics.point_suite import PointSuite
from fewstep.metrics.protocol import PRESETS, Preset, check_same_protocol, departures, differences
from fewstep.metrics.results import read_results
from fewstep.metrics.rows import row_roles
from fewstep.metrics.self_test import self_test
from fewstep.metrics.suite import FEWEST, Suite
from fewstep.pipelines.agreement import Agreement
from fewstep.recipe import Recipe, validated
from fewstep.run_data import kept, numbered_as
from fewstep.training.run_folder import RunFolder, run_around
from fewstep.version import __version__

SAME_FLOOR = 1e-3  # relative difference of two floors that comes from rounding on another machine at most
COPIED = 0.02  # share of near copies of training images above which a warning is given; held-out real images have far fewer


def run_recipe(path: Path) -> Recipe:
    """Return the recipe of the run in the folder `path`. Raises UserError where there is none that can be read."""
    run = RunFolder(path)
    return run.going_on(validated(run.recipe(), str(path / "recipe.yaml")))


@dataclass(frozen=True)
class Options:
    """Options of an evaluation; all but `beside`, `teacher`, `guidance_scale`, `churn` and `compile` are for images.

    Attributes:
        features: name or path of a feature network; None for the one that belongs to the data, or to the protocol.
        reference: file of feature statistics to measure against; None for the held-out split, or for what the protocol says.
        protocol: name of a preset, see `fewstep.metrics.protocol`; None for no preset.
        self_test: whether to measure one half of the real training images against the other half, too.
        beside: folders of other runs, whose results are shown in the same table; they must have been measured by the same protocol.
        teacher: whether the teacher of a distilled run is measured, too.
        guidance_scale: scale of classifier-free guidance for models trained with label dropout, but students; None for each model's own.
        churn: new noise in each step of sampling, for the models whose sampler can add some; None for each model's own.
        compile: whether samples are drawn with compiled networks, which are faster and agree up to rounding.
        clip: folder or Hub id of a CLIP model that scores how well samples agree with their prompts; None for no such score.

    """

    features: str | None = None
    reference: Path | None = None
    protocol: str | None = None
    self_test: bool = False
    beside: tuple[Path, ...] = ()
    teacher: bool = True
    guidance_scale: float | None = None
    compile: bool = False
    clip: str | None = None
    churn: float | None = None


def evaluate(
    path: str | Path,
    num: int | None = None,
    seed: int = 0,
    threads: int | str = "auto",
    say: Callable[[str], None] = lambda text: None,
    steps: Sequence[int] | None = None,
    options: Options = Options(),
    allow: Iterable[str] = (),
) -> dict[str, Any]:
    """Measure the samples of a run, write results.json into its folder, and return its content, which a notebook shows as a table.

    A distilled run is measured beside its teacher. The teacher's figures are cached, and reused for the same model, data, protocol, machine
    and code of the package.

    Args:
        path: a run folder, or its folder ``best``, whose model is then measured and which gets the results.json.
        num: number of samples; None for 2,000 images or 10,000 points, or the number of the protocol.
        seed: of the samples.
        threads: number of CPU threads, or "auto".
        say: called with a line for each thing that is done.
        steps: numbers of sampling steps to measure at, for generators that allow several; None for the generator's own number and the
            usual ones of its sampler (`fewstep.evaluation_sampling.usual_counts`).
        options: see `Options`.
        allow: packages that the run's folder may import its own parts (network, method, ...) from; importing them runs their code.

    Raises:
        UserError: for a folder without a run or a model, too small a `num`, `steps` at which nothing in the run can be sampled, `options`
            that cannot be met, runs beside it that were measured otherwise, and parts of the user's own outside the packages in `allow`.

    """
    with registry.allowing(allow):
        return _evaluate(at_home(path), num, seed, threads, say, steps, options)


def _evaluate(
    path: Path,
    num: int | None,
    seed: int,
    threads: int | str,
    say: Callable[[str], None],
    steps: Sequence[int] | None,
    options: Options,
) -> dict[str, Any]:
    run, model_folder = run_around(path), path
    recipe = run_recipe(run.path)
    generator = load(model_folder)
    points = len(generator.shape) == 1
    preset = _preset(options, points, seed)
    num = (usual_samples(points) if preset is None else preset.num) if num is None else num
    prompts = generator.told is not None
    check_samples(num, "-n", points, None if prompts else generator.num_classes)
    models: dict[str, Generator] = {"student" if run.has_teacher() else recipe.method.name: generator}
    if run.has_teacher() and options.teacher:
        models = {"teacher": on_one_network(load(run.teacher_folder), generator), **models}
    others = {other: read_results(other) for other in options.beside}
    loaded = load_data(recipe.data, recipe.seed)
    data = numbered_as(in_memory(loaded), generator.class_names, str(path))
    if isinstance(loaded, PromptData):
        as_drawn(loaded, models)
    guide(models, options.guidance_scale)
    churned = churn(models, options.churn)
    counts = step_counts(models, steps)
    use_threads(choose_threads(threads, generator.denoiser, data.shape))
    device = "cuda" if torch.cuda.is_available() and not points else "cpu"
    for model in models.values() if options.compile else ():
        compile_to_sample(model.to(device).denoiser, "--compile")
    agreement = None if options.clip is None else _agreement(options.clip, loaded, device)
    say("measuring the floor")
    reference: str | Path = options.reference or (preset.reference if preset else "heldout")
    features = options.features or (preset.features_option if preset else None)
    suite = suite_for(loaded if prompts else data, recipe.power(points), seed, features, reference, device, say, num, judges=2)
    labels, seeds = (preset.labels, preset.seeds) if preset else (None, (seed,))
    labels = "prompts in turn" if prompts else labels
    protocol = protocol_record(suite, num, generator.num_classes is not None, seeds, labels)
    protocol |= {} if agreement is None else {"clip": agreement.id}
    if preset is not None:
        protocol |= {"preset": options.protocol, "departures": departures(preset, protocol)}
    told = _reference(data, suite, recipe.power(points), options.reference)
    mine = {"protocol": protocol, "data": data.name, "reference": told}
    for other, theirs in others.items():
        check_same_protocol(mine, theirs, ("this evaluation", str(other)))
    exact = isinstance(data, PointData) and data.density is not None
    floor = suite.floor_name if isinstance(suite, Suite) else "exact samples" if exact else HALF
    taught_by = isinstance(loaded, PromptData) and loaded.samples is not None  # measured beside samples of the teacher
    floor = "teacher's other half" if taught_by else floor
    rows: dict[str, Row] = {floor: {"role": "floor", **floor_row(suite, agreement)}}
    keeps = "teacher" in models and not _of_own_code(models["teacher"])
    teachers = _teacher_key(run, suite, protocol, seed, device, data) if keeps and isinstance(suite, Suite) else None
    for name, model in models.items():
        for count in counts[name]:
            title, key = heading(name, model.evaluations(count)), None
            if model is not generator and teachers is not None:
                key = {**teachers, "steps": count, "sampler": model.sampler, "compile": options.compile}
                if (found := kept_row(key)) is not None:
                    say(f"{title}: figures of an earlier evaluation of the same model by the same protocol, kept in {figures_folder()}")
                    rows[title] = {"role": "teacher", **found}
                    continue
            say(f"measuring {title}")
            model.to(device)
            if preset is not None:
                assert isinstance(suite, Suite)
                row = measure_by(preset, suite, model, num, count, agreement)
            else:
                row = measure(suite, model, num, seed, count, slow=True, agreement=agreement)
            row |= {"churn": options.churn} if name in churned else {}
            if key is not None:
                keep_row(key, row)
            rows[title] = {"role": "own" if model is generator else "teacher", **row}
    if agreement is not None and agreement.cut:
        say(f"{agreement.cut:,} prompts are longer than {agreement.id['name']} reads, and were cut for it")
    for other, theirs in others.items():
        sampled = [title for title, role in row_roles(theirs).items() if role in ("teacher", "own")]
        for title in sampled:
            row = {**theirs["rows"][title], "role": "beside", "run": str(other)}
            row |= {} if protocol.get("preset") or theirs["seed"] == seed else {"seed": theirs["seed"]}
            if unlike := not_shared(row, theirs["protocol"], protocol):
                say(f"{other}: {', '.join(unlike)} left out, because other networks measured them; evaluate that run again to get them")
            rows[f"{other}: {title}"] = {key: value for key, value in row.items() if key not in unlike}
    results = {
        "recipe": f"{recipe.method.name}/{data.name}",
        "data": data.name,
        "reference": f"{len(data.heldout):,} samples of the teacher" if taught_by and options.reference is None else told,
        "features": suite.network.name if isinstance(suite, Suite) else "the points themselves",
        "trained_in_features": generator.info.get("trained_in_features"),
        "n": num,
        "seed": seed,
        "protocol": protocol,
        "training_seed": recipe.seed,
        "step": generator.info.get("step"),
        "best": generator.info.get("best"),
        "floor": rows[floor].get("frechet", rows[floor].get("energy")),
        "floor_of": floor,
        "self_test": self_test(suite.train_features) if options.self_test and isinstance(suite, Suite) else None,
        "rows": rows,
        "compiled": options.compile,
        "warnings": [
            *_changed(run, recipe, data if isinstance(loaded, ImageData) else loaded),
            *_warnings(protocol, rows, recipe),
            *(_other_floors(suite.floor, others) if isinstance(suite, Suite) else ()),
        ],
        "machine": machine(),
        "fewstep": __version__,
    }
    where = run.results_file if model_folder == run.path else model_folder / "results.json"
    replace_file(where, json.dumps(results, indent=1).encode())
    return Results(results)


def _changed(run: RunFolder, recipe: Recipe, data: Data) -> list[str]:
    """Return a warning if `data`, with the classes numbered as in the run, is not what the run was trained on; empty if it is.

    Points that were reweighted for training cannot be compared with those in the file.
    """
    found = changes(kept(run), audit(data)) if recipe.method.data_power is None else []
    if not found:
        return []
    return [
        f"the data has changed since the run began ({'; '.join(found)}): items may be held out that this run was trained on, and the "
        "figures do not compare with those of before; give the data back as it was, or train anew"
    ]


def _agreement(clip: str, data: Data, device: str) -> Agreement:
    """Return the measure of agreement with the prompts of `data` by the CLIP model `clip`.

    Raises UserError where `data` has no prompts, or the model cannot be loaded.
    """
    if not isinstance(data, PromptData):
        raise UserError(f"--clip is {clip}, which measures agreement with prompts, and this run has no prompts; leave it out")
    return Agreement(clip, data.table.texts, device)


def _of_own_code(model: Generator) -> bool:
    """Return whether the network, denoiser or sampler of `model` is the user's own, so that a change to its code is not noticed."""
    named = {"networks": model.network_config, "denoisers": model.denoiser_config, "samplers": model.sampler}
    return any(registry.is_own(kind, config["name"]) for kind, config in named.items())


def _teacher_key(
    run: RunFolder, suite: Suite, protocol: Mapping[str, Any], seed: int, device: str, data: ImageData | PointData
) -> dict[str, Any] | None:
    """Return the cache key of the figures of the teacher in `run`, without its number of steps; None where its files cannot be read."""
    try:
        model = model_sha256(run.teacher_folder)
    except (OSError, ValueError):
        return None
    labels = [
        None if one is None else hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in (suite.train_label, suite.heldout_label)
    ]
    return {
        "model": model,
        "protocol": protocol,
        "seed": seed,
        "data": [suite.train_set.sha256, suite.heldout_set.sha256, *labels, list(data.class_names)],
        "device": device,
        "machine": machine(),
    }


def _preset(options: Options, points: bool, seed: int) -> Preset | None:
    """Return the preset named by the option protocol, or None without one.

    Raises UserError for a preset that is not known, for a `seed` beside it, and for a preset or self-test on points.
    """
    if points and (options.protocol or options.self_test):
        raise UserError(f"{'--protocol' if options.protocol else '--self-test'} is for images; leave it out for points")
    if options.protocol is None:
        return None
    if options.protocol not in PRESETS:
        raise UserError(f"--protocol is {options.protocol!r}; allowed: {', '.join(PRESETS)}")
    preset = PRESETS[options.protocol]
    if seed:
        raise UserError(
            f"--seed is {seed}; protocol {options.protocol} has the seeds {', '.join(map(str, preset.seeds))}: leave --seed out"
        )
    return preset


def _warnings(protocol: Mapping[str, Any], rows: Mapping[str, Row], recipe: Recipe) -> list[str]:
    """Return warnings about the figures: which are left out and why, large bias, near copies of training images, and other protocols."""
    found = summed_up(row for row in rows.values() if row["role"] != "beside")
    biases = [row["frechet_bias"] for row in rows.values() if "frechet_bias" in row and row["role"] != "beside"]
    if biases and protocol["n"] < FEWEST:
        low, high = min(biases), max(biases)
        size = f"{high:.3g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.3g} to {high:.3g}"
        found.append(
            f"n = {protocol['n']:,} is below {FEWEST:,}: FD is too large by about {size} (FD of half as many minus FD, arXiv 1911.07023); "
            "compare equal n only"
        )
    second = protocol.get("second")
    if second and (split := disagreement(rows, (protocol["features"]["name"], second["name"]))):
        found.append(split)
    for title, row in rows.items():
        if row["role"] in ("own", "teacher") and row.get("near_copies", 0.0) > COPIED:
            found.append(
                f"{row['near_copies']:.1%} of the inspected samples of {title} are near copies of training images"
                + (f", and {row['copies']:.1%} exact copies" if row.get("copies") else "")
            )
    if protocol.get("departures"):
        found.append(f"this evaluation departs from the protocol {protocol['preset']}: {'; '.join(protocol['departures'])}")
    if teacher := recipe.method.teacher_path:
        try:
            theirs = read_results(Path(teacher))
        except UserError:
            return found
        wrong = differences(protocol, theirs["protocol"]) if theirs.get("protocol") else ["it does not say by which protocol"]
        if wrong:
            found.append(
                f"the results.json of the teacher {teacher} was measured by another protocol and does not compare: {'; '.join(wrong)}"
            )
    return found


def _other_floors(floor: float, others: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """Return a warning for each of the runs `others`, shown beside one with this `floor`, that was trained on other images.

    The images of the reference are the same, by the protocol; a floor of other images is then one of another training split.
    """
    return [
        f"the floor of {other} is {theirs['floor']:.4g}, and here it is {floor:.4g}: its training images are others, and its ratios to the "
        "floor and to training images do not compare"
        for other, theirs in others.items()
        if isinstance(theirs.get("floor"), int | float) and not math.isclose(theirs["floor"], floor, rel_tol=SAME_FLOOR)
    ]


def heading(name: str, evaluations: int) -> str:
    """Return the name of a row of the table, such as ``distilled, 4 evaluations``."""
    return f"{name}, {evaluations} evaluation{'s' * (evaluations > 1)}"


def _reference(data: ImageData | PointData, suite: Suite | PointSuite, gamma: float, file: Path | None = None) -> str:
    if isinstance(suite, Suite):
        if file is not None:
            return f"the statistics {file.name}"
        return f"{len(data.heldout):,} held-out images" if suite.against == "heldout" else f"{len(data.train):,} training images"
    if isinstance(data, PointData) and data.density:
        return f"{len(suite.target):,} exact samples of {data.name}" + (f"^{gamma:g}" if gamma != 1.0 else "")
    return f"{len(suite.target):,} held-out points" + (", each column in standard deviations" if suite.standard is not None else "")
