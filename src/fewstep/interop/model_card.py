"""The model card (README.md) of an export: metadata for the Hub in YAML, and what a reader has to know to use the weights."""

import math
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fewstep.denoisers.adapted import Adapted
from fewstep.generator import Generator
from fewstep.interop.sampling_graph import noise_shapes
from fewstep.maths.schedules import NOISE_ALONE
from fewstep.metrics.figures import BY_KEY
from fewstep.metrics.least import carried, summed_up
from fewstep.metrics.rows import how_sampled, is_sampled_as, row_roles
from fewstep.networks.base import num_parameters
from fewstep.publishing import card_fields, public_name
from fewstep.version import __version__

TASK = "unconditional-image-generation"  # the Hub's name of the task


def model_card(
    generator: Generator,
    form: str,
    name: str,
    licence: str | None,
    difference: float,
    recipe: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    use: str | None = None,
    fused: bool = False,
) -> ModelCard:
    """Return the model card of `generator`, exported as `form` (a ``--format``) under `name`.

    Args:
        generator: the exported generator.
        form: the export's format.
        name: title of the card.
        licence: any name of the weights' licence; None where it was not stated.
        difference: the largest difference from ``Generator.sample`` that was found, in the unit that the card states.
        recipe: contents of recipe.yaml, or None.
        results: contents of results.json, or None. The card shows the figures at this generator's number of steps, but for those that
            were measured on too few items (`fewstep.metrics.least`).
        use: Python code that draws from the export; None for the usual code of the format.
        fused: whether low-rank adapters were merged into the weights of the export.

    """
    results = None if results is None else carried(results)
    steps, info = generator.default_steps(), generator.info
    counted = "one step" if steps == 1 else f"{steps} steps"
    classes = info.get("class_names") or []
    made = recipe["method"]["name"] if recipe else info.get("method")
    lines = [
        f"---\n{card_data(generator, form, name, licence, results, fused)}\n---\n",
        f"# {name}\n",
        f"A generator that draws from noise in {counted}{f', trained with the method {made}' if made else ''} by fewstep {__version__}.\n",
        *(
            [
                f"- data: {info.get('data', 'not stated')}; one item has shape {list(generator.shape)}"
                + (", values in [-1, 1]" if len(generator.shape) == 3 else ""),
                f"- classes: {generator.num_classes or 'none'}" + (f" ({', '.join(map(str, classes))})" if classes else ""),
            ]
            if generator.latents is None
            else [f"- made from {public_name(str(generator.latents['model']))}, whose latents have shape {list(generator.shape)}"]
        ),
        f"- network: {_network(generator, fused)}",
    ]
    if generator.sampler["name"] in ("few_step", "two_time"):
        levels = ["infinite" if sigma == NOISE_ALONE else f"{sigma:g}" for sigma in generator.sigmas().tolist()]
        lines.append(f"- noise levels: {', '.join(levels)}")
    if generator.guidance_scale != 1.0:
        lines.append(f"- guidance scale: {generator.guidance_scale:g}, so that a sample takes {generator.evaluations()} evaluations")
    lines += ["\n## Use\n", _use(generator, form) if use is None else f"```python\n{use}```"]
    unit = "in every pixel of [-1, 1]" if len(generator.shape) == 3 else "in every coordinate"
    unit += ", in standard deviations of the data" if generator.units is not None else ""
    unit = unit if generator.latents is None else "of the largest latent"
    lines.append(
        "\nChecked when it was written: from the same noise, samples agree with `Generator.sample` of fewstep "
        f"to {difference:.1e} {unit}.\n"
    )
    lines += ["## Quality\n", *_table(results, generator)]
    lines += ["\n## Licence\n", _licence_text(licence)]
    if recipe:
        text = yaml.safe_dump(_public(recipe), sort_keys=False, allow_unicode=True).rstrip()
        lines += ["\n## Recipe\n", f"```yaml\n{text}\n```"]
    return ModelCard("\n".join(lines).rstrip() + "\n")


def _network(generator: Generator, fused: bool) -> str:
    """Return the name and size of the network of `generator`; of low-rank adapters that are not `fused` into it, of these, too."""
    denoiser, name = generator.denoiser, generator.network_config["name"]
    if not isinstance(denoiser, Adapted):
        return f"{name}, {num_parameters(generator):,} parameters"
    whole = f"{name}, {num_parameters(denoiser.stands_on):,} parameters"
    return whole if fused else f"{whole}, and on it low-rank adapters (LoRA) of rank {denoiser.slot.rank}, {num_parameters(denoiser):,}"


def _public(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return `recipe` without the folders of the machine that it ran on, see `public_name`, and without the sentences on its data."""

    def shown(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: shown(part) for key, part in value.items()}
        return public_name(value) if isinstance(value, str) and "/" in value else value

    made_by = {key: value for key, value in recipe.get("made_by", {}).items() if key != "data_audit"}  # its sentences name folders
    return shown({**recipe, **({"made_by": made_by} if made_by else {})})


def card_data(
    generator: Generator, form: str, name: str, licence: str | None, results: Mapping[str, Any] | None, fused: bool = False
) -> ModelCardData:
    """Return the metadata of the card, which the Hub reads."""
    fields = card_fields(generator, licence, fused)
    steps = generator.default_steps()
    values = _quality(_own_row(results, generator))
    task = fields.pop("pipeline_tag", TASK)
    return ModelCardData(
        license=fields.pop("license") or "unknown",
        license_name=fields.pop("license_name"),
        base_model=fields.pop("base_model", None),
        library_name="onnx" if form == "page" else form,
        pipeline_tag=task if len(generator.shape) == 3 else None,
        tags=[
            "fewstep",
            "one-step-generation" if steps == 1 else "few-step-generation",
            form,
            *([str(generator.info["method"])] if "method" in generator.info else []),
            *fields.pop("tags"),
        ],
        metrics=list(values) or None,
        model_name=name if values else None,
        eval_results=[_eval_result(task, key, value, results) for key, value in values.items()] if results and values else None,
        **fields,
    )


def _eval_result(task: str, key: str, value: float, results: Mapping[str, Any]) -> EvalResult:
    return EvalResult(
        task_type=task,
        dataset_type=results["data"],
        dataset_name=results["data"],
        metric_type=key,
        metric_value=value,
        metric_name=f"{BY_KEY[key].words} ({results['n']:,} samples, {results['features']})",
    )


def _own_row(results: Mapping[str, Any] | None, generator: Generator) -> Mapping[str, Any] | None:
    """Return the row of the run's own generator, drawn as `generator` draws by default: steps, guidance, churn; None without one."""
    roles = row_roles(results) if results else {}
    as_shipped = generator.default_steps(), generator.guidance_scale, float(generator.sampler.get("churn") or 0.0)
    own = [results["rows"][title] for title, role in roles.items() if results and role == "own"]
    return next((row for row in own if is_sampled_as(row, *as_shipped)), None)


def _quality(row: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the quality figures of `row`, by their key in results.json; none where there is no row."""
    return {
        key: float(value)
        for key, value in (row or {}).items()
        if key in BY_KEY and BY_KEY[key].is_quality and isinstance(value, int | float) and math.isfinite(value)
    }


def _table(results: Mapping[str, Any] | None, generator: Generator) -> list[str]:
    row, steps = _own_row(results, generator), generator.default_steps()
    values = _quality(row)
    roles = row_roles(results) if results else {}
    rows = {title: results["rows"][title] for title, role in roles.items() if role != "beside"} if results else {}  # no row of another run
    few = summed_up(rows.values())
    if row is not None and not values and few:
        return [f"Measured, but {'; '.join(few)}."]
    if not results or not values:
        how = f" at {steps} step{'s' * (steps > 1)}" if results else ""
        own = [rows[title] for title, role in roles.items() if role == "own"]
        guided = any(row.get("guidance_scale", 1.0) != generator.guidance_scale for row in own)
        churned = any("churn" in row for row in own)
        how += " with its own guidance" * guided + " and" * (guided and churned) + " with its own churn" * churned
        return [f"Not measured{how} when this was exported (`fewstep evaluate` writes what is shown here)."]
    lines = ["| | " + " | ".join(BY_KEY[key].words for key in values) + " |", "|---" * (len(values) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{row[key]:.4g}" if isinstance(row.get(key), int | float) else "" for key in values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append(
        f"\n{results['n']:,} samples (seed {results['seed']}) against {results['reference']}, in the features {results['features']}."
    )
    lines += [f"\n{sentence[0].upper()}{sentence[1:]}." for sentence in [*how_sampled(rows), *few]]
    return lines


def _licence_text(licence: str | None) -> str:
    if licence is None:
        return "The licence of these weights was not stated. It may be bound by that of the data and of the teacher they were made from."
    return f"{licence}. Weights that were distilled may also be bound by the licence of their teacher and its data."


def _use(generator: Generator, form: str) -> str:
    """Return Markdown with code that draws samples from the folder that the card lies in."""
    steps, classes = generator.default_steps(), generator.num_classes
    if form == "diffusers":
        labels = "" if classes is None else f"class_labels=[{', '.join(str(i % classes) for i in range(4))}], "
        return f"""```python
import torch
from diffusers import ConsistencyModelPipeline

pipeline = ConsistencyModelPipeline.from_pretrained(".")  # this folder, or its id on the Hub
rng = torch.Generator().manual_seed(0)
images = pipeline(batch_size=4, {labels}num_inference_steps={steps}, generator=rng).images
images[0].save("sample.png")
```"""
    if form == "page":
        served = "In a browser, from any web server, such as `python -m http.server 8000` in this folder; or by onnxruntime:"
        return f"{served}\n\n{_use(generator, 'onnx')}"
    inputs = []
    for name, sizes in noise_shapes(generator).items():
        shape = (4, *sizes) if name == "latents" else (sizes[0], 4, *sizes[1:])
        inputs.append(f'"{name}": rng.standard_normal({shape}, dtype=np.float32)')
    if classes is not None:
        inputs.insert(1, f'"labels": np.arange(4) % {classes}')
    body = "\n".join(f"    {line}," for line in inputs)
    return f"""```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)
inputs = {{
{body}
}}
(samples,) = session.run(["samples"], inputs)  # {list(generator.shape)} each, any number at a time
```"""
