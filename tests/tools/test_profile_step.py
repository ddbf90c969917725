"""The benchmarks of single steps: what the profiler's events belong to, and what stands in for data sets that are not there."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import measuring
import profile_step
from fewstep.recipe import shipped_recipes


def event(*names):
    """An event inside others, the innermost first."""
    found = None
    for name in reversed(names):
        found = SimpleNamespace(name=name, cpu_parent=found)
    return found


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("aten::mkldnn_convolution", "aten::_convolution", "aten::conv2d"), "convolution"),
        (("aten::empty", "aten::mkldnn_convolution", "aten::conv2d"), "convolution"),
        (("aten::fill_", "aten::convolution_backward", "autograd::engine::evaluate_function: ConvolutionBackward0"), "convolution"),
        (("aten::native_group_norm",), "norm"),
        (("aten::silu_backward", "SiluBackward0"), "activation"),
        (("aten::addmm", "aten::linear"), "linear"),
        (("aten::_scaled_dot_product_flash_attention_for_cpu",), "attention"),
        (("aten::_fused_adamw_", "Optimizer.step#AdamW.step", "optimiser"), "optimiser"),
        (("aten::mm", "health"), "health"),
        (("aten::index", "loader"), "loader"),
        (("aten::add",), "rest"),
        (("aten::copy_", "aten::_to_copy", "aten::to"), "casts"),
    ],
)
def test_an_operation_belongs_to_the_nearest_thing_that_tells(names, kind):
    assert profile_step.kind_of(event(*names)) == kind
    assert kind in profile_step.ORDER


@pytest.mark.parametrize("network", measuring.SHAPES)
def test_random_images_stand_in_for_a_data_set(network):
    data = measuring.data_for(network)
    assert data.shape == measuring.SHAPES[network]
    assert data.num_classes == 10
    x, label = data.batch(torch.arange(8), torch.Generator().manual_seed(0), torch.device("cpu"))
    assert x.min() >= -1
    assert x.max() <= 1
    assert label.tolist() == list(range(8))
    for method in ("teacher", "dmd2"):
        assert measuring.recipe_name(method, network) in shipped_recipes()


def test_a_step_is_told_apart(monkeypatch):
    monkeypatch.setattr(profile_step, "method_for", lambda network, name, folder: tiny_teacher(measuring.data_for(network)))
    row = profile_step.measure("mnist", "teacher", 2, "32-true", 4)
    assert sum(row["ms"].values()) == pytest.approx(row["step_ms"], rel=0.05)
    assert row["shares"]["convolution"] > 0.05
    assert min(row["ms"][kind] for kind in ("norm", "activation", "optimiser", "loader", "health")) > 0


def tiny_teacher(data):
    from fewstep.build import make_method
    from fewstep.recipe import load_recipe

    return make_method(load_recipe("teacher/digits", ("network.channels=[8,16]", "network.groups=4", "network.head_dim=8")), data)
