"""Reading of a pipeline's networks, which is refused unless all weights are there.

diffusers and transformers initialise weights that a file lacks at random, and only report it beside the model.
"""

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, first_line
from fewstep.pipelines.folder import needed_weights

SHOWN = 80  # characters of a name in a message
BUFFERS = ("position_ids",)  # saved by older versions of transformers, and no weights


def read_part(folder: Path, part: str, kind: Any, called: str, **options: Any) -> Any:
    """Read a `part`, such as ``unet``, of the pipeline in `folder`, by the class `kind` of diffusers or transformers with `options`.

    Raises UserError, in which the part is named `called`, where the part cannot be read or its weights are not those of its config.
    """
    needed_weights(folder / part)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, told = kind.from_pretrained(
                str(folder / part), use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
    except Exception as error:  # diffusers, safetensors and json each have exceptions of their own
        raise UserError(f"the {called} in {folder} cannot be used ({first_line(error)}); take a whole copy of the model") from error
    missing, others = sorted(told["missing_keys"]), [name for name in sorted(told["unexpected_keys"]) if not name.endswith(BUFFERS)]
    if any("lora_" in name or "base_layer" in name for name in others):
        raise UserError(
            f"the {called} in {folder} has low-rank adapters (LoRA) beside its weights ({others[0][:SHOWN]}); fuse them into it "
            "(pipeline.fuse_lora(), pipeline.unload_lora_weights()) and save it anew, or take it without them"
        )
    if missing or others:
        what = f"lacks {missing[0][:SHOWN]}" if missing else f"has {others[0][:SHOWN]}, too"
        raise UserError(f"the {called} in {folder} {what}, which is not as its config.json describes it; take a whole copy of the model")
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers, and transformers where it is in use, from showing progress bars and log messages inside the block."""
    from diffusers.utils import logging as of_diffusers

    libraries: list[Any] = [of_diffusers]
    if "transformers" in sys.modules:
        from transformers.utils import logging as of_transformers

        libraries.append(of_transformers)
    before = [(found.get_verbosity(), found.is_progress_bar_enabled()) for found in libraries]
    for found in libraries:
        found.set_verbosity(logging.CRITICAL)  # errors are raised, and diffusers logs some of them, too
        found.disable_progress_bar()
    try:
        yield
    finally:
        for found, (level, shown) in zip(libraries, before, strict=True):
            found.set_verbosity(level)
            if shown:
                found.enable_progress_bar()
