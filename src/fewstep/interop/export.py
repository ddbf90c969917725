"""Export of a generator to the formats of other tools; each export is checked against ``Generator.sample`` before its folder appears."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.errors import UserError, first_line
from fewstep.files import at_home, check_free, whole_folder
from fewstep.generator import Generator, load
from fewstep.interop import export_diffusers, export_onnx, export_page, export_text
from fewstep.interop.model_card import model_card
from fewstep.licences import identifier
from fewstep.metrics.results import read_results
from fewstep.training.run_folder import RunFolder, run_around

TOLERANCE = 1e-4  # largest allowed difference of a pixel in [-1, 1]
# (batch size, seed) of each check; no graph was traced with one of these batch sizes
PROBES = ((1, 0), (5, 1), (8, 2))
SOON = 8  # so many evaluations of a network are written as a graph without a word beforehand; about 10 s for each of them on one core

Draw = Callable[[int, list[int] | None, int], Tensor]


class Format(NamedTuple):
    """How a generator is checked for a format and written in it, and how the tool that the format is for reads the export back."""

    check: Callable[[Generator], None]
    write: Callable[[Generator, Path], None]
    read: Callable[[Path, Generator], Draw]
    tolerance: float = TOLERANCE


def formats() -> dict[str, Format]:
    """Return the formats that `export` can write, by name."""
    return {
        "diffusers": Format(export_diffusers.check_pipeline, export_diffusers.write_pipeline, export_diffusers.read_pipeline),
        "onnx": Format(export_onnx.check_onnx, export_onnx.write_onnx, export_onnx.read_onnx),
        "page": Format(export_page.check_page, export_onnx.write_onnx, export_onnx.read_onnx, export_page.TOLERANCE),
    }


def export(
    path: str | Path,
    form: str,
    out: Path,
    licence: str | None = None,
    steps: int | None = None,
    fuse: bool = False,
    runtime: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> float:
    """Export the generator at `path` into the folder `out` with a model card; return the largest difference from ``Generator.sample``.

    The export is written beside `out`, read back by diffusers or onnxruntime, and sampled with the seeds of `PROBES`. `out` appears only
    where every pixel of every sample agrees to 1e-4, or to 1e-3 for a page. For text-to-image generators, whose latents are compared, see
    `fewstep.interop.export_text.verify_text`.

    Args:
        path: a run folder, a model folder, or a Hub id.
        form: "diffusers", for `ConsistencyModelPipeline`; "onnx", for onnxruntime; or "page", for browsers, see `export_page`.
        out: a new or an empty folder.
        licence: licence of the weights, for the model card; None where it is not known. A generator that came with a licence keeps it.
        steps: the number of sampling steps that the export is made for; None for the generator's own default.
        fuse: for a text-to-image generator made of low-rank adapters (LoRA) on a pipeline: whether the whole pipeline, with the adapters
            merged into its weights, is written instead of the adapters' file.
        runtime: for a page: the folder of onnxruntime-web to copy into it; with None the page loads onnxruntime-web from a public server.
        say: called with a sentence before what takes minutes.

    Raises:
        UserError: for an unknown format, a folder `out` that is not empty, a generator that the format cannot hold, a licence other than
            the generator's own, a `runtime` that the page cannot use, and samples that differ.

    """
    known = formats()
    if form not in known:
        raise UserError(f"--format is {form!r}; allowed: {', '.join(known)}")
    if runtime is not None and form != "page":
        raise UserError(f"--runtime is for pages, and --format is {form}; leave it out, or use --format page")
    runtimes = export_page.runtime_files(runtime)
    check_free(out)
    generator = load(path)
    name = generator.sampler["name"]
    if generator.is_denoiser:
        raise UserError(
            f"{path} is a diffusion teacher (sampled with {name}), and only generators of one or a few steps can be exported; distil it "
            "first: give it to a recipe as method.teacher"
        )
    if steps is not None:
        generator.sigmas(steps)  # raises UserError for a number of steps that is not allowed
        if generator.any_steps:
            generator = generator.derive({**generator.sampler, "steps": steps}, generator.info)
    text = export_text.is_text(generator)
    if text and form != "diffusers":
        raise UserError(f"--format is {form}, and this is a text-to-image generator, which is written for diffusers alone; use that")
    if generator.latents is not None and not text:
        raise UserError(
            f"{path} makes latents of the VAE of {generator.latents['model']}, and only pixels and text-to-image generators are exported; "
            "draw from it with fewstep sample"
        )
    if fuse and not (text and export_text.is_lora(generator, False)):
        raise UserError("--fuse is for text-to-image generators that are low-rank changes (LoRA) of another; leave it out")
    if not text:
        known[form].check(generator)
    own = generator.info.get("licence")
    if own is not None and licence is not None and identifier(licence) != identifier(own):
        raise UserError(f"--licence is {licence!r}, but this generator's weights came with the licence {own!r}; leave --licence out")
    with whole_folder(out) as folder:
        use = None
        if text:
            export_text.write_text(generator, folder, fuse)
            difference = export_text.verify_text(generator, folder, fuse)
            use = export_text.public_code(generator, fuse)
        else:
            if form != "diffusers" and (evaluations := generator.evaluations()) > SOON:
                fewer = "; --steps asks for fewer steps" if generator.any_steps else ""
                say(f"note: {evaluations} evaluations of the network are written into one file, which can take minutes{fewer}")
            known[form].write(generator, folder)
            difference = verify(generator, known[form].read(folder, generator), known[form].tolerance)
        run = run_around(at_home(path))
        recipe, results = _records(run, at_home(path), generator)
        card = model_card(generator, form, out.name, own or licence, difference, recipe, results, use, fuse)
        card.save(folder / "README.md")
        if form == "page":
            teacher = export_page.teacher_evaluations(run, results)
            export_page.write_page(folder, generator, recipe, own or licence, teacher, runtimes)
    return difference


def verify(generator: Generator, draw: Draw, tolerance: float = TOLERANCE) -> float:
    """Return the largest difference in any pixel between samples of `draw` and of ``generator.sample``, over all `PROBES`.

    Points that have the data's units are compared in standard deviations of each column. The probes visit the first and the last classes.
    Raises UserError where the difference is above `tolerance`, or where `draw` fails.
    """
    worst = 0.0
    unit = "in [-1, 1]" if len(generator.shape) == 3 else "in a coordinate" if generator.units is None else "of a standard deviation"
    for num, seed in PROBES:
        labels = generator.labels(num)
        if labels is not None and seed % 2:
            assert generator.num_classes is not None
            labels = generator.num_classes - 1 - labels
        given = None if labels is None else labels.tolist()
        expected = generator.sample(num, given, seed)
        try:
            got = draw(num, given, seed)
        except Exception as error:  # diffusers and onnxruntime each have exceptions of their own
            raise UserError(f"what was written cannot be run ({first_line(error)}) and was removed; {_advice()}") from error
        difference = _difference(generator, got, expected) if got.shape == expected.shape else torch.inf
        if not difference <= tolerance:  # nan is refused, too
            raise UserError(
                f"what was written differs from Generator.sample by {difference:.1e} {unit}, where {tolerance:.0e} is allowed, and was "
                f"removed; {_advice()}"
            )
        worst = max(worst, difference)
    return worst


def _difference(generator: Generator, got: Tensor, expected: Tensor) -> float:
    """Return the largest difference of samples `got` and `expected`; of points with units in these, without the rounding of their type."""
    apart = (got.double() - expected.double()).abs()
    if generator.units is None:
        return apart.max().item()
    rounding = torch.finfo(expected.dtype).eps * expected.double().abs()  # one place: a large mean hides what is small beside it
    return ((apart - rounding).clamp_min(0) / generator.units.scale).max().item()


def _advice() -> str:
    return "try the other --format, or the tested versions of the packages (constraints.txt)"


def _records(run: RunFolder, path: Path, generator: Generator) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return (the recipe of `run`, the results at `path` measured of this very generator), None for each that does not exist."""
    recipe = run.recipe() if run.recipe_file.is_file() else None
    results = None
    if os.path.lexists(RunFolder(path).results_file):
        results = read_results(path)
        if results.get("step") != generator.info.get("step"):  # the run was measured, and then trained further
            results = None
    return recipe, results
