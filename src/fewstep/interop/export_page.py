"""Export of a generator as a page: a folder for any web server, with which visitors run the generator in their browser (onnxruntime-web).

Beside the page (``index.html``) lie what `fewstep.interop.export_onnx` writes (``model.onnx``), the model card, the licences, and with
`--runtime` the two files of onnxruntime-web that the page needs; without `--runtime` the page loads these from a public server. The page
checks each file that it loads by its hash, and its content security policy lets it reach no other address.

A script in the page may draw from noise of its own: ``await fewstep.draw({latents, noise, xi, labels})`` takes the inputs of model.onnx
as flat arrays, shows the samples and gives ``{samples, shape, milliseconds}``; ``fewstep.noise(seed, num)`` gives the page's own noise.
"""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import torch

from fewstep.errors import UserError
from fewstep.files import write_file
from fewstep.generator import Generator, load
from fewstep.interop.export_onnx import FILE, check_onnx
from fewstep.interop.sampling_graph import draws, noise_shapes
from fewstep.metrics.rows import row_roles
from fewstep.networks.base import num_parameters
from fewstep.training.run_folder import RunFolder
from fewstep.version import __version__

VERSION = "1.30.0"  # of onnxruntime-web
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"


class Part(NamedTuple):
    """A file of onnxruntime-web: its size in bytes, and its SHA-384 checksum in the form that browsers check."""

    bytes: int
    integrity: str


RUNTIME = {
    SCRIPT: Part(73_054, "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"),
    WASM: Part(14_239_897, "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"),
}
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
FOLDER = "runtime"  # where the page's own copy of onnxruntime-web lies
NOTICES = ("LICENSE", "ThirdPartyNotices.txt")  # files of onnxruntime's Python package, which onnxruntime-web lacks
MOST_BYTES = 200_000_000  # largest model that a visitor of the page is made to wait for
BUTTONS = 24  # largest number of classes that are shown as buttons; more are shown as a list
DOTS = 200  # largest number of network evaluations that are drawn as dots
TOLERANCE = 1e-3  # largest allowed difference of a pixel in [-1, 1], where a screen shows steps of 8e-3
PROBED = 2000  # points that are sampled to find the square that the page shows


def check_page(generator: Generator) -> None:
    """Raise UserError where a package that the export needs is missing, or a page cannot show `generator`."""
    check_onnx(generator)
    shape = generator.shape
    if shape != (2,) and not (len(shape) == 3 and shape[0] in (1, 3)):
        raise UserError(
            f"one item of this generator has shape {list(shape)}, and a page shows images of one channel or three, or points of two "
            "numbers; use --format onnx"
        )
    if (size := 4 * num_parameters(generator)) > MOST_BYTES:
        raise UserError(
            f"this generator is {size / 1e6:,.0f} MB large, and a page that visitors load has at most {MOST_BYTES / 1e6:.0f} MB; "
            "use --format onnx"
        )


def runtime_files(given: Path | None) -> dict[str, Path]:
    """Return the files of onnxruntime-web in `given`, the folder of its npm package or the dist/ inside; none where `given` is None.

    Raises UserError for a folder without these files, for another version, and for files that differ from the published ones.
    """
    if given is None:
        return {}
    how = f"npm install onnxruntime-web@{VERSION} puts it into node_modules/onnxruntime-web"
    place = next((folder for folder in (given / "dist", given) if all((folder / name).is_file() for name in RUNTIME)), None)
    if place is None:
        raise UserError(f"--runtime is {given}, which holds no onnxruntime-web ({SCRIPT} and {WASM}); {how}")
    named = re.search(rb"ONNX Runtime Web v(\S+)", (place / SCRIPT).read_bytes()[:500])
    if (found := named[1].decode() if named else "unknown") != VERSION:
        raise UserError(f"--runtime is {given}, which holds onnxruntime-web {found}, and the page is made for {VERSION}; {how}")
    for name, part in RUNTIME.items():
        if _integrity((place / name).read_bytes()) != part.integrity:
            raise UserError(f"{place / name} is not the file that onnxruntime-web {VERSION} has, by its SHA-384; {how} anew")
    return {name: place / name for name in RUNTIME}


def teacher_evaluations(run: RunFolder, results: Mapping[str, Any] | None) -> int | None:
    """Return how many network evaluations a sample of the run's teacher takes; 0 where the run has no teacher, None where it is unknown.

    The number is that of the teacher's copy in the run's folder, or else the one in `results`, the contents of results.json.
    """
    if run.has_teacher():
        return load(run.teacher_folder).evaluations()
    roles = row_roles(results) if results else {}
    measured = [results["rows"][title].get("evaluations") for title, role in roles.items() if results and role == "teacher"]
    if any(measured):
        return max(int(number) for number in measured if number)
    return 0 if run.recipe_file.is_file() and not run.recipe()["method"].get("teacher") else None


def write_page(
    folder: Path,
    generator: Generator,
    recipe: Mapping[str, Any] | None,
    licence: str | None,
    teacher: int | None,
    runtime: Mapping[str, Path],
) -> None:
    """Write the page of `generator` into `folder`, where its model.onnx lies already, with its licences and copies of the files `runtime`.

    `recipe` is the contents of recipe.yaml, None where there is no recipe; `licence` that of the weights, None where it is not known;
    `teacher` what `teacher_evaluations` returns.
    """
    if runtime:
        (folder / FOLDER).mkdir()
        for path in (*runtime.values(), *(Path(str(files("onnxruntime"))) / name for name in NOTICES)):
            shutil.copyfile(path, folder / FOLDER / path.name)
    config = _config(generator, folder / FILE, bool(runtime))
    texts = {name: (files("fewstep.interop") / "page" / name).read_text("utf-8") for name in ("style.css", "script.js", "worker.js")}
    fields = {
        **_words(generator, recipe, teacher),
        "policy": _policy(texts, bool(runtime)),
        "style": texts["style.css"],
        "script": texts["script.js"],
        "worker": texts["worker.js"],
        "config": json.dumps(config).replace("<", "\\u003c"),
        "loads": escape(_loads(config, bool(runtime))),
        "classes": _classes(config["classes"]),
        "version": __version__,
    }
    page = Template((files("fewstep.interop") / "page" / "index.html").read_text("utf-8")).substitute(fields)
    write_file(folder / "index.html", page.encode())
    write_file(folder / "LICENCES.txt", _licences(licence, bool(runtime)).encode())


def _integrity(content: bytes) -> str:
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def _policy(texts: Mapping[str, str], is_whole: bool) -> str:
    """Return the page's content security policy: its own scripts by hash, onnxruntime-web from memory, files from at most two servers."""
    script, style = (base64.b64encode(hashlib.sha256(texts[name].encode()).digest()).decode() for name in ("script.js", "style.css"))
    return (
        f"default-src 'none'; script-src 'sha256-{script}' 'wasm-unsafe-eval' blob:; worker-src blob:; style-src 'sha256-{style}'; "
        f"connect-src 'self'{'' if is_whole else ' ' + _host(CDN)}; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _host(address: str) -> str:
    return "/".join(address.split("/")[:3])


def _config(generator: Generator, model: Path, is_whole: bool) -> dict[str, Any]:
    """Return the settings of the page's script: facts about the generator, and the files that the script loads."""
    base = f"{FOLDER}/" if is_whole else CDN
    names = generator.class_names or tuple(map(str, range(generator.num_classes or 0)))
    content = model.read_bytes()
    loaded: dict[str, dict[str, Any]] = {
        name: {"address": base + file, "bytes": RUNTIME[file].bytes, "integrity": RUNTIME[file].integrity}
        for name, file in (("script", SCRIPT), ("wasm", WASM))
    }
    loaded["model"] = {"address": FILE, "bytes": len(content), "integrity": _integrity(content)}
    size = sum(part["bytes"] for part in loaded.values())
    return {
        "shape": list(generator.shape),
        "latentShape": list(generator.latent_shape),
        "later": [
            {"name": name, "count": count, "shape": rest} for name, (count, *rest) in noise_shapes(generator).items() if name != "latents"
        ],
        "classes": list(names) or None,
        "item": _item(generator),
        "extent": None if len(generator.shape) == 3 else _extent(generator),
        "loading": f"The generator and what runs it are being loaded, {size / 1e6:.1f} MB.",
        "files": loaded,
    }


def _extent(generator: Generator) -> dict[str, Any]:
    """Return the square around all sampled points but outliers, with a margin: its centre, and half of its side."""
    points = generator.sample(PROBED, seed=0).double()
    low, high = points.quantile(torch.tensor([0.005, 0.995], dtype=torch.float64), dim=0)
    return {"centre": ((low + high) / 2).tolist(), "half": 0.625 * (high - low).max().clamp(min=1e-6).item()}


def _item(generator: Generator) -> str:
    return "image" if len(generator.shape) == 3 else "point"


def _words(generator: Generator, recipe: Mapping[str, Any] | None, teacher: int | None) -> dict[str, str]:
    """Return the page's sentences, escaped for HTML, and its counts of network evaluations."""
    steps, item = generator.default_steps(), _item(generator)
    counted = "One step" if steps == 1 else f"{steps} steps"
    data = generator.info.get("data") or f"{item}s"
    evaluations = generator.evaluations()
    taken = "One evaluation of the network makes" if evaluations == 1 else f"{evaluations} evaluations of the network make"
    without = {None: "how many a teacher takes is unknown", 0: "it was trained without a teacher"}
    told = without.get(teacher, f"the teacher takes {teacher}")
    order = draws(generator)
    later = f" The noises of the {steps - 1} later step{'s' * (steps > 2)} move with it." if order else ""
    later = " All noises that the steps draw move with it." if "xi" in order else later
    guided = f" Guidance of {generator.guidance_scale:g} takes two evaluations a step." if generator.guidance_scale != 1.0 else ""
    words = {
        "title": f"{counted} from noise to {data}",
        "made": _made(generator, recipe),
        "claim": f"{taken} each {item}; {told}.{guided}",
        "map": f"{counted} {'is' if steps == 1 else 'are'} a fixed map: each noise gives one {item}. The slider moves the noise from A to "
        f"B along a sphere, on which its length stays that of noise, and the {item} changes with it.{later}",
        "item": item,
        "kind": f"{item}s",
    }
    counts = _count("this student" if teacher else "this generator", evaluations, "dots")
    if teacher != 0:
        counts += _count("its teacher" if teacher else "a teacher", teacher, "dots far")
    return {name: escape(text) for name, text in words.items()} | {"evaluations": counts}


def _made(generator: Generator, recipe: Mapping[str, Any] | None) -> str:
    """Return the name of the recipe that made the generator, or else of its method, and its number of parameters."""
    parts = f"{num_parameters(generator):,} parameters"
    named = (recipe or {}).get("made_by", {}).get("recipe") or generator.info.get("method")
    return f"{Path(named).name if str(named).endswith(('.yaml', '.yml')) else named}, {parts}" if named else parts


def _count(whose: str, number: int | None, kind: str) -> str:
    """Return `number` network evaluations as HTML: the number, and so many dots where there are at most `DOTS`."""
    dots = f'<span class="{kind}" aria-hidden="true">{"<i></i>" * number}</span>' if number and number <= DOTS else ""
    return f'<dd class="count"><span>{whose}</span><b>{number or "unknown"}</b>{dots}</dd>'


def _classes(names: Sequence[str] | None) -> str:
    """Return the choice of a class as HTML: buttons, or a list for more than `BUTTONS` classes; empty without classes."""
    if names is None:
        return ""
    options = [("", "any"), *((str(number), escape(name)) for number, name in enumerate(names))]
    if len(names) > BUTTONS:
        lines = "".join(f'<option value="{value}">{name}</option>' for value, name in options)
        return f'<label for="label">Class</label><select id="label" name="label">{lines}</select>'
    buttons = "".join(
        f'<input type="radio" name="label" id="label-{value or "any"}" value="{value}"{"" if value else " checked"}>'
        f'<label for="label-{value or "any"}">{name}</label>'
        for value, name in options
    )
    return f'<fieldset><legend>Class</legend><div class="classes">{buttons}</div></fieldset>'


def _loads(config: Mapping[str, Any], is_whole: bool) -> str:
    """Return one sentence that says which files the page loads, and from where."""
    sizes = {name: part["bytes"] / 1e6 for name, part in config["files"].items()}
    runtime = f"onnxruntime-web {VERSION} ({sizes['script'] + sizes['wasm']:.1f} MB)"
    model = f"the generator ({sizes['model']:.2g} MB)" if sizes["model"] < 10 else f"the generator ({sizes['model']:.0f} MB)"
    if is_whole:
        return f"This page loads {model} and {runtime}, which runs it, from its own folder."
    return f"This page loads {model} from its own folder, and {runtime}, which runs it, from {_host(CDN)}."


def _licences(licence: str | None, is_whole: bool) -> str:
    """Return the text of LICENCES.txt: the licence of each part of the page's folder."""
    of_weights = licence or "not stated; it may be bound by that of the data and of the teacher they were made from"
    where = (
        f"{FOLDER}/: two files of the npm package onnxruntime-web {VERSION}, MIT, copyright Microsoft Corporation. Its licence is\n"
        f"{FOLDER}/LICENSE, and those of the parts that it is built from are in {FOLDER}/ThirdPartyNotices.txt."
        if is_whole
        else f"onnxruntime-web {VERSION}, MIT, copyright Microsoft Corporation, is no part of this folder: the page loads it from\n{CDN}"
    )
    return (
        f"{FILE}: the weights of the generator. Licence: {of_weights}.\n\n"
        f"index.html: the page, made by fewstep {__version__}. Licence: MIT.\n\n{where}\n"
    )
