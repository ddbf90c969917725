"""A generator as a page: a folder for any web server, in which it runs in the visitor's own browser by onnxruntime-web.

Beside the page (``index.html``) lie what `fewstep.interop.export_onnx` writes (``model.onnx``), the model card, the licences, and with
`--runtime` the two files of onnxruntime-web that the page needs, which it loads from a public server otherwise. The page checks each of
them by its hash, and its policy lets it reach nothing else.

In the page a script may draw from noise of its own: ``await fewstep.draw({latents, noise, labels})``, the inputs of model.onnx as flat
arrays, gives ``{samples, shape, milliseconds}`` and shows them; ``fewstep.noise(seed, num)`` is the noise that the page itself draws from.
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
from fewstep.metrics.rows import row_roles
from fewstep.networks.base import num_parameters
from fewstep.training.run_folder import RunFolder
from fewstep.version import __version__

VERSION = "1.30.0"  # of onnxruntime-web
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"


class Part(NamedTuple):
    """A file of onnxruntime-web: its bytes, and their SHA-384 as browsers check it."""

    bytes: int
    integrity: str


RUNTIME = {
    SCRIPT: Part(73_054, "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"),
    WASM: Part(14_239_897, "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"),
}
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
FOLDER = "runtime"  # of the page's own copy
NOTICES = ("LICENSE", "ThirdPartyNotices.txt")  # of onnxruntime, which its Python package has, and onnxruntime-web lacks
MOST_BYTES = 200_000_000  # of a model that a visitor waits for
BUTTONS = 24  # classes that are buttons; more are a list
DOTS = 200  # evaluations that are drawn as dots
TOLERANCE = 1e-3  # of a pixel in [-1, 1]: a screen shows steps of 8e-3
PROBED = 2000  # points whose square is shown


def check_page(generator: Generator) -> None:
    """Raise UserError where a package is missing, or a page cannot show `generator`."""
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
    """The files of onnxruntime-web by name, in `given`, the folder of its npm package or the dist/ in it; none where None is given.

    Raises UserError for a folder without them, for another version, and for files that differ from those that were published.
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
    """Network evaluations for a sample of the run's teacher: of its own copy, or as measured; 0 without a teacher, None if unknown."""
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
    """Write the page of `generator`, whose model.onnx is in `folder` already, into it, with its licences and the files in `runtime`.

    `recipe` is what recipe.yaml holds, None where there is none; `licence` of the weights, None where it is not known; for `teacher` see
    `teacher_evaluations`.
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
    """What the page may run and load: its own scripts by their hash, onnxruntime-web from memory, and files from two places at most."""
    script, style = (base64.b64encode(hashlib.sha256(texts[name].encode()).digest()).decode() for name in ("script.js", "style.css"))
    return (
        f"default-src 'none'; script-src 'sha256-{script}' 'wasm-unsafe-eval' blob:; worker-src blob:; style-src 'sha256-{style}'; "
        f"connect-src 'self'{'' if is_whole else ' ' + _host(CDN)}; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _host(address: str) -> str:
    return "/".join(address.split("/")[:3])


def _config(generator: Generator, model: Path, is_whole: bool) -> dict[str, Any]:
    """What the script knows of the generator, and of the files that it loads."""
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
        "steps": generator.default_steps(),
        "classes": list(names) or None,
        "item": _item(generator),
        "extent": None if len(generator.shape) == 3 else _extent(generator),
        "loading": f"The generator and what runs it are being loaded, {size / 1e6:.1f} MB.",
        "files": loaded,
    }


def _extent(generator: Generator) -> dict[str, Any]:
    """The square around all points but a few stray ones: its centre, and half of a side."""
    points = generator.sample(PROBED, seed=0).double()
    low, high = points.quantile(torch.tensor([0.005, 0.995], dtype=torch.float64), dim=0)
    return {"centre": ((low + high) / 2).tolist(), "half": 0.625 * (high - low).max().clamp(min=1e-6).item()}


def _item(generator: Generator) -> str:
    return "image" if len(generator.shape) == 3 else "point"


def _words(generator: Generator, recipe: Mapping[str, Any] | None, teacher: int | None) -> dict[str, str]:
    """The page's sentences, escaped, and its counts."""
    steps, item = generator.default_steps(), _item(generator)
    counted = "One step" if steps == 1 else f"{steps} steps"
    data = generator.info.get("data") or f"{item}s"
    evaluations = generator.evaluations()
    taken = "One evaluation of the network makes" if evaluations == 1 else f"{evaluations} evaluations of the network make"
    without = {None: "how many a teacher takes is unknown", 0: "it was trained without a teacher"}
    told = without.get(teacher, f"the teacher takes {teacher}")
    later = "" if steps == 1 else f" The noises of the {steps - 1} later step{'s' * (steps > 2)} walk with it."
    words = {
        "title": f"{counted} from noise to {data}",
        "made": _made(generator, recipe),
        "claim": f"{taken} each {item}; {told}.",
        "map": f"{counted} {'is' if steps == 1 else 'are'} a map: every noise has its {item}. Between A and B the noise walks on a sphere, "
        f"so that it stays as long as noise is, and the {item}s follow.{later}",
        "item": item,
        "kind": f"{item}s",
    }
    counts = _count("this student" if teacher else "this generator", evaluations, "dots")
    if teacher != 0:
        counts += _count("its teacher" if teacher else "a teacher", teacher, "dots far")
    return {name: escape(text) for name, text in words.items()} | {"evaluations": counts}


def _made(generator: Generator, recipe: Mapping[str, Any] | None) -> str:
    """What made it: the recipe by name, or else its method."""
    parts = f"{num_parameters(generator):,} parameters"
    named = (recipe or {}).get("made_by", {}).get("recipe") or generator.info.get("method")
    return f"{Path(named).name if str(named).endswith(('.yaml', '.yml')) else named}, {parts}" if named else parts


def _count(whose: str, number: int | None, kind: str) -> str:
    """So many evaluations, as a number, and as dots where these are not too many to be told apart."""
    dots = f'<span class="{kind}" aria-hidden="true">{"<i></i>" * number}</span>' if number and number <= DOTS else ""
    return f'<dd class="count"><span>{whose}</span><b>{number or "unknown"}</b>{dots}</dd>'


def _classes(names: Sequence[str] | None) -> str:
    """Buttons for the classes, or a list of many; nothing without classes."""
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
    """One sentence on what is loaded from where."""
    sizes = {name: part["bytes"] / 1e6 for name, part in config["files"].items()}
    runtime = f"onnxruntime-web {VERSION} ({sizes['script'] + sizes['wasm']:.1f} MB)"
    model = f"the generator ({sizes['model']:.2g} MB)" if sizes["model"] < 10 else f"the generator ({sizes['model']:.0f} MB)"
    if is_whole:
        return f"This page loads {model} and {runtime}, which runs it, from its own folder."
    return f"This page loads {model} from its own folder, and {runtime}, which runs it, from {_host(CDN)}."


def _licences(licence: str | None, is_whole: bool) -> str:
    """What may be done with each part of the folder."""
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
