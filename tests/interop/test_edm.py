import errno
import hashlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import fewstep
from fewstep.errors import UserError
from fewstep.interop.edm import import_edm
from fewstep.networks.edm_unet import EDMUNet
from official_edm import Persistent, official_arguments, official_bytes, official_content, official_network, scattered

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = {"model_channels": 4, "channel_mult": [1, 2], "num_blocks": 1, "img_resolution": 8, "img_channels": 1, "augment_dim": 2}


def small(seed=0, **changes):
    """(weights, arguments) of a network of the official layout in 8x8 pixels."""
    a = official_arguments(**(SMALL | changes))
    form = "ncsnpp" if a.get("embedding_type") == "fourier" else "ddpmpp"
    network = EDMUNet(
        (a["img_channels"], a["img_resolution"], a["img_resolution"]),
        a["label_dim"] or None,
        form,
        a.get("model_channels", 128),
        a.get("channel_mult", [1, 2, 2, 2]),
        a.get("num_blocks", 4),
        a.get("attn_resolutions", [16]),
        augment_dim=a.get("augment_dim", 0),
    )
    return scattered(network.state_dict(), seed), a


def content(network=None, **changes):
    weights, arguments = small(**changes)
    return official_content(official_network(weights, arguments) if network is None else network)


@pytest.fixture
def bring(tmp_path):
    """``bring(content)``: written in the official way, imported, and loaded: (generator, what was found, the file)."""

    def call(content, name="net.pkl", protocol=4):
        path, out = tmp_path / name, tmp_path / "model"
        path.write_bytes(official_bytes(content, protocol))
        found = import_edm(path, out)
        return fewstep.load(out), found, path

    return call


@pytest.fixture
def refusal(tmp_path):
    """``refusal(content)``: the one sentence by which a file is refused; no folder is left."""

    def call(content):
        path, out = tmp_path / "net.pkl", tmp_path / "model"
        path.write_bytes(official_bytes(content))
        with pytest.raises(UserError) as caught:
            import_edm(path, out)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pkl"]
        message = str(caught.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        return message

    return call


# --- what comes in ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "classes"), [("ddpmpp", 10), ("ncsnpp", 0)])
def test_an_imported_network_denoises_as_the_official_code_does(form, classes, bring):
    golden = load_file(GOLDEN / f"edm_{form}.safetensors")
    weights = {name.removeprefix("sd."): tensor for name, tensor in golden.items() if name.startswith("sd.")}
    arguments = official_arguments(form, model_channels=16, num_blocks=2, label_dim=classes)
    generator, found, _ = bring(official_content(official_network(weights, arguments)))
    with torch.no_grad():
        d = generator.denoiser(golden["in.x"], golden["in.sigma"], golden["in.label"].long() if classes else None)
    torch.testing.assert_close(d, golden["out.D"], rtol=1e-5, atol=1e-5)
    learned = sum(tensor.numel() for name, tensor in weights.items() if not name.endswith(("resample_filter", "freqs")))
    assert (found.form, found.parameters, found.kind) == (form, learned, "EDMPrecond of a SongUNet")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_weights_and_settings_arrive(protocol, bring):
    weights, arguments = small()
    generator, found, path = bring(official_content(official_network(weights, arguments)), "edm-cifar10-8x8.pkl", protocol)
    state = generator.denoiser.network.state_dict()
    assert set(state) == set(weights)
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert generator.config == {
        "format": 2,
        "shape": [1, 8, 8],
        "num_classes": 10,
        "sigma_data": 0.5,
        "network": {
            "name": "edm_unet",
            "form": "ddpmpp",
            "channels": 4,
            "multipliers": [1, 2],
            "blocks": 1,
            "attention": [16],
            "dropout": 0.13,
            "augment_dim": 2,
        },
        "denoiser": {"name": "preconditioned"},
        "sampler": {"name": "heun", "steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
        "info": {
            "method": "teacher",
            "data": "cifar10-32x32",  # 8x8 pixels are not CIFAR-10's
            "class_names": [],
            "label_dropout": 0.0,
            "licence": "CC BY-NC-SA 4.0 (of the official EDM checkpoints)",
            "imported_from": "edm-cifar10-8x8.pkl",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
    }
    assert found.sha256 == generator.info["sha256"]


def test_nothing_in_the_file_is_run_or_imported(bring, tmp_path, monkeypatch):
    marker = tmp_path / "was_run"
    monkeypatch.setattr(Persistent, "source", f"open({str(marker)!r}, 'w').close()")
    _, _, path = bring(content())
    assert str(marker).encode() in path.read_bytes()
    assert not marker.exists()
    assert not {"torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"} & set(sys.modules)


@pytest.mark.parametrize(
    ("left_out", "needs"),
    [
        ("model_channels", {"channel_mult": [1]}),
        ("channel_mult", {}),
        ("num_blocks", {"channel_mult": [1]}),
        ("attn_resolutions", {"img_resolution": 16}),
        ("augment_dim", {}),
        ("embedding_type", {}),
        ("encoder_type", {}),
        ("decoder_type", {}),
        ("channel_mult_noise", {}),
        ("resample_filter", {}),
    ],
)
def test_an_argument_left_out_is_the_official_default(left_out, needs, bring):
    weights, arguments = small(**needs, **{left_out: ...})  # `small` has the defaults of the published code
    assert left_out not in arguments
    generator, _, _ = bring(official_content(official_network(weights, arguments)))
    assert all(torch.equal(value, weights[name]) for name, value in generator.denoiser.network.state_dict().items())
    plain = {"model_channels": ("channels", 128), "channel_mult": ("multipliers", [1, 2, 2, 2]), "num_blocks": ("blocks", 4)}
    if left_out in plain:
        key, value = plain[left_out]
        assert generator.network_config[key] == value


def test_dropout_left_out_is_a_tenth(bring):
    assert bring(content(dropout=...))[0].network_config["dropout"] == 0.1


def test_arguments_given_by_position_count(bring):
    weights, arguments = small(label_dim=3)
    order = ["img_resolution", "img_channels", "label_dim", "use_fp16"]
    network = official_network(weights, {key: value for key, value in arguments.items() if key not in order})
    network.state["_init_args"] = (*(arguments[key] for key in order), 0, math.inf, 0.25)
    generator, _, _ = bring(official_content(network))
    assert (generator.shape, generator.num_classes, generator.sigma_data) == ((1, 8, 8), 3, 0.25)


def test_label_dropout_allows_guidance_and_noise_levels_are_kept_to(bring):
    generator, _, _ = bring(content(label_dropout=0.1, sigma_min=0.01, sigma_max=50.0, sigma_data=0.7))
    assert generator.info["label_dropout"] == 0.1
    assert (generator.sampler["sigma_min"], generator.sampler["sigma_max"], generator.sigma_data) == (0.01, 50.0, 0.7)
    assert generator.sample(2, seed=0, steps=2, guidance_scale=2.0).isfinite().all()


def test_a_larger_image_is_sampled_in_the_published_40_steps(bring):
    assert bring(content(img_resolution=64, channel_mult=[1]))[0].default_steps() == 40


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype, bring):
    weights, arguments = small(use_fp16=True)
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    _, _, path = bring(official_content(official_network(weights, arguments)))
    written = load_file(path.with_name("model") / "model.safetensors")
    assert set(written) == {f"denoiser.network.{name}" for name in weights}
    for name, tensor in weights.items():
        torch.testing.assert_close(written[f"denoiser.network.{name}"], tensor.float(), rtol=0, atol=0)


def test_views_of_a_shared_storage_are_read_as_views(bring):
    weights, arguments = small()
    name = "model.map_layer1.weight"
    whole = torch.arange(2.0 * weights[name].numel()).reshape(2, *weights[name].shape) / 1000
    weights[name] = whole[1].T  # an offset and strides of its own
    generator, _, _ = bring(official_content(official_network(weights, arguments)))
    assert torch.equal(generator.denoiser.network.state_dict()[name], whole[1].T)


def test_buffers_that_a_state_dict_leaves_out_are_left_out(bring):
    weights, arguments = small()
    network = official_network(weights, arguments)
    network.state["_buffers"]["scratch"] = torch.ones(3)
    network.state["_non_persistent_buffers_set"] = {"scratch"}
    assert len(bring(official_content(network))[0].denoiser.network.state_dict()) == len(weights)


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.mark.parametrize(
    ("name", "place", "classes", "expected"),
    [
        ("net.pkl", "/data/cifar10-32x32.zip", 10, ("cifar10", CIFAR10)),
        ("edm-cifar10-32x32-cond-vp.pkl", "", 10, ("cifar10", CIFAR10)),
        ("net.pkl", "/data/CIFAR-10", 10, ("cifar10", CIFAR10)),
        ("net.pkl", "/data/cifar10-32x32.zip", 0, ("cifar10", [])),
        ("net.pkl", "/data/cifar100-32x32.zip", 10, ("cifar100-32x32", [])),
        ("net.pkl", "C:\\data\\svhn.zip", 10, ("svhn", [])),
        ("mine.pkl", "", 10, ("mine", [])),
    ],
)
def test_the_data_set_is_known_by_its_name(name, place, classes, expected, bring):
    weights, arguments = small(img_resolution=32, img_channels=3, channel_mult=[1], label_dim=classes)
    generator, found, _ = bring(official_content(official_network(weights, arguments), place), name)
    assert (generator.info["data"], generator.info["class_names"]) == expected
    assert found.data == expected[0]


# --- what does not -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["VPPrecond", "VEPrecond", "iDDPMPrecond", "Generator"])
def test_other_preconditionings_are_refused_by_name(kind, refusal):
    weights, arguments = small()
    message = refusal(official_content(official_network(weights, arguments, kind=kind)))
    assert f"class {kind}" in message
    assert "only EDMPrecond" in message


@pytest.mark.parametrize("arguments", [{"model_type": "DhariwalUNet"}, {"model_type": ...}])
def test_the_network_of_imagenet_is_refused_by_name(arguments, refusal):
    message = refusal(content(**arguments))
    assert "DhariwalUNet" in message
    assert "not supported yet" in message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model_type", "UNet", "model_type UNet"),
        ("channel_mult_emb", 2, "channel_mult_emb 2; only 4"),
        ("decoder_type", "skip", "decoder_type skip; only standard"),
        ("embedding_type", "zero", "embedding_type zero"),
        ("encoder_type", "skip", "encoder_type skip"),
        ("encoder_type", "residual", "encoder_type residual"),  # is the other form's
        ("channel_mult_noise", 2, "channel_mult_noise 2"),
        ("resample_filter", [1, 3, 3, 1], "resample_filter [1, 3, 3, 1]"),
        ("num_heads", 2, "argument num_heads"),
        ("model_channels", 10**9, "model_channels 1000000000"),
        ("model_channels", 6, "give a multiple of 4"),
        ("model_channels", True, "model_channels True"),
        ("num_blocks", 10**9, "num_blocks 1000000000"),
        ("num_blocks", 0, "num_blocks 0"),
        ("channel_mult", [1] * 1000, "channel_mult a list"),
        ("channel_mult", "22", "channel_mult 22"),
        ("channel_mult", [10**6], "channel_mult 1000000"),
        ("attn_resolutions", [-1], "attn_resolutions -1"),
        ("img_resolution", 2**20, "img_resolution 1048576"),
        ("img_resolution", 9, "cannot be halved"),
        ("img_channels", None, "img_channels None"),
        ("label_dim", -1, "label_dim -1"),
        ("augment_dim", 1.5, "augment_dim 1.5"),
        ("dropout", 2, "dropout 2"),
        ("dropout", float("nan"), "dropout nan"),
        ("sigma_data", 0, "sigma_data 0"),
        ("sigma_data", [1], "sigma_data [1]"),
        ("sigma_max", 0.5, "sigma_max 0.5"),
    ],
)
def test_what_our_network_cannot_be_is_refused_by_key(key, value, words, refusal):
    weights, arguments = small()
    assert words in refusal(official_content(official_network(weights, arguments | {key: value})))


def change_lacking(network):
    del network.state["_modules"]["model"].state["_modules"]["map_layer0"].state["_parameters"]["bias"]


def change_extra(network):
    network.state["_parameters"]["more"] = torch.nn.Parameter(torch.ones(2))


def change_shape(network):
    network.state["_modules"]["model"].state["_modules"]["map_layer0"].state["_parameters"]["bias"] = torch.ones(3)


def change_kind(network):
    parameters = network.state["_modules"]["model"].state["_modules"]["map_layer0"].state["_parameters"]
    parameters["bias"] = torch.ones(parameters["bias"].shape, dtype=torch.int64)


def change_nan(network):
    parameters = network.state["_modules"]["model"].state["_modules"]["map_layer0"].state["_parameters"]
    parameters["bias"] = parameters["bias"].detach() * float("nan")


def change_text(network):
    network.state["_modules"]["model"].state["_modules"]["map_layer0"].state["_parameters"]["bias"] = "weights"


def change_module(network):
    network.state["_modules"]["model"].state["_modules"]["map_layer0"] = [1, 2]


def change_no_modules(network):
    del network.state["_modules"]["model"].state["_modules"]


def change_no_arguments(network):
    del network.state["_init_kwargs"]


def change_inner(network):
    network.state["_modules"]["model"] = Persistent("Other", {})


def change_version(network):
    network.version = 7


def change_twice(network):
    inside = network.state["_modules"]["model"].state["_modules"]
    inside["map_layer0"] = inside["map_layer1"]


def change_cycle(network):
    network.state["_modules"]["model"].state["_modules"]["map_layer0"].state["_modules"]["up"] = network.state["_modules"]["model"]


def change_laughs(network):
    """2^60 paths to the same module."""
    module = network.state["_modules"]["model"].state["_modules"]["map_layer0"]
    for _ in range(20):
        state = torch.nn.Module().__dict__ | {"_modules": {"a": module, "b": module, "c": module}}
        module = Persistent("Linear", state)
    network.state["_modules"]["model"].state["_modules"]["map_layer0"] = module


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_lacking, "lacks 1 of the tensors that its arguments ask for, such as model.map_layer0.bias"),
        (change_extra, "such as more"),
        (change_shape, "has model.map_layer0.bias as torch.float32 of shape [3]"),
        (change_kind, "has model.map_layer0.bias as torch.int64"),
        (change_nan, "not finite"),
        (change_text, "has weights where the tensor model.map_layer0.bias should be"),
        (change_module, "has [1, 2] for a module, at model.map_layer0"),
        (change_no_modules, "has a SongUNet without _modules"),
        (change_no_arguments, "_init_kwargs"),
        (change_inner, "module Other inside"),
        (change_version, "version 7 of torch_utils.persistence"),
        (change_twice, "the same module twice, at model.map_layer"),
        (change_cycle, "the same module twice"),
        (change_laughs, "the same module twice"),
    ],
)
def test_a_damaged_network_is_refused(change, words, refusal):
    weights, arguments = small()
    network = official_network(weights, arguments)
    change(network)
    assert words in refusal(official_content(network))


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ([1, 2], "holds [1, 2], where"),
        ({"net": 1, "step": 2}, "a dictionary with the keys net, step"),
        ({}, "keys of none"),
        ({"ema": 3}, "has 3 under 'ema'"),
        ({"ema": torch.nn.ModuleDict()}, "class ModuleDict"),
        ({"ema": torch.ones(2)}, "has a tensor under 'ema'"),
    ],
)
def test_other_contents_are_refused(root, words, refusal):
    assert words in refusal(root)


# --- the folder --------------------------------------------------------------------------------------------------------------


def test_only_a_free_folder_is_written(tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(official_bytes(content()))
    full, empty, file, link = (tmp_path / name for name in ("full", "empty", "file", "link"))
    for folder in (full, empty):
        folder.mkdir()
    (full / "keep.txt").write_text("mine")
    file.write_text("mine")
    link.symlink_to(empty)
    for out, words in ((full, "holds something already"), (file, "no folder"), (link, "no folder")):
        with pytest.raises(UserError, match=words):
            import_edm(path, out)
    assert [p.name for p in full.iterdir()] == ["keep.txt"]
    for out in (empty, tmp_path / "new" / "deep"):
        import_edm(path, out)
        assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
        assert json.loads((out / "config.json").read_text())["num_classes"] == 10


def test_a_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    import safetensors.torch

    path, out = tmp_path / "net.pkl", tmp_path / "model"
    path.write_bytes(official_bytes(content()))

    def full(tensors, name):
        name.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(OSError, match="No space"):
            import_edm(path, out)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pkl"]
    (tmp_path / ".model.partial").mkdir()  # of an import that was killed
    import_edm(path, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "net.pkl"]


def test_an_import_draws_nothing(bring, monkeypatch):
    network = content()
    monkeypatch.setattr(fewstep, "load", lambda folder: None)
    before = torch.get_rng_state()
    bring(network)
    assert torch.equal(torch.get_rng_state(), before)


# --- on the command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def model(done, tmp_path):
    """An imported network that fits scikit-learn's digits, and what the command said."""
    path, out = tmp_path / "net.pkl", tmp_path / "model"
    path.write_bytes(official_bytes(content()))
    return SimpleNamespace(out=out, file=path, said=done("import", path, "--out", out).out)


def test_the_command_says_what_it_found(model):
    state = load_file(model.out / "model.safetensors")
    learned = sum(tensor.numel() for name, tensor in state.items() if not name.endswith("resample_filter"))
    assert "EDMPrecond of a SongUNet (ddpmpp)" in model.said
    assert f"{learned:,} parameters" in model.said
    assert hashlib.sha256(model.file.read_bytes()).hexdigest() in model.said


def test_an_imported_teacher_is_sampled_and_distilled(model, done, tmp_path):
    done("sample", model.out, "-n", 3, "--steps", 2, "--out", tmp_path / "samples.png")
    run = tmp_path / "run"
    settings = ("steps=2", "batch_size=4", "trainer.accelerator=cpu", "network.name=teacher", "network.sigma_data=0.5")
    done("train", "dmd2/digits", f"method.teacher={model.out}", *settings, "--out", run)
    student = fewstep.load(run)
    assert student.network_config["name"] == "edm_unet"
    assert student.sample(2, seed=0).shape == (2, 1, 8, 8)


def test_mistakes_on_the_command_line_are_one_sentence(mistake, tmp_path):
    assert "is not a file" in mistake("import", tmp_path / "none.pkl", "--out", tmp_path / "model")
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04cposix\nsystem\n.")
    assert "asks for posix.system" in mistake("import", tmp_path / "net.pkl", "--out", tmp_path / "model")
