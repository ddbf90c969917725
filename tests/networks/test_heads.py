import pytest
import torch
from torch.nn.functional import conv2d, group_norm, silu

from fewstep.networks.heads import BottleneckHead, LevelHeads


def head_and_features(height, width, channels=128, num=4):
    torch.manual_seed(0)
    return BottleneckHead(channels, height, width), torch.randn(num, channels, height, width, requires_grad=True)


def test_at_8x8_it_is_the_published_head():
    head, x = head_and_features(8, 8)
    shapes = [tuple(p.shape) for p in head.parameters() if p.ndim == 4]
    assert shapes == [(128, 128, 4, 4), (128, 128, 4, 4), (1, 128, 1, 1)]
    groups = [module.num_groups for module in head.modules() if isinstance(module, torch.nn.GroupNorm)]
    w1, b1, g1, h1, w2, b2, g2, h2, w3, b3 = head.parameters()
    y = silu(group_norm(conv2d(x, w1, b1, stride=2, padding=1), groups[0], g1, h1))
    y = silu(group_norm(conv2d(y, w2, b2, stride=4), groups[1], g2, h2))
    torch.testing.assert_close(head(x), conv2d(y, w3, b3)[:, 0, 0, 0])


def test_at_the_published_width_there_are_32_groups():
    with torch.device("meta"):
        head = BottleneckHead(768, 8, 8)
    assert [module.num_groups for module in head.modules() if isinstance(module, torch.nn.GroupNorm)] == [32, 32]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (7, 7), (16, 16), (4, 8), (16, 8), (1, 3)])
def test_one_logit_an_item_from_the_whole_map(size):
    head, x = head_and_features(*size)
    logits = head(x)
    torch.testing.assert_close(logits, torch.cat([head(item[None]) for item in x]))
    (gradient,) = torch.autograd.grad(logits[1], x)
    assert (gradient[1].abs().sum(0) > 0).all()  # every place counts
    assert (gradient[[0, 2, 3]] == 0).all()


@pytest.mark.parametrize(("channels", "size"), [(16, 4), (32, 4), (64, 4), (64, 8), (128, 4)])
def test_it_slopes_as_much_as_it_varies(channels, size):
    """Poincare's inequality, Var f <= E |grad f|^2 for Gaussian input, which a smooth head keeps at most points.

    A GroupNorm over one or two numbers gives 0 or their signs: logits that are constant or jump, without a slope to follow.
    """
    head, x = head_and_features(size, size, channels, 200)
    logits = head(x)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert logits.std() > 0.05
    assert gradient.flatten(1).square().sum(1).median() > 0.5 * logits.var()


def test_heads_of_several_levels_look_at_one_map_each():
    torch.manual_seed(0)
    heads = LevelHeads([(32, (4, 4)), (16, (8, 8))])
    maps = [torch.randn(3, 32, 4, 4), torch.randn(3, 16, 8, 8)]
    torch.testing.assert_close(heads(maps), torch.stack([heads.heads[0](maps[0]), heads.heads[1](maps[1])], 1))
    with pytest.raises(ValueError, match="longer"):
        heads([*maps, maps[0]])
