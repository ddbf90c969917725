"""The transformer of a text-to-image pipeline as a denoiser: it draws what the stock pipeline draws, at any guidance and shift."""

import json
import math
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from fewstep.denoisers import FlowDenoiser
from fewstep.denoisers.adapted import Slot
from fewstep.errors import UserError
from fewstep.interop.text_teacher import lora_bytes, text_teacher
from fewstep.networks.prompts import EncodedPrompts
from fewstep.networks.text_transformer import TextTransformer
from fewstep.pipelines.denoiser import described, text_denoiser
from fewstep.pipelines.lora import RANK, TARGETS
from text_models import make

TEXTS = ["a seven", "two, thin"]
LABEL = torch.tensor([0, 1])
BY_SIZE = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """``pipelines[name]``: (folder, pipeline) of SD 3 without T5, and of 3.5 with it."""
    folder = tmp_path_factory.mktemp("models")
    made = {"3": {}, "3.5": {"third": True, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}}
    found = {name: (folder / name, make(folder / name, "sd3", **more)) for name, more in made.items()}
    for _, pipeline in found.values():
        pipeline.set_progress_bar_config(disable=True)
    return found


def encoded(pipeline):
    """Rows of the texts, and of no prompt, as the pipeline itself encodes them."""
    with torch.no_grad():
        hidden, none, pooled, pooled_none = pipeline.encode_prompt(TEXTS, None, None, do_classifier_free_guidance=True)
    return EncodedPrompts(torch.cat([hidden, none[:1]]), torch.cat([pooled, pooled_none[:1]]))


@pytest.mark.parametrize("scale", [1.0, 7.0])
@pytest.mark.parametrize(
    ("name", "settings", "shift"),
    [
        ("3", {"shift": 3.0}, 3.0),
        ("3.5", {"shift": 3.0}, 3.0),
        ("3", {}, 1.0),
        ("3", BY_SIZE, math.exp(0.5 + 12 / 60 * 0.65)),  # 16 patches, between 4 and 64
        ("3", {**BY_SIZE, "time_shift_type": "linear", "base_shift": 2.0, "max_shift": 5.0}, 2.6),
        ("3", {"shift": 3.0, "shift_terminal": 0.1}, 3.0),
        ("3", {**BY_SIZE, "shift_terminal": 0.3}, math.exp(0.5 + 12 / 60 * 0.65)),
    ],
    ids=["SD 3", "SD 3.5", "no shift", "by size", "by size, linear", "to a last time", "by size, to a last time"],
)
def test_a_teacher_draws_what_the_stock_pipeline_draws(scale, name, settings, shift, pipelines, tmp_path):
    model, pipeline = shutil.copytree(pipelines[name][0], tmp_path / "model"), pipelines[name][1]
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    scheduler.save_pretrained(model / "scheduler")
    teacher = text_teacher(str(model)).tell(encoded(pipeline))
    assert teacher.denoiser.shift == pytest.approx(shift)
    pipeline.scheduler = scheduler
    for steps in (1, 2, 5)["shift_terminal" in settings :]:  # the stock pipeline divides 0 by 0 in one step to a last time
        noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(3))
        stock = pipeline(TEXTS, num_inference_steps=steps, guidance_scale=scale, latents=noise, output_type="latent").images
        ours = teacher.sample(2, LABEL, seed=3, steps=steps, guidance_scale=scale)
        torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5 * stock.abs().max().item())
    assert (teacher.default_steps(), teacher.guidance_scale) == (28, 7.0)
    with pytest.raises(UserError, match="sampler is 'heun'; allowed for this generator: flow_euler"):
        teacher.sample(1, sampler="heun")


def test_features_are_those_of_the_pass_itself(pipelines):
    folder, pipeline = pipelines["3.5"]
    denoiser = text_denoiser(folder, encoded(pipeline))
    seen = []
    denoiser.network.transformer.transformer_blocks[1].register_forward_hook(lambda module, told, out: seen.append(out[1]))  # of three
    z, sigma = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        denoiser(z, sigma, LABEL)
        (found,) = denoiser.features(z, sigma, LABEL, 1)
    torch.testing.assert_close(found[:, :, 1, 2], seen[0][:, 6])  # the second row of four, the third in it
    assert [tuple(found.shape[1:])] == [(width, *size) for width, size in denoiser.feature_shapes] == [(16, 4, 4)]


def test_a_label_is_a_row_and_none_is_no_prompt(pipelines):
    folder, pipeline = pipelines["3"]
    denoiser = text_denoiser(folder, encoded(pipeline))
    x, sigma = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(1.0)
    with torch.no_grad():
        one, other, none = (denoiser(x, sigma, label) for label in (LABEL, LABEL.flip(0), None))
        torch.testing.assert_close(none, denoiser(x, sigma, torch.tensor([2, 2])))
    assert not torch.equal(one, other)
    assert not torch.equal(one, none)
    assert "prompts" not in str(list(denoiser.state_dict()))
    denoiser.network.prompts = EncodedPrompts(torch.zeros(3, 77, 72))
    with pytest.raises(ValueError, match="takes a pooled vector beside the text, and its prompts have none"):
        denoiser(x, sigma, LABEL)


def changed(folder, to, file, **values):
    """A copy of a pipeline whose JSON `file` says other things."""
    shutil.copytree(folder, to)
    config = json.loads((to / file).read_text())
    (to / file).write_text(json.dumps({**config, **values}))
    return to


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        (
            "transformer/config.json",
            {"_class_name": "FluxTransformer2DModel"},
            "it is a FluxTransformer2DModel, and only a SD3Transformer2DModel",
        ),
        ("transformer/config.json", {"in_channels": 32}, r"are \(32, 16\), which does not fit latents of 32 channels"),
        ("transformer/config.json", {"sample_size": 7}, "latents of 7x7 cannot be cut into patches of 2, of which a side has up to 12"),
        ("transformer/config.json", {"sample_size": 14}, "latents of 14x14 cannot be cut into patches of 2"),
        ("transformer/config.json", {"guidance_embeds": True}, "unexpected keyword argument 'guidance_embeds'"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "DDIMScheduler"},
            "is a DDIMScheduler, which is of no flow; allowed are FlowMatch",
        ),
        ("scheduler/scheduler_config.json", {"invert_sigmas": True}, "has invert_sigmas, with which it lets time run from noise to data"),
        *(
            ("scheduler/scheduler_config.json", {key: True}, f"has {key}, with which it samples at times of its own, and this is not supp")
            for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
        ),
        ("scheduler/scheduler_config.json", {"stochastic_sampling": True}, "has stochastic_sampling, with which it adds new noise"),
        ("scheduler/scheduler_config.json", {"shift_terminal": 1.5}, "has shift_terminal 1.5, which is a time between 0 and 1"),
        ("scheduler/scheduler_config.json", {"shift": 0}, "shift is 0; give a whole number from 2, and a number above 0"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline; prompts can be encoded by StableDiffusionPipeline, "),
        ("model_index.json", {"image_encoder": ["transformers", "X"]}, r"with an image_encoder, and so takes an image, too \(IP-Adap"),
        ("model_index.json", {"text_encoder_2": [None, None]}, "without its text_encoder_2, which prompts are encoded by"),
        ("model_index.json", {"text_encoder_3": ["transformers", "T5EncoderModel"]}, "without its text_encoder_3, which prompts are"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_known_is_a_sentence(file, values, said, pipelines, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        text_denoiser(changed(pipelines["3"][0], tmp_path / "model", file, **values), None)
    assert "\n" not in str(caught.value)


def test_a_u_net_by_a_scheduler_of_flows_and_the_other_schedulers_of_flows(pipelines, tmp_path):
    make(tmp_path / "sd")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "sd" / "scheduler")
    with pytest.raises(UserError, match="its scheduler is a FlowMatchEulerDiscreteScheduler, which has no betas"):
        described(tmp_path / "sd")
    model = shutil.copytree(pipelines["3"][0], tmp_path / "model")
    FlowMatchHeunDiscreteScheduler(shift=2.0).save_pretrained(model / "scheduler")
    assert described(model).denoiser == {"name": "flow", "timesteps": 1000, "shift": 2.0}
    # a setting that it was made with and has not, such as that of the scheduler whose config it was made from
    told = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    (model / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({**told, "use_dynamic_shifting": True, "use_karras_sigmas": True})
    )
    assert described(model).denoiser["shift"] == 2.0
    DDIMScheduler().save_pretrained(model / "scheduler")
    with pytest.raises(UserError, match="which is of no flow"):
        described(model)


def test_the_true_size_of_stable_diffusion_3():
    """Parameters of its published config, on the meta device, and what changes of it take."""
    medium = {"sample_size": 128, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
    targets = TARGETS["text_transformer"]
    with torch.device("meta"):
        network = TextTransformer((16, 128, 128), **medium)
        denoiser = FlowDenoiser(network, 1.0, 1, shift=3.0)
        assert lora_bytes(denoiser, targets) == pytest.approx(6.74e9, rel=1e-3)
        assert lora_bytes(denoiser, targets, 4) == pytest.approx(10.76e9, rel=1e-3)
        slot = Slot(denoiser, RANK, targets)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_028_328_000
    assert sum(math.prod(shape) for shape in slot.shapes.values()) == 83_755_008
    assert len(slot.layers) == 285
    for target in targets:  # each is there
        assert any(name.endswith(f".{target}") for name in slot.layers), target
