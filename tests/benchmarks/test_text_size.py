"""A step on a U-Net in the layout of SD 1.5: what learns gets a gradient and nothing else does, in the memory that was counted."""

import pytest

import text_size

SMALL = {
    **text_size.CONFIG,
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "norm_num_groups": 8,
}


def check(found):
    for turn in ("generator", "guidance"):
        assert found[turn]["with_gradient"] == found[turn]["tensors"] > 100
        assert found[turn]["others_with_gradient"] == 0
    weights = sum(found["memory"].values()) - found["counted"]
    assert weights + found["counted"] == pytest.approx(weights + found["taken"], rel=0.1)


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_a_step_at_a_small_size(again):
    found = text_size.step(text_size.teacher(SMALL, 8, 5), 4, 4, again)
    check(found)
    assert found["counted"] == pytest.approx(found["taken"], rel=0.1)  # what kernels need for large layers is little of it here


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
def test_a_step_at_the_true_size(again):
    made = text_size.teacher(text_size.CONFIG)
    assert sum(parameter.numel() for parameter in made.denoiser.parameters()) == 859_520_964
    check(text_size.step(made, 2, 64, again))
