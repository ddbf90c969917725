"""Drawing of a text-to-image teacher's samples, which are kept in the folder of its encoded prompts."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.prompt_table import PromptTable
from fewstep.data.splits import Bar, no_bar
from fewstep.data.teacher_samples import COMPARED, PAIRS, Drawn, TeacherSamples, Use
from fewstep.errors import UserError
from fewstep.files import held_folder, sha256_of, write_part
from fewstep.generator import Generator
from fewstep.interop.text_teacher import text_teacher
from fewstep.pipelines.vae import measured_size
from fewstep.streams import Noise, seeded, stream_seed


def draw_teacher_samples(
    folder: Path,
    num: int,
    model: str,
    steps: int | None = None,
    guidance_scale: float | None = None,
    bar: Bar = no_bar,
    say: Callable[[str], None] = lambda text: None,
    use: Use = COMPARED,
) -> Drawn:
    """Draw `num` samples of the pipeline `model` for the prompts in `folder`, in turn, and keep them in `folder` for `use`.

    `steps` and `guidance_scale` are by default those of the stock pipeline. Drawing that was interrupted is continued. Raises UserError
    where `num` is too small for `use`, where `folder` holds samples that were drawn with other settings, and as `text_teacher` does.
    """
    if num < use.each:
        of = ": that many are drawn of each prompt, and one half is compared with the other" if use.each > 1 else ""
        raise UserError(f"{use.option} is {num}; give at least {use.each}{of}")
    try:
        table = PromptTable(folder)
    except DataError as error:
        raise UserError(str(error)) from error
    teacher = text_teacher(model, prompts=table)
    assert teacher.base is not None
    assert teacher.latents is not None
    vae = None if use is PAIRS else teacher.latents["vae"]
    steps = teacher.default_steps() if steps is None else steps
    guidance_scale = teacher.guidance_scale if guidance_scale is None else guidance_scale
    if torch.cuda.is_available():
        teacher.to("cuda")
    asked = Drawn(teacher.base.weights, steps, float(guidance_scale), num, len(table), {}, vae=vae)
    with held_folder(folder, "drawing samples into", "give the same command again"):
        if (folder / use.manifest).is_file():
            try:
                there = TeacherSamples(folder, len(table), use).drawn
            except DataError as error:
                raise UserError(str(error)) from error
            same = (there.weights, there.steps, there.guidance_scale, there.num) == (asked.weights, steps, asked.guidance_scale, num)
            if same and there.vae in (None, vae):
                say(f"{folder} holds these {use.what} already")
                return there
            raise UserError(
                f"{folder} holds {there.num:,} {use.what} in {there.steps} steps with guidance scale {there.guidance_scale:g}, of this "
                f"model or another; remove {use.manifest} and {use.stem}-*.safetensors there to draw others"
            )
        files = {}
        with bar(f"drawing {use.what} of the teacher", num) as done:
            for name, first, last in use.chunks(num):
                mark = f"{asked.weights} {steps} {asked.guidance_scale} {len(table)} {first} {last} {vae}"
                if _mark(folder / name) != mark:
                    _draw(teacher, folder / name, use.rows(first, last, len(table)), first, asked, mark, use)
                done(last - first)
                files[name] = sha256_of(folder / name)
        drawn = Drawn(asked.weights, steps, asked.guidance_scale, num, len(table), files, vae=vae)
        write_part(folder / use.manifest, drawn.json())
    return drawn


def _draw(teacher: Generator, path: Path, rows: Tensor, first: int, asked: Drawn, mark: str, use: Use) -> None:
    """Draw samples of the prompts `rows`, numbered from `first` on, as `asked` says, and write them to `path` with the metadata `mark`."""
    from safetensors.torch import save

    num = len(rows)
    seeds = [stream_seed(0, use.stem, number) for number in range(first, first + num)]
    latents = teacher.sample(num, rows, seeds, asked.steps, guidance_scale=asked.guidance_scale)
    if use is PAIRS:  # the initial noise that `sample` draws for these seeds
        beside = Noise(seeded(seeds, num))((num, *teacher.latent_shape), torch.empty(())).half()
    else:
        beside = ((measured_size(teacher.pixels(latents)).cpu() + 1) * 127.5).round().to(torch.uint8)
    write_part(path, save({"latents": latents.cpu().half(), use.beside: beside.contiguous(), "row": rows}, {"drawn": mark}))


def _mark(path: Path) -> str | None:
    """Return the metadata that say how the samples in the file `path` were drawn; None where the file is missing or cannot be read."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {}).get("drawn")
    except Exception:  # safetensors has exceptions of its own, and disks fail: such a file is drawn anew
        return None
