"""The commands `import`, `export` and `encode`. Packages that are slow to import, such as torch, are imported inside them."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep import completion
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.data.prompt_table import Manifest

PIXELS = 256  # width and height to which images are resized before they are encoded


def say(text: str) -> None:
    """Print `text` on stderr, apart from a command's results on stdout."""
    typer.echo(text, err=True)


def _allow(context: typer.Context, packages: list[str] | None) -> list[str] | None:
    """Let run and model folders name parts in `packages` as long as the command runs, and return `packages`."""
    if packages:
        from fewstep.registry import allowing

        context.with_resource(allowing(packages))
    return packages


Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="PACKAGE",
        callback=_allow,
        help="Python package of your own whose networks, methods and other parts a run or model folder may name; its code is then run; may "
        "be given more than once",
    ),
]


def next_after(out: Path) -> str:
    """Return a line with commands to go on with after a run in `out`, which allow and find the user's own code that the run names."""
    from fewstep.registry import folder_of, is_import_path
    from fewstep.text import read_json
    from fewstep.training.run_folder import RunFolder

    parts = [tree for tree in (RunFolder(out).recipe(), read_json(out / "model" / "config.json")) for tree in tree.values()]
    names = [part["name"] for part in parts if isinstance(part, dict) and is_import_path(str(part.get("name", "")))]
    packages = sorted({name.partition(":")[0].partition(".")[0] for name in names})
    place = shlex.quote(str(out)) + "".join(f" --allow {package}" for package in packages)
    folders = dict.fromkeys(os.path.relpath(folder) for package in packages if (folder := folder_of(package)) is not None)
    fewstep = f"PYTHONPATH={shlex.quote(os.pathsep.join(folders))} fewstep" if folders else "fewstep"
    return f"next: {fewstep} evaluate {place}   or   {fewstep} sample {place} -n 100 --out samples.png"


def export(
    path: Annotated[
        str, typer.Argument(help="a run folder, a model folder, or a Hugging Face Hub id (owner/name)", autocompletion=completion.runs)
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="diffusers (a pipeline that runs without fewstep), onnx (for onnxruntime) or page (a web page that draws samples)",
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder to write: a new or an empty one")],
    licence: Annotated[
        str | None,
        typer.Option("--licence", "--license", help="licence of the weights, for the model card, such as mit or cc-by-nc-sa-4.0"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="number of sampling steps to export for, if the generator allows several; default: its own")
    ] = None,
    fuse: Annotated[
        bool,
        typer.Option(
            "--fuse", help="for a text-to-image LoRA: write the whole pipeline with the LoRA merged in, instead of the LoRA alone"
        ),
    ] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(
            help="for --format page: folder of onnxruntime-web to copy into the page, which otherwise loads it from cdn.jsdelivr.net"
        ),
    ] = None,
    allow: Allow = None,
) -> None:
    """Export a one-step or few-step generator for other tools, with a model card, after checking that both draw the same samples."""
    from fewstep.interop.export import export as write

    difference = write(path, form, out, licence, steps, fuse, runtime, say)
    typer.echo(f"exported: {out}; from the same noise, its samples differ from the generator's by {difference:.1e} at most")
    typer.echo(f"how to use it: {out / 'README.md'}")
    if form == "page":
        typer.echo("browsers do not let a page on disk load its model, so serve the folder by any web server, such as:")
        typer.echo(f"  python -m http.server -d {shlex.quote(str(out))} 8000      # and open http://localhost:8000")


def import_(
    source: Annotated[
        str,
        typer.Argument(help="an official EDM checkpoint (NAME.pkl), or the folder or Hub id of a diffusers model or pipeline"),
    ],
    out: Annotated[Path, typer.Option(help="model folder to write")],
    sigma_data: Annotated[
        float | None,
        typer.Option(help="for a diffusers model: standard deviation of its training data; default 0.5, for text-to-image pipelines 1"),
    ] = None,
    null_class: Annotated[
        bool,
        typer.Option("--null-class", help="for a diffusers model: its last class means no class, as classifier-free guidance needs"),
    ] = False,
) -> None:
    """Turn a published teacher into a model folder, without running any code from its file."""
    file = Path(source)
    if file.is_file() and file.suffix in (".safetensors", ".ckpt"):
        raise UserError(
            f"{file} is a single file of weights, and a model is read with its configs; where you trust it, write it as a folder by "
            f"diffusers (StableDiffusionXLPipeline.from_single_file({str(file)!r}).save_pretrained(FOLDER)), and give that folder"
        )
    if file.is_file() or file.suffix == ".pkl":
        if sigma_data is not None or null_class:
            raise UserError(f"--sigma-data and --null-class are for diffusers models, and {file} is not one; leave them out")
        _import_edm(file, out)
    elif _import_text(source, out, 1.0 if sigma_data is None else sigma_data, null_class):
        return
    else:
        _import_diffusers(source, out, 0.5 if sigma_data is None else sigma_data, null_class)
    typer.echo(f"imported: {out}\nnext: fewstep sample {shlex.quote(str(out))} -n 4 --out samples.png")
    typer.echo(f"or distil it: fewstep train METHOD/DATA method.teacher={out}, with METHOD one of {_taught()}")


def _import_text(source: str, out: Path, sigma_data: float, null_class: bool) -> bool:
    """Return whether `source` is a text-to-image pipeline; if so, print its parts and write the model folder `out`, which refers to it."""
    from fewstep.interop.text_teacher import import_text, is_text_pipeline
    from fewstep.recipe.listing import recipes_on

    if not is_text_pipeline(source):
        return False
    if null_class:
        raise UserError(f"--null-class is for models with classes, and {source} takes prompts; leave it out")
    for line in import_text(source, out, sigma_data):
        typer.echo(line)
    place = shlex.quote(str(out))
    typer.echo(f"imported: {out}, which refers to the pipeline and holds no copy of its weights")
    typer.echo(f'next: fewstep sample {place} --prompt "a lighthouse" --out lighthouse.png')
    typer.echo(f"or distil it: fewstep encode PROMPTS --model {shlex.quote(source)} --out prompts")
    known = ", ".join(recipes_on("prompts"))
    typer.echo(f"and then: fewstep train RECIPE method.teacher={place} data.path=prompts --out runs/student, with RECIPE one of {known}")
    return True


def _taught() -> str:
    """Return the names of the methods that can take a teacher, with commas between."""
    from fewstep import registry

    return ", ".join(name for name, settings in registry.readable("methods").items() if "teacher" in settings.model_fields)


def _import_edm(file: Path, out: Path) -> None:
    from fewstep.interop.edm import import_edm

    found = import_edm(file, out)
    classes = f"{found.num_classes} classes" if found.num_classes else "no classes"
    size = "x".join(map(str, found.shape[1:]))
    typer.echo(f"found: {found.kind} ({found.form}), {found.parameters:,} parameters, {size} images of {found.data}, {classes}")
    typer.echo(f"sha256 of {file.name}: {found.sha256}")


def _import_diffusers(source: str, out: Path, sigma_data: float, null_class: bool) -> None:
    from fewstep.interop.diffusers import import_diffusers

    found = import_diffusers(source, out, sigma_data, null_class)
    generator = found.generator
    if "assumed" in generator.info:
        say(f"warning: {generator.info['assumed']}")
    classes = f"{generator.num_classes} classes" if generator.num_classes else "no classes"
    size = "x".join(map(str, generator.shape[1:]))
    typer.echo(f"found: UNet2DModel ({found.prediction}), {found.parameters:,} parameters, {size} images, {classes}")
    typer.echo(f"noise levels: {found.sigma_min:.4g} to {found.sigma_max:.4g} at {found.timesteps} timesteps")


def _encode_images(images: Path, model: str, out: Path, size: int, label_column: str | None) -> None:
    from fewstep.interop.latent_folder import encode_images
    from fewstep.recipe.listing import recipes_on
    from fewstep.training.progress import reading_bar

    found = encode_images(str(images), model, out, size, label_column, reading_bar, say)
    classes = f"{len(found.class_names)} classes" if found.class_names else "no classes"
    typer.echo(f"images: {found.num['train']:,} to train on, {found.num['heldout']:,} held out, {classes}")
    typer.echo(f"encoded: {out}, latents of {'x'.join(map(str, found.shape))}")
    typer.echo(f"next: fewstep train {', '.join(recipes_on('latents'))} data.path={shlex.quote(str(out))} --out runs/latents")


def encode(
    prompts: Annotated[
        Path,
        typer.Argument(
            help="prompts, in a .txt with one on each line, or in a column of a .csv or .parquet; with --images: a folder, .parquet or Hub "
            "id of images"
        ),
    ],
    model: Annotated[
        str, typer.Option(help="folder or Hub id of the text-to-image pipeline whose text encoders, or for images whose VAE, are used")
    ],
    out: Annotated[Path, typer.Option(help="folder for the encoded data; a command that was stopped continues there when given again")],
    column: Annotated[
        str | None,
        typer.Option(help="column of the prompts or captions in a table; default: one called prompt, caption or text, or the only column"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="branch, tag or commit of a model on the Hub, also written as owner/name@revision; default: main")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="also draw this many samples from the model, which its students are measured against; usual is 2,000"),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(help="also draw this many samples, each with its noise, for a one-step student to learn from first; usual is 10,000"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="sampling steps for --samples and --pairs; default 50 (Stable Diffusion 3: 28)")] = None,
    images: Annotated[
        bool, typer.Option("--images", help="encode images: the first argument is a folder of images, a .parquet or a Hub id")
    ] = False,
    captions: Annotated[
        bool, typer.Option("--captions", help="with --images: encode the captions in --column, too, to train with a discriminator")
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(
            help=f"with --images: width and height in pixels to resize images to; default {PIXELS}, with --captions the model's own size"
        ),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="with --images: column of the class labels; the word none leaves classes out")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            help="scale of classifier-free guidance for --samples and --pairs, usually the student's method.guidance_scale; default 7.5 "
            "(Stable Diffusion 3: 7)"
        ),
    ] = None,
) -> None:
    """Encode prompts (with --images: images) once by a Stable Diffusion pipeline, so that its encoders need no memory in training."""
    model = _at_revision(model, revision)
    if images:
        drawing = {"--samples": samples, "--pairs": pairs, "--steps": steps, "--guidance-scale": guidance_scale}
        others = {**drawing, **({} if captions else {"--column": column})}
        if given := [key for key, value in others.items() if value is not None]:
            away = " without --captions" if given[0] == "--column" else ""
            raise UserError(f"{given[0]} is for prompts, and --images was given{away}; leave one of them out")
        try:
            if captions:
                return _encode_captioned(prompts, model, out, size, label_column, column)
            return _encode_images(prompts, model, out, size or PIXELS, label_column)
        except UserError as error:  # its message is written for recipes, and names their setting
            raise UserError(str(error).replace("data.path is ", "the first argument is ")) from error
    drawn = next((key for key, value in (("--samples", samples), ("--pairs", pairs)) if value is not None), None)
    if drawn is None and (asked := "--steps" if steps is not None else "--guidance-scale" if guidance_scale is not None else None):
        raise UserError(f"{asked} is for the samples that --samples and --pairs draw, and neither was given; give one, or leave it out")
    for key, is_given in (("--label-column", label_column is not None), ("--captions", captions), ("--size", size is not None)):
        if is_given:
            raise UserError(f"{key} is for images; add --images, or leave it out")
    from fewstep.pipelines.encoders import encode_prompts
    from fewstep.training.progress import reading_bar

    found = encode_prompts(prompts, model, out, column, reading_bar, say)
    _say_prompts(found)
    typer.echo(f"encoded: {out}")
    if drawn is None:
        return
    from fewstep.data.teacher_samples import COMPARED, PAIRS
    from fewstep.interop.teacher_samples import draw_teacher_samples

    for num, use in ((samples, COMPARED), (pairs, PAIRS)):
        if num is not None:
            made = draw_teacher_samples(out, num, model, steps, guidance_scale, reading_bar, say, use)
            typer.echo(f"drawn: {made.num:,} {use.what} of the model, in {made.steps} steps with guidance scale {made.guidance_scale:g}")


def _at_revision(model: str, revision: str | None) -> str:
    """Return the Hub id `model` with the `revision` of ``--revision``, if it is given. Raises UserError where there is none to choose."""
    if revision is None:
        return model
    from fewstep import hub

    if (own := hub.parted(model)[1]) is not None:
        raise UserError(f"--revision is {revision!r}, and --model {model} names the revision {own!r}; leave one of them out")
    if Path(model).exists() or not hub.is_id(model):
        raise UserError(f"--revision is {revision!r}, and --model is {model}, which is no Hub id (owner/name); leave --revision out")
    return f"{model}@{revision}"


def _say_prompts(found: "Manifest") -> None:
    told = [f"{number:,} {what}" for number, what in ((found.repeated, "repeated"), (found.blank, "blank")) if number]
    row = f"{found.tokens} tokens of {found.width} numbers" + (f" and a pooled vector of {found.pooled}" if found.pooled else "")
    typer.echo(f"prompts: {found.num:,} different ones" + (f" ({', '.join(told)} left out)" if told else "") + f", each encoded as {row}")


def _encode_captioned(images: Path, model: str, out: Path, size: int | None, label_column: str | None, column: str | None) -> None:
    if label_column is not None:
        raise UserError("--label-column is for classes, and --captions was given; name the column of captions in --column")
    from fewstep.interop.latent_folder import encode_captioned
    from fewstep.training.progress import reading_bar

    prompts, found = encode_captioned(str(images), model, out, size, column, reading_bar, say)
    _say_prompts(prompts)
    typer.echo(f"images: {found.num['train']:,} to train on, {found.num['heldout']:,} held out, each with its prompt")
    typer.echo(f"encoded: {out}, latents of {'x'.join(map(str, found.shape))}")
