"""Tiny text-to-image pipelines, as `tools/make_tiny_text_model.py` makes them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from make_tiny_text_model import make, unet

__all__ = ["make", "unet"]
