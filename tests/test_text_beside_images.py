"""Text to image beside images with captions, which a discriminator learns from, and pairs of the teacher, which a student begins with."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from fewstep.build import load_data, make_method
from fewstep.data.prompt_table import PromptTable
from fewstep.data.teacher_samples import PAIRS
from fewstep.errors import UserError
from fewstep.generator import load
from fewstep.interop.latent_folder import encode_captioned
from fewstep.interop.teacher_samples import draw_teacher_samples
from fewstep.interop.text_teacher import text_teacher
from fewstep.methods.base import Batch
from fewstep.pipelines.encoders import encode_prompts
from fewstep.pipelines.vae import VAE
from fewstep.streams import stream_seed
from fewstep.training.checkpoint import checkpoints
from text_models import place, records, settings, trained

CAPTIONS = ("a seven", "two,  thin", "five")


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return place(tmp_path_factory.mktemp("sd"), "sd")


def pictures(num, side=16):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(num)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty images in a folder, with their captions in a table beside them."""
    folder = tmp_path_factory.mktemp("captioned")
    rows = ["file_name,text"]
    for number, picture in enumerate(pictures(30)):
        picture.save(folder / f"{number:02}.png")
        rows.append(f'{number:02}.png,"{CAPTIONS[number % 3]}"')
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def captioned(folder, sd, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoded") / "out"
    encode_captioned(str(folder), sd.model, out)
    return out


def data_of(sd, folder):
    return load_data(settings(sd, f"data.path={folder}").data)


def test_each_image_comes_with_the_row_of_its_caption(sd, folder, captioned):
    data = data_of(sd, captioned)
    assert data.table.texts == ["a seven", "two, thin", "five"]  # white space made one blank
    assert (data.train_size, data.heldout_size, data.num_classes) == (27, 3, 3)
    latents, rows = data.batch(torch.arange(27), torch.Generator(), torch.device("cpu"))
    # which image is which, its own latents tell
    own = VAE(sd.model).encoded(torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures(30)]) / 127.5 - 1)
    nearest = torch.cdist(latents.flatten(1), own.flatten(1)).argmin(1)
    assert len(set(nearest.tolist())) == 27
    assert torch.equal(rows, nearest % 3)
    torch.testing.assert_close(latents, own[nearest], rtol=2e-3, atol=1e-3)
    assert torch.equal(data.excerpt().train_label, rows)


def test_the_same_from_parquet_with_a_split_of_its_own(sd, captioned, tmp_path, done, mistake):
    def table(some):
        encoded = []
        for number, picture in some:
            picture.save(tmp_path / "one.png")
            encoded.append({"image": {"bytes": (tmp_path / "one.png").read_bytes(), "path": None}, "what": f"number {number}", "more": "x"})
        return pa.Table.from_pylist(encoded)

    numbered = list(enumerate(pictures(8)))
    (tmp_path / "data").mkdir()
    pq.write_table(table(numbered[:6]), tmp_path / "data" / "train-0.parquet")
    pq.write_table(table(numbered[6:]), tmp_path / "data" / "test-0.parquet")
    arguments = ("encode", tmp_path / "data", "--images", "--captions", "--model", sd.model, "--out", tmp_path / "out")
    assert "of which none is called a prompt; name one by --column" in mistake(*arguments)
    out = done(*arguments, "--column", "what").out
    assert "prompts: 8 different ones" in out
    assert "images: 6 to train on, 2 held out, each with its prompt" in out
    data = data_of(sd, tmp_path / "out")
    assert data.batch(torch.arange(6), torch.Generator(), torch.device("cpu"))[1].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.excerpt().heldout_label.tolist() == [6, 7]  # which nothing is trained on, and which are encoded


def test_what_will_not_do(sd, folder, captioned, tmp_path, mistake):
    arguments = ("--images", "--captions", "--model", sd.model, "--out", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    pictures(1)[0].save(tmp_path / "bare" / "a.png")
    assert "holds images and no captions; put metadata.csv there" in mistake("encode", tmp_path / "bare", *arguments)
    (tmp_path / "nothing").mkdir()
    said = mistake("encode", tmp_path / "nothing", *arguments)
    assert f"the first argument is {str(tmp_path / 'nothing')!r}, which holds no images and no captions" in said
    (tmp_path / "bare" / "metadata.csv").write_text("file_name,text\na.png,\n")
    pictures(1)[0].save(tmp_path / "bare" / "b.png")
    (tmp_path / "bare" / "metadata.csv").write_text("file_name,text\na.png,seven\nb.png,\n")
    assert "1 image without a caption" in mistake("encode", tmp_path / "bare", *arguments)
    assert "--size is 8, of which the VAE of" in mistake("encode", folder, *arguments, "--size", "8")
    assert "--label-column is for classes" in mistake("encode", folder, *arguments, "--label-column", "text")
    assert "--captions is for images; add --images" in mistake("encode", sd.folder / "prompts.txt", *arguments[1:])
    plain = ("encode", folder, "--images", *arguments[2:])
    assert "--column is for prompts, and --images was given without --captions" in mistake(*plain, "--column", "text")
    assert not (tmp_path / "out").exists()


def test_another_vae_than_that_of_the_latents_is_noticed(sd, captioned, tmp_path, mistake):
    """Beside images and samples before anything is written, and where latents of a run are decoded; and so is a VAE that is missing."""
    model = shutil.copytree(sd.model, tmp_path / "model")
    mine = (f"method.teacher={model}", "steps=1", "trainer.sample_every=5")
    run = trained(sd, tmp_path / "run", *mine)
    drawn = shutil.copytree(sd.folder / "prompts", tmp_path / "drawn")
    draw_teacher_samples(drawn, 8, str(model), steps=1)
    vae = AutoencoderKL.from_pretrained(model / "vae")
    with torch.no_grad():
        vae.decoder.conv_in.weight += 0.1
    vae.save_pretrained(model / "vae")
    for what, folder in (("images", captioned), ("samples", drawn)):
        with pytest.raises(
            UserError, match=rf"the {what} in .* are those of another VAE than method\.teacher=.* has; encode them into a new"
        ):
            trained(sd, tmp_path / "other", *mine, f"data.path={folder}")
    with pytest.raises(UserError, match=r"holds 8 samples in 1 steps with guidance scale 7\.5, of this model or another"):
        draw_teacher_samples(drawn, 8, str(model), steps=1)
    told = f"the VAE of {model} is not the one whose latents these are; restore the former one"
    assert told in mistake("sample", run, "--prompt", "a seven", "--out", tmp_path / "a.png")
    config = json.loads((run / "model" / "config.json").read_text())
    del config["latents"]["vae"]  # as in runs that were trained before it was recorded
    (run / "model" / "config.json").write_text(json.dumps(config))
    assert load(run).to_pil(load(run).sample(1, prompts="a seven"))
    shutil.rmtree(model / "vae")
    with pytest.raises(UserError, match=r"there is no vae in .*, whose latents these are; put the whole pipeline there"):
        trained(sd, tmp_path / "other", *mine)
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "a.png").exists()


def test_a_discriminator_on_a_transformer_and_a_flow_that_begins_by_regression(folder, tmp_path):
    """SD 3's form: the heads see what its first half makes of an image, of which there is one level."""
    here = place(tmp_path / "sd3", "sd3")
    encode_captioned(str(folder), here.model, tmp_path / "out")
    draw_teacher_samples(tmp_path / "out", 8, here.model, steps=2, use=PAIRS)
    once = ("batch_size=16", "method.sampler_steps=1", "method.loss=dmd", f"data.path={tmp_path / 'out'}", "trainer.sample_every=7")
    found = records(trained(here, tmp_path / "run", "method.gan=true", "method.regression=0.4", *once))
    assert all("guidance.gan" in record for record in found)
    assert "generator.regression" in found[0]
    assert "generator.gan" in found[4]  # the last turn of the generator
    with pytest.raises(UserError, match="gan_levels"):
        trained(here, tmp_path / "two", "method.gan=true", "method.gan_levels=2", *once)


def test_a_discriminator_learns_from_images_with_their_captions(sd, captioned, tmp_path, mistake):
    gan = ("method.gan=true", "batch_size=16", "method.gan_levels=2", "method.sampler_steps=1", "method.loss=dmd", f"data.path={captioned}")
    whole = trained(sd, tmp_path / "whole", *gan)
    assert all("guidance.gan" in record for record in records(whole))
    seen = {key for record in records(whole) for key in record}
    assert {"generator.gan", "health.spread", "health.shift"} <= seen  # samples are held beside the images
    stopped = shutil.copytree(whole, tmp_path / "stopped")
    shutil.rmtree(checkpoints(stopped / "checkpoints")[0])
    trained(sd, stopped, *gan, resume=True)
    assert records(stopped) == records(whole)
    # real items and their labels belong together, and what is made is told the same prompts
    recipe = settings(sd, *gan)
    data = load_data(recipe.data)
    method, seen = make_method(recipe, data), []
    method.critic.logits = lambda networks, x, s, label, told: seen.append(label) or torch.zeros(len(x), 2, requires_grad=True)
    latents, rows = data.batch(torch.arange(4), torch.Generator(), torch.device("cpu"))
    rng, scratch = torch.Generator().manual_seed(0), {}
    for turn in ("generator", "guidance"):
        method.loss(turn, method.networks, Batch(latents, rows), rng, scratch)
    assert len(seen) == 3
    assert all(torch.equal(label, rows) for label in seen)
    assert f"{data.images.name} has 3 images held out; measuring needs 5" in mistake("evaluate", whole, "-n", "20")


def test_a_run_is_measured_beside_held_out_images(sd, tmp_path, done):
    rows = ["file_name,text"]
    (tmp_path / "many").mkdir()
    for number, picture in enumerate(pictures(80)):
        picture.save(tmp_path / "many" / f"{number:02}.png")
        rows.append(f'{number:02}.png,"{CAPTIONS[number % 3]}"')
    (tmp_path / "many" / "metadata.csv").write_text("\n".join(rows))
    encode_captioned(str(tmp_path / "many"), sd.model, tmp_path / "out")
    run = trained(sd, tmp_path / "run", f"data.path={tmp_path / 'out'}", "steps=2", "trainer.sample_every=9")
    said = done("evaluate", run, "-n", "20").out
    assert "to 8 held-out images in the features pixels-8x8; floor: FD of the real train split" in said
    results = json.loads((run / "results.json").read_text())
    assert [row["role"] for row in results["rows"].values()] == ["floor", "teacher", "teacher", "own"]


@pytest.fixture(scope="module")
def paired(sd, tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs") / "out"
    encode_prompts(sd.folder / "prompts.txt", sd.model, out)
    draw_teacher_samples(out, 70, sd.model, steps=3, guidance_scale=2.0, use=PAIRS)
    return out


def test_a_pair_is_noise_and_what_the_teacher_makes_of_it(sd, paired):
    pairs = data_of(sd, paired).pairs
    assert len(pairs) == 70
    index = torch.tensor([2, 66])
    assert pairs.rows[index].tolist() == [2, 66 % 5]
    teacher = text_teacher(sd.model, prompts=PromptTable(paired))
    seeds = [stream_seed(0, "pairs", number) for number in index.tolist()]
    found = teacher.sample(2, pairs.rows[index], seeds, 3, guidance_scale=2.0)
    torch.testing.assert_close(pairs.latents(index), found, rtol=2e-3, atol=1e-3)
    # one Euler step from that noise is one evaluation there
    first = teacher.sample(2, pairs.rows[index], seeds, 1, guidance_scale=1.0)
    with torch.no_grad():
        sigma = teacher.sigmas(1)[0].float()
        by_hand = teacher.denoiser(pairs.noise(index) * sigma, sigma, pairs.rows[index])
    torch.testing.assert_close(first, by_hand, rtol=1e-2, atol=1e-2)


def test_a_student_learns_pairs_first(sd, paired, tmp_path):
    more = (f"data.path={paired}", "method.sampler_steps=1", "method.sampler_timesteps=[399]", "method.regression=0.5", "method.loss=dmd")
    run = trained(sd, tmp_path / "run", *more, "steps=12")
    found = records(run)
    assert [record["step"] for record in found if "generator.regression" in record] == [1, 3, 5]
    assert [record["step"] for record in found if "generator.dm" in record] == [7, 9, 11]
    recipe = settings(sd, *more, "method.lora=null")
    method = make_method(recipe, load_data(recipe.data))
    rng, batch = torch.Generator().manual_seed(0), Batch(torch.zeros(4, 4, 8, 8), torch.arange(4))
    scratch = {}
    method.loss("generator", method.networks, batch, rng, scratch)
    assert not scratch  # the fake network is told of its own samples, for these are of other prompts
    pairs, network = method.pairs, method.networks["generator"]
    everything = torch.arange(len(pairs))

    def distance():
        start = method.generate.start * pairs.noise(everything)
        return (network(start, torch.tensor(method.sigmas[0]), pairs.rows) - pairs.latents(everything)).square().mean()

    optimizer, before = torch.optim.AdamW(network.parameters(), 0.01), distance().item()
    for _ in range(40):
        optimizer.zero_grad()
        method.loss("generator", method.networks, batch, rng, {}).loss.backward()
        optimizer.step()
    assert distance().item() < 0.8 * before  # a network of random weights has far to go


def test_pairs_that_are_not_there(sd, paired, tmp_path, mistake, done):
    with pytest.raises(
        UserError, match=r"method.regression is 0.5, and the data prompts has no pairs of the teacher; draw some with fewstep"
    ):
        trained(sd, tmp_path / "run", "method.sampler_steps=1", "method.regression=0.5")
    with pytest.raises(UserError, match=r"regression is 0\.5, for students of one step; with sampler_steps 2 give 0"):
        settings(sd, "method.regression=0.5")
    arguments = ("encode", sd.folder / "prompts.txt", "--model", sd.model, "--out", tmp_path / "out", "--steps", "1")
    assert "drawn: 3 pairs of the model, in 1 steps with guidance scale 7.5" in done(*arguments, "--pairs", "3").out
    assert "--pairs is 0; give at least 1" in mistake(*arguments, "--pairs", "0")
    (tmp_path / "out" / "pairs.json").write_text("{}")
    with pytest.raises(UserError, match=r"pairs.json cannot be read .*fewstep encode --pairs"):
        data_of(sd, tmp_path / "out")
