"""The U-Net of a text-to-image pipeline as a denoiser: the stock pipeline and our own steps make the same latents from the same noise."""

import json
import math
import shutil

import pytest
import torch
from diffusers import DDIMScheduler

from fewstep.denoisers import ForeignDenoiser, Guided
from fewstep.denoisers.adapted import Slot
from fewstep.errors import UserError
from fewstep.interop.text_teacher import lora_bytes
from fewstep.networks.prompts import EncodedPrompts
from fewstep.networks.text_unet import TextUNet
from fewstep.pipelines.denoiser import text_denoiser
from fewstep.pipelines.lora import RANK, TARGETS
from text_models import make

TEXTS = ["a seven", "two, thin"]
LABEL = torch.tensor([0, 1])
STEPS = 4


def encoded(pipeline, texts):
    """Rows of `texts`, and of no prompt, as the pipeline itself encodes them."""
    with torch.no_grad():
        found = pipeline.encode_prompt(texts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    hidden = torch.cat([found[0], found[1][:1]])
    return EncodedPrompts(hidden, torch.cat([found[2], found[3][:1]]) if len(found) == 4 else None)


@torch.no_grad()
def by_hand(denoiser, noise, sigmas, last):
    """Euler's method from ``sigmas[0]`` by each of `sigmas` to the level `last`, in variance-exploding form."""
    x = noise.double() * sigmas[0]
    for sigma, following in zip(sigmas, [*sigmas[1:], last], strict=True):
        x = x + (following - sigma) * (x - denoiser(x.float(), sigma.float(), LABEL).double()) / sigma
    return x


@pytest.mark.parametrize("form", ["sd", "sdxl"])
@pytest.mark.parametrize(("prediction", "zero_snr"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True)])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_euler_on_the_denoiser_is_the_stock_pipeline_with_ddim(form, prediction, zero_snr, scale, tmp_path):
    """With zero terminal SNR the first of the steps, where nothing is left of the data, has no level, and is left out."""
    pipeline = make(tmp_path / "model", form, prediction, zero_snr)
    pipeline.set_progress_bar_config(disable=True)
    denoiser = text_denoiser(tmp_path / "model", encoded(pipeline, TEXTS))
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing", steps_offset=0)
    scheduler.set_timesteps(STEPS)
    timesteps = scheduler.timesteps[1:] if zero_snr else scheduler.timesteps
    alphas = scheduler.alphas_cumprod.double()
    sigmas, last = (((1 - level) / level).sqrt() for level in (alphas[timesteps], torch.as_tensor(scheduler.final_alpha_cumprod)))
    torch.testing.assert_close(denoiser.sigmas[timesteps], sigmas, rtol=1e-4, atol=0)  # the scheduler's table is float32
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = (by_hand(Guided.of(denoiser, scale), noise, sigmas, last) / (1 + last**2).sqrt()).float()
    x = (noise * sigmas[0] * alphas[timesteps[0]].sqrt()).float()
    prompts = encoded(pipeline, TEXTS)
    with torch.no_grad():
        for t in timesteps:
            told = [prompts.rows(LABEL), prompts.rows(torch.full_like(LABEL, len(prompts)))]
            ids = {"time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]]).expand(2, -1)}
            f, f0 = (
                pipeline.unet(
                    x, t, encoder_hidden_states=hidden, added_cond_kwargs=None if pooled is None else {"text_embeds": pooled, **ids}
                ).sample
                for hidden, pooled in told
            )
            x = scheduler.step(f0 + scale * (f - f0), t, x).prev_sample
    torch.testing.assert_close(x, ours, rtol=1e-4, atol=2e-4 * x.abs().max().item())
    if not zero_snr:
        pipeline.scheduler = scheduler
        stock = pipeline(
            TEXTS,
            num_inference_steps=STEPS,
            guidance_scale=scale,
            latents=(noise * sigmas[0] * alphas[timesteps[0]].sqrt()).float(),
            output_type="latent",
            **({"original_size": (16, 16), "target_size": (16, 16)} if form == "sdxl" else {}),
        ).images
        torch.testing.assert_close(stock, ours, rtol=1e-4, atol=2e-4 * stock.abs().max().item())


@pytest.mark.parametrize("form", ["sd", "sdxl"])
def test_features_are_those_of_the_pass_itself(form, tmp_path):
    pipeline = make(tmp_path / "model", form)
    denoiser = text_denoiser(tmp_path / "model", encoded(pipeline, TEXTS))
    seen = []
    denoiser.network.unet.mid_block.register_forward_hook(lambda module, told, out: seen.append(out))
    x, sigma = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        denoiser(x, sigma, LABEL)
        found = denoiser.features(x, sigma, LABEL, 2)
    torch.testing.assert_close(found[0], seen[0])
    assert [tuple(level.shape[1:]) for level in found] == [(width, *size) for width, size in denoiser.feature_shapes]


def test_a_label_is_a_row_and_none_is_no_prompt(tmp_path):
    pipeline = make(tmp_path / "model", "sdxl")
    denoiser = text_denoiser(tmp_path / "model", encoded(pipeline, TEXTS))
    x, sigma = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(1.0)
    with torch.no_grad():
        one, other, none = (denoiser(x, sigma, label) for label in (LABEL, LABEL.flip(0), None))
        torch.testing.assert_close(none, denoiser(x, sigma, torch.tensor([2, 2])))
    assert not torch.equal(one, other)
    assert not torch.equal(one, none)
    assert "prompts" not in str(list(denoiser.state_dict()))
    denoiser.network.prompts = None
    with pytest.raises(ValueError, match="has no prompts to look up labels in"):
        denoiser(x, sigma, LABEL)
    denoiser.network.prompts = EncodedPrompts(torch.zeros(3, 77, 64))
    with pytest.raises(ValueError, match="takes a pooled vector beside the text, and its prompts have none"):
        denoiser(x, sigma, LABEL)


def changed(folder, to, file, **values):
    """A copy of a pipeline whose JSON `file` says other things."""
    shutil.copytree(folder, to)
    config = json.loads((to / file).read_text())
    (to / file).write_text(json.dumps({**config, **values}))
    return to


def test_what_is_not_known_is_a_sentence(tmp_path):
    pipeline = make(tmp_path / "model")
    prompts, unet = encoded(pipeline, TEXTS), "unet/config.json"
    for number, (file, values, said) in enumerate(
        [
            (unet, {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256; only U-Nets that are told a timestep and a text"),
            (
                unet,
                {"in_channels": 9},
                r"in_channels and out_channels are \(9, 4\), which does not fit latents of 9 channels",
            ),
            (unet, {"addition_embed_type": "image"}, "addition_embed_type is 'image'; allowed: null"),
            (unet, {"addition_embed_type": "text_time"}, "they go together"),
            (unet, {"sample_size": 7}, "latents of 7x7 cannot be halved 1 times; give sides divisible by 2"),
            ("scheduler/scheduler_config.json", {"prediction_type": "score"}, "the prediction is 'score'; allowed"),
            ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline"),
        ]
    ):
        with pytest.raises(UserError, match=said):
            text_denoiser(changed(tmp_path / "model", tmp_path / str(number), file, **values), prompts)
    bare = tmp_path / "bare"
    shutil.copytree(tmp_path / "model", bare)
    shutil.rmtree(bare / "scheduler")
    with pytest.raises(UserError, match="has no scheduler, which says what its U-Net predicts and when"):
        text_denoiser(bare, prompts)
    (bare / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copytree(tmp_path / "model" / "scheduler", bare / "scheduler")
    with pytest.raises(UserError, match=r"there are no weights in .*unet \("):
        text_denoiser(bare, prompts)


def test_the_true_sizes_of_stable_diffusion_and_sdxl():
    """Parameters that are published, of their configs on the meta device."""
    common = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2}
    sd = {
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    sdxl = {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    betas = {"schedule": "scaled_linear", "start": 0.00085, "end": 0.012, "num": 1000}
    for config, ids, published, changes, gigabytes in (
        (sd, None, 859_520_964, 67_252_224, 3.87),
        (sdxl, (1024, 1024, 0, 0, 1024, 1024), 2_567_463_684, 196_751_360, 11.43),
    ):
        with torch.device("meta"):
            network = TextUNet((4, config["sample_size"], config["sample_size"]), time_ids=ids, **common, **config)
            denoiser = ForeignDenoiser(network, 1.0, 1, betas=betas)
            assert lora_bytes(denoiser, TARGETS["text_unet"]) == pytest.approx(gigabytes * 1e9, rel=1e-3)
            slot = Slot(denoiser, RANK, TARGETS["text_unet"])
        assert sum(parameter.numel() for parameter in network.parameters()) == published
        assert sum(math.prod(shape) for shape in slot.shapes.values()) == changes
        for target in TARGETS["text_unet"]:  # each is there
            assert any(name.endswith(target) for name in slot.layers), target
