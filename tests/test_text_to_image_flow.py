"""A flow-matching text-to-image model (SD 3's form) distilled on prompts alone, and what stock diffusers makes of its student."""

import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchLCMScheduler, StableDiffusion3Pipeline
from safetensors.torch import load_file
from torch import nn

from fewstep.denoisers import FlowDenoiser
from fewstep.errors import UserError
from fewstep.generator import load
from fewstep.interop.stock_schedulers import flow_scheduler
from fewstep.interop.teacher_samples import draw_teacher_samples
from fewstep.interop.text_teacher import text_teacher
from fewstep.maths.schedules import NOISE_ALONE
from fewstep.pipelines.vae import VAE
from fewstep.training.checkpoint import checkpoints
from fewstep.weights import LORA_FILE
from text_models import TEXTS, place, records, run_card, stirred, trained

WITHOUT = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    """Without T5."""
    return place(tmp_path_factory.mktemp("sd3"), "sd3")


@pytest.fixture(scope="module")
def sd35(tmp_path_factory):
    """With T5, dual attention, and normalised queries and keys."""
    return place(tmp_path_factory.mktemp("sd35"), "sd3", third=True, dual_attention_layers=(0,), qk_norm="rms_norm")


@pytest.fixture(scope="module")
def run(sd35):
    return trained(sd35, sd35.folder / "run")


def test_a_run_keeps_what_it_changes_of_attention_and_what_lies_between(run):
    changes = load_file(run / "model" / LORA_FILE)
    assert any(tensor.abs().max() > 0 for name, tensor in changes.items() if "lora_B" in name)  # it has learned
    layers = {name.removeprefix("transformer.transformer_blocks.").rsplit(".", 2)[0] for name in changes}
    assert {"0.attn.to_q", "0.attn.add_k_proj", "0.attn2.to_out.0", "1.attn.to_add_out", "2.ff.net.2", "1.ff_context.net.0.proj"} <= layers
    generator = load(run)
    assert generator.sampler["sigmas"] == pytest.approx([NOISE_ALONE, 3.0])  # times 1, and 1/2 that becomes 3/4
    assert all(
        tensor.isfinite().all() for record in records(run) for tensor in map(torch.tensor, record.values()) if tensor.is_floating_point()
    )


def test_a_run_that_was_stopped_ends_as_one_that_was_not(sd35, run, tmp_path):
    stopped = shutil.copytree(run, tmp_path / "stopped")
    newest, before = checkpoints(stopped / "checkpoints")
    shutil.rmtree(newest)
    assert before.name == "step_3"
    trained(sd35, stopped, resume=True)
    assert records(stopped) == records(run)
    for file in (f"model/{LORA_FILE}", "checkpoints/step_6/fake.safetensors"):
        ours, theirs = load_file(stopped / file), load_file(run / file)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_stock_diffusers_draws_what_the_generator_draws(steps, sd3, tmp_path):
    """By the file as it lies in the model folder, which is the one that the pipeline's own class writes."""
    trained(sd3, tmp_path / "run", f"method.sampler_steps={steps}", "steps=2", "trainer.sample_every=5")
    changed = load(stirred(tmp_path / "run", tmp_path / "changed"))
    ours = changed.sample(2, [0, 3], seed=5)
    assert not torch.allclose(ours, load(tmp_path / "run").sample(2, [0, 3], seed=5), atol=0.02)
    stock = DiffusionPipeline.from_pretrained(sd3.model, **WITHOUT)
    stock.set_progress_bar_config(disable=True)
    stock.load_lora_weights(str(tmp_path / "changed"), weight_name=LORA_FILE)
    flow_scheduler(changed.denoiser.stands_on, changed.sigmas()).save_pretrained(tmp_path / "scheduler")
    stock.scheduler = FlowMatchLCMScheduler.from_pretrained(tmp_path / "scheduler")
    torch.manual_seed(5)  # the pipeline hands its scheduler no generator
    latents, texts = torch.randn(2, 16, 8, 8), [TEXTS[0], TEXTS[3]]
    theirs = stock(texts, num_inference_steps=steps, guidance_scale=0.0, latents=latents, output_type="latent").images
    assert stock.scheduler.timesteps.tolist() == pytest.approx({1: [1000], 2: [1000, 750], 4: [1000, 900, 750, 500]}[steps])
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4 * ours.abs().max().item())  # prompts are kept in half precision
    layers = {name.removeprefix("transformer."): tensor for name, tensor in load_file(tmp_path / "changed" / LORA_FILE).items()}
    StableDiffusion3Pipeline.save_lora_weights(tmp_path / "theirs", transformer_lora_layers=layers)
    written, own = load_file(tmp_path / "theirs" / LORA_FILE), load_file(tmp_path / "changed" / LORA_FILE)
    assert written.keys() == own.keys()
    assert all(torch.equal(written[name], own[name]) for name in own)


def test_a_whole_copy_is_trained_and_kept(sd3, tmp_path):
    rate = "method.generator_optimizer.lr=1e-6"
    more = ("method.lora=null", "method.sampler_steps=1", "steps=1", "trainer.sample_every=5", "trainer.checkpointing=true", rate)
    generator = load(trained(sd3, tmp_path / "run", *more))
    assert generator.base is None
    assert isinstance(generator.denoiser, FlowDenoiser)
    assert generator.denoiser.shift == 3.0
    assert sum(parameter.numel() for parameter in generator.parameters()) == 35_136
    ours = generator.sample(2, seed=0, prompts=TEXTS[:2])
    begun = text_teacher(sd3.model).sample(2, seed=0, prompts=TEXTS[:2], steps=1, guidance_scale=1)  # in one step they draw alike
    assert 0 < (ours - begun).abs().max() < 0.01


def test_prompts_in_words_are_the_rows_of_the_table(run):
    generator = load(run)
    by_row = generator.sample(3, [3, 1, 3], seed=2)
    torch.testing.assert_close(generator.sample(3, seed=2, prompts=[TEXTS[3], TEXTS[1], TEXTS[3]]), by_row, rtol=0, atol=1e-5)
    assert not torch.allclose(generator.sample(3, seed=2, prompts="another one"), by_row, rtol=0, atol=1e-3)
    pixels = generator.pixels(by_row)
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels.abs().max() <= 1


def test_latents_are_those_of_a_vae_with_a_shift(sd3):
    """As the stock pipeline decodes them."""
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    coder = sd3.pipeline.vae
    with torch.no_grad():
        expected = coder.decode(latents / 1.5305 + 0.0609).sample.clamp(-1, 1)
    vae = VAE(sd3.model)
    torch.testing.assert_close(vae.decoded(latents), expected)
    with torch.no_grad():
        torch.testing.assert_close(vae.encoded(expected), (coder.encode(expected).latent_dist.mode() - 0.0609) * 1.5305)


def test_a_student_is_measured_beside_its_teacher(sd3, tmp_path, done):
    beside = shutil.copytree(sd3.folder / "prompts", tmp_path / "beside")
    drawn = draw_teacher_samples(beside, 60, sd3.model, steps=2)
    assert (drawn.steps, drawn.guidance_scale) == (2, 7.0)  # the guidance is that of its stock pipeline
    out = trained(sd3, tmp_path / "run", f"data.path={beside}", "steps=2", "trainer.sample_every=5")
    said = done("evaluate", out, "-n", "30", "--no-teacher").out
    assert "student, 2 evaluations" in said
    assert "to 30 samples of the teacher" in said


def test_export_of_changes_is_what_stock_diffusers_loads(sd3, tmp_path, done):
    trained(sd3, tmp_path / "run", "method.sampler_steps=4", "steps=2", "trainer.sample_every=5")
    changed = stirred(tmp_path / "run", tmp_path / "changed")
    said = done("export", changed, "--format", "diffusers", "--out", tmp_path / "lora").out
    assert float(said.split("differ from the generator's by ")[1].split()[0]) < 1e-5
    assert sorted(path.name for path in (tmp_path / "lora").iterdir()) == ["README.md", LORA_FILE, "scheduler"]
    stock, image = run_card(tmp_path / "lora", sd3.model)
    assert stock.scheduler.timesteps.tolist() == pytest.approx([1000, 900, 750, 500])
    assert stock.scheduler.config.use_dynamic_shifting is False
    assert image.size == (16, 16)
    assert "noise levels: infinite, 9, 3, 1" in (tmp_path / "lora" / "README.md").read_text()


def test_export_of_the_whole_pipeline(run, tmp_path, done):
    """With T5, of 3.5, in two steps."""
    changed = stirred(run, tmp_path / "changed")
    done("export", changed, "--format", "diffusers", "--fuse", "--out", tmp_path / "whole")
    assert {"transformer", "vae", "text_encoder_3", "tokenizer_3", "scheduler"} <= {path.name for path in (tmp_path / "whole").iterdir()}
    stock, _ = run_card(tmp_path / "whole")
    assert not any("lora" in name for name, _ in stock.transformer.named_parameters())
    # what was exported is a pipeline that can be stood on again
    again = text_teacher(str(tmp_path / "whole"))
    assert again.sample(1, seed=0, steps=1, prompts="a seven").isfinite().all()
    torch.testing.assert_close(again.sigmas(2), load(changed).sigmas(), rtol=1e-6, atol=0)  # the times that its scheduler says


@pytest.mark.parametrize("shift", [0.7, 1.0, 1.15, 3.0, 6.0])
def test_a_stock_scheduler_takes_equal_parts_of_any_shift(shift):
    """Of steps whose number says all: the scheduler is asked for nothing else."""
    denoiser = FlowDenoiser(nn.Identity(), 1.0, shift=shift)
    for steps in (*range(1, 9), 25, 50):
        scheduler = flow_scheduler(denoiser, torch.tensor(denoiser.step_sigmas(steps), dtype=torch.float64))
        scheduler.set_timesteps(steps)
        parts = torch.arange(steps, 0, -1) / steps
        torch.testing.assert_close(scheduler.sigmas[:-1], shift * parts / (1 + (shift - 1) * parts), rtol=0, atol=3e-7)


@pytest.mark.parametrize("times", [[0.9], [0.99, 0.5], [1.0, 0.9, 0.5, 0.45, 0.1], [1.0, 0.3, 0.29], [1.0, 0.9999, 0.1]])
def test_times_that_no_stock_scheduler_takes(times):
    times = torch.tensor(times, dtype=torch.float64)
    sigmas = torch.where(times < 1, times / (1 - times), NOISE_ALONE)
    with pytest.raises(UserError, match="and stock schedulers of flows take 1 first, and then equal parts that are shifted; train it"):
        flow_scheduler(FlowDenoiser(nn.Identity(), 1.0, shift=3.0), sigmas)


def test_import_says_what_it_found(sd3, sd35, tmp_path, done, mistake):
    said = done("import", sd3.model, "--out", tmp_path / "teacher").out
    assert (
        "found: StableDiffusion3Pipeline of transformer, text_encoder, text_encoder_2, vae; the transformer has 35,136 parameters" in said
    )
    assert "predicts the velocity of a flow" in said
    assert "there is no text_encoder_3: zeros stand for its output, as in the stock pipeline" in said
    assert "times: 0.002994 to 1, which is noise alone, at 1000 timesteps; the shift is 3\n" in said
    assert (
        "samples: 28 steps of Euler's method with guidance scale 7; of the pipeline's FlowMatchEulerDiscreteScheduler only the noise"
        in said
    )
    assert "latents: 16x8x8; the transformer takes hidden states of width 72 and a pooled vector of 64" in said
    assert {path.name for path in (tmp_path / "teacher").iterdir()} == {"config.json", "README.md"}
    assert load(tmp_path / "teacher").sample(1, prompts="a seven", steps=2).isfinite().all()
    said = done("import", sd35.model, "--out", tmp_path / "other").out
    assert "text_encoder_2, text_encoder_3, vae" in said
    assert "zeros" not in said
    flux = shutil.copytree(sd3.model, tmp_path / "flux")
    (flux / "model_index.json").write_text((flux / "model_index.json").read_text().replace("StableDiffusion3Pipeline", "FluxPipeline"))
    told = mistake("import", flux, "--out", tmp_path / "b")
    assert "is a FluxPipeline of" in told
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.sampler_timesteps=[1000, 500]"], r"is \[1000, 500\], and the teacher's timesteps go from 0 to 999"),
        (["method.lora.targets=[proj_in]"], "no layer of this model is called proj_in"),
        (["data.path=prompts_of_another"], "there is no folder prompts_of_another of encoded prompts in "),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_written(overrides, message, sd3, tmp_path):
    with pytest.raises(UserError, match=message):
        trained(sd3, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_prompts_of_another_form_or_without_t5_are_refused(sd3, sd35, tmp_path):
    with pytest.raises(UserError, match="has other text encoders; encode the prompts by that model"):
        trained(sd3, tmp_path / "run", f"data.path={sd35.folder / 'prompts'}")
