"""Make a text-to-image pipeline of a few thousand parameters, in the layout of Stable Diffusion, which stock diffusers runs.

    python tools/make_tiny_text_model.py OUT                      as SD 1.5: one text encoder, noise predicted
    python tools/make_tiny_text_model.py OUT --form sdxl          as SDXL: two text encoders, a pooled vector, time ids
    python tools/make_tiny_text_model.py OUT --form sd3           as SD 3: a transformer that learns flow matching, without T5
    python tools/make_tiny_text_model.py OUT --prediction v_prediction --zero-snr

Everything is made here, without a download: a tokenizer of single letters, text encoders, a VAE, a network and a scheduler, with random
weights of seed 0. The pipeline is for tests, and for looking at what a pipeline consists of.
"""

import argparse
import json
import string
import warnings
from pathlib import Path
from typing import Any

import torch

TOKENS = 77
FORMS = ("sd", "sdxl", "sd3")
PREDICTIONS = ("epsilon", "v_prediction")
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def tokenizer(folder: Path) -> Any:
    """Return CLIP's tokenizer over single letters, digits and punctuation, read from files that are written to `folder`."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.digits + string.punctuation
    words = [*letters, *(f"{letter}</w>" for letter in letters), BEGIN, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, **special}))
    return CLIPTokenizer.from_pretrained(str(folder))


def text_encoder(vocabulary: int, width: int, projected: bool) -> Any:
    """Return CLIP's text encoder; with `projected`, also with a projection of the pooled vector, as SDXL's second encoder has."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5(folder: Path, width: int) -> tuple[Any, Any]:
    """Return (encoder, tokenizer) of T5, over single letters, too; the third text encoder of SD 3, which it can do without."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in ("\u2581", *letters))]
    cut = Tokenizer(models.Unigram(pieces, unk_id=2))  # made by hand, since transformers 4 and 5 each make it differently
    cut.pre_tokenizer, cut.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    cut.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    words = T5TokenizerFast(tokenizer_object=cut, extra_ids=0)
    words.save_pretrained(str(folder))
    config = T5Config(vocab_size=len(words), d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval(), words


def vae(scaling: float = 0.18215, widths: tuple[int, int] = (4, 8), groups: int = 2, channels: int = 4, shift: float | None = None) -> Any:
    """Return a VAE that halves images once: latents [channels, H/2, W/2]."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=groups,
        sample_size=16,
        scaling_factor=scaling,
        shift_factor=shift,
    ).eval()


def unet(form: str, text_width: int, pooled_width: int) -> Any:
    """Return a U-Net with cross-attention to the text; in SDXL's form also conditioned on a pooled vector and sizes."""
    from diffusers import UNet2DConditionModel

    more: dict[str, Any] = {}
    if form == "sdxl":
        more = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": pooled_width + 6 * 8,
            "use_linear_projection": True,
        }
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(4, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=text_width,
        **more,
    ).eval()


def transformer(text_width: int, pooled_width: int, **more: Any) -> Any:
    """Return SD 3's transformer, which attends to image and text together; `more` are settings, such as those of SD 3.5."""
    from diffusers import SD3Transformer2DModel

    settings = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "caption_projection_dim": 16,
        "pos_embed_max_size": 6,
    }
    return SD3Transformer2DModel(joint_attention_dim=text_width, pooled_projection_dim=pooled_width, **settings | more).eval()


def flow_scheduler() -> Any:
    """Return SD 3's scheduler of flow matching."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def scheduler(prediction: str = "epsilon", zero_snr: bool = False) -> Any:
    """Return a DDIM scheduler with Stable Diffusion's table of betas."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
    )


def make(
    folder: Path, form: str = "sd", prediction: str = "epsilon", zero_snr: bool = False, seed: int = 0, third: bool = False, **more: Any
) -> Any:
    """Make the pipeline, write it to `folder` and return it; with `third`, SD 3's has T5, and `more` are settings of its transformer."""
    import diffusers
    from transformers.utils import logging

    logging.disable_progress_bar()  # no progress bar for a file of some kilobytes
    logging.set_verbosity_error()  # without its warning that torchvision is missing, which nothing needs
    width = 32
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        words = tokenizer(folder / "tokenizer")
        parts: dict[str, Any] = {"tokenizer": words, "text_encoder": text_encoder(len(words), width, projected=form == "sd3")}
        if form == "sd3":
            wide = 2 * width + 8  # wider than the two encoders together, as in SD 3 itself
            parts |= {
                "vae": vae(1.5305, channels=16, shift=0.0609),
                "transformer": transformer(wide, 2 * width, **more),
                "scheduler": flow_scheduler(),
            }
        else:
            parts |= {
                "vae": vae(0.13025 if form == "sdxl" else 0.18215),
                "unet": unet(form, 2 * width if form == "sdxl" else width, width),
                "scheduler": scheduler(prediction, zero_snr),
            }
        if form != "sd":
            parts |= {"tokenizer_2": tokenizer(folder / "tokenizer_2"), "text_encoder_2": text_encoder(len(words), width, projected=True)}
        if form == "sd3":
            parts["text_encoder_3"], parts["tokenizer_3"] = t5(folder / "tokenizer_3", wide) if third else (None, None)
            pipeline: Any = diffusers.StableDiffusion3Pipeline(**parts)
        elif form == "sdxl":
            pipeline = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
        else:
            pipeline = diffusers.StableDiffusionPipeline(
                **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        said = diffusers.logging.get_verbosity()
        diffusers.logging.set_verbosity_error()  # without its warning that absent parts are not saved
        pipeline.save_pretrained(str(folder))
        diffusers.logging.set_verbosity(said)
    return pipeline


def main() -> None:
    """Make one pipeline, and print its number of parameters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new or an empty folder")
    parser.add_argument("--form", choices=FORMS, default="sd")
    parser.add_argument("--prediction", choices=PREDICTIONS, default="epsilon")
    parser.add_argument("--zero-snr", action="store_true", help="rescale the betas, so that the last timestep is pure noise")
    arguments = parser.parse_args()
    if arguments.out.exists() and any(arguments.out.iterdir()):
        parser.error(f"{arguments.out} holds something already; give a new or an empty folder")
    if arguments.form == "sd3" and (arguments.prediction != PREDICTIONS[0] or arguments.zero_snr):
        parser.error("--prediction and --zero-snr are of the other forms; that of sd3 predicts the velocity of a flow")
    pipeline = make(arguments.out, arguments.form, arguments.prediction, arguments.zero_snr)
    network = pipeline.transformer if arguments.form == "sd3" else pipeline.unet
    size = sum(parameter.numel() for parameter in network.parameters())
    print(f"made: {arguments.out}, a {type(pipeline).__name__} whose {type(network).__name__} has {size:,} parameters")


if __name__ == "__main__":
    main()
