"""Which layers of the U-Nets of Stable Diffusion and SDXL low-rank changes are made of, and of what rank, where nothing is said."""

RANK = 64
# as DMD2's authors chose them
TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut",
    "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
