"""The code of docs/own_method.md and the commands of docs/text.md, run from top to bottom in an empty folder, as a reader would.

What docs/howto/export.md does with a LoRA is done with that of docs/text.md.
"""

import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path

from doc_blocks import DOCS, blocks, run_console, run_python
from fewstep import measurement, pictures
from text_models import make


class NoDashboard:
    """Draws nothing."""

    def __init__(self, *arguments) -> None:
        pass

    def __getattr__(self, name):
        return lambda *arguments: None


def test_own_method(registry_apart, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as in a session of Python that is begun there
    monkeypatch.setattr(pictures, "Dashboard", NoDashboard)
    monkeypatch.setattr(measurement, "EXACT_SAMPLES", 1000)
    kinds = set()
    try:
        for block in blocks(DOCS / "own_method.md"):
            name = block.lines[0].removeprefix("# ")
            kinds.add(block.language)
            if re.fullmatch(r"\w+\.(py|yaml)", name):
                Path(name).write_text("\n".join(block.lines) + "\n")
                importlib.invalidate_caches()
            elif block.language == "python":
                run_python(block, "own_method.md", {"__name__": "own_method"})
            elif not block.note.startswith("not run"):
                if "elsewhere/gated" in "".join(block.lines):  # somebody else's folder
                    shutil.copytree("runs/gated", "elsewhere/gated")
                    config = Path("elsewhere/gated/model/config.json")
                    config.write_text(config.read_text().replace("nets:Gated", "strange_nets:Gated"))
                run_console(block, command)
    finally:
        for module in ("energy", "nets", "sets"):
            sys.modules.pop(module, None)
    assert kinds == {"python", "yaml", "console"}


# of the commands on the page about text to image, what is smaller here
SMALLER = {
    "--samples 2000": "--samples 100 --steps 2",
    "data.path=prompts --out": "data.path=prompts steps=2 batch_size=16 trainer.accelerator=cpu trainer.log_every=1 --out",
    "-n 1000": "-n 50",
}


def test_text_to_image(monkeypatch, tmp_path, command):
    """Line by line, but for the model and for sizes, from `pip` to the exported folder."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "sdxl", "sdxl")
    Path("prompts.txt").write_text("a lighthouse\nseven\nthin lines\n")
    page = DOCS / "text.md"
    commands = [line.strip().removeprefix("$ ") for line in page.read_text().splitlines() if line.strip().startswith("$ ")]
    assert commands[0] == "pip install 'fewstep[text]'"
    done = []
    for line in commands[1:]:
        if line.startswith("SDXL="):
            continue
        for published, ours in {**SMALLER, "stabilityai/stable-diffusion-xl-base-1.0": "sdxl", "$SDXL": "sdxl"}.items():
            line = line.replace(published, ours)
        program, *arguments = shlex.split(line)
        assert program == "fewstep"
        outcome = command(*arguments)
        assert outcome.code == 0, f"{line}: {outcome.err}"
        done.append(arguments[0])
    assert done == ["import", "encode", "train", "train", "sample", "evaluate", "export"]
    assert Path("drawn.png").is_file()
    (block,) = [block for block in blocks(DOCS / "howto" / "export.md") if "convert_state_dict_to_kohya" in "".join(block.lines)]
    names: dict = {}
    run_python(block, "export.md", names)
    # a layer has the name that ComfyUI's source (comfy/lora.py) gives it: the dots of diffusers' become underscores
    layers = {name.removeprefix("unet.").rpartition(".lora_")[0] for name in names["ours"]}
    expected = {
        f"lora_unet_{layer.replace('.', '_')}.{part}" for layer in layers for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert set(names["theirs"]) == expected
    assert any("conv" in layer for layer in layers)
    assert any("to_q" in layer for layer in layers)
