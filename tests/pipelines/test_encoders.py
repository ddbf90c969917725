"""Prompts encoded by a pipeline's own encoders: what stock pipelines sample with, resumable, and refused where something is amiss."""

import json
import shutil

import diffusers
import pytest
import torch
import transformers

from fewstep import files
from fewstep.data import prompt_table
from fewstep.data.errors import DataError
from fewstep.data.prompt_table import MANIFEST, PromptTable
from fewstep.errors import UserError
from fewstep.files import held_folder
from fewstep.pipelines import encoders
from fewstep.pipelines.encoders import encode_prompts
from fewstep.pipelines.folder import latents_shape
from text_models import make

PROMPTS = "a photo of a seven\n\ntwo, thin\na photo of a seven\nfive\n" + "x" * 200 + "\n"
TEXTS = ["a photo of a seven", "two, thin", "five", "x" * 200]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """``pipelines[form]``: (folder, pipeline) of each form; that of "t5" is SD 3's with its third encoder."""
    folder = tmp_path_factory.mktemp("models")
    found = {form: (folder / form, make(folder / form, form)) for form in ("sd", "sdxl", "sd3")}
    return {**found, "t5": (folder / "t5", make(folder / "t5", "sd3", third=True))}


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS)
    return path


@pytest.mark.parametrize("form", ["sd", "sdxl", "sd3", "t5"])
def test_rows_are_what_the_stock_pipeline_tells_its_network(form, pipelines, prompts, tmp_path):
    folder, pipeline = pipelines[form]
    said = []
    manifest = encode_prompts(prompts, str(folder), tmp_path / "out", say=said.append)
    assert (manifest.num, manifest.repeated, manifest.blank, manifest.cut) == (4, 1, 1, 1)
    assert said == [
        f"1 of 4 prompts have more than the 77 tokens that the encoder sees, and were cut; the first is line 6 ('{'x' * 40}'...)"
    ]
    table = PromptTable(tmp_path / "out", check=True)
    assert table.texts == TEXTS
    assert len(table) == 4
    hidden, pooled = table.rows(torch.tensor([3, 0, 4]))
    with torch.no_grad():
        expected = pipeline.encode_prompt(
            [TEXTS[3], TEXTS[0]],
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            **({"prompt_2": None, "prompt_3": None} if form in ("sd3", "t5") else {}),
        )
    assert hidden.dtype == torch.float16
    torch.testing.assert_close(hidden[:2].float(), expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(hidden[2].float(), expected[1][0], rtol=1e-3, atol=1e-3)  # what guidance leans away from
    if form == "sd":
        assert pooled is None
    else:
        torch.testing.assert_close(pooled[:2].float(), expected[2], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(pooled[2].float(), expected[3][0], rtol=1e-3, atol=1e-3)
    if form == "sdxl":
        assert not hidden[2].any()
        assert not pooled[2].any()
    # latents of 8, and a VAE that halves once
    assert manifest.time_ids == ((16, 16, 0, 0, 16, 16) if form == "sdxl" else None)
    assert manifest.latents == ((16, 8, 8) if form in ("sd3", "t5") else (4, 8, 8))
    if form in ("sd3", "t5"):  # after what CLIP says comes what T5 does, which sees 256 tokens, or zeros, of which diffusers 0.34 has 77
        assert hidden.shape == (3, 77 + 256 if form == "t5" else expected[0].shape[1], 72)
        assert hidden[:, 77:].any() == (form == "t5")


def test_a_file_holds_fewer_rows_where_they_are_large(pipelines, prompts, tmp_path, monkeypatch):
    assert prompt_table.rows_of_a_file(77, 2048) == 1024
    assert prompt_table.rows_of_a_file(333, 4096) == 196  # of SD 3, and so half a GB
    folder, _ = pipelines["t5"]
    encode_prompts(prompts, str(folder), tmp_path / "whole")
    monkeypatch.setattr(prompt_table, "MOST", 3 * 333 * 72 + 5)
    encode_prompts(prompts, str(folder), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("rows-*")) == ["rows-00000.safetensors", "rows-00001.safetensors"]
    found, label = PromptTable(tmp_path / "out", check=True), torch.tensor([3, 0, 2, 4, 1])
    monkeypatch.undo()
    for one, other in zip(found.rows(label), PromptTable(tmp_path / "whole").rows(label), strict=True):
        assert torch.equal(one, other)


def test_a_prompt_is_encoded_the_same_in_any_company(pipelines, prompts, tmp_path):
    folder, _ = pipelines["sd"]
    alone = tmp_path / "alone.txt"
    alone.write_text("five")
    encode_prompts(prompts, str(folder), tmp_path / "all")
    encode_prompts(alone, str(folder), tmp_path / "one")
    together, single = PromptTable(tmp_path / "all"), PromptTable(tmp_path / "one")
    torch.testing.assert_close(together.rows(torch.tensor([2]))[0], single.rows(torch.tensor([0]))[0], rtol=2e-3, atol=2e-3)


def test_what_was_stopped_goes_on_and_ends_as_what_was_not(pipelines, prompts, tmp_path, monkeypatch):
    folder, _ = pipelines["sdxl"]
    monkeypatch.setattr(prompt_table, "CHUNK", 2)
    encode_prompts(prompts, str(folder), tmp_path / "whole")
    calls, call = [], encoders.Encoder.__call__

    def stopped(self, texts, *told):
        calls.append(list(texts))
        if TEXTS[3] in texts:
            raise KeyboardInterrupt
        return call(self, texts, *told)

    with monkeypatch.context() as patch:
        patch.setattr(encoders.Encoder, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            encode_prompts(prompts, str(folder), tmp_path / "out")
    with pytest.raises(DataError, match="holds an encoding that was stopped; the same command goes on"):
        PromptTable(tmp_path / "out")
    (tmp_path / "out" / ".rows-00001.safetensors.1.partial").write_bytes(b"half")
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(encoders.Encoder, "__call__", lambda self, texts, *told: (calls.append(list(texts)), call(self, texts, *told))[1])
        encode_prompts(prompts, str(folder), tmp_path / "out")
    assert TEXTS[:2] not in calls  # they were done
    assert TEXTS[2:] in calls
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_is_done_is_checked_and_left_and_nothing_else_is_written_over(pipelines, prompts, tmp_path, monkeypatch):
    out, folder = tmp_path / "out", str(pipelines["sd"][0])
    encode_prompts(prompts, folder, out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(encoders, "Encoder", None)  # which is not asked
        said = []
        encode_prompts(prompts, folder, out, say=said.append)
        assert said == [f"{out} holds these prompts already, encoded by the same model"]
    with pytest.raises(UserError, match=r"--out is .*out, which holds encodings of another model's encoders; give a new folder"):
        encode_prompts(prompts, str(pipelines["sdxl"][0]), out)
    prompts.write_text("one")
    with pytest.raises(UserError, match=r"holds encodings of other prompts"):
        encode_prompts(prompts, folder, out)
    with pytest.raises(UserError, match=r"holds something already; give an empty folder"):
        encode_prompts(prompts, folder, tmp_path)
    prompts.write_text(PROMPTS)
    with held_folder(out), pytest.raises(UserError, match=r"is encoding into .*; wait for it or stop it, and then give the same command"):
        encode_prompts(prompts, folder, out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda out: (out / MANIFEST).write_text("{"), r"manifest.json cannot be read"),
        (lambda out: (out / MANIFEST).write_text("[]"), r"it is of another version"),
        (lambda out: (out / "null.safetensors").unlink(), r"null.safetensors cannot be read"),
        (lambda out: (out / "rows-00000.safetensors").write_bytes(b"1"), r"rows-00000.safetensors cannot be read"),
        (lambda out: shutil.copy(out / "null.safetensors", out / "rows-00000.safetensors"), "does not hold the 4 rows that manifest.json"),
        (lambda out: (out / "prompts.jsonl").write_text('"one"\n' * 4), "prompts.jsonl is not the file that manifest.json names"),
    ],
)
def test_a_damaged_table_is_told(damage, said, pipelines, prompts, tmp_path):
    encode_prompts(prompts, str(pipelines["sd"][0]), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(DataError, match=said):
        PromptTable(tmp_path / "out")


def test_a_byte_that_changed_is_found_where_all_is_checked(pipelines, prompts, tmp_path):
    encode_prompts(prompts, str(pipelines["sd"][0]), tmp_path / "out")
    file = tmp_path / "out" / "rows-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    PromptTable(tmp_path / "out")
    with pytest.raises(DataError, match="is not the file that"):
        PromptTable(tmp_path / "out", check=True)
    with pytest.raises(UserError, match="encode the prompts anew"):
        encode_prompts(prompts, str(pipelines["sd"][0]), tmp_path / "out")


def test_rows_that_are_not_there(pipelines, prompts, tmp_path):
    encode_prompts(prompts, str(pipelines["sd"][0]), tmp_path / "out")
    table = PromptTable(tmp_path / "out")
    for row in (-1, 5):
        with pytest.raises(ValueError, match=f"there is no row {row}; there are 4, and 4 itself stands for no prompt"):
            table.rows(torch.tensor([row]))


def changed(folder, to, change):
    """A copy of a pipeline's folder whose model_index.json is changed."""
    shutil.copytree(folder, to)
    index = json.loads((to / "model_index.json").read_text())
    change(index)
    (to / "model_index.json").write_text(json.dumps(index))
    return str(to)


def test_a_model_that_will_not_do(pipelines, prompts, tmp_path):
    folder = pipelines["sd"][0]
    out = tmp_path / "out"
    cases = [
        (str(tmp_path / "nowhere"), r"--model is .*, which is no folder, and no Hub id"),
        (str(tmp_path), r"holds no pipeline"),
        (changed(folder, tmp_path / "a", lambda index: index.update(_class_name="FluxPipeline")), r"is a FluxPipeline; prompts can be"),
        (changed(folder, tmp_path / "b", lambda index: index.update(text_encoder=[None, None])), r"without its text_encoder, which"),
        (
            changed(folder, tmp_path / "c", lambda index: None),
            r"there are no weights in .*text_encoder \(.*\); take a whole copy",
        ),
    ]
    (tmp_path / "c" / "text_encoder" / "model.safetensors").unlink()
    for model, said in cases:
        with pytest.raises(UserError, match=said):
            encode_prompts(prompts, model, out)
        assert not (out / MANIFEST).exists()
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize(
    ("gone", "what"),
    [
        # transformers below 5 refuses to read such a tokenizer
        (
            ["vocab.json", "merges.txt", "tokenizer.json"],
            "the tokenizer_2 of .* has no vocabulary; take a whole|cannot be read .*; take another",
        ),
        (["tokenizer_config.json"], r"tokenizer_2 of .* has no model_max_length in tokenizer_config\.json; take a whole"),
    ],
)
def test_a_tokenizer_that_would_be_made_up_is_refused(gone, what, pipelines, prompts, tmp_path):
    """An empty vocabulary would turn each prompt into the same tokens."""
    folder = shutil.copytree(pipelines["sdxl"][0], tmp_path / "model")
    for name in gone:
        (folder / "tokenizer_2" / name).unlink(missing_ok=True)  # transformers below 5 has written no tokenizer.json
    with pytest.raises(UserError, match=rf"({what}) copy"):
        encode_prompts(prompts, str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()  # a whole copy has other encoders, and could not go on there


def test_an_index_without_a_kind_is_said_as_that(pipelines, prompts, tmp_path):
    folder = shutil.copytree(pipelines["sd"][0], tmp_path / "model")
    for content in ("[]", "{}"):
        (folder / "model_index.json").write_text(content)
        with pytest.raises(UserError, match="does not say what kind of pipeline it is"):
            encode_prompts(prompts, str(folder), tmp_path / "out")


def test_without_transformers_that_is_a_sentence(pipelines, prompts, tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def missing(name, *rest):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"which is not installed: pip install 'fewstep\[text\]'"):
        encode_prompts(prompts, str(pipelines["sd"][0]), tmp_path / "out")


def test_numbers_that_half_precision_cannot_hold(pipelines, prompts, tmp_path):
    folder, _ = pipelines["sd"]
    copied = tmp_path / "model"
    shutil.copytree(folder, copied)
    from safetensors.torch import load_file, save_file

    file = copied / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    name = next(key for key in weights if key.endswith("final_layer_norm.weight"))
    save_file({**weights, name: weights[name] * 1e6}, file, {"format": "pt"})
    with pytest.raises(UserError, match="numbers that half precision cannot hold"):
        encode_prompts(prompts, str(copied), tmp_path / "out")


def test_the_command_says_what_it_did(pipelines, prompts, done, command, tmp_path):
    out = tmp_path / "out"
    outcome = done("encode", prompts, "--model", pipelines["sdxl"][0], "--out", out)
    assert outcome.out.splitlines() == [
        "prompts: 4 different ones (1 repeated, 1 blank left out), each encoded as 77 tokens of 64 numbers and a pooled vector of 32",
        f"encoded: {out}",
    ]
    assert "1 of 4 prompts have more than the 77 tokens" in outcome.err
    failed = command("encode", tmp_path / "none.txt", "--model", pipelines["sdxl"][0], "--out", out)
    assert failed.code == 2
    assert failed.err.startswith("error: there is no file ")


def test_the_size_of_sdxl_is_not_guessed(pipelines, prompts, tmp_path):
    for file in ("unet/config.json", "vae/config.json"):
        copied = changed(pipelines["sdxl"][0], tmp_path / file[:3], lambda index: None)
        (tmp_path / file[:3] / file).unlink()
        with pytest.raises(UserError, match="does not say what size its images have"):
            encode_prompts(prompts, copied, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "part"), [("StableDiffusionPipeline", "unet"), ("StableDiffusion3Pipeline", "transformer")])
def test_a_model_without_the_size_of_its_latents_is_told_which_file_has_it(kind, part, tmp_path):
    with pytest.raises(UserError, match=rf"does not say what size its latents have .*: {part}/config\.json does"):
        latents_shape(tmp_path, kind)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_that_a_user_has_switched_off_stay_off(shown):
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [library.is_progress_bar_enabled() for library in libraries]
    try:
        for library in libraries:
            (library.enable_progress_bar if shown else library.disable_progress_bar)()
        with encoders.quiet():
            assert not any(library.is_progress_bar_enabled() for library in libraries)
        assert all(library.is_progress_bar_enabled() is shown for library in libraries)
    finally:
        for library, was in zip(libraries, before, strict=True):
            (library.enable_progress_bar if was else library.disable_progress_bar)()


@pytest.mark.parametrize("name", ["prompts.jsonl", "null.safetensors", "rows-00000.safetensors", "manifest.json"])
def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(name, pipelines, prompts, tmp_path, monkeypatch):
    whole_file = files.whole_file

    def full(path):
        if path.name == name:
            raise OSError(28, "No space left on device")
        return whole_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "whole_file", full)
        with pytest.raises(UserError, match=rf"{name} cannot be written \(No space left on device\); free some space"):
            encode_prompts(prompts, str(pipelines["sd"][0]), tmp_path / "out")
    assert encode_prompts(prompts, str(pipelines["sd"][0]), tmp_path / "out").num == 4
