"""Settings that are found from images or from a teacher: the right ones, said, recorded, and each still one's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fewstep import finding
from fewstep.build import load_data, make_method
from fewstep.data import probing
from fewstep.data.probing import probe
from fewstep.errors import UserError
from fewstep.finding import settled
from fewstep.recipe import load_recipe, resolved
from fewstep.recipe.older import at
from fewstep.training.run_folder import RunFolder

SMALL = ("network.channels=[8,16]", "network.groups=4", "network.head_dim=8", "steps=4", "batch_size=8", "trainer.checkpoint_every=2")


def written(folder: Path, sizes, mode: str = "RGB", classes=("ant", "bee"), num: int = 6, seed: int = 0) -> Path:
    """Random images in `folder`, `num` of each class, of the `sizes` (width, height) in turn."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for k in range(num):
            width, height = sizes[k % len(sizes)]
            pixels = rng.integers(0, 256, (height, width) if mode in ("L", "grey") else (height, width, 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            (image.convert("RGB") if mode == "grey" else image).save(folder / name / f"{k}.png")
    return folder


def found_in(folder: Path, *overrides: str) -> dict[str, object]:
    recipe, found = settled(load_recipe("teacher/images", (f"data.path={folder}", *overrides)))
    tree = resolved(recipe)
    assert "finds" not in tree
    assert all(at(tree, one.key) == one.value for one in found)
    return {one.key: one.value for one in found}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(28, 28)], 28),
        ([(8, 8)], 8),
        ([(9, 9)], 8),
        ([(33, 40)], 32),
        ([(64, 64)], 64),
        ([(40, 30), (31, 50), (200, 100)], 28),
        ([(300, 200), (90, 80)], 64),
        ([(50, 50)], 48),
        ([(4, 7)], 4),
    ],
)
def test_the_size_blows_no_image_up(sizes, expected, tmp_path):
    assert found_in(written(tmp_path / "d", sizes))["data.size"] == expected


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("grey", 1), ("RGB", 3)])
def test_grey_is_seen_in_the_pixels(mode, channels, tmp_path):
    folder = written(tmp_path / "d", [(12, 12)], mode)
    assert found_in(folder)["data.channels"] == channels
    one = folder / "ant" / "0.png"
    image = Image.open(one).convert("RGB")
    image.putpixel((3, 3), (10, 20, 30))  # a single coloured pixel is a colour
    image.save(one)
    assert found_in(folder)["data.channels"] == 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["fit", "stretch"])
def test_sigma_data_is_that_of_the_data_as_it_will_be_learned(resize, channels, tmp_path):
    folder = written(tmp_path / "d", [(20, 14), (14, 14)], num=12)
    overrides = (f"data.resize={resize}", f"data.channels={channels}", "data.size=10")
    recipe, found = settled(load_recipe("teacher/images", (f"data.path={folder}", *overrides)))
    data = load_data(recipe.data)
    whole = torch.cat([data.images("train"), data.images("heldout")])
    assert recipe.network.sigma_data == pytest.approx(whole.std(correction=0).item(), rel=0.02)
    assert not {"data.size", "data.channels"} & {one.key for one in found}


def test_a_thousand_of_many_images_are_looked_at(tmp_path, monkeypatch):
    folder = written(tmp_path / "d", [(8, 8)], "L", num=40)
    monkeypatch.setattr(probing, "LOOKED_AT", 7)
    seen = probe(str(folder))
    assert (seen.num, seen.looked_at) == (80, 7)


@pytest.mark.parametrize("resize", ["fit", "stretch", "none", "pad"])
def test_large_images_are_kept_small(resize, tmp_path, monkeypatch):
    folder = written(tmp_path / "d", [(200, 200)], num=40)
    monkeypatch.setattr(probing, "PIXELS", 200 * 200 * 70)
    seen = probe(str(folder))
    assert seen.looked_at == 70
    assert max(image.size[0] for image in seen.images) == probing.KEPT_SIDE
    assert set(seen.sides) == {200}
    assert 0 < seen.spread(200, 3, resize) < 1


VALUES = {
    "data.size": 6,
    "data.channels": 1,
    "network.sigma_data": 0.33,
    "network.patch": 2,
    "network.channels": [8, 24],
    "network.groups": 2,
    "network.head_dim": 4,
    "batch_size": 3,
    "method.optimizer.lr": 0.125,
    "method.optimizer.warmup": 7,
    "method.optimizer.weight_decay": 0.25,
    "method.sigma_mean": -0.5,
    "method.ema_decay": 0.75,
}


@pytest.mark.parametrize(
    ("size", "patch", "channels"), [(8, 1, [32, 64]), (20, 1, [48, 96]), (24, 2, [48, 96]), (28, 2, [48, 96]), (64, 2, [48, 96, 96])]
)
def test_larger_images_are_cut_into_patches(size, patch, channels, tmp_path):
    found = found_in(written(tmp_path / "d", [(size, size)], "L"))
    assert (found["network.patch"], found["network.channels"]) == (patch, channels)


def test_a_patch_that_is_given_has_widths_that_fit_it(tmp_path):
    found = found_in(written(tmp_path / "d", [(12, 12)]), "network.patch=6")
    assert found["network.channels"] == [64, 128]
    assert found_in(tmp_path / "d", "network.patch=4")["network.channels"] == [64]  # three places a side, which cannot be halved


@pytest.mark.parametrize(("size", "mean"), [(8, -0.6), (28, 1.0)])
def test_drawings_are_learned_at_high_noise(size, mean, tmp_path):
    """Strokes on an empty ground, and not noise of all shades, which stands for photographs."""
    folder, rng = tmp_path / "d", np.random.default_rng(0)
    for name in ("ant", "bee"):
        (folder / name).mkdir(parents=True)
        for k in range(6):
            pixels = rng.integers(0, 12, (size, size), dtype=np.uint8)
            pixels[:, : size // 4] = rng.integers(0, 256, (size, size // 4), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    assert found_in(folder)["method.sigma_mean"] == mean
    assert found_in(written(tmp_path / "other", [(28, 28)], "L"))["method.sigma_mean"] == -1.2


@pytest.mark.parametrize("key", load_recipe("teacher/images").finds)
def test_each_can_still_be_set(key, tmp_path):
    folder = written(tmp_path / "d", [(12, 12)])
    recipe, found = settled(load_recipe("teacher/images", (f"data.path={folder}", f"{key}={json.dumps(VALUES[key])}")))
    assert at(resolved(recipe), key) == VALUES[key]
    assert {one.key for one in found} == set(load_recipe("teacher/images").finds) - {key}


def test_a_section_that_is_given_whole_gives_its_keys(tmp_path):
    folder = written(tmp_path / "d", [(12, 12)])
    recipe = load_recipe("teacher/images", (f"data={{name: images, path: {folder}, size: 10}}", "network={name: dit, width: 16, heads: 2}"))
    recipe, found = settled(recipe)
    assert (recipe.data.size, recipe.network.width) == (10, 16)
    keys = {one.key for one in found}
    assert "data.channels" in keys
    assert "network.sigma_data" in keys
    assert not {"data.size", "network.channels", "network.groups"} & keys  # the other network has none to find


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64])
def test_every_network_that_is_found_can_be_made(size, channels, tmp_path):
    folder = written(tmp_path / "d", [(size, size)], "L" if channels == 1 else "RGB", num=2)
    recipe, _ = settled(load_recipe("teacher/images", (f"data.path={folder}", "data.holdout=0.5")))
    assert recipe.data.size <= size
    shape = (1, channels, recipe.data.size, recipe.data.size)
    data = load_data(recipe.data)
    with torch.device("meta"):  # shapes alone: no weights are drawn, and nothing is multiplied
        network = make_method(recipe, data).networks["denoiser"]
        assert network(torch.zeros(shape), torch.ones(1), None).shape == shape


@pytest.mark.parametrize("size", [4, 8, 32, 33, 64])
@pytest.mark.parametrize("num", [*range(1, 20), 63, 64, 127, 128, 255, 256, 257, 10**7])
def test_a_batch_is_at_most_half_of_what_there_is(num, size):
    batch, _ = finding._batch(size, num)
    assert 2 <= batch <= max(4, num // 2)
    assert batch & (batch - 1) == 0


@pytest.mark.parametrize("side", [1, 2, 3])
def test_images_of_a_pixel_are_named(side, tmp_path):
    with pytest.raises(UserError, match=rf"an image is {side} pixels? wide or high; take such images out, or give data.size"):
        found_in(written(tmp_path / "d", [(side, 9)]))


def test_images_all_of_one_colour_are_named(tmp_path):
    (tmp_path / "d").mkdir()
    for k in range(4):
        Image.new("L", (8, 8), 77).save(tmp_path / "d" / f"{k}.png")
    with pytest.raises(UserError, match="all one colour; there is nothing to learn"):
        found_in(tmp_path / "d")


def test_images_that_cannot_be_read_are_left_to_the_reading(tmp_path):
    folder = written(tmp_path / "d", [(8, 8)])
    (folder / "ant" / "0.png").write_bytes(b"no image")
    assert found_in(folder)["data.size"] == 8
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 12 images that were looked at can be read"):
        found_in(folder)


def test_other_sets_of_images_do_as_well_and_points_do_not():
    recipe, found = settled(load_recipe("teacher/images", ("data={name: digits}",)))
    assert recipe.network.sigma_data == pytest.approx(0.75, abs=0.02)
    assert recipe.network.channels == [32, 64]
    assert not [one.key for one in found if one.key.startswith("data.")]
    with pytest.raises(UserError, match="is 'unet'; with method teacher on points it must be"):
        load_recipe("teacher/images", ("data={name: toy, density: ring}",))


def test_parquet_is_looked_into(tmp_path):
    import datasets

    folder = written(tmp_path / "d", [(10, 10)], "L")
    rows = {"image": [{"bytes": path.read_bytes(), "path": None} for path in sorted(folder.rglob("*.png"))], "label": [0] * 6 + [1] * 6}
    table = datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}))
    table.to_parquet(tmp_path / "rows.parquet")
    assert probe(str(tmp_path / "rows.parquet")).num == 12
    assert found_in(tmp_path / "rows.parquet") == found_in(folder)


def test_what_was_found_is_said_and_recorded_and_gone_on_with(tmp_path, done, mistake):
    folder = written(tmp_path / "d", [(12, 12)], num=12)
    run = tmp_path / "run"
    train = ["train", "teacher/images", f"data={{name: images, path: {folder}}}", *SMALL, "--out", run]
    said = done(*train).err
    assert "found: data.size=12, as in all images" in said
    assert "found: network.sigma_data=" in said
    assert "found: batch_size" not in said  # that was given
    recorded = yaml.safe_load((run / "recipe.yaml").read_text())
    assert "finds" not in recorded
    assert recorded["data"]["size"] == 12
    written(tmp_path / "d" / "more", [(8, 8)], "L")  # other images would give another size: the run keeps its own
    assert RunFolder(run).recipe() == recorded
    recipe, found = settled(load_recipe("teacher/images", (f"data={{name: images, path: {folder}}}", *SMALL)), RunFolder(run))
    recorded["trainer"]["precision"] = "auto"  # what was chosen is recorded
    assert resolved(recipe) == {key: value for key, value in recorded.items() if key not in ("format", "made_by")}
    assert all("as the run in" in one.reason for one in found)
    assert "data.size was 12, now 10" in mistake(*train, "data.size=10", "--resume")


@pytest.mark.parametrize("data", ["{name: digits}", "{name: photos, stride: 32, size: 8}"])
def test_a_run_on_other_images_goes_on_too(data, tmp_path, done):
    train = ["train", "teacher/images", f"data={data}", *SMALL, "--out", tmp_path / "run"]
    done(*train)
    model = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    done(*train, "--resume")
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == model


def test_a_student_takes_the_form_of_its_teacher(tmp_path, done, mistake):
    folder = written(tmp_path / "d", [(12, 12)], "L", num=12)
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    done("train", "teacher/images", f"data={{name: images, path: {folder}, holdout: 0.25}}", *SMALL, "--out", teacher)
    said = done("train", "dmd2/images", f"method.teacher={teacher}", "steps=2", "batch_size=4", "--out", student).err
    theirs, mine = RunFolder(teacher).recipe(), RunFolder(student).recipe()
    assert mine["data"] == theirs["data"]
    assert mine["network"]["sigma_data"] == theirs["network"]["sigma_data"]
    assert mine["method"]["generator_optimizer"]["lr"] == pytest.approx(theirs["method"]["optimizer"]["lr"] / 10)
    assert f"found: data.path={folder}, as in the run of the teacher {teacher}" in said
    # data of one's own beside the teacher's form
    other = written(tmp_path / "other", [(30, 30)], seed=1)
    recipe, _ = settled(load_recipe("dmd2/images", (f"method.teacher={teacher}", f"data={{name: images, path: {other}}}")))
    assert (recipe.data.path, recipe.data.size, recipe.data.channels) == (str(other), 12, 1)
    # what does not fit is refused with what would
    text = mistake("train", "dmd2/images", f"method.teacher={teacher}", "data.size=16", "network.sigma_data=0.9", "--out", tmp_path / "no")
    assert "Settings that fit it: data.size=12 network.sigma_data=" in text
    assert not (tmp_path / "no").exists()


def test_a_teacher_without_classes_has_a_student_without(tmp_path, done):
    folder = written(tmp_path / "d", [(12, 12)], "L", num=8)
    teacher = tmp_path / "teacher"
    done("train", "teacher/images", f"data={{name: images, path: {folder}, label_column: none}}", *SMALL, "--out", teacher)
    for path in (teacher / "model", teacher):
        recipe, found = settled(load_recipe("dmd2/images", (f"method.teacher={path}", f"data.path={folder}")))
        assert recipe.data.label_column == "none"
        assert [one.key for one in found].count("data.label_column") == 1


def test_a_missing_teacher_is_asked_for_with_a_command_that_makes_one(mistake, tmp_path):
    text = mistake("train", "dmd2/images", "--out", tmp_path / "run")
    assert "fewstep train teacher/images data.path=DIR --out runs/teacher" in text
    assert not (tmp_path / "run").exists()


def test_a_key_without_a_rule_is_a_mistake(tmp_path, mistake):
    file = tmp_path / "own.yaml"
    file.write_text("finds: [network.depth]\nmethod: {name: teacher}\ndata: {name: digits}\nnetwork: {name: unet}\n")
    assert "finds" in mistake("train", file, "--dry-run")
