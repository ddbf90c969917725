"""What the Hub does not give is said as what it is: within seconds, in one sentence, with the way out; what the cache has is given."""

import http.server
import io
import json
import re
import socket
import threading
import time
from pathlib import Path

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pytest
import torch
from PIL import Image

import fewstep
from fewstep import hub
from fewstep.build import load_data
from fewstep.data.beforehand import KNOWN, beforehand
from fewstep.errors import UserError
from fewstep.recipe import load_recipe
from fewstep.recipe.listing import shipped_recipes
from fewstep.run import describe

ANSWERS = {  # by the name of a repository: status, and the Hub's own code for it
    "gone": (404, "RepoNotFound"),
    "unsaid": (404, None),
    "secret": (401, None),
    "gated": (403, "GatedRepo"),
    "forbidden": (403, None),
    "broken": (503, None),
    "old": (404, "RevisionNotFound"),
}
SAID = {
    "gone": "the Hub has no {} of that name: mend it; or, if it is private, log in with `hf auth login`",
    "unsaid": "the Hub has no {} of that name: mend it",
    "secret": "log in with `hf auth login`",
    "gated": "gives it only to those who have agreed to its terms: do so at http://",
    "forbidden": "the Hub does not give it to you (it answers 403): log in",
    "broken": "the Hub answers 503: try again later, or fetch it where there is a network",
    "old": "has no revision",
}


class Answering(http.server.BaseHTTPRequestHandler):
    asked: list[str]
    told: list[str | None]  # who asked

    def do_GET(self):
        name = next((name for name in (*ANSWERS, "slow", "drip", "there") if f"/own/{name}" in self.path), "gone")
        self.asked.append(self.path)  # the client also asks, once, what agent it may be
        self.told.append(self.headers.get("Authorization"))
        if name == "slow":
            return time.sleep(3)
        if name == "drip":  # a byte a time is in time for each byte
            for letter in b"HTTP/1.1 200 OK\r\n":
                self.wfile.write(bytes([letter]))
                time.sleep(0.2)
            return None
        status, code = ANSWERS.get(name, (200, None))
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        content = json.dumps({"id": f"own/{name}", "sha": "0" * 40, "siblings": []}).encode()
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def online(monkeypatch, tmp_path):
    """The Hub may be asked, and nothing is in the caches or remembered; ``online(address)`` says where it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "sets")
    monkeypatch.setattr(hub, "_unreachable", {})
    monkeypatch.setattr(hub, "LIMIT", 1.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def at(address):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)

    return at


@pytest.fixture
def server(online, monkeypatch):
    """The paths that have been asked for, of a Hub that answers as its repositories' names say."""
    monkeypatch.setattr(Answering, "asked", [], raising=False)
    monkeypatch.setattr(Answering, "told", [], raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as serving:
        serving.daemon_threads = True
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        online(f"http://127.0.0.1:{serving.server_port}")
        yield Answering.asked
        serving.shutdown()


def data_of(path, **settings):
    of_the_hub = {"name": "images", "path": path, "size": 32, "channels": 1}
    return load_data(load_recipe("teacher/mnist", [("data", of_the_hub), *settings.items()]).data)


def stream_of(path):
    return load_data(load_recipe("teacher/mnist", [("data", {"name": "stream", "path": path, "num_classes": 10})]).data)


WAYS = {"model": [fewstep.load], "data set": [data_of, stream_of]}
OF = [(word, way) for word, ways in WAYS.items() for way in ways]
IDS = [way.__name__ for _, way in OF]


def refused(way, path):
    """The sentence, and the seconds that it took."""
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        way(path)
    assert "\n" not in str(caught.value)
    return str(caught.value), time.monotonic() - began


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize(("word", "way"), OF, ids=IDS)
def test_what_the_hub_refuses_is_told_apart_and_asked_once(word, way, name, server):
    message, _ = refused(way, f"own/{name}")
    assert f"there is no such folder, the local cache of the Hub has no such {word}, and " in message
    assert SAID[name].format(word) in message
    assert f"own/{name}" in message
    assert len([path for path in server if "/own/" in path]) == 1


@pytest.mark.parametrize("name", ["slow", "drip"])
@pytest.mark.parametrize(("word", "way"), OF, ids=IDS)
def test_a_hub_that_does_not_answer_is_given_up(word, way, name, server):
    message, seconds = refused(way, f"own/{name}")
    assert " cannot be reached (" in message
    assert f"(`hf download own/{name}{' --repo-type dataset' * (word == 'data set')} --local-dir FOLDER`) and give that folder" in message
    assert seconds < 2.5
    again, seconds = refused(way, f"own/{name}")
    assert again == message
    assert seconds < 0.5  # it was not asked again
    assert len([path for path in server if "/own/" in path]) == 1


def closed_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.mark.parametrize("address", [closed_port(), "http://no-such-host.invalid"], ids=["closed", "no host"])
@pytest.mark.parametrize(("word", "way"), OF, ids=IDS)
def test_no_network_is_said_as_that(word, way, address, online):
    online(address)
    message, seconds = refused(way, "own/there")
    assert f"and {address} cannot be reached (" in message
    assert "set HF_HOME" in message
    assert seconds < 2.5


@pytest.mark.parametrize("setting", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_by_setting_is_said_as_that(setting, server, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", setting == "HF_HUB_OFFLINE")
    for name in hub.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(setting, "1")
    for way in (data_of, stream_of):
        assert f"and {setting} forbids to ask the Hub: unset it, or fetch it" in refused(way, "own/there")[0]
    assert server == []
    assert datasets.config.HF_HUB_OFFLINE  # as it was


@pytest.mark.parametrize("path", ["nowhere", "./no", "no/where/else", "/no/where", "own/a b", "own/-a", "~no/x", "a//b", "own/" + 97 * "a"])
@pytest.mark.parametrize(("word", "way"), OF, ids=IDS)
def test_what_can_be_no_id_is_a_folder_that_is_missing(word, way, path, server):
    message, _ = refused(way, path)
    assert "is not a folder" in message or "no shards" in message
    assert "Hub id" in message
    assert server == []


def test_a_repository_without_a_generator_is_said_as_that(server):
    assert "own/there" in refused(fewstep.load, "own/there")[0]


def cached(cache, model):
    """A cache of the Hub that holds the folder `model` as own/there."""
    repository = cache / "models--own--there"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / "0123").symlink_to(model)
    return cache


def test_a_model_in_the_cache_needs_no_hub(online, tmp_path, teacher_run):
    online(closed_port())
    cached(tmp_path / "hub", teacher_run / "model")
    found, ours = fewstep.load("own/there"), fewstep.load(teacher_run)
    assert torch.equal(found.sample(2, seed=0, steps=2), ours.sample(2, seed=0, steps=2))


def test_what_from_pretrained_is_told_of_the_hub_holds(server, tmp_path, teacher_run):
    other = cached(tmp_path / "other", teacher_run / "model")
    found = fewstep.Generator.from_pretrained("own/there", cache_dir=other, local_files_only=True)
    assert torch.equal(found.sample(2, seed=0, steps=2), fewstep.load(teacher_run).sample(2, seed=0, steps=2))
    assert server == []  # the Hub was not asked
    said, _ = refused(lambda path: fewstep.load(path, local_files_only=True), "own/there")  # the usual cache is empty
    assert "local_files_only forbids to ask the Hub" in said
    assert server == []
    refused(lambda path: fewstep.load(path, token="mine"), "own/secret")
    assert [told for path, told in zip(server, Answering.told, strict=True) if "own/secret" in path] == ["Bearer mine"]


def test_a_data_set_in_the_cache_needs_no_hub(online, tmp_path):
    online(closed_port())
    pictures = []
    for k in range(20):
        file = io.BytesIO()
        Image.new("L", (8, 8), 10 * k).save(file, "PNG")
        pictures.append({"bytes": file.getvalue(), "path": None})
    rows = datasets.Dataset.from_dict({"image": pictures}, datasets.Features({"image": datasets.Image()}))
    cached = tmp_path / "sets" / "own___other" / "default" / "0.0.0" / "abc"
    cached.mkdir(parents=True)
    with pa.OSFile(str(cached / "other-train.arrow"), "wb") as file, pa.ipc.new_stream(file, rows.data.table.schema) as writer:
        writer.write_table(rows.data.table)
    info = rows.info
    info.config_name, info.builder_name, info.dataset_name = "default", "parquet", "other"
    info.splits = {"train": datasets.SplitInfo("train", num_examples=20, dataset_name="other")}
    info.write_to_directory(cached)
    data = data_of("own/other", **{"data.size": 8, "data.channels": 1, "data.resize": "none"})
    assert sorted(data.train[:, 0, 0, 0].tolist() + data.heldout[:, 0, 0, 0].tolist()) == [10 * k for k in range(20)]


def test_shards_at_an_address_that_does_not_answer(server, online):
    base = huggingface_hub.constants.ENDPOINT
    message, seconds = refused(stream_of, f"{base}/own/slow/a.tar")
    assert "which cannot be reached (" in message
    assert seconds < 2.5
    assert "where the server has nothing (it answers 404); mend the address" in refused(stream_of, f"{base}/own/gone/a.tar")[0]


SIZES = {
    "mnist": "data: 60,000 training images, 10,000 held out, shape [1, 28, 28], 10 classes",
    "cifar10_cpu": "data: 50,000 training images, 10,000 held out, shape [3, 32, 32], 10 classes",
}
OF_THE_HUB = {"mnist": "ylecun/mnist", "cifar10_cpu": "uoft-cs/cifar10"}


def test_data_of_which_nothing_is_known_is_needed_to_describe_a_recipe(server):
    recipe = load_recipe("teacher/mnist", [("data", {"name": "images", "path": "own/unknown", "size": 32, "channels": 1})])
    with pytest.raises(UserError, match="there is no such folder"):
        describe(recipe)


@pytest.mark.parametrize("name", SIZES)
def test_a_shipped_recipe_is_described_without_its_data(name, server):
    recipe = load_recipe(f"teacher/{name}", [("batch_size", 4)])
    lines = describe(recipe)
    assert lines[0] == SIZES[name]
    said = "the data was not read, and the line above is what is known without reading it: data.dir is missing, so that "
    assert lines[1].startswith(f"{said}{OF_THE_HUB[name]} was looked for: the local cache of the Hub has no such data set, and")
    assert "and say data.dir=FOLDER" in lines[1]
    assert "data.path" not in lines[1]
    assert any(line.startswith("FLOPs per image: ") for line in lines)


def test_all_shipped_data_of_the_hub_is_known_beforehand():
    found = {}
    for name in shipped_recipes():
        data = load_recipe(name).data
        if data.name in ("cifar10", "mnist", "images") and getattr(data, "path", None) != "images":  # those of the user
            known = beforehand(data)
            assert known is not None, name
            found[getattr(data, "path", data.name).removeprefix("ylecun/")] = (len(known.train), len(known.heldout), known.num_classes)
            assert known.train.untyped_storage().nbytes() == 1
    assert found == {"cifar10": (50_000, 10_000, 10), "mnist": (60_000, 10_000, 10)}
    assert len(KNOWN) == len(found)


def test_what_takes_too_long_is_given_up_and_what_is_raised_is_raised():
    assert hub.within(5, lambda: 3) == 3
    with pytest.raises(KeyError, match="x"):
        hub.within(5, lambda: {}["x"])
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer in 0\.1 seconds"):
        hub.within(0.1, lambda: time.sleep(2))
    assert time.monotonic() - began < 1


def test_the_network_is_asked_in_one_place():
    asking = re.compile(r"snapshot_download|hf_hub_download|urlopen|HfApi|requests\.|httpx")
    package = Path(fewstep.__file__).parent
    assert {path.name for path in package.rglob("*.py") if asking.search(path.read_text())} == {"hub.py"}
