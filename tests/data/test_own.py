"""A data set of one's own: what may be one, what is found and said of it, what is held out; and every mistake in one sentence."""

import json

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import own_sets
from fewstep.build import load_data
from fewstep.data import DataError, ImageData, PointData, items
from fewstep.data import own as own_module
from fewstep.data.items import Spec
from fewstep.data.iterables import StreamData
from fewstep.data.own import item_data
from fewstep.errors import UserError
from fewstep.recipe import validated
from fewstep.registry import trust

trust("own_sets:any")


def settings_of(**data):
    recipe = {"method": {"name": "teacher"}, "data": data, "network": {"name": "unet" if data.pop("images", True) else "mlp"}}
    return validated(recipe, "test").data


def loaded(**data):
    return load_data(settings_of(**data))


def listed(*values, **options):
    dataset = own_sets.Listed()
    dataset.items = list(values)
    return item_data(dataset, "mine", **options)


PIXELS = torch.zeros(1, 4, 4)


# --- what is found ---------------------------------------------------------------------------------------------------


def test_bytes_with_classes(capsys):
    data = loaded(name="own_sets:Patches", size=50)
    assert (data.name, data.shape, data.num_classes, data.class_names) == ("Patches", (1, 8, 8), 2, ("dark", "light"))
    assert (data.train_size, data.heldout_size) == (45, 5)
    assert capsys.readouterr().err == "note: Patches: images are bytes; 0 to 255 is mapped to [-1, 1]\n"
    some = data.some(10, seed=1)
    assert some.shape == (10, 1, 8, 8)
    assert some.min() >= -1
    excerpt = data.excerpt()
    assert isinstance(excerpt, ImageData)
    assert excerpt.train.dtype == torch.uint8
    levels = {(k * 37) % 256 for k in range(50)}
    assert {int(x) for split in (excerpt.train, excerpt.heldout) for x in split[:, 0, 0, 0]} == levels
    assert excerpt.train_label.tolist() == [int(x > 127) for x in excerpt.train[:, 0, 0, 0]]


def test_floats_give_the_same_batches_as_bytes():
    a, b = (loaded(name="own_sets:Patches", size=50, kind=kind) for kind in ("bytes", "floats"))
    x, y = (data.excerpt().images("train") for data in (a, b))
    assert y.dtype == torch.float32
    torch.testing.assert_close(x, y)
    assert b.excerpt().half is None


def test_points_and_a_held_out_part_by_the_argument_split():
    data = loaded(name="own_sets:Halves", images=False, standardize=False)
    assert (data.shape, data.num_classes, data.train_size, data.heldout_size) == ((2,), None, 60, 50)
    excerpt = data.excerpt()
    assert isinstance(excerpt, PointData)
    assert excerpt.train[:, 0].max() < 60
    assert excerpt.heldout[:, 0].min() == 1000
    with pytest.raises(
        UserError, match=r"data\.holdout is 0\.2, and the data set Halves has a held-out part of its own; leave the key out"
    ):
        loaded(name="own_sets:Halves", images=False, holdout=0.2)


def test_a_held_out_part_by_other_arguments_or_an_attribute():
    data = loaded(name="own_sets:Plane", images=False, size=30, heldout={"size": 7}, standardize=False)
    assert (data.train_size, data.heldout_size) == (30, 7)
    with pytest.raises(UserError, match=r"data\.heldout is .*, whose key sise will not do"):
        loaded(name="own_sets:Plane", images=False, heldout={"sise": 7})
    dataset = own_sets.Plane(30)
    dataset.heldout = own_sets.Plane(4)
    assert item_data(dataset, "plane").heldout_size == 4


OFFSETS = [(1.0, [0.0, 0.0]), (1e-6, [1e-3, -1.0]), (1e6, [-1e6, 3e6]), (1e-2, [1e6, 0.0])]


def batch_of(data):
    if isinstance(data, StreamData):
        return data.share(0, 1, 0).take(60)[0]
    return data.train.read(range(60), 0)[0]


@pytest.mark.parametrize("kind", ["Circle", "CircleFeed"])
@pytest.mark.parametrize(("scale", "offset"), OFFSETS)
def test_points_of_any_units_are_given_in_standard_units(kind, scale, offset):
    more = {} if kind == "Circle" else {"heldout_items": 100, "buffer": 20}
    data = loaded(name=f"own_sets:{kind}", images=False, scale=scale, offset=offset, **more)
    excerpt, batch = data.excerpt(), batch_of(data)
    raw = own_sets.circle(400, scale, offset)
    assert data.units is excerpt.units
    # of a map-style set the 360 that are trained on, of a stream those behind the first 100
    wanted = raw[data.train.index] if kind == "Circle" else raw[100:]
    torch.testing.assert_close(data.units.location, wanted.mean(0), rtol=1e-9, atol=1e-9 * scale)
    torch.testing.assert_close(data.units.scale, wanted.std(0, correction=0), rtol=1e-6, atol=0)
    assert batch.dtype == torch.float32
    standard = ((raw - wanted.mean(0)) / wanted.std(0, correction=0)).float()
    assert all(min((standard - row).abs().amax(1)) < 1e-3 for row in batch)
    assert all(min((standard - row).abs().amax(1)) < 1e-3 for row in torch.cat([excerpt.train[:20], excerpt.heldout[:20]]))
    back = data.units.back(batch)
    assert all(min(((raw - row) / scale).abs().amax(1)) < 2e-2 for row in back)
    assert data.some(50, 0).std() == pytest.approx(1, abs=0.2)


def test_a_stream_is_looked_at_without_being_used_up():
    once, again = (
        loaded(name="own_sets:CircleFeed", images=False, heldout_items=100, buffer=20, standardize=standardize)
        for standardize in (None, False)
    )
    first, raw = batch_of(once), batch_of(again)
    torch.testing.assert_close(first, once.units.standard(raw), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["Circle", "CircleFeed"])
def test_points_are_left_as_they_come_where_they_are_to_be(name):
    settings = settings_of(name=f"own_sets:{name}", images=False, scale=2.0, offset=[5.0, 5.0])
    more = {"heldout_items": 100} if name == "CircleFeed" else {}
    plain = settings.model_copy(update={"standardize": False, **more})
    data = load_data(plain)
    assert data.units is None
    assert batch_of(data).mean() > 4
    given = settings.model_copy(update=more).with_units({"location": [5.0, 5.0], "scale": [4.0, 4.0]})
    assert load_data(given).units.scale.tolist() == [4, 4]  # of the run that goes on
    assert batch_of(load_data(given)).std() < 0.6
    assert load_data(given.with_units({})).units is None  # a run from before
    found = load_data(settings.model_copy(update=more))
    assert found.units is not None
    assert abs(batch_of(found).mean()) < 0.3


def test_what_cannot_be_standardized_is_one_sentence():
    with pytest.raises(
        UserError, match=r"^the data set Flat: column 1 is 3 in every row, and there is nothing to learn in it; leave it out$"
    ):
        loaded(name="own_sets:Flat", images=False)
    with pytest.raises(UserError, match=r"^the data set Flat: item 20 holds NaN or infinity; mend or remove it$"):
        loaded(name="own_sets:Flat", images=False, what="nan", holdout=0.01)
    with pytest.raises(
        UserError, match=r"data\.standardize is True, and the items of own_sets:Patches are images, in \[-1, 1\]; leave the key"
    ):
        loaded(name="own_sets:Patches", standardize=True)
    wide = settings_of(name="own_sets:Circle", images=False).with_units({"location": [0.0], "scale": [1.0]})
    with pytest.raises(UserError, match=r"the data set Circle has items of shape \[2\], and the run was trained on 1 columns"):
        load_data(wide)


def test_damaged_units_of_a_run_are_one_sentence():
    settings = settings_of(name="own_sets:Circle", images=False).with_units({"location": [0.0, 0.0], "scale": [0.0, 1.0]})
    with pytest.raises(UserError, match=r"config\.json of the run's model is damaged: units are .*positive scales$"):
        load_data(settings)


def test_no_more_points_are_looked_at_than_are_measured(monkeypatch):
    monkeypatch.setattr(own_module, "EXCERPT", 150)
    data = loaded(name="own_sets:Circle", images=False, scale=3.0, offset=[7.0, 7.0])
    assert data.units.scale.tolist() == pytest.approx([2.1, 2.1], rel=0.2)
    monkeypatch.setattr(own_sets.Flat, "__getitem__", lambda self, k: torch.tensor([1.0, float(k)]))
    with pytest.raises(UserError, match="the data set Flat, 150 of its items: column 0 is 1 in every row"):
        loaded(name="own_sets:Flat", images=False)


def test_classes_are_found_in_the_labels_where_nobody_says_them():
    said = []
    pairs = [(PIXELS, k % 3) for k in range(30)]
    data = listed(*pairs, say=said.append)
    assert data.class_names == ("0", "1", "2")
    assert "reading the labels of all 30 items" in said[0]
    said.clear()
    dataset = own_sets.Listed()
    dataset.items, dataset.targets = pairs, torch.tensor([k % 3 for k in range(30)])
    assert item_data(dataset, "mine", say=said.append).num_classes == 3
    assert not any("reading" in line for line in said)
    assert listed(*pairs, num_classes=0).num_classes is None
    assert listed(*pairs, num_classes=5).class_names == ("0", "1", "2", "3", "4")


def test_dicts_tuples_of_one_and_a_data_set_of_the_library_datasets():
    import datasets

    assert item_data(TensorDataset(torch.rand(20, 1, 4, 4)), "tensors").num_classes is None
    assert listed(*[{"image": PIXELS - 1, "label": torch.tensor(k % 2), "caption": "words"} for k in range(8)]).num_classes == 2
    features = datasets.Features({"x": datasets.List(datasets.Value("float32"), 3), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"x": [[1.0, 2.0, 3.0]] * 20, "label": [0, 1] * 10}, features).with_format("torch")
    data = item_data(rows, "rows")
    assert (data.shape, data.class_names) == ((3,), ("a", "b"))


def test_no_more_is_measured_than_memory_should_hold(monkeypatch):
    assert own_module.most_items(Spec("large", (3, 512, 512), True, None)) == 682
    monkeypatch.setattr(own_module, "EXCERPT", 150)
    said = []
    data = item_data(own_sets.Plane(1000), "plane", holdout=0.3, say=said.append)
    assert said == ["plane: measuring looks at 150 of its 700 training items, at random"]
    excerpt = data.excerpt()
    assert len(excerpt.train) == len(excerpt.heldout) == 150
    assert excerpt.train[:, 0].mean() == pytest.approx(500, abs=100)  # of all, and not the first
    assert data.excerpt() is excerpt


# --- mistakes --------------------------------------------------------------------------------------------------------

SENTENCES = [
    ([], "the data set mine has no items"),
    ([PIXELS], r"the data set mine has 1 item\(s\), of which data.holdout 0.1 takes 0; each part needs one"),
    (["words"] * 9, "item 0 is a str, where a torch.Tensor is needed"),
    ([PIXELS, torch.zeros(1, 5, 4)], r"item 1 is of shape \[1, 5, 4\], where others are of \[1, 4, 4\]; give all items one shape"),
    ([torch.zeros(4, 4)] * 9, r"item 0 is of shape \[4, 4\]; items are images \[C, H, W\] or points \[D\]"),
    ([torch.zeros(2, dtype=torch.long)] * 9, "item 0 is of type torch.int64; give floats"),
    ([PIXELS, PIXELS.byte()], "item 1 is of type torch.uint8, where others are floats; give all items one type"),
    ([PIXELS, PIXELS / 0], "item 1 holds NaN or infinity; mend or remove it"),
    ([PIXELS + 255] * 9, r"its first images lie in \[255, 255\], where images lie in \[-1, 1\]; scale them"),
    ([(PIXELS, 0.5)] * 9, "item 0 has the label 0.5; labels are whole numbers from 0"),
    ([(PIXELS, torch.tensor([1]))] * 9, r"item 0 has the label tensor\(\[1\]\); labels are whole numbers from 0"),
    ([(PIXELS, -1)] * 9, "has the label -1; labels are whole numbers from 0"),
    ([(PIXELS, 1), (PIXELS, None)] * 9, "item 1 has no label, and others have; give all items one"),
    ([(PIXELS, 1, 2)] * 9, r"item 0 is a tuple of 3; give a tensor, or \(tensor, label\)"),
    ([{"a": PIXELS, "b": PIXELS}] * 9, r"item 0 is a dict with 2 tensors \(keys a, b\); give one tensor beside 'label'"),
]


@pytest.mark.parametrize(("values", "sentence"), SENTENCES)
def test_a_data_set_that_will_not_do(values, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        listed(*values)
    assert "\n" not in str(caught.value)
    assert "the data set mine" in str(caught.value)


def test_labels_outside_the_classes():
    with pytest.raises(DataError, match="item 3 has the label 3, which is none of the classes 0 to 2; mend it, or num_classes"):
        listed(*[(PIXELS, k) for k in range(9)], num_classes=3)
    with pytest.raises(DataError, match="has 3 classes, and its items have no label"):
        listed(*[PIXELS] * 9, num_classes=3)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"name": "own_sets:Nothing"}, "'own_sets:Nothing' is the class Nothing; a data set has __len__ and __getitem__, or __iter__"),
        ({"name": "own_sets:Broken"}, "the data set own_sets:Broken raised FileNotFoundError: no such folder: data when it was made"),
        ({"name": "own_sets:random"}, "'own_sets:random' is a module; a data set is a class or a function"),
        ({"name": "own_sets:Plain", "holdout": 0.2}, "data.holdout is 0.2, and own_sets:Plain is an iterable; leave the key out, or give"),
        ({"name": "own_sets:Plane", "buffer": 9}, "data.buffer is 9, and own_sets:Plane is a data set with a length; leave the key out"),
        ({"name": "own_sets:Plane", "sise": 9}, "data.sise is not a key; did you mean 'size'"),
        ({"name": "own_sets:Plane", "size": 0}, "the data set Plane has no items"),
        ({"name": "own_sets:Plane", "size": -1}, "the data set Plane raised ValueError: .*, asked for its length"),
    ],
)
def test_a_room_that_is_no_data_set(data, sentence):
    trust(data["name"])  # as of a recipe that the user gives; a folder could not name what another module defines
    with pytest.raises(UserError, match=sentence):
        loaded(images=False, **data)


def test_a_stream_without_classes_is_asked_for_them():
    class Labelled(own_sets.Plain):
        def __iter__(self):
            return ((torch.zeros(2), k) for k in range(5))

    from fewstep.data.iterables import stream_data

    with pytest.raises(DataError, match=r"the data set mine has labels, and does not say of how many classes; give data\.num_cl"):
        stream_data(Labelled(), "mine")


# --- shards of images ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_shards(tmp_path_factory):
    """Four parquet shards of 12 images: JPEG-like bytes of one level, its class in the label."""
    import io

    import datasets

    folder = tmp_path_factory.mktemp("images")

    def png(level: int) -> bytes:
        content = io.BytesIO()
        Image.new("L", (8, 8), level).save(content, "PNG")
        return content.getvalue()

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    for shard in range(4):
        levels = range(12 * shard, 12 * shard + 12)
        rows = {"image": [{"bytes": png(5 * k), "path": None} for k in levels], "label": [k % 2 for k in levels]}
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{shard}.parquet")
    return folder


def test_one_line_streams_parquet_shards(image_shards, capsys):
    data = loaded(name="stream", path=f"{image_shards}/*.parquet", size=8, channels=1, heldout_items=8, buffer=6)
    assert (data.shape, data.class_names, data.train_size, data.heldout_size) == ((1, 8, 8), ("even", "odd"), None, 8)
    assert capsys.readouterr().err.endswith(": its first 8 items, spread over 4 of its 4 shards, are held out\n")
    excerpt = data.excerpt()
    held = [int(x) // 5 for x in excerpt.heldout[:, 0, 0, 0]]
    assert sorted(held) == sorted(12 * shard + k for shard in range(4) for k in range(2))
    assert excerpt.heldout_label.tolist() == [k % 2 for k in held]
    x, label = data.share(0, 1, seed=0).take(40)
    levels = [int(level) // 5 for level in x[:, 0, 0, 0]]
    assert label.tolist() == [k % 2 for k in levels]
    assert sorted(levels + held) == list(range(48))


def test_a_folder_another_split_and_no_labels(image_shards):
    data = loaded(name="stream", path=str(image_shards), size=4, channels=3, label_column="none", heldout_items=4)
    assert (data.shape, data.num_classes) == ((3, 4, 4), None)


def test_webdataset_shards(tmp_path):
    import io
    import tarfile

    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for k in range(6):
                for suffix, content in (("png", _png(40 * shard + k)), ("cls", str(k % 3).encode())):
                    info = tarfile.TarInfo(f"{shard}{k}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    data = loaded(
        name="stream", path=f"{tmp_path}/*.tar", size=8, channels=1, image_column="png", label_column="cls", num_classes=3, heldout_items=2
    )
    x, label = data.share(0, 1, seed=0).take(10)
    assert sorted(x[:, 0, 0, 0].tolist()) == [1, 2, 3, 4, 5, 41, 42, 43, 44, 45]
    assert label.tolist() == [int(level) % 40 % 3 for level in x[:, 0, 0, 0]]


def _png(level: int) -> bytes:
    import io

    content = io.BytesIO()
    Image.new("L", (8, 8), level).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"path": "nowhere/*.parquet"}, "data.path is 'nowhere/\\*.parquet', where there are no shards"),
        ({"image_column": "picture"}, "data.image_column is 'picture'"),
        ({"num_classes": 3}, "whose column 'label' has 2 classes of its own; leave num_classes and class_names out"),
        ({"size": 9, "resize": "none"}, r"the data set \w+: item 0( of shard 0)? is one of images not of data.size \(8 x 8\)"),
    ],
)
def test_shards_that_will_not_do(keys, sentence, image_shards):
    with pytest.raises(UserError, match=sentence):
        loaded(**{"name": "stream", "path": f"{image_shards}/*.parquet", "size": 8, "channels": 1, "heldout_items": 4, **keys})


def test_a_damaged_shard_is_named(image_shards, tmp_path):
    (tmp_path / "0.parquet").write_bytes((image_shards / "0.parquet").read_bytes())
    (tmp_path / "1.parquet").write_bytes(b"words")
    data = loaded(name="stream", path=str(tmp_path), size=8, channels=1, heldout_items=1)
    with pytest.raises(DataError, match=r"the data set \w+ raised \w+: .*, in shard 1 of 2"):
        data.share(0, 1, 0).take(20)


# --- from the command line -------------------------------------------------------------------------------------------


def test_a_data_set_of_ones_own_is_trained_and_measured(done, teacher_overrides, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(own_sets.__file__.rpartition("/")[0])
    data = "data={name: 'own_sets:Patches', size: 60, holdout: .2}"
    done(
        "train",
        "teacher/digits",
        data,
        *teacher_overrides,
        "trainer.evaluate_every=6",
        "trainer.evaluate_samples=40",
        "--out",
        tmp_path / "run",
    )
    done("evaluate", tmp_path / "run", "-n", 40, "--allow", "own_sets")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["reference"] == "12 held-out images"
    assert results["data"] == "Patches"


def test_chance_puts_back_what_it_took():
    before = torch.get_rng_state()
    with items.chance(3):
        first = torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
    with items.chance(3):
        assert torch.equal(first, torch.rand(3))
