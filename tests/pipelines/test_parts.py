"""Parts of a pipeline whose weights are not those that their config describes: the library would fill up what is missing at random."""

import shutil

import pytest
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from fewstep.errors import UserError
from fewstep.interop.text_teacher import text_teacher
from fewstep.pipelines.encoders import encode_prompts
from fewstep.pipelines.vae import VAE
from text_models import make

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make(folder, "sd")
    return folder


def without(folder, file, name):
    tensors = load_file(folder / file)
    gone = next(key for key in sorted(tensors) if name in key)
    del tensors[gone]
    save_file(tensors, folder / file, {"format": "pt"})
    return gone


def test_whole_parts_are_read(model):
    assert text_teacher(str(model)).latents is not None
    assert VAE(str(model)).factor == 2


@pytest.mark.parametrize(
    ("file", "name", "read", "called"),
    [
        (f"unet/{WEIGHTS}", "conv_in.weight", text_teacher, "U-Net"),
        (f"vae/{WEIGHTS}", "decoder.conv_in.weight", VAE, "VAE"),
        ("text_encoder/model.safetensors", "mlp.fc1.weight", None, "text encoder"),
    ],
)
def test_a_file_that_lacks_weights_is_refused(file, name, read, called, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    gone = without(folder, file, name)
    (tmp_path / "prompts.txt").write_text("a seven")
    with pytest.raises(UserError, match=f"the {called} in .* lacks .*{gone[-20:]}, which is not as its config.json describes it"):
        read(str(folder)) if read else encode_prompts(tmp_path / "prompts.txt", str(folder), tmp_path / "out")


def test_a_file_with_low_rank_changes_beside_the_weights_is_refused(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    state = {name: tensor.contiguous() for name, tensor in unet.state_dict().items()}
    save_file(state, folder / "unet" / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=r"has low-rank adapters \(LoRA\) beside its weights .*; fuse them into it"):
        text_teacher(str(folder))


@pytest.mark.parametrize(
    ("part", "stem", "read"),
    [("unet", "diffusion_pytorch_model", text_teacher), ("vae", "diffusion_pytorch_model", VAE), ("text_encoder", "model", None)],
)
@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (
            ".fp16.safetensors",
            r"are only there as the variant fp16; load the pipeline by diffusers with variant='fp16', write it by save_pre",
        ),
        (".fp16-00001-of-00002.safetensors", "are only there as the variant fp16; load"),
        (".bin", "are only there as .bin, which can run code, and is not read; load the pipeline by diffusers, write it"),
        (".txt", "there are no weights in .*; take a whole copy of the model"),
    ],
)
def test_weights_in_other_files_are_named(part, stem, read, ending, said, model, tmp_path, capsys):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}{ending}")
    (tmp_path / "prompts.txt").write_text("a seven")
    with pytest.raises(UserError, match=said) as caught:
        read(str(folder)) if read else encode_prompts(tmp_path / "prompts.txt", str(folder), tmp_path / "out")
    assert f"in {folder / part} " in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not capsys.readouterr().err
