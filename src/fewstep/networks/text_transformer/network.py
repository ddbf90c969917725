"""The transformer of Stable Diffusion 3: diffusers' `SD3Transformer2DModel` as its own config describes it; a label is a prompt's row.

Stable Diffusion 3.5's, with dual attention and normalised queries and keys, is the same class. See `fewstep.networks.prompts` for labels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fewstep.networks.prompts import Rows, told_rows


class TextTransformer(nn.Module):
    """A network ``F(z, time, label)`` over latents [B, C, H, W], same shape out: the velocity of a flow.

    Attributes: ``null_class``, True, for every model can be asked without a prompt; ``feature_shapes``; and ``prompts``, the `Rows` in
    which labels are looked up, which are no part of the weights, and None until they are set.

    Args:
        shape: (C, height, width) of one latent.
        num_classes: unused, for the table ``prompts`` says how many prompts there are.
        config: all arguments of `SD3Transformer2DModel`, as in its config.json.

    Raises:
        ValueError: for a model that does not fit `shape`.

    """

    null_class = True

    def __init__(self, shape: Sequence[int], num_classes: int | None = None, **config: Any) -> None:
        super().__init__()
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        self.transformer: Any = SD3Transformer2DModel(**config)
        told = self.transformer.config
        if (told.in_channels, self.transformer.out_channels) != (shape[0], shape[0]):
            raise ValueError(
                f"in_channels and out_channels are {told.in_channels, self.transformer.out_channels}, which does not fit latents of "
                f"{shape[0]} channels; models for inpainting or editing take more, and are not known here"
            )
        size, most = told.patch_size, told.patch_size * told.pos_embed_max_size
        if any(side % size or side > most for side in shape[1:]):
            raise ValueError(f"latents of {shape[1]}x{shape[2]} cannot be cut into patches of {size}, of which a side has up to {most}")
        self.prompts: Rows | None = None
        self.grid = (shape[1] // size, shape[2] // size)
        self.feature_shapes = [(self.transformer.inner_dim, self.grid)]

    @property
    def takes(self) -> tuple[int, int]:
        """The widths of the encoded prompts that the network takes: of the hidden states, and of the pooled vector."""
        config = self.transformer.config
        return config.joint_attention_dim, config.pooled_projection_dim

    def forward(self, z: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Return the velocity, like `z` [B, C, H, W]; `time` is float [B], from 0 to 1,000, and `label` int64 [B] the prompts' rows.

        Raises ValueError where ``prompts`` is not set.
        """
        hidden, pooled = told_rows(self.prompts, label, z, needs_pooled=True)
        found: Tensor = self.transformer(z, hidden, pooled, time, return_dict=False)[0]
        return found

    def features(self, z: Tensor, time: Tensor, label: Tensor, levels: int) -> list[Tensor]:
        """Return a list of the image's features after the first half of the blocks, [B, C', h, w], one position for each patch.

        There is one level of features; the list is empty where `levels` is 0.
        """
        hidden, pooled = told_rows(self.prompts, label, z, needs_pooled=True)
        inner = self.transformer
        x, told = inner.pos_embed(z).contiguous(), inner.time_text_embed(time, pooled)
        text = inner.context_embedder(hidden)
        for block in inner.transformer_blocks[: (len(inner.transformer_blocks) + 1) // 2]:
            text, x = block(hidden_states=x, encoder_hidden_states=text, temb=told)
        return [x.transpose(1, 2).unflatten(2, self.grid)][:levels]
