"""Samples of a text-to-image model are drawn beside its encoded prompts, and kept there."""

from collections.abc import Callable
from pathlib import Path

import torch

from fewstep.data.errors import DataError
from fewstep.data.prompt_table import PromptTable
from fewstep.data.splits import Bar, no_bar
from fewstep.data.teacher_samples import EACH, MANIFEST, Drawn, TeacherSamples, chunks, sample_rows
from fewstep.errors import UserError
from fewstep.files import held_folder, sha256_of, write_part
from fewstep.generator import Generator
from fewstep.interop.text_teacher import text_teacher
from fewstep.pipelines.vae import measured_size
from fewstep.streams import stream_seed


def draw_teacher_samples(
    folder: Path,
    num: int,
    model: str,
    steps: int | None = None,
    guidance_scale: float | None = None,
    bar: Bar = no_bar,
    say: Callable[[str], None] = lambda text: None,
) -> Drawn:
    """Draw `num` samples of the pipeline `model` for the prompts in `folder`, in turn, and keep them there.

    `steps` and `guidance_scale` are by default those of its stock pipeline. What was stopped goes on where it was. Raises UserError for too
    few, for samples that are there already and were drawn otherwise, and as `text_teacher` does.
    """
    if num < EACH:
        raise UserError(f"--samples is {num}; give at least {EACH}, which are drawn of each prompt: half are held beside the other half")
    try:
        table = PromptTable(folder)
    except DataError as error:
        raise UserError(str(error)) from error
    teacher = text_teacher(model, prompts=table)
    assert teacher.base is not None
    steps = teacher.default_steps() if steps is None else steps
    guidance_scale = teacher.guidance_scale if guidance_scale is None else guidance_scale
    if torch.cuda.is_available():
        teacher.to("cuda")
    asked = Drawn(teacher.base.weights, steps, float(guidance_scale), num, len(table), {})
    with held_folder(folder, "drawing samples into", "give the same command again"):
        if (folder / MANIFEST).is_file():
            try:
                there = TeacherSamples(folder, len(table)).drawn
            except DataError as error:
                raise UserError(str(error)) from error
            if (there.weights, there.steps, there.guidance_scale, there.num) == (asked.weights, steps, asked.guidance_scale, num):
                say(f"{folder} holds these samples already")
                return there
            raise UserError(
                f"{folder} holds {there.num:,} samples in {there.steps} steps by guidance {there.guidance_scale:g}, of this model or "
                f"another; remove {MANIFEST} and teacher-*.safetensors there to draw others"
            )
        files = {}
        with bar("drawing samples of the teacher", num) as done:
            for name, first, last in chunks(num):
                mark = f"{asked.weights} {steps} {asked.guidance_scale} {len(table)} {first} {last}"
                if _mark(folder / name) != mark:
                    _draw(teacher, folder / name, first, last, steps, guidance_scale, len(table), mark)
                done(last - first)
                files[name] = sha256_of(folder / name)
        drawn = Drawn(asked.weights, steps, asked.guidance_scale, num, len(table), files)
        write_part(folder / MANIFEST, drawn.json())
    return drawn


def _draw(teacher: Generator, path: Path, first: int, last: int, steps: int, guidance_scale: float, prompts: int, mark: str) -> None:
    from safetensors.torch import save

    rows = sample_rows(first, last, prompts)
    seeds = [stream_seed(0, "teacher", number) for number in range(first, last)]
    latents = teacher.sample(last - first, rows, seeds, steps, guidance_scale=guidance_scale)
    pixels = ((measured_size(teacher.pixels(latents)).cpu() + 1) * 127.5).round().to(torch.uint8)
    tensors = {"latents": latents.cpu().half(), "pixels": pixels.contiguous(), "row": rows}
    write_part(path, save(tensors, {"drawn": mark}))


def _mark(path: Path) -> str | None:
    """How the samples in a file were drawn; None where there is none, or it cannot be read."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {}).get("drawn")
    except Exception:  # the library's own, and those of a disk: drawn anew
        return None
