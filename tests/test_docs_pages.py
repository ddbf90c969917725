"""The pages that say how to do something, run from top to bottom in an empty folder, as a reader would, but small.

A page is run with what it takes for granted: runs, images, a model. Blocks of Python and of the console are run, or say why not in their
fence.
"""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

from doc_blocks import DOCS, NOT_RUN, blocks, run_console, run_python, smaller
from fewstep import measurement
from picture_folders import two_classes

PAGES = [DOCS / "start.md", *sorted((DOCS / "howto").glob("*.md"))]
RUN_ELSEWHERE = {"own_method.md", "text.md"}  # by test_docs.py


def small_unet(folder: Path) -> None:
    """A UNet2DModel in colour, for 8x8 images, as diffusers saves it, with its scheduler."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    model = UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), down_block_types=down, up_block_types=up, layers_per_block=1, norm_num_groups=4,
        attention_head_dim=8,
    )  # fmt: skip
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(folder)


def official_file(file: Path, monkeypatch) -> None:
    """A checkpoint of EDM's layout with a small network."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "interop"))
    made = importlib.import_module("official_edm")
    from fewstep.networks.edm_unet import EDMUNet

    told = made.official_arguments(model_channels=4, channel_mult=[1, 2], num_blocks=1, img_resolution=8, img_channels=3, augment_dim=2)
    attention = told.get("attn_resolutions", [16])
    network = EDMUNet((3, 8, 8), told["label_dim"] or None, "ddpmpp", 4, [1, 2], 1, attention, augment_dim=2)
    file.write_bytes(made.official_bytes(made.official_content(made.official_network(made.scattered(network.state_dict(), 0), told))))


@pytest.fixture
def there(request, monkeypatch, tmp_path):
    """``there(page)``: the working folder has what the page takes for granted."""

    def call(page: str) -> None:
        monkeypatch.chdir(tmp_path)
        if page in ("images.md", "diffusers_teacher.md"):
            two_classes(Path("path/to/images"), num=40)
        if page == "diffusers_teacher.md":
            small_unet(Path("path/to/unet"))
        if page == "edm_teacher.md":
            official_file(Path("edm-cifar10-32x32-cond-vp.pkl"), monkeypatch)
        if page in ("measure.md", "export.md", "hub.md"):
            student = request.getfixturevalue("student_run")
            for name in ("student", "other"):
                shutil.copytree(student, Path("runs") / name)
        if page == "export.md":
            import torch
            from safetensors.torch import save_file

            Path("lora").mkdir()
            save_file({"unet.a.to_q.lora_A.weight": torch.zeros(2, 4), "unet.a.to_q.lora_B.weight": torch.zeros(4, 2)}, LORA)

    return call


LORA = "lora/pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_is_run(path, there, monkeypatch, command):
    monkeypatch.setattr(measurement, "EXACT_SAMPLES", 500)
    there(path.name)
    names: dict = {"__name__": path.stem}
    for block in blocks(path):
        if block.note.startswith("not run"):
            continue
        if block.language == "yaml" and block.lines[0].startswith("# ") and block.lines[0].endswith(".yaml"):
            Path(block.lines[0].removeprefix("# ")).write_text("\n".join(block.lines) + "\n")
        elif block.language == "python":
            run_python(block, path.name, names)
        elif block.language == "console":
            run_console(block, command, smaller)


@pytest.mark.parametrize("path", [*PAGES, *(DOCS / name for name in sorted(RUN_ELSEWHERE))], ids=lambda path: path.stem)
def test_a_block_that_is_not_run_says_why(path):
    for block in blocks(path):
        if block.language in ("console", "python", "bash"):
            assert not block.note or NOT_RUN.fullmatch(block.note), f"{path.name}, line {block.line}: {block.note}"
        assert block.language != "bash" or block.note or path.name in RUN_ELSEWHERE, f"{path.name}, line {block.line} is not run"


def test_no_module_of_the_official_code_is_left():
    assert "torch_utils.persistence" not in sys.modules
