"""The default rank and the default target layers of low-rank adapters (LoRA) on a text-to-image network."""

RANK = 64
# by the network's name: the endings of the target layers' names
TARGETS: dict[str, tuple[str, ...]] = {
    # as DMD2's authors chose them for Stable Diffusion and SDXL
    "text_unet": (
        "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut",
        "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
    ),
    # the attention layers that diffusers' LoRA script for SD 3 chooses, and the feed-forward layers, as in the U-Net
    "text_transformer": (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff.net.0.proj", "ff.net.2",
        "ff_context.net.0.proj", "ff_context.net.2",
    ),
}  # fmt: skip
