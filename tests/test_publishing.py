"""What is published of a text-to-image student: where it comes from by the Hub's names, and nothing of the machine it was made on."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import hub_mixin, metadata_load

from fewstep import hub
from fewstep.data.prompt_table import PromptTable
from fewstep.errors import UserError
from fewstep.generator import load
from fewstep.interop.export import export
from fewstep.interop.text_teacher import text_teacher
from fewstep.licences import licence_in
from fewstep.pipelines.vae import VAE, vae_id
from fewstep.publishing import public_name
from fewstep.recipe import load_recipe
from fewstep.run import train
from text_models import RECIPE, TEXTS, make, place, trained

ID, COMMIT = "own/there", "0123abc"
SMALL = ("steps=1", "method.sampler_steps=1", "method.loss=dmd", "trainer.sample_every=5")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of the Hub with own/there, whose main branch is another model than its revision v2."""
    folder = tmp_path_factory.mktemp("cache")
    repository = folder / "models--own--there"
    (repository / "refs").mkdir(parents=True)
    for seed, (ref, commit) in enumerate((("main", "456def"), ("v2", COMMIT))):
        make(repository / "snapshots" / commit, "sd", seed=seed)
        (repository / "snapshots" / commit / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# A model\n")
        (repository / "refs" / ref).write_text(commit)
    return folder


@pytest.fixture
def offline(cache, monkeypatch, tmp_path):
    """The Hub is not asked, and its cache is `cache`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)


def card_of(folder):
    return metadata_load(folder / "README.md")


def pushed(generator, to, monkeypatch):
    """The files that ``push_to_hub`` would send, in the folder `to`."""

    class Api:
        def __init__(self, *told, **more):
            pass

        def create_repo(self, repo_id, **more):
            return type("Made", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path, **more):
            shutil.copytree(folder_path, to)
            return "address"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    assert generator.push_to_hub("me/mine") == "address"
    return to


def without_paths(folder, *places):
    """Whether no text file in `folder` names one of `places`."""
    texts = [file.read_text() for file in folder.rglob("*") if file.suffix in (".json", ".md", ".txt")]
    return texts and not any(str(place) in text for text in texts for place in places)


def test_a_revision_goes_with_all_that_is_made_of_it(offline, cache, tmp_path, monkeypatch, done, mistake):
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    arguments = ("encode", tmp_path / "prompts.txt", "--model", ID, "--out", tmp_path / "prompts")
    assert "drawn: 4 samples of the model" in done(*arguments, "--revision", "v2", "--samples", "4", "--steps", "1").out
    told = json.loads((tmp_path / "prompts" / "manifest.json").read_text())
    assert (told["model"], told["revision"]) == (f"{ID}@v2", "v2")
    folders = {ref: cache / "models--own--there" / "snapshots" / commit for ref, commit in (("main", "456def"), ("v2", COMMIT))}
    ours, other = (text_teacher(str(folders[ref]), prompts=PromptTable(tmp_path / "prompts")) for ref in ("v2", "main"))
    drawn = json.loads((tmp_path / "prompts" / "teacher.json").read_text())
    assert drawn["weights"] == ours.base.weights != other.base.weights
    assert "another model's encoders" in mistake(*arguments)  # of its main branch
    twice = (*arguments[:3], f"{ID}@v2", *arguments[4:], "--revision", "v3")
    assert "--revision is 'v3', and --model own/there@v2 names the revision 'v2'; leave one of them out" in mistake(*twice)
    assert "`hf download own/there --revision v3 --local-dir FOLDER`" in mistake(*arguments[:-1], tmp_path / "x", "--revision", "v3")
    assert VAE(f"{ID}@v2").id == vae_id(str(folders["v2"])) != VAE(ID).id
    # a student of that revision: the run names it, and finds it again
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), [f"method.teacher={ID}@v2", f"data.path={tmp_path / 'prompts'}", *SMALL])
    run = train(recipe, tmp_path / "run")
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["base"]["model"] == config["latents"]["model"] == f"{ID}@v2"
    assert load(run).sample(1, prompts="a seven").isfinite().all()
    with pytest.raises(UserError, match="has other text encoders"):
        train(recipe.model_copy(update={"method": recipe.method.model_copy(update={"teacher": ID})}), tmp_path / "main")
    # what is exported and published
    export(run, "diffusers", tmp_path / "lora")
    card = card_of(tmp_path / "lora")
    assert (card["base_model"], card["base_model_relation"], card["license"]) == (ID, "adapter", "creativeml-openrail-m")
    assert {"lora", "diffusers"} <= set(card["tags"])
    assert card["pipeline_tag"] == "text-to-image"
    text = (tmp_path / "lora" / "README.md").read_text()
    assert "from_pretrained('own/there', safety_checker=None, requires_safety_checker=False, revision='v2').to(" in text
    assert without_paths(tmp_path / "lora", tmp_path, cache)
    assert "- network: text_unet, 14,564 parameters, and on it low-rank adapters (LoRA) of rank 3, 7,500\n" in text
    found = pushed(load(run), tmp_path / "hub", monkeypatch)
    assert without_paths(found, tmp_path, cache)
    card = card_of(found)
    assert (card["base_model"], card["base_model_relation"], card["license"]) == (ID, "adapter", "creativeml-openrail-m")
    assert {"lora", "fewstep"} <= set(card["tags"])
    again = load(found)
    assert torch.equal(again.sample(1, seed=0, prompts="a seven"), load(run).sample(1, seed=0, prompts="a seven"))
    # a whole pipeline is no adapter
    export(run, "diffusers", tmp_path / "whole", fuse=True)
    card = card_of(tmp_path / "whole")
    assert (card["base_model"], card["base_model_relation"]) == (ID, "finetune")
    assert "lora" not in card["tags"]
    assert "- network: text_unet, 14,564 parameters\n" in (tmp_path / "whole" / "README.md").read_text()
    assert without_paths(tmp_path / "whole", tmp_path, cache)


def test_a_pipeline_in_a_folder_is_named_without_its_path(tmp_path, monkeypatch):
    """It has no Hub id and no licence, and none is invented; its own configs may name the folder that it was read from."""
    here = place(tmp_path / "here", "sd")
    for file in (Path(here.model) / "model_index.json", Path(here.model) / "vae" / "config.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "_name_or_path": f"{tmp_path}/before"}))
    run = trained(here, tmp_path / "run", *SMALL)
    assert json.loads((run / "model" / "config.json").read_text())["base"]["model"] == here.model  # where the run finds it
    for fuse in (False, True):
        export(run, "diffusers", tmp_path / f"out{fuse}", fuse=fuse)
        card = card_of(tmp_path / f"out{fuse}")
        assert not {"base_model", "base_model_relation"} & card.keys()
        assert card["license"] == "unknown"
        assert without_paths(tmp_path / f"out{fuse}", tmp_path)
    found = pushed(load(run), tmp_path / "hub", monkeypatch)
    assert without_paths(found, tmp_path)
    config = json.loads((found / "config.json").read_text())
    assert config["base"]["model"] == config["latents"]["model"] == "model"
    assert "prompts" not in config["info"]
    with pytest.raises(UserError, match=r"is based on the network of model, which cannot be loaded \(model is no folder, and no Hub id"):
        load(found)
    assert load(run).base.model == here.model  # what was published was a copy


def test_a_pipeline_in_half_precision_is_exported(tmp_path):
    """As SD 3's weights are on the Hub: transformers keeps text encoders in half precision, and diffusers reads its networks in full."""
    run = trained(place(tmp_path / "here", "sd", torch.float16), tmp_path / "run", *SMALL)
    assert export(run, "diffusers", tmp_path / "lora") < 1e-5


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("license: openrail++", "openrail++"),
        ("license: other\nlicense_name: stabilityai-ai-community", "stabilityai-ai-community"),
        ("license: other", "other"),
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("tags: [x]", None),
        ("license: [", None),
    ],
)
def test_the_licence_on_a_card(card, licence, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    assert licence_in(tmp_path / "nowhere", tmp_path) == licence


def test_names_without_folders(tmp_path):
    assert public_name("/home/me/models/sdxl") == "sdxl"
    assert public_name(str(tmp_path)) == tmp_path.name
    assert public_name("own/there@v2") == "own/there@v2"
    assert public_name("/home/me/.cache/huggingface/hub/models--own--there/snapshots/0123abc") == "own/there@0123abc"


def test_a_revision_in_the_name_of_a_model():
    assert hub.parted("own/there@v2") == ("own/there", "v2")
    assert hub.parted("own/there@refs/pr/1") == ("own/there", "refs/pr/1")
    assert hub.parted("own/there") == ("own/there", None)
    assert hub.parted("/home/me@work/x") == ("/home/me@work/x", None)
    assert [hub.is_model(text) for text in ("own/there@v2", "own/there@", "@v2", "there@v2", "./there@v2")] == [
        True,
        False,
        False,
        False,
        False,
    ]
