"""Agreement of samples with their prompts, against what transformers itself says of each pair."""

import copy
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPTokenizer

from fewstep.errors import UserError
from fewstep.pipelines.agreement import Agreement
from text_models import clip

TEXTS = ["a seven", "two, thin", "x" * 100]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, clip(folder)


def test_the_cosines_are_those_of_transformers(model):
    folder, stock = model
    pixels, rows = torch.rand(5, 3, 24, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.tensor([0, 1, 2, 1, 0])
    agreement, row = Agreement(str(folder), TEXTS), {}
    passed = list(agreement.listen(pixels.split(2), rows, row))
    assert torch.equal(torch.cat(passed), pixels)
    pictures = [Image.fromarray(((one.permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8)) for one in pixels]
    told = CLIPTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = stock(**told, pixel_values=CLIPImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt").pixel_values)
    cosines = found.logits_per_image / stock.logit_scale.exp()
    own, others = cosines[range(5), rows], cosines[range(5), (rows + 1) % 3]
    assert cosines.std() > 0.01
    assert row["prompt_agreement"] == pytest.approx(own.mean().item(), abs=1e-5)
    assert row["prompt_margin"] == pytest.approx((own - others).mean().item(), abs=1e-5)
    assert agreement.cut == 1


def test_weights_in_half_precision_are_computed_with_in_full(model, tmp_path):
    folder = shutil.copytree(model[0], tmp_path / "half")
    copy.deepcopy(model[1]).half().save_pretrained(folder)
    pixels, rows = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.tensor([0, 1])
    half, full = (Agreement(str(where), TEXTS).seen(pixels, rows)[0] for where in (folder, model[0]))
    torch.testing.assert_close(half, full, rtol=0, atol=0.02)


def test_a_clip_that_lacks_weights_is_refused(model, tmp_path):
    """transformers would fill them up at random."""
    folder = shutil.copytree(model[0], tmp_path / "less")
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"which cannot be read \(the CLIP model in .* lacks visual_projection"):
        Agreement(str(folder), TEXTS)


def test_grey_images_are_seen_as_three_equal_channels(model):
    agreement, rows = Agreement(str(model[0]), TEXTS), torch.tensor([0, 1])
    grey = torch.rand(2, 1, 16, 16) * 2 - 1
    for found, same in zip(agreement.seen(grey, rows), agreement.seen(grey.expand(-1, 3, -1, -1), rows), strict=True):
        assert torch.equal(found, same)


def test_what_is_no_clip_is_refused(model, tmp_path):
    with pytest.raises(UserError, match=r"--clip is '.*nowhere', which is no folder, and no Hub id"):
        Agreement(str(tmp_path / "nowhere"), TEXTS)
    with pytest.raises(UserError, match="which holds no model"):
        Agreement(str(tmp_path), TEXTS)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UserError, match="a model of the type 'siglip'; only CLIP's form is known"):
        Agreement(str(tmp_path), TEXTS)
    (tmp_path / "config.json").write_bytes((model[0] / "config.json").read_bytes())
    with pytest.raises(UserError, match="which cannot be read"):
        Agreement(str(tmp_path), TEXTS)
