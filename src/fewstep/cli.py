"""The command line. Packages that are slow to import, such as torch, are imported inside the commands that need them.

Exit codes: 0 success; 1 a bug in fewstep, with a traceback; 2 an error that the user can correct, told in one message; 130 stopped by a
signal, after training has saved its state.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fewstep import completion
from fewstep.cli_models import Allow, encode, export, import_, next_after
from fewstep.cli_models import say as _say
from fewstep.endings import ended
from fewstep.errors import UserError


class _Whole(TyperGroup):
    """A command group whose help gives the whole summary of each command, wrapped instead of cut off."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the name and the whole summary of each command into `formatter`."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(sys.maxsize)) for name, command in found if command])


app = typer.Typer(
    cls=_Whole,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="One-step and few-step generative models: train, distil, measure, ship.",
)
recipes_app = typer.Typer(cls=_Whole, no_args_is_help=False, invoke_without_command=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes", help="List the shipped recipes, print one of them, or print their JSON schema.")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="settings of the recipe to change, such as steps=500 trainer.log_every=10",
        autocompletion=completion.keys,
    ),
]
Churn = Annotated[
    float | None,
    typer.Option(help="new noise in each step, from 0 for none to 1, for samplers that can add some; default: the generator's"),
]
Threads = Annotated[str, typer.Option(help="number of CPU threads; auto: 1 for a small network, otherwise one per core")]


PROMPTED = 16  # samples drawn from a model's table of prompts where -n is not given
LABELS = (
    "classes to draw, by number or name, such as 0,1,cat, repeated to the number of samples; a whole number always means the class with "
    "that number, from 0, even if classes have numbers as names; default: all classes in turn"
)


def _whole_numbers(option: str, text: str | None, example: str) -> list[int] | None:
    """Return the whole numbers, with commas between, in the `text` of an `option`; None for None. Raises UserError for any other text."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} is {text!r}; give whole numbers with commas between, such as {example}") from None


def _threads(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--threads is {text!r}; allowed: auto, or a whole number from 1")
    return int(text)


def _version(asked: bool) -> None:
    if asked:
        from fewstep.version import __version__

        typer.echo(f"fewstep {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")] = False,
) -> None:
    """One-step and few-step generative models: train, distil, measure, ship."""


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="a shipped recipe (see `fewstep recipes`) or a YAML file", autocompletion=completion.recipes)
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="run folder to write: new or empty, or with --resume that of the run to continue; needed without --dry-run"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue from the newest checkpoint in --out, or start from step 0 if it holds none")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="print the recipe with all its settings, and its cost in FLOPs, memory and time, without training"),
    ] = False,
    allow: Allow = None,
) -> None:
    """Train the model that RECIPE describes, and write the run into the folder --out."""
    from fewstep.recipe import load_recipe, resolved

    settings = load_recipe(recipe, overrides or ())
    import yaml

    from fewstep import run
    from fewstep.finding import settled

    if dry_run:
        settings, found = settled(settings)
        lines = [*map(str, found), *run.describe(settings, timed=True)]
        typer.echo(yaml.safe_dump(resolved(settings), sort_keys=False).rstrip())
        typer.echo("\n".join(f"# {line}" for line in lines))
        return
    if out is None:
        raise UserError("--out is missing; give the folder of the run, such as --out runs/first")
    run.train_recipe(settings, out, resume, title=recipe, after=_report, source=recipe)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        typer.echo(f"trained: {out}\n{next_after(out)}")


def _report(path: Path) -> None:
    from fewstep.run_report import report

    report(path)


@app.command()
def sample(
    path: Annotated[
        str, typer.Argument(help="a run folder, a model folder, or a Hugging Face Hub id (owner/name)", autocompletion=completion.runs)
    ],
    out: Annotated[
        Path, typer.Option(help="file to write: FILE.png for one picture of all samples, FILE.npz for arrays `samples` and `labels`")
    ],
    num: Annotated[
        int | None,
        typer.Option(
            "-n",
            help="number of samples; default 100, for a text-to-image model one for each prompt given or for the first 16 of its own",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="prompt for a text-to-image model; may be given more than once")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="file of more prompts: a .txt with one on each line, or a .csv or .parquet with a column of them"),
    ] = None,
    labels: Annotated[str | None, typer.Option(help=LABELS)] = None,
    steps: Annotated[
        int | None, typer.Option(help="number of sampling steps (noise levels), if the generator allows several; default: its own")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the noise: the same seed draws the same samples; default: a new one")] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            help="scale of classifier-free guidance, for networks trained with label dropout; 1 is none; default: the generator's"
        ),
    ] = None,
    churn: Churn = None,
    threads: Threads = "auto",
    allow: Allow = None,
) -> None:
    """Draw samples from a generator and write them into a file."""
    from fewstep.samples import asked_prompts, check_asked, check_out, write_samples

    check_out(out)
    texts = asked_prompts(prompt or [], prompts)
    count = _threads(threads)
    import torch

    from fewstep.class_labels import split_labels, told
    from fewstep.engine import choose_threads, use_threads
    from fewstep.generator import load

    generator = load(path, "cuda" if torch.cuda.is_available() else "cpu")
    wanted = None if labels is None else split_labels(labels, generator.class_names)
    use_threads(choose_threads(count, generator.denoiser, generator.shape))
    usual = min(PROMPTED, generator.num_classes or 1) if generator.told is not None else 100
    num = num if num is not None else len(texts) or usual
    check_asked(num, wanted, texts)
    write_samples(generator, num, out, wanted, texts, seed=seed, steps=steps, guidance_scale=guidance_scale, churn=churn)
    typer.echo(f"{num:,} samples, {generator.evaluations(steps, None, guidance_scale)} evaluation(s) each: {out}")
    if generator.told is not None:
        return
    drawn = generator.labels(min(num, generator.num_classes or 0) if wanted is None else min(num, len(wanted)), wanted)
    if drawn is not None and (names := told(generator.class_names, drawn.tolist())):
        typer.echo(f"classes: {names}")


@app.command()
def evaluate(
    path: Annotated[
        Path, typer.Argument(help="a run folder, or its folder best/ for the checkpoint kept as best", autocompletion=completion.runs)
    ],
    num: Annotated[
        int | None, typer.Option("-n", help="number of samples; default 2,000 images or 10,000 points, with --protocol edm 50,000 images")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the samples")] = 0,
    steps: Annotated[
        str | None,
        typer.Option(
            help="numbers of sampling steps to measure at, such as 1,2,4, where the generator allows several; default: its own number, and "
            "others that are usual for its sampler"
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            help="scale of classifier-free guidance, for a model trained with label dropout that is no student of another; 1 is none; "
            "default: the model's own"
        ),
    ] = None,
    churn: Churn = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="feature network for images: inception (downloaded once), digits-v1, mnist, cifar10, mnist-second, cifar10-second, "
            "pixels-8x8, a .safetensors file from tools/train_features.py, or a TorchScript file with Inception's interface, whose code "
            "is run; default: the network that belongs to the data"
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="for images: .npz file with mean mu and covariance sigma of features, to measure against; default: held-out images"
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="protocol for images; edm: Inception features, three sets of 50,000 samples, and the smallest of their Frechet distances "
            "to the training split"
        ),
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="also measure one half of the real training images against the other half")
    ] = False,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="another run to show in the same table, evaluated by the same protocol", autocompletion=completion.runs),
    ] = None,
    no_teacher: Annotated[
        bool,
        typer.Option(
            "--no-teacher", help="leave out the teacher of a distilled run, which is otherwise measured once and its figures cached"
        ),
    ] = False,
    compile: Annotated[
        bool, typer.Option("--compile", help="draw samples with networks compiled by torch.compile: faster, after minutes of compiling")
    ] = False,
    clip: Annotated[
        str | None,
        typer.Option(help="for text-to-image runs: folder or Hub id of a CLIP model that scores how well samples agree with their prompts"),
    ] = None,
    threads: Threads = "auto",
    allow: Allow = None,
) -> None:
    """Measure the samples of a run beside real data (the floor) and beside its teacher, and write results.json into the run folder."""
    count, counts = _threads(threads), _whole_numbers("--steps", steps, "1,2,4")
    from fewstep import evaluation, evaluation_text

    runs = tuple(beside or ())
    options = evaluation.Options(features, reference, protocol, self_test, runs, not no_teacher, guidance_scale, compile, clip, churn)
    results = evaluation.evaluate(path, num, seed, count, lambda text: _say(f"{text} ..."), counts, options)
    is_run = (path / "recipe.yaml").exists()
    if is_run:
        _report(path)
    _print_table(evaluation_text.table(results))
    typer.echo(evaluation_text.footnote(results))
    if results["self_test"]:
        typer.echo(evaluation_text.self_test_line(results["self_test"]))
    typer.echo(f"wrote {path / 'results.json'}" + (f" and {path / 'report.html'}" if is_run else ""))


def _print_table(lines: list[list[str]]) -> None:
    from fewstep.evaluation_text import aligned

    typer.echo("\n".join(aligned(lines, shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize)))


@app.command()
def compare(
    data: Annotated[str, typer.Argument(help="data set: digits, or toys/NAME such as toys/ring", autocompletion=completion.comparable)],
    out: Annotated[Path | None, typer.Option(help="folder for the runs, figures and plots; default runs/compare/NAME")] = None,
    gamma: Annotated[
        float,
        typer.Option(
            help="for toys: learn the power p^gamma of the data's density p; unless it is 1, methods that only learn p are left out"
        ),
    ] = 1.0,
    scale: Annotated[float, typer.Option(help="factor by which the training steps of every recipe are multiplied")] = 1.0,
    seed: Annotated[int, typer.Option(help="seed of the data, the training and the samples")] = 0,
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="RECIPE",
            help="another recipe to compare, such as one for a method of your own",
            autocompletion=completion.recipes,
        ),
    ] = None,
) -> None:
    """Train every method on one data set, and show quality against the number of sampling steps in one table and one plot."""
    from fewstep import comparison, evaluation_text

    where = out or Path("runs/compare") / data.removeprefix("toys/")
    results = comparison.compare(data, where, gamma, scale, seed, _say, recipes or ())
    typer.echo(f"{'energy distance' if data != 'digits' else 'FD / floor'} by number of steps")
    _print_table(comparison.table_by_steps(results))
    typer.echo("\nall figures, each method at its own number of steps")
    _print_table(evaluation_text.table(comparison.own_rows(results)))
    typer.echo(evaluation_text.footnote(results))
    typer.echo(f"pictures: {where / 'steps.png'}, {where / 'compare.png'}   numbers: {where / 'compare.json'}")


app.command()(export)
app.command("import")(import_)
app.command()(encode)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the two runs and the picture demo.png")] = Path("runs/demo"),
    overrides: Overrides = None,
) -> None:
    """Train a teacher on real digits, distil it into one step, measure and show both. It takes minutes; a second call only shows them."""
    from fewstep import demo as demonstration
    from fewstep import evaluation_text

    results = demonstration.demo(out, tuple(overrides or ()), _say)
    for name in demonstration.STAGES:
        _report(out / name)
    _print_table(demonstration.summary(results))
    typer.echo(evaluation_text.footnote(results))
    typer.echo(
        f"picture: {out / 'demo.png'}   report: {out / 'student' / 'report.html'}   generator: fewstep.load({str(out / 'student')!r})"
    )


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the shipped recipes."""
    if context.invoked_subcommand is not None:
        return
    from fewstep.recipe.listing import listing

    typer.echo("\n".join(listing(shutil.get_terminal_size((110, 24)).columns or 110)))


@recipes_app.command()
def show(name: Annotated[str, typer.Argument(help="name of a shipped recipe", autocompletion=completion.shipped)]) -> None:
    """Print the YAML of a shipped recipe, as a starting point for a recipe of your own."""
    from fewstep.recipe import shipped_recipes
    from fewstep.recipe.mistakes import nearest

    shipped = shipped_recipes()
    if name not in shipped:
        raise UserError(f"{name!r} is not a shipped recipe{nearest(name, shipped)}; shipped are {', '.join(shipped)}")
    typer.echo(shipped[name].read_text().rstrip())


@recipes_app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors that complete YAML."""
    import json

    from fewstep.recipe.reading import schema as recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


def main() -> None:
    """Run the command line; an error that the user can correct prints one message and exits with code 2."""
    sys.argv[1:] = [_at_home(word) for word in sys.argv[1:]]
    ended(app)


def _at_home(word: str) -> str:
    """Return `word` of the command line with the home folder in place of a leading ``~``, which shells leave alone in ``--out=~/runs``."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + os.path.expanduser(value)
