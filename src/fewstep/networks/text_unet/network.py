"""The U-Net of Stable Diffusion and SDXL: diffusers' `UNet2DConditionModel` as its own config describes it; a label is a prompt's row.

The rows are those of a table of encoded prompts (`fewstep.data.prompt_table`), which the network is given apart from its weights; label
``len(table)`` stands for no prompt. So every method that trains with labels trains with prompts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.networks.prompts import Rows, told_rows

# entries of the config with which the network takes inputs other than latents, timestep and text
UNKNOWN = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "timestep_post_act", "time_cond_proj_dim")


class TextUNet(nn.Module):
    """A network ``F(x, timestep, label)`` over latents [B, C, H, W], same shape out.

    Attributes: ``null_class``, True, for every model can be asked without a prompt; ``feature_shapes``; and ``prompts``, the `Rows` in
    which labels are looked up, which are no part of the weights, and None until they are set.

    Args:
        shape: (C, height, width) of one latent.
        num_classes: unused, for the table ``prompts`` says how many prompts there are.
        time_ids: the six numbers of SDXL's size conditioning; None for models without size conditioning.
        config: all other arguments of `UNet2DConditionModel`, as in its config.json.

    Raises:
        ValueError: for a model that takes other inputs, and one that does not fit `shape`.

    """

    null_class = True

    def __init__(
        self, shape: Sequence[int], num_classes: int | None = None, time_ids: Sequence[float] | None = None, **config: Any
    ) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        for key in UNKNOWN:
            if config.get(key) is not None:
                raise ValueError(f"{key} is {config[key]!r}; only U-Nets that are told a timestep and a text are known here")
        added = config.get("addition_embed_type")
        if added not in (None, "text_time"):
            raise ValueError(f"addition_embed_type is {added!r}; allowed: null as in Stable Diffusion, or 'text_time' as in SDXL")
        if (added is not None) != (time_ids is not None):
            raise ValueError(f"addition_embed_type is {added!r} and time_ids are {time_ids}; they go together")
        channels = config.get("in_channels", 4), config.get("out_channels", 4)
        if channels != (shape[0], shape[0]):
            raise ValueError(
                f"in_channels and out_channels are {channels}, which does not fit latents of {shape[0]} channels; models for inpainting, "
                "depth or editing take more, and are not known here"
            )
        self.unet: Any = UNet2DConditionModel(**config)
        widths = self.unet.config.block_out_channels
        factor = 2 ** (len(widths) - 1)
        if any(side % factor for side in shape[1:]):
            raise ValueError(f"latents of {shape[1]}x{shape[2]} cannot be halved {len(widths) - 1} times; give sides divisible by {factor}")
        self.time_ids = None if time_ids is None else tuple(time_ids)
        self.prompts: Rows | None = None
        self.feature_shapes = [(width, (shape[1] >> level, shape[2] >> level)) for level, width in enumerate(widths)][::-1]

    @property
    def takes(self) -> tuple[int, int | None]:
        """The widths of the encoded prompts that the network takes: of the hidden states, and of the pooled vector, or None without one."""
        config = self.unet.config
        if self.time_ids is None:
            return config.cross_attention_dim, None
        return config.cross_attention_dim, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        """Return the prediction, like `x` [B, C, H, W]; `timestep` is float [B], and `label` int64 [B] the prompts' rows.

        Raises ValueError where ``prompts`` is not set.
        """
        hidden, added = self._told(x, label)
        found: Tensor = self.unet(x, timestep, encoder_hidden_states=hidden, added_cond_kwargs=added, return_dict=False)[0]
        return found

    def features(self, x: Tensor, timestep: Tensor, label: Tensor, levels: int) -> list[Tensor]:
        """Return the coarsest `levels` inner features [B, C', h, w]: the bottleneck's, then the encoder's last of each finer level."""
        hidden, added = self._told(x, label)
        unet = self.unet
        embedding = unet.time_embedding(unet.time_proj(timestep).to(x.dtype))
        more = unet.get_aug_embed(emb=embedding, encoder_hidden_states=hidden, added_cond_kwargs=added or {})
        embedding = embedding if more is None else embedding + more
        x, found = unet.conv_in(x), []
        for block in unet.down_blocks:
            told = {"encoder_hidden_states": hidden} if getattr(block, "has_cross_attention", False) else {}
            x, outputs = block(hidden_states=x, temb=embedding, **told)
            found.append(outputs[-1] if block.downsamplers is None else outputs[-2])  # the last before the level is halved
        if unet.mid_block is not None:
            x = unet.mid_block(x, embedding, **({"encoder_hidden_states": hidden} if unet.mid_block.has_cross_attention else {}))
        return [x, *reversed(found[:-1])][:levels]

    def _told(self, x: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return (the prompts' hidden states for `x`, SDXL's pooled vectors and size conditioning, or None for other models)."""
        hidden, pooled = told_rows(self.prompts, label, x, needs_pooled=self.time_ids is not None)
        if self.time_ids is None or pooled is None:
            return hidden, None
        return hidden, {"text_embeds": pooled, "time_ids": torch.tensor(self.time_ids, device=x.device, dtype=x.dtype).expand(len(x), -1)}
