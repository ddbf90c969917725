"""Train a tiny text-to-image pipeline on real digits, for studies of distillation without a download.

    python tools/train_tiny_text_model.py OUT                  about half an hour on one CPU core
    python tools/train_tiny_text_model.py OUT --steps 200 --vae-steps 100
    python tools/train_tiny_text_model.py OUT --form sd3       by flow matching, about an hour: its encoded prompts are long

scikit-learn's digits, enlarged to 16x16, become latents of a small VAE; a U-Net with cross-attention learns them beside prompts such as
"a photo of a seven", "seven, thin" and "seven, bold", by the usual loss of noise prediction, with a tenth of the prompts left out. In
SD 3's form the network is a transformer, trained by the loss of rectified flow (arXiv 2209.03003) at the times of its scheduler. The text
encoders keep their random weights: all they have to do is encode different prompts differently. Writes a pipeline that stock diffusers
runs, and ``prompts.txt`` with a prompt a line; the prompt in line number ``line``, counted from 0, is of digit ``line // 3``.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.nn.functional import interpolate, mse_loss

from fewstep.data.images import load_digits
from fewstep.training.progress import Progress
from make_tiny_text_model import make, transformer, vae

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FORMS = ("a photo of a {}", "{}, thin", "{}, bold")
BATCH = {"sd": 64, "sd3": 32}
STEPS = {"sd": 12_000, "sd3": 8_000}
CODED = 64  # images in a batch of the VAE
NULL = 0.1  # share of prompts that are left out
KL = 1e-6  # weight of the VAE's Kullback-Leibler divergence


def prompts() -> list[str]:
    """Return all prompts; prompt number ``3 digit + form`` is of `digit` in the form ``FORMS[form]``."""
    return [form.format(word) for word in WORDS for form in FORMS]


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Return training digits [N, 3, 16, 16] in [-1, 1], their labels int64 [N], and the third of their class by ink, 0 least, int64 [N]."""
    data = load_digits()
    images, label = data.images("train"), data.labels("train")
    assert label is not None
    ink, third = images.mean((1, 2, 3)), torch.zeros(len(images), dtype=torch.long)
    for digit in range(10):
        mine = label == digit
        third[mine] = (ink[mine].argsort().argsort() * 3) // int(mine.sum())
    return interpolate(images, scale_factor=2).expand(-1, 3, -1, -1).contiguous(), label, third


def parts(seed: int, form: str) -> tuple[Any, Any]:
    """Return a VAE and a network, untrained, that are large enough to learn the digits."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    if form == "sd3":
        sizes = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 4, "attention_head_dim": 16, "caption_projection_dim": 64}
        return vae(widths=(16, 32), groups=4, shift=0.0), transformer(72, 64, **sizes)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=32,
    )
    return vae(widths=(16, 32), groups=4), unet


def learn_vae(coder: Any, images: Tensor, steps: int) -> None:
    """Train the VAE to reconstruct `images`, then set its scale, and the shift of a VAE that has one.

    The scale gives latents standard deviation 1, the shift mean 0.
    """
    optimizer, progress = torch.optim.AdamW(coder.parameters(), 2e-3), Progress("VAE", steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    progress.begin()
    for _ in range(steps):
        x = images[torch.randint(len(images), (CODED,))]
        found = coder.encode(x).latent_dist
        loss = mse_loss(coder.decode(found.sample()).sample, x) + KL * found.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.advance()
    progress.close()
    with torch.no_grad():
        found = coder.train(False).encode(images[:500]).latent_dist.mode()
    shift = None if coder.config.shift_factor is None else found.mean().item()
    coder.register_to_config(scaling_factor=1 / found.std().item(), shift_factor=shift)


Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(x0, row)``: scalar loss on latents [B, C, h, w] with the prompts in `row` int64 [B]; the number of prompts means no prompt."""


def noise_loss(pipeline: Any, unet: Any) -> Loss:
    """Return the loss of a U-Net that predicts the noise."""
    with torch.no_grad():
        told = pipeline.encode_prompt(prompts(), "cpu", 1, True)
    hidden, alphas = torch.cat([told[0], told[1][:1]]), pipeline.scheduler.alphas_cumprod

    def loss(x0: Tensor, row: Tensor) -> Tensor:
        t, noise = torch.randint(len(alphas), (len(x0),)), torch.randn_like(x0)
        kept = alphas[t].view(-1, 1, 1, 1)
        return mse_loss(unet(kept.sqrt() * x0 + (1 - kept).sqrt() * noise, t, encoder_hidden_states=hidden[row]).sample, noise)

    return loss


def flow_loss(pipeline: Any, network: Any) -> Loss:
    """Return the loss of a transformer that predicts the velocity, ``eps - x0``, at the times that its scheduler trains at."""
    with torch.no_grad():
        told = pipeline.encode_prompt(prompts(), None, None, "cpu", 1, True)
    hidden, pooled, times = torch.cat([told[0], told[1][:1]]), torch.cat([told[2], told[3][:1]]), pipeline.scheduler.sigmas

    def loss(x0: Tensor, row: Tensor) -> Tensor:
        s, noise = times[torch.randint(len(times), (len(x0),))], torch.randn_like(x0)
        z = torch.lerp(x0, noise, s.view(-1, 1, 1, 1))
        return mse_loss(network(z, hidden[row], pooled[row], 1000 * s).sample, noise - x0)

    return loss


def learn(network: Any, loss: Loss, latents: Tensor, label: Tensor, third: Tensor, steps: int, batch: int) -> Any:
    """Train `network` by its `loss` for `steps` steps, and return the moving average of its weights."""
    nothing = len(prompts())
    average, optimizer = copy.deepcopy(network), torch.optim.AdamW(network.parameters(), 1e-3)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100, max(0.02, 1.6 * (1 - step / steps))))
    progress = Progress("network", steps)
    progress.begin()
    for step in range(steps):
        index = torch.randint(len(latents), (batch,))
        # any digit may be called a photo; only the lightest third of its class is called thin, and only the heaviest bold
        form = torch.where(torch.rand(batch) < 0.5, torch.zeros(batch, dtype=torch.long), torch.tensor([1, 0, 2])[third[index]])
        row = torch.where(torch.rand(batch) < NULL, torch.full((batch,), nothing), 3 * label[index] + form)
        found = loss(latents[index], row)
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rates.step()
        keep = min(0.999, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - keep)
        progress.advance()
        if step % 200 == 0:
            progress.show(f"loss {found.item():.3f}")
    progress.close()
    return average.eval()


def train(out: Path, steps: int | None = None, vae_steps: int = 3_000, seed: int = 0, form: str = "sd") -> Any:
    """Train the pipeline, write it to `out` and return it; `steps` of the network are by default those of its `form` in `STEPS`."""
    pipeline = make(out, form, seed=seed)
    images, label, third = digits()
    coder, network = parts(seed, form)
    learn_vae(coder, images, vae_steps)
    with torch.no_grad():
        latents = (coder.encode(images).latent_dist.mode() - (coder.config.shift_factor or 0.0)) * coder.config.scaling_factor
    loss = (flow_loss if form == "sd3" else noise_loss)(pipeline, network)
    learned = learn(network, loss, latents, label, third, STEPS[form] if steps is None else steps, BATCH[form])
    pipeline.vae = coder
    if form == "sd3":
        pipeline.transformer = learned
    else:
        pipeline.unet = learned
    said = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()  # without its warning that absent encoders are not saved
    pipeline.save_pretrained(str(out))
    diffusers.logging.set_verbosity(said)
    (out / "prompts.txt").write_text("".join(f"{text}\n" for text in prompts()))
    return pipeline


def main() -> None:
    """Train one pipeline, and print its number of parameters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new or an empty folder")
    parser.add_argument("--form", choices=tuple(STEPS), default="sd", help="sd as Stable Diffusion, or sd3 as SD 3: flow matching")
    parser.add_argument("--steps", type=int, help="training steps of the network; default 12,000, of sd3 8,000 longer ones")
    parser.add_argument("--vae-steps", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.out.exists() and any(arguments.out.iterdir()):
        sys.exit(f"{arguments.out} holds something already; give a new or an empty folder")
    torch.set_num_threads(arguments.threads)
    pipeline = train(arguments.out, arguments.steps, arguments.vae_steps, arguments.seed, arguments.form)
    network = pipeline.transformer if arguments.form == "sd3" else pipeline.unet
    size = sum(parameter.numel() for parameter in network.parameters())
    print(f"trained: {arguments.out}, whose {type(network).__name__} has {size:,} parameters")


if __name__ == "__main__":
    main()
