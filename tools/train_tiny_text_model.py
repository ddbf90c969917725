"""A tiny text-to-image pipeline that has learned real digits, for studies of distillation without a download.

    python tools/train_tiny_text_model.py OUT                  about half an hour on one CPU core
    python tools/train_tiny_text_model.py OUT --steps 200 --vae-steps 100

scikit-learn's digits, enlarged to 16x16, become latents of a small VAE; a U-Net with cross-attention learns them beside prompts such as
"a photo of a seven", "seven, thin" and "seven, bold", by the usual loss of noise prediction, with a tenth of the prompts left out. The
text encoder is random and stays so: it only has to tell prompts apart. What is written is a pipeline that stock diffusers runs, and
``prompts.txt``, a prompt a line, of digit number ``line // 3``.
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, mse_loss

from fewstep.data.images import load_digits
from fewstep.training.progress import Progress
from make_tiny_text_model import make, vae

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FORMS = ("a photo of a {}", "{}, thin", "{}, bold")
BATCH = 64
NULL = 0.1  # share of prompts that are left out
KL = 1e-6  # weight of the VAE's divergence


def prompts() -> list[str]:
    """All of them; number ``3 digit + form``."""
    return [form.format(word) for word in WORDS for form in FORMS]


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Training digits [N, 3, 16, 16] in [-1, 1], what they are int64 [N], and which third of their digit by ink int64 [N]."""
    data = load_digits()
    images, label = data.images("train"), data.labels("train")
    assert label is not None
    ink, third = images.mean((1, 2, 3)), torch.zeros(len(images), dtype=torch.long)
    for digit in range(10):
        mine = label == digit
        third[mine] = (ink[mine].argsort().argsort() * 3) // int(mine.sum())
    return interpolate(images, scale_factor=2).expand(-1, 3, -1, -1).contiguous(), label, third


def parts(seed: int) -> tuple[Any, Any]:
    """A VAE and a U-Net of a size that can learn this."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
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
    """Reconstruct, and set the scale that makes latents of standard deviation 1."""
    optimizer, progress = torch.optim.AdamW(coder.parameters(), 2e-3), Progress("VAE", steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    progress.begin()
    for _ in range(steps):
        x = images[torch.randint(len(images), (BATCH,))]
        found = coder.encode(x).latent_dist
        loss = mse_loss(coder.decode(found.sample()).sample, x) + KL * found.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.advance()
    progress.close()
    with torch.no_grad():
        coder.train(False).register_to_config(scaling_factor=1 / coder.encode(images[:500]).latent_dist.mode().std().item())


def learn_unet(pipeline: Any, unet: Any, latents: Tensor, label: Tensor, third: Tensor, steps: int) -> Any:
    """Predict the noise; the average of the weights."""
    with torch.no_grad():
        told = pipeline.encode_prompt(prompts(), "cpu", 1, True)
    hidden = torch.cat([told[0], told[1][:1]])  # the last row is no prompt
    alphas = pipeline.scheduler.alphas_cumprod
    average, optimizer = copy.deepcopy(unet), torch.optim.AdamW(unet.parameters(), 1e-3)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100, max(0.02, 1.6 * (1 - step / steps))))
    progress = Progress("U-Net", steps)
    progress.begin()
    for step in range(steps):
        index = torch.randint(len(latents), (BATCH,))
        # every digit is a photo of one; the lightest third of its digit is thin, and the heaviest bold
        form = torch.where(torch.rand(BATCH) < 0.5, torch.zeros(BATCH, dtype=torch.long), torch.tensor([1, 0, 2])[third[index]])
        row = torch.where(torch.rand(BATCH) < NULL, torch.full((BATCH,), len(hidden) - 1), 3 * label[index] + form)
        t, noise = torch.randint(len(alphas), (BATCH,)), torch.randn(BATCH, *latents.shape[1:])
        kept = alphas[t].view(-1, 1, 1, 1)
        x = kept.sqrt() * latents[index] + (1 - kept).sqrt() * noise
        loss = mse_loss(unet(x, t, encoder_hidden_states=hidden[row]).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rates.step()
        keep = min(0.999, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - keep)
        progress.advance()
        if step % 200 == 0:
            progress.show(f"loss {loss.item():.3f}")
    progress.close()
    return average.eval()


def train(out: Path, steps: int, vae_steps: int, seed: int = 0) -> Any:
    """The pipeline, also written to `out`."""
    pipeline = make(out, "sd", seed=seed)
    images, label, third = digits()
    coder, unet = parts(seed)
    learn_vae(coder, images, vae_steps)
    with torch.no_grad():
        latents = coder.encode(images).latent_dist.mode() * coder.config.scaling_factor
    pipeline.vae, pipeline.unet = coder, learn_unet(pipeline, unet, latents, label, third, steps)
    pipeline.save_pretrained(str(out))
    (out / "prompts.txt").write_text("".join(f"{text}\n" for text in prompts()))
    return pipeline


def main() -> None:
    """Train one, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new or an empty folder")
    parser.add_argument("--steps", type=int, default=12_000, help="of the U-Net")
    parser.add_argument("--vae-steps", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.out.exists() and any(arguments.out.iterdir()):
        sys.exit(f"{arguments.out} holds something already; give a new or an empty folder")
    torch.set_num_threads(arguments.threads)
    pipeline = train(arguments.out, arguments.steps, arguments.vae_steps, arguments.seed)
    size = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    print(f"trained: {arguments.out}, whose U-Net has {size:,} parameters")


if __name__ == "__main__":
    main()
