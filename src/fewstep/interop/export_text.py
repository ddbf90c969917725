"""Export of a few-step text-to-image generator for stock pipelines of diffusers: a LoRA file with its scheduler, or a whole pipeline.

The scheduler (`fewstep.interop.stock_schedulers`) draws as `fewstep.samplers.few_step` does: denoise, add fresh noise of the next level,
denoise. A user of the export sets the number of steps, switches guidance off, and sets nothing else.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import hub
from fewstep.denoisers.adapted import Adapted
from fewstep.errors import UserError
from fewstep.files import passing_folder, replace_file
from fewstep.generator import Generator
from fewstep.interop.stock_schedulers import stock_scheduler
from fewstep.pipelines.denoiser import network_folder
from fewstep.pipelines.encoders import encoded
from fewstep.pipelines.folder import FORMS, absent_parts, model_folder, part_of, pipeline_kind
from fewstep.pipelines.reference import file_tensors
from fewstep.publishing import public_name
from fewstep.weights import LORA_FILE

PROMPTS = ("a photograph of a cat", "two thin lines, red")
PROBES = ((1, 0), (2, 1))  # (batch size, seed) of each check
DRAWN = "drawn.safetensors"
TOLERANCE = 1e-4  # largest allowed difference of a latent, as a share of the largest latent

LORA = """\
import torch
from diffusers import {pipeline}, {scheduler}

pipeline = {pipeline}.from_pretrained({model!r}{more}).to(torch.float32)
pipeline.load_lora_weights({folder!r}, weight_name="pytorch_lora_weights.safetensors")
pipeline.scheduler = {scheduler}.from_pretrained({folder!r}, subfolder="scheduler")
"""
WHOLE = """\
import torch
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained({folder!r}{more}).to(torch.float32)
"""
DRAW = """\
image = pipeline({prompt!r}, num_inference_steps={steps}, guidance_scale=0).images[0]
image.save("image.png")
"""
# what a separate process runs after the lines above: it samples from the same noise, and fails where an adapter's tensor was not loaded
CHECK = """
import json, sys
from safetensors.torch import load_file, save_file

told = json.loads(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
found = {}
for number, (count, seed) in enumerate(told["probes"]):
    torch.manual_seed(seed)  # of noise between steps, too, which SD 3's pipeline draws by no other generator
    latents = torch.randn((count, *told["shape"]))
    texts = [told["prompts"][i % len(told["prompts"])] for i in range(count)]
    drawn = pipeline(texts, num_inference_steps=told["steps"], guidance_scale=0, latents=latents, output_type="latent").images
    found[f"drawn {number}"] = drawn.contiguous()
if told["lora"]:
    from peft import get_peft_model_state_dict

    network = getattr(pipeline, told["part"])
    loaded = get_peft_model_state_dict(network, adapter_name=network.active_adapters()[0])
    theirs = {f"{told['part']}.{name}": tensor for name, tensor in loaded.items()}
    ours = load_file(told["lora"])
    lost = [name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])]
    if lost:
        raise SystemExit(f"{len(lost)} of {len(ours)} tensors were not loaded, such as {lost[0]}")
save_file(found, told["out"])
"""


def is_text(generator: Generator) -> bool:
    """Return whether `generator` is a text-to-image generator."""
    return generator.told is not None and generator.latents is not None


def write_text(generator: Generator, folder: Path, fuse: bool) -> None:
    """Write `generator` into `folder`: its low-rank adapters and a scheduler, or the whole pipeline.

    The whole pipeline is written with `fuse`, and for a generator whose network was trained without adapters. Raises UserError for noise
    levels that no setting of a stock scheduler visits.
    """
    from safetensors.torch import save_file

    scheduler = stock_scheduler(generator)
    if not Path(_model(generator)).is_dir():  # a pipeline on the Hub: fetch all of its parts, for the check and for a whole copy
        model_folder(_model(generator))
        part_of(_model(generator), "vae")
    if is_lora(generator, fuse):
        assert isinstance(generator.denoiser, Adapted)
        save_file(file_tensors(generator.denoiser), str(folder / LORA_FILE), {"format": "pt"})
        scheduler.save_pretrained(str(folder / "scheduler"))
        return
    whole: Any = generator.denoiser.merged() if isinstance(generator.denoiser, Adapted) else generator.denoiser
    place = network_folder(_model(generator))
    part = _part(generator)
    # the parts that stay as they are, then the denoising network and the scheduler
    index = json.loads((place / "model_index.json").read_text())
    for name, named in index.items():
        if isinstance(named, list) and name not in (part, "scheduler", "safety_checker", "feature_extractor") and (place / name).is_dir():
            shutil.copytree(place / name, folder / name)
    getattr(whole.network, part).save_pretrained(str(folder / part))
    scheduler.save_pretrained(str(folder / "scheduler"))
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    if "safety_checker" in index:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    replace_file(folder / "model_index.json", json.dumps(index, indent=2).encode())
    _forget_places(folder)


def _forget_places(folder: Path) -> None:
    """Remove from the configs in a pipeline's `folder` the local folders that diffusers and transformers noted as their origin."""
    for file in (folder / "model_index.json", *folder.glob("*/*config.json")):
        tree = json.loads(file.read_text(encoding="utf-8"))
        noted = [key for key in ("_name_or_path", "name_or_path") if (name := str(tree.get(key, ""))) and public_name(name) != name]
        if noted:
            replace_file(file, json.dumps({key: value for key, value in tree.items() if key not in noted}, indent=2).encode())


def is_lora(generator: Generator, fuse: bool) -> bool:
    """Return whether the export holds only low-rank adapters, and not a whole pipeline."""
    return isinstance(generator.denoiser, Adapted) and not fuse


def code(generator: Generator, folder: str, fuse: bool, model: str | None = None) -> str:
    """Return the lines of Python that load the export in `folder` into a stock pipeline; see `LORA` and `WHOLE`.

    `model` is the name of the generator's own pipeline in these lines; None for the path or Hub id that the generator holds.
    """
    kind = _kind(generator)
    lora = is_lora(generator, fuse)
    unsafe = lora and kind == "StableDiffusionPipeline"  # a whole pipeline says so in its model_index.json
    more = ", safety_checker=None, requires_safety_checker=False" if unsafe else ""
    name, revision = hub.parted(model or _model(generator))
    more += f", revision={revision!r}" * (lora and revision is not None)
    more += "".join(f", {part}=None" for part in absent_parts(network_folder(_model(generator))))
    scheduler = type(stock_scheduler(generator)).__name__
    told = {"pipeline": kind, "scheduler": scheduler, "model": name, "folder": folder, "more": more}
    return (LORA if lora else WHOLE).format(**told)


def public_code(generator: Generator, fuse: bool) -> str:
    """Return the lines of Python for a model card: they load the export in the folder that the card lies in, and draw an image."""
    return code(generator, ".", fuse, public_name(_model(generator))) + drawing(generator)


def drawing(generator: Generator) -> str:
    """Return the lines of Python that draw an image by the loaded stock pipeline."""
    return DRAW.format(prompt=PROMPTS[0], steps=generator.default_steps())


def verify_text(generator: Generator, folder: Path, fuse: bool) -> float:
    """Return the largest difference in any latent between `generator` and a stock pipeline, as a share of the largest latent.

    The stock pipeline loads the export in `folder` in a separate process. Raises UserError where the difference is above 1e-4, where
    tensors of the export were not loaded, and where that process fails.
    """
    with passing_folder() as passing:
        told = {
            "probes": PROBES,
            "shape": generator.shape,
            "prompts": PROMPTS,
            "steps": generator.default_steps(),
            "part": _part(generator),
            "lora": str(folder / LORA_FILE) if is_lora(generator, fuse) else None,
            "out": str(passing / DRAWN),
        }
        script = code(generator, str(folder), fuse) + CHECK
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
        ended = subprocess.run([sys.executable, "-c", script, json.dumps(told)], env=offline, capture_output=True, text=True)
        if ended.returncode:
            why = (ended.stderr.strip().splitlines() or ["it printed no message"])[-1]
            why = "it was killed, as happens when memory runs out" if ended.returncode < 0 else why
            raise UserError(f"what was written cannot be run by stock diffusers ({why}) and was removed")
        from safetensors.torch import load_file

        found = load_file(passing / DRAWN)
    rows = encoded(_model(generator), PROMPTS, generator.info.get("encoders"), torch.float32)
    before, worst = generator.told.prompts, 0.0
    generator.tell(rows)
    for number, (count, seed) in enumerate(PROBES):
        expected: Tensor = generator.sample(count, seed=seed, batch_size=count).cpu()
        worst = max(worst, ((found[f"drawn {number}"] - expected).abs().max() / expected.abs().max()).item())
    generator.tell(before)
    if not worst <= TOLERANCE:  # nan is refused, too
        raise UserError(
            f"what was written differs from Generator.sample by {worst:.1e} of the largest latent, where {TOLERANCE:.0e} is allowed, and "
            "was removed; try the tested versions of the packages (constraints.txt)"
        )
    return worst


def _model(generator: Generator) -> str:
    assert generator.latents is not None
    return str(generator.latents["model"])


def _kind(generator: Generator) -> str:
    """Return the class of the generator's pipeline, such as "StableDiffusionXLPipeline"."""
    place = network_folder(_model(generator))
    return pipeline_kind(place, str(place))


def _part(generator: Generator) -> str:
    """Return the name of the part of the generator's pipeline that denoises, "unet" or "transformer"."""
    return FORMS[_kind(generator)].network
