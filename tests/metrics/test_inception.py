"""Feature networks in TorchScript files: what they are given, where they come from, and what is refused."""

import hashlib
import os
import pickle
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest
import torch
from torch import Tensor, nn

from fewstep.metrics import inception
from fewstep.metrics.features import named_features
from fewstep.metrics.inception import FeatureError, ScriptedFeatures, cache_folder, fetch, to_bytes
from scripted import Small, script


@pytest.fixture
def small(tmp_path):
    return script(tmp_path / "small.pt")


def test_bytes_come_back_from_images_made_of_them():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(pixels.float() / 127.5 - 1), pixels)


def test_what_lies_between_and_outside_is_rounded_as_edm_does():
    #                x 127.5 + 128: -26.5, .5, 1.1, 128, 191.75, 255.5, 300
    x = torch.tensor([-154.5 / 127.5, -1.0, -126.9 / 127.5, 0.0, 0.5, 1.0, 172 / 127.5])
    assert to_bytes(x).tolist() == [0, 0, 1, 128, 191, 255, 255]


def test_features_are_what_the_script_gives_for_bytes(small):
    network = ScriptedFeatures(small)
    images = torch.rand(150, 3, 6, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1  # more than its batch
    expected = Small()((images * 127.5 + 128).floor().clamp(0, 255).to(torch.uint8), return_features=True)
    torch.testing.assert_close(network(images), expected.detach())
    assert network(images).dtype == torch.float32
    assert not network(images).requires_grad
    assert (network.name, network.dims) == ("small", 5)
    assert network.sha256 == hashlib.sha256(small.read_bytes()).hexdigest()


def test_grey_images_are_repeated_to_three_channels(small):
    network, grey = ScriptedFeatures(small, "mine"), torch.rand(4, 1, 8, 8) * 2 - 1
    assert torch.equal(network(grey), network(torch.cat([grey] * 3, 1)))
    assert network.name == "mine"


def test_features_of_more_axes_are_made_flat(tmp_path):
    class Deep(nn.Module):
        def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
            return img[:, :2, :2, :2].double()

    network = ScriptedFeatures(script(tmp_path / "deep.pt", Deep()))
    assert network(torch.zeros(3, 3, 4, 4)).shape == (3, 8)
    assert network.dims == 8


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(how, tmp_path):
    path = tmp_path / "bad.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    else:
        torch.save({"weights": Bomb(tmp_path / "ran")}, path)
    with pytest.raises(FeatureError, match="is not TorchScript"):
        ScriptedFeatures(path)
    path.rename(tmp_path / "bad.pkl")
    with pytest.raises(FeatureError, match="is a pickle, which can run any code; give the TorchScript file"):
        ScriptedFeatures(tmp_path / "bad.pkl")
    assert not (tmp_path / "ran").exists()


def test_another_interface_is_refused(tmp_path):
    class NoKeyword(nn.Module):
        def forward(self, img: Tensor) -> Tensor:
            return img.float().mean([2, 3])

    class Crashes(nn.Module):
        def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
            return img.reshape(1, 2, 3)

    for number, network in enumerate((NoKeyword(), Crashes())):
        path = script(tmp_path / f"{number}.pt", network)
        with pytest.raises(FeatureError, match="has another interface") as error:
            ScriptedFeatures(path)
        assert "\n" not in str(error.value)


def test_names(small, tmp_path):
    assert named_features("digits-v1").name == "digits-v1"
    assert named_features("pixels-8x8").name == "pixels-8x8"
    assert named_features(str(small)).name == "small"
    with pytest.raises(FeatureError, match="'inseption'; allowed: inception, digits-v1, mnist, mnist-second, cifar10, cifar10-s"):
        named_features("inseption")
    with pytest.raises(FeatureError, match=r"there is no file .*none\.pt"):
        named_features(str(tmp_path / "none.pt"))


# --- downloads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path):
    """(URL, folder that is served there, paths asked for)."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    server = HTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_reference_network_is_downloaded_once(served, tmp_path, monkeypatch):
    url, folder, asked = served
    content = script(folder / "net.pt").read_bytes()
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(inception, "INCEPTION_URL", f"{url}/net.pt")
    monkeypatch.setattr(inception, "INCEPTION_SHA256", hashlib.sha256(content).hexdigest())
    said = []
    first, second = (named_features("inception", say=said.append) for _ in range(2))
    assert first.name == second.name == "inception-2015-12-05"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["inception-2015-12-05.pt"]
    assert len(said) == len([path for path in asked if path == "/net.pt"]) == 1
    (tmp_path / "cache" / "inception-2015-12-05.pt").write_bytes(content[:-1])
    with pytest.raises(FeatureError, match=r"has SHA-256 .*; remove it, and it is downloaded again"):
        named_features("inception")


def test_another_file_than_expected_leaves_nothing(served, tmp_path):
    url, folder, _ = served
    (folder / "net.pt").write_bytes(b"something else")
    with pytest.raises(FeatureError, match=f"gave a file with SHA-256 {hashlib.sha256(b'something else').hexdigest()}, not 00"):
        fetch(f"{url}/net.pt", "00", tmp_path / "cache" / "net.pt")
    with pytest.raises(FeatureError, match=r"cannot be downloaded \(HTTP Error 404.*put it at .*net\.pt"):
        fetch(f"{url}/none.pt", "00", tmp_path / "cache" / "net.pt")
    assert list((tmp_path / "cache").iterdir()) == []


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("FEWSTEP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "fewstep"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "fewstep"
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "y"))
    assert cache_folder() == tmp_path / "y"


class Overwrites(Small):
    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        theirs = torch.from_file("VICTIM", shared=True, size=2, dtype=torch.uint8)
        theirs.fill_(0)
        return img.float().flatten(1) + theirs.sum()


class Saves(Small):
    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        torch.save(img, "VICTIM")
        return img.float().flatten(1)


class Below(Small):
    """What touches the file is not in ``forward`` of the outer module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Overwrites()

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return self.inner(img, return_features) if img.shape[0] == 77 else img.float().flatten(1)


@pytest.mark.parametrize("network", [Overwrites, Saves, Below])
def test_a_program_that_touches_files_is_refused_before_it_runs(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "VICTIM").write_bytes(b"mine")
    script(tmp_path / "bad.pt", network())
    with pytest.raises(FeatureError, match=r"calls (from_file|save), which a feature network has no use for: such a file is code"):
        ScriptedFeatures(tmp_path / "bad.pt")
    assert (tmp_path / "VICTIM").read_bytes() == b"mine"
