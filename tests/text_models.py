"""Tiny text-to-image pipelines, as `tools/make_tiny_text_model.py` makes them."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from make_tiny_text_model import make, tokenizer, unet

__all__ = ["clip", "make", "unet"]


def clip(folder):
    """A tiny CLIP model with random weights, in `folder` as transformers keeps it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    words = tokenizer(folder)
    each = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8}
    special = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    told = {"vocab_size": len(words), "max_position_embeddings": 77, **special}
    config = CLIPConfig(text_config=each | told, vision_config=each | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # at the size at which they begin all pictures look the same
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return model
