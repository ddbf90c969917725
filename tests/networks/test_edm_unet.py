import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fewstep.denoisers import PreconditionedDenoiser
from fewstep.errors import UserError
from fewstep.generator import load
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.maths.schedules import karras_sigmas
from fewstep.networks import make_network, num_parameters
from fewstep.networks.edm_unet import EDMUNet
from fewstep.networks.heads import feature_shapes
from fewstep.recipe import load_recipe
from fewstep.samplers import heun

GOLDEN = Path(__file__).parents[1] / "golden"
FORMS = {"ddpmpp": 10, "ncsnpp": None}  # and the classes that the golden network of each has
SMALL = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]}


@pytest.fixture(scope="module", params=FORMS)
def golden(request):
    """The published code's network with 16 channels and random weights: (its arrays, our denoiser with its weights)."""
    arrays = load_file(GOLDEN / f"edm_{request.param}.safetensors")
    network = EDMUNet((3, 32, 32), FORMS[request.param], request.param, channels=16, blocks=2).eval()
    network.load_state_dict({name[3:]: array for name, array in arrays.items() if name.startswith("sd.")})
    return arrays, PreconditionedDenoiser(network, 0.5, FORMS[request.param])


def agree(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@torch.no_grad()
def test_the_denoiser_is_the_published_one(golden):
    arrays, denoiser = golden
    x, sigma, label = arrays["in.x"], arrays["in.sigma"], arrays.get("in.label")
    agree(denoiser(x, sigma, label), arrays["out.D"], 1e-5)
    agree(denoiser(x, torch.tensor(1.5), label), arrays["out.D_sigma_scalar"], 1e-5)
    c_in = 1 / (sigma**2 + 0.25).sqrt()
    agree(denoiser.network(expand_like(c_in, x) * x, sigma.log() / 4, label), arrays["out.F"], 1e-5)
    if label is not None:
        agree(denoiser(x, sigma), arrays["out.D_nolabel"], 1e-5)
        agree(denoiser(x, sigma, torch.full_like(label, 10)), arrays["out.D_nolabel"], 1e-5)
        agree(denoiser.network(x, sigma), denoiser.network(x, sigma, torch.full_like(label, 10)), 0)
        assert (arrays["out.D_nolabel"] - arrays["out.D"]).abs().max() > 1e-2


@torch.no_grad()
def test_samples_are_the_published_ones(golden):
    arrays, denoiser = golden
    latents, label = arrays["sampler.latents"], arrays.get("in.label")
    label = None if label is None else label[: len(latents)]
    agree(heun(denoiser, latents, karras_sigmas(18), label), arrays["sampler.out"], 1e-4)
    agree(denoiser(80 * latents, torch.tensor(80.0), label), arrays["onestep.out"], 1e-5)


def test_the_loss_and_its_gradients_are_the_published_ones(golden):
    arrays, denoiser = golden
    y, sigma = arrays["loss.images"], (1.2 * arrays["loss.rnd_normal"] - 1.2).exp()
    denoised = denoiser(y + sigma * arrays["loss.noise"], sigma.flatten(), arrays.get("in.label"))
    loss = edm_weight(sigma, 0.5) * (denoised - y).square()
    assert loss.mean().item() == pytest.approx(arrays["loss.mean"].item(), rel=1e-6)
    denoiser.zero_grad()
    (loss.sum() / len(y)).backward()
    gradients = {name.removeprefix("loss.grad."): array for name, array in arrays.items() if name.startswith("loss.grad.")}
    assert len(gradients) >= 11
    for name, expected in gradients.items():
        found = denoiser.network.get_parameter(name).grad
        assert (found - expected).norm() / expected.norm() < 1e-4, name


@pytest.mark.parametrize("kind", ["cond_vp", "uncond_vp", "cond_ve", "uncond_ve"])
def test_the_full_cifar10_networks_have_the_published_names_and_shapes(kind):
    published = json.loads((GOLDEN / "edm_cifar10.json").read_text())
    with torch.device("meta"):
        network = EDMUNet((3, 32, 32), 10 if kind.startswith("cond") else None, "ddpmpp" if kind.endswith("vp") else "ncsnpp")
    expected = {name: (shape, sort) for name, shape, sort, kinds in published["tensors"] if kind in kinds.split()}
    found = {name: (list(p.shape), "parameter") for name, p in network.named_parameters()}
    found |= {name: (list(b.shape), "buffer") for name, b in network.named_buffers()}
    assert found == expected
    assert set(network.state_dict()) == set(expected)
    assert num_parameters(network) == published["parameters"][kind]


# --- loading ---------------------------------------------------------------------------------------------------------


def small(form="ddpmpp", num_classes=3, shape=(1, 8, 8), **changes):
    torch.manual_seed(0)
    return EDMUNet(shape, num_classes, form, **{**SMALL, **changes}).eval()


def shaken(network):
    """With weights large enough that every layer can be heard."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p), alpha=0.2 if p.ndim == 1 else (2 / math.prod(p.shape[1:])) ** 0.5)
    return network


@pytest.mark.parametrize("form", FORMS)
def test_a_bare_u_net_s_state_dict_loads_too(form):
    network = small(form)
    bare = {name.removeprefix("model."): value + 1 for name, value in network.state_dict().items()}
    before = dict(bare)
    network.load_state_dict(bare)
    assert bare == before  # the caller's own is left alone
    assert all(torch.equal(value, bare[name.removeprefix("model.")]) for name, value in network.state_dict().items())
    inside = PreconditionedDenoiser(small(form), 0.5, 3)
    inside.load_state_dict({f"network.{name}": value for name, value in bare.items()})
    assert all(torch.equal(a, b) for a, b in zip(inside.network.state_dict().values(), network.state_dict().values(), strict=True))
    copy.deepcopy(inside).load_state_dict({f"network.{name}": value for name, value in bare.items()})
    with pytest.raises(RuntimeError, match=r"Missing.*enc\.8x8_conv\.weight"):
        network.load_state_dict({name: value for name, value in bare.items() if name != "enc.8x8_conv.weight"})
    with pytest.raises(RuntimeError, match=r"Unexpected.*decoder\.x"):
        network.load_state_dict({**bare, "decoder.x": torch.zeros(1)})


def test_without_augmentation_there_is_no_layer_for_it():
    names = set(small().state_dict())
    assert names - set(small(augment_dim=0).state_dict()) == {"model.map_augment.weight"}


def test_every_parameter_has_a_gradient():
    network = shaken(small()).train()
    network(torch.randn(2, 1, 8, 8), torch.zeros(2), torch.tensor([3, 3])).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == ["model.map_label.weight", "model.map_augment.weight"]  # no class and no augmentation: a gradient of 0
    assert all(p.grad is not None for p in network.parameters())


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_features_are_the_encoder_s_last_of_each_level(form):
    network = shaken(small(form, shape=(3, 16, 16), multipliers=[1, 2, 3], blocks=2))
    inputs = torch.randn(2, 3, 16, 16), torch.tensor([-1.0, 0.5]), torch.tensor([0, 3])
    seen = {}
    for name in ("4x4_block1", "8x8_block1", "16x16_block1"):
        network.model.enc[name].register_forward_hook(lambda module, args, output, name=name: seen.__setitem__(name, output))
    network(*inputs)
    expected = [seen[name] for name in ("4x4_block1", "8x8_block1", "16x16_block1")]
    for block in network.model.dec.values():
        block.register_forward_pre_hook(lambda *_: pytest.fail("the decoder ran"))
    for count in (1, 2, 3):
        features = network.features(*inputs, count)
        assert len(features) == count
        assert all(map(torch.equal, features, expected))
        assert [(f.shape[1], tuple(f.shape[2:])) for f in features] == feature_shapes(network, count)
    with pytest.raises(ValueError, match=r"gan_levels is 4, but the network has 3"):
        feature_shapes(network, 4)


# --- initial weights, precision, compilation -------------------------------------------------------------------------


def test_initial_weights_are_xavier_s_with_the_published_gains():
    torch.manual_seed(1)
    network = EDMUNet((3, 16, 16), 3, "ncsnpp", channels=32, multipliers=[1, 2], blocks=1, attention=[8])
    for name, weight in network.named_parameters():
        layer, kind = name.split(".")[-2:]
        if kind == "bias" or "norm" in layer:
            assert torch.equal(weight, torch.full_like(weight, float(kind == "weight"))), name
            continue
        gain = {"conv1": 1e-5, "proj": 1e-5, "16x16_aux_conv": 1e-5, "qkv": 0.2**0.5}.get(layer, 1.0)
        outputs, inputs, *kernel = weight.shape
        bound = gain * math.sqrt(6 / ((inputs + outputs) * math.prod(kernel)))
        assert weight.abs().max() <= bound, name
        assert weight.abs().max() > 0.95 * bound, name  # of at least 288 uniform numbers: missed with probability 4e-7
    frequencies = EDMUNet((3, 16, 16), None, "ncsnpp", channels=512, multipliers=[1], blocks=1).model.map_noise.freqs
    assert frequencies.std().item() == pytest.approx(16, rel=5 / math.sqrt(2 * 512))
    x = torch.randn(2, 3, 16, 16)
    assert network.eval()(x, torch.zeros(2), torch.tensor([0, 1])).abs().max() < 1e-3  # so an untrained denoiser is c_skip x


def test_dropout_is_in_every_block_and_only_in_training():
    network = shaken(small(dropout=0.5))
    inputs = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.tensor([0, 1])
    assert torch.equal(network(*inputs), network(*inputs))
    network.train()
    assert not torch.equal(network(*inputs), network(*inputs))
    plain = shaken(small(dropout=0.0)).train()
    assert torch.equal(plain(*inputs), plain(*inputs))


@pytest.mark.parametrize("whole", [True, False], ids=["bf16", "autocast"])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_half_precision_stays_close(form, whole):
    network = shaken(small(form))
    x, c_noise, label = torch.randn(4, 1, 8, 8), torch.tensor([-1.5, -0.5, 0.25, 1.0]), torch.tensor([0, 1, 2, 3])  # exact in bf16
    expected = network(x, c_noise, label)
    told = []
    network.model.map_noise.register_forward_pre_hook(lambda module, args: told.append(args[0].dtype))
    if whole:
        found = network.bfloat16()(x.bfloat16(), c_noise.bfloat16(), label)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            found = network(x, c_noise, label)
    assert found.isfinite().all()
    assert told == [torch.float32]  # angles of up to 100 turns are not to be rounded
    if form == "ddpmpp" or not whole:  # random frequencies of 100 are not exact in bf16, and are another embedding
        assert (found.float() - expected).norm() / expected.norm() < 0.05


@torch.no_grad()
def test_attention_can_take_a_fused_kernel(monkeypatch):
    """Fused kernels take no tensors whose last dimension is strided, on GPUs neither."""
    block, strides = small(shape=(1, 8, 8)).model.dec["4x4_in0"], []
    usual = torch.nn.functional.scaled_dot_product_attention

    def seen(q, k, v):
        strides.extend(x.is_contiguous() for x in (q, k, v))
        return usual(q, k, v)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    block(torch.randn(2, 16, 4, 4), torch.randn(2, 32))
    assert strides == [True] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_attention_is_one_head_over_all_pixels_with_a_softmax_in_float32(dtype):
    block = shaken(small(shape=(1, 8, 8))).to(dtype).model.dec["4x4_in0"]
    block.qkv.weight *= 6  # large logits, which bf16 would round by whole units
    seen = {}
    block.qkv.register_forward_hook(lambda module, args, output: seen.update(qkv=output))
    block.proj.register_forward_pre_hook(lambda module, args: seen.update(mixed=args[0]))
    block(torch.randn(2, 16, 4, 4, dtype=dtype), torch.randn(2, 32, dtype=dtype))
    q, k, v = (seen["qkv"].double()[:, kind::3].flatten(2) for kind in range(3))  # [B, C, 16]: a channel's three are neighbours
    logits = torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(16)
    assert logits.abs().max() > 100
    expected = torch.einsum("bqk,bck->bcq", logits.softmax(-1), v).view(2, 16, 4, 4)
    error = (seen["mixed"].double() - expected).abs().max() / v.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 2**-8)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_compiles_into_one_graph(form):
    network = shaken(small(form))
    x, c_noise, label = torch.randn(2, 1, 8, 8), torch.tensor([-1.0, 0.5]), torch.tensor([0, 3])
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    agree(compiled(x, c_noise, label), network(x, c_noise, label), 1e-5)
    features = torch.compile(network.features, backend="eager", fullgraph=True)
    assert torch.equal(features(x, c_noise, label, 1)[0], network.features(x, c_noise, label, 1)[0])


# --- arguments and recipes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"form": "adm"}, r"network\.form is 'adm'; allowed: 'ddpmpp' or 'ncsnpp'"),
        ({"shape": (1, 8, 16)}, r"8x16 .*network\.multipliers"),
        ({"shape": (1, 9, 9)}, r"9x9 cannot be halved 1 times"),
        ({"channels": 6}, r"network\.channels is 6; give a multiple of 4"),
        ({"channels": 68, "multipliers": [2, 1]}, r"layer of 136 channels.* 32 groups.*network\.channels a multiple of 32"),
    ],
)
def test_arguments_that_do_not_fit_name_their_key(changes, key):
    with pytest.raises(ValueError, match=key):
        small(**changes)


def test_make_network_passes_everything_on():
    arguments = {"form": "ncsnpp", "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [8], "dropout": 0.25, "augment_dim": 4}
    network = make_network({"name": "edm_unet", **arguments}, (2, 8, 8), 5)
    assert network.model.map_noise.freqs.shape == (8,)
    assert network.model.map_label.in_features == 5
    assert network.model.map_augment.in_features == 4
    assert list(network.model.enc) == ["8x8_conv", "8x8_block0", "4x4_down", "4x4_aux_residual", "4x4_block0"]
    assert [name for name, block in network.model.enc.items() if getattr(block, "qkv", None)] == ["8x8_block0"]
    dec = ["4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1", "8x8_up", "8x8_block0", "8x8_block1", "8x8_aux_norm", "8x8_aux_conv"]
    assert list(network.model.dec) == dec
    assert [name for name, block in network.model.dec.items() if getattr(block, "qkv", None)] == ["4x4_in0", "8x8_block1"]
    assert network.model.dec["4x4_in0"].dropout.p == 0.25
    assert isinstance(network.model.enc["8x8_conv"], nn.Conv2d)
    assert (network.model.enc["8x8_conv"].in_channels, network.model.dec["8x8_aux_conv"].out_channels) == (2, 2)


NETWORK = "network={name: edm_unet, sigma_data: 0.75, channels: 8, multipliers: [1, 2], blocks: 1, attention: []}"


def test_a_dddm_has_no_use_for_it():
    assert load_recipe("teacher/digits", [NETWORK]).network.form == "ddpmpp"
    with pytest.raises(UserError, match=r"network.name is 'edm_unet'; with method dddm on images it must be 'unet' or 'dit'"):
        load_recipe("dddm/digits", [NETWORK])
    with pytest.raises(UserError, match=r"network.name is 'edm_unet'; with method teacher on points it must be 'mlp'"):
        load_recipe("teacher/ring", [NETWORK])


def test_a_teacher_of_it_is_trained_and_distilled(done, tmp_path):
    common = ("batch_size=8", "steps=3", "trainer.accelerator=cpu")
    done("train", "teacher/digits", NETWORK, *common, "--out", tmp_path / "teacher")
    teacher = load(tmp_path / "teacher")
    assert "denoiser.network.model.enc.8x8_block0.norm0.weight" in teacher.state_dict()
    gan = ("method.gan=true", "method.gan_weight_generator=0.01")
    done("train", "dmd2/digits", f"method.teacher={tmp_path / 'teacher'}", *gan, *common, "--out", tmp_path / "student")
    assert load(tmp_path / "student").sample(2, seed=0).isfinite().all()
