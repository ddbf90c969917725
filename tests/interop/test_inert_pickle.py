"""Hostile and damaged files: each is refused in one sentence, by name where it asks for one; nothing is run, and work stays bounded."""

import codecs
import collections
import copyreg
import io
import os
import pickle
import random
import struct
import sys
import time
import tracemalloc
import zipfile
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from fewstep.errors import UserError
from fewstep.interop import inert_pickle
from fewstep.interop.edm import import_edm
from fewstep.networks.edm_unet import EDMUNet
from official_edm import EasyDict, Persistent, official_arguments, official_bytes, official_content, official_network, scattered

EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "exec", "compile", "open", "import")
watching, seen = [], []


def watch(event, arguments):
    if watching and event in EVENTS and not (event == "open" and watching[0] in map(str, arguments)):
        seen.append((event, arguments))


sys.addaudithook(watch)  # there is no way to take one off again


@pytest.fixture(scope="module", autouse=True)
def _warm(good, tmp_path_factory):
    """What Python and torch themselves import on the way is imported before anything is watched."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "net.pkl").write_bytes(good.data)
    import_edm(folder / "net.pkl", folder / "model")
    for encoding in ("raw_unicode_escape", "unicode_escape"):
        codecs.lookup(encoding)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "was_run"


@pytest.fixture
def refused(tmp_path, marker):
    """``refused(data)``: why a file of these bytes is refused; it has opened, run, compiled and imported nothing by then."""

    def call(data):
        path = tmp_path / "net.pkl"
        path.write_bytes(data)
        seen.clear()
        watching.append(str(path))
        try:
            with pytest.raises(UserError) as caught:
                import_edm(path, tmp_path / "model")
        finally:
            watching.clear()
        assert seen == []
        assert not marker.exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pkl"]
        message = str(caught.value)
        assert message.startswith(f"{path} ")
        assert message.count("\n") == 0
        assert len(message) < 600
        assert message.isprintable()
        return message

    return call


@pytest.fixture(scope="module")
def good():
    """A whole official file, small, and what it was made of."""
    sizes = {"model_channels": 4, "channel_mult": [1], "num_blocks": 1, "img_resolution": 4, "img_channels": 1, "label_dim": 0}
    weights = scattered(EDMUNet((1, 4, 4), None, channels=4, multipliers=(1,), blocks=1).state_dict())

    def make():
        return official_content(official_network(weights, official_arguments(**sizes)))

    return SimpleNamespace(make=make, data=official_bytes(make()))


class Evil:
    """Pickled as a call of os.system, or of another function."""

    def __init__(self, marker, function=os.system):
        self.call = function, (f"touch {marker}",)

    def __reduce__(self):
        return self.call


def text(value):
    """The opcode for a short text."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module, attribute):
    """The opcodes for a global name."""
    return text(module) + text(attribute) + b"\x93"


PERSISTENT = name("torch_utils.persistence", "_reconstruct_persistent_obj")
MODULE = name("torch.nn.modules.container", "ModuleDict") + b")\x81"
EASY = name("dnnlib.util", "EasyDict") + b")\x81"
LOAD = name("torch.storage", "_load_from_bytes")
SYSTEM = f"{os.system.__module__}.system"


def blob(data):
    """The opcode for bytes."""
    return b"B" + struct.pack("<I", len(data)) + data


def start(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


# --- what would be run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_refused_by_name(protocol, refused, marker):
    assert f"asks for {SYSTEM}," in refused(pickle.dumps(Evil(marker), protocol))
    assert f"asks for {SYSTEM}," in refused(pickle.dumps({"ema": Evil(marker)}, protocol))


def test_the_files_of_this_test_would_run_what_they_carry(marker):
    pickle.loads(pickle.dumps(Evil(marker)))  # noqa: S301 - of our own making
    assert marker.exists()
    marker.unlink()
    pickle.loads(b"(S'touch " + str(marker).encode() + b"'\nios\nsystem\n.")  # noqa: S301
    assert marker.exists()


PLACES = {
    "root": lambda c, evil: c.update(other=evil),
    "data set": lambda c, evil: c["dataset_kwargs"].update(path=evil),
    "loss": lambda c, evil: c["loss_fn"].state.update(P_mean=evil),
    "arguments": lambda c, evil: c["ema"].state["_init_kwargs"].update(sigma_data=evil),
    "parameter": lambda c, evil: (
        c["ema"].state["_modules"]["model"].state["_modules"]["map_layer0"].state["_parameters"].update(weight=evil)
    ),
    "buffer": lambda c, evil: c["ema"].state["_buffers"].update(resample_filter=evil),
    "module": lambda c, evil: c["ema"].state["_modules"].update(model=evil),
    "hook": lambda c, evil: c["ema"].state["_forward_hooks"].update(hook=evil),
    "container": lambda c, evil: setattr(c["ema"].state["_modules"]["model"].state["_modules"]["enc"], "more", evil),
    "source text": lambda c, evil: setattr(c["ema"], "source", evil),
    "state": lambda c, evil: setattr(c["ema"], "state", evil),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_call_deep_inside_an_official_file_is_refused_by_name(place, good, refused, marker):
    content = good.make()
    PLACES[place](content, Evil(marker))
    assert f"asks for {SYSTEM}," in refused(official_bytes(content))


@pytest.mark.parametrize("function", [eval, exec, getattr, __import__, open, compile, setattr, breakpoint, print])
def test_builtins_are_refused_by_name(function, refused, marker):
    assert f"asks for {function.__module__}.{function.__name__}," in refused(pickle.dumps(Evil(marker, function)))


def test_every_way_to_call_is_refused(refused, marker):
    touch = f"touch {marker}".encode()
    assert "asks for os.system," in refused(b"(S'" + touch + b"'\nios\nsystem\n.")  # INST
    assert "asks for os.system," in refused(b"(cos\nsystem\nS'" + touch + b"'\no.")  # OBJ
    assert "asks for os.system," in refused(b"\x80\x02cos\nsystem\nX" + struct.pack("<I", len(touch)) + touch + b"\x85\x81.")  # NEWOBJ
    assert "asks for os.system," in refused(start(name("os", "system"), text("x"), b"\x85}\x92"))  # NEWOBJ_EX
    # and of the names that are admitted
    assert "dnnlib.util.EasyDict by the pickle opcode INST" in refused(b"\x80\x02(idnnlib.util\nEasyDict\n.")
    assert "opcode OBJ" in refused(b"\x80\x02(cdnnlib.util\nEasyDict\no.")
    assert "opcode NEWOBJ_EX" in refused(start(name("dnnlib.util", "EasyDict"), b")}\x92"))
    assert "makes an object of the name torch.storage._load_from_bytes" in refused(start(LOAD, b")\x81"))
    assert "makes an object of the name dnnlib.util.EasyDict" in refused(start(name("dnnlib.util", "EasyDict"), b"K\x01\x85\x81"))
    assert "calls the name dnnlib.util.EasyDict" in refused(start(name("dnnlib.util", "EasyDict"), b")R"))
    assert "calls os.system" in refused(start(text("os.system"), b")R"))
    assert "calls torch.storage._load_from_bytes with {} for arguments".replace("{}", "a dict") in refused(start(LOAD, b"}R"))


LOOKALIKES = [
    ("evil", "EasyDict"),
    ("dnnlib", "EasyDict"),
    ("dnnlib.util", "easydict"),
    ("dnnlib", "util.EasyDict"),
    ("dnnlib.util", "EasyDict.__init__"),
    ("dnnlib.util ", "EasyDict"),
    ("evil.container", "ModuleDict"),
    ("torch.nn", "ModuleDict"),
    ("torch.nn.modules.container", "ModuleList"),
    ("torch.nn.modules.linear", "Linear"),
    ("mytorch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch", "FloatStorage"),  # only inside a storage
    ("torch", "load"),
    ("torch", "nn.os.system"),
    ("torch.storage", "os.system"),
    ("os", "path.join"),
    ("collections", "OrderedDict.fromkeys"),
    ("collections", "Counter"),
    ("torch_utils.persistence", "_src_to_module"),
    ("torch_utils", "persistence._reconstruct_persistent_obj"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "load"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("runpy", "run_path"),
    ("", ""),
]


@pytest.mark.parametrize(("module", "attribute"), LOOKALIKES)
def test_names_like_the_admitted_ones_are_refused(module, attribute, refused):
    message = refused(start(name(module, attribute), b")R"))
    assert f"asks for {module}.{attribute}," in message
    message = refused(b"c" + module.encode() + b"\n" + attribute.encode() + b"\n)R.")
    assert f"asks for {module}.{attribute}," in message.replace(". ", " .")  # the older opcode ends a module's name at a space


def test_a_name_is_shown_without_what_would_spoil_a_terminal(refused):
    assert "asks for os?[31m.system," in refused(start(name("os\x1b[31m", "system")))
    assert "asks for " + "a" * 100 + "...," in refused(start(name("a" * 200, "b")))


def test_a_global_in_place_of_a_value_is_inert(refused, good):
    content = good.make()
    content["ema"].state["_modules"]["model"].state["_modules"]["map_layer0"].state["_parameters"]["weight"] = collections.OrderedDict
    assert "has the name collections.OrderedDict where the tensor model.map_layer0.weight should be" in refused(official_bytes(content))


def test_the_extension_registry_is_not_asked(refused):
    copyreg.add_extension("os", "system", 240)
    try:
        for opcode in (b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"):
            assert "entry 240 of Python's registry of pickle extensions" in refused(start(opcode, text("true"), b"\x85R"))
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_persistent_ids_are_refused(refused):
    assert "opcode PERSID" in refused(b"\x80\x02Pposix.system\n.")
    assert "opcode BINPERSID" in refused(start(text("posix.system"), b"Q"))


def test_buffers_outside_the_file_are_refused(refused):
    assert "opcode NEXT_BUFFER" in refused(b"\x80\x05\x97.")
    assert "opcode BYTEARRAY8" in refused(b"\x80\x05\x96" + bytes(8) + b".")


META = b"(" + text("type") + text("class") + text("version") + b"K\x06" + text("module_src") + text("exit()")
NETWORK = PERSISTENT + b"}" + META + text("class_name") + text("EDMPrecond") + text("state") + b"}u\x85R"


def test_the_state_of_a_record_is_set_once_and_by_a_dictionary(refused):
    setstate = b"}" + text("__setstate__") + EASY + b"s"
    assert "sets the state of a module EDMPrecond by a dict" in refused(start(NETWORK, b"}b"))
    assert "sets the state of a module EDMPrecond by a dict" in refused(start(NETWORK, setstate, b"b"))
    assert "sets the state of a dict by a dict" in refused(start(EASY, setstate, b"b"))
    assert "sets the state of a module ModuleDict by a dict" in refused(start(MODULE, b"}b}b"))
    assert "sets the state of a module ModuleDict by a tuple" in refused(start(MODULE, b"N}\x86b"))
    assert "sets the state of [] by a dict" in refused(start(b"]}b"))
    assert "sets the state of the name dnnlib.util.EasyDict" in refused(start(name("dnnlib.util", "EasyDict"), b"}b"))
    assert "sets the state of a numpy dtype" in refused(
        start(name("numpy", "dtype"), text("f8"), b"\x89\x88\x87R", b"(K\x03", text(">"), b"tb")
    )


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (("torch_utils.persistence", "_reconstruct_persistent_obj"), b"N\x85"),
        (("torch_utils.persistence", "_reconstruct_persistent_obj"), b")"),
        (("torch_utils.persistence", "_reconstruct_persistent_obj"), b"}" + META + text("class_name") + b"]" + text("state") + b"}u\x85"),
        (("torch._utils", "_rebuild_tensor_v2"), b"(}K\x00K\x01\x85K\x01\x85\x89}t"),
        (("torch._utils", "_rebuild_parameter"), b"(}\x89}t"),
        (("torch.storage", "_load_from_bytes"), text("bytes") + b"\x85"),
        (("torch.storage", "_load_from_bytes"), b")"),
        (("collections", "OrderedDict"), b"]\x85"),
        (("builtins", "set"), b"K\x05\x85"),
        (("numpy", "dtype"), text("O8") + b"\x89\x88\x87"),
        (("numpy", "dtype"), text("V99999999999") + b"\x89\x88\x87"),
        (("numpy.core.multiarray", "scalar"), b"N" + blob(b"12345678") + b"\x86"),
        (("numpy.core.multiarray", "scalar"), name("numpy", "dtype") + text("f8") + b"\x89\x88\x87R" + blob(b"1234") + b"\x86"),
    ],
)
def test_admitted_names_take_official_arguments_only(function, arguments, refused):
    assert f"calls {'.'.join(function)} with arguments that no" in refused(start(name(*function), arguments, b"R"))


# --- storages, which are pickles themselves ------------------------------------------------------------------------------------


def legacy(storage):
    """A storage as torch.save wrote it before 1.6."""
    stream = io.BytesIO()
    torch.save(storage, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def pieces(numel=3, written=3, raw=bytes(12), system=None, kind=torch.FloatStorage, keys=("0",), magic=None, content=None):
    """The parts of a storage, of which each may be another than it should be."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", kind, "0", "cpu", numel, None) if thing is Pickler else None

    def dump(thing):
        stream = io.BytesIO()
        Pickler(stream, 2).dump(thing)
        return stream.getvalue()

    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}} if system is None else system
    first = dump(inert_pickle.LEGACY_MAGIC if magic is None else magic) + dump(1001) + dump(system)
    return first + dump(Pickler if content is None else content) + dump(list(keys)) + struct.pack("<q", written) + raw


def in_file(storage):
    return start(LOAD, blob(storage), b"\x85R")


def test_a_storage_is_read_as_torch_writes_it():
    storage = torch.tensor([1.5, -2.0, 3.25])
    for data in (legacy(storage._typed_storage()), pieces(raw=struct.pack("<3f", 1.5, -2.0, 3.25))):
        read = inert_pickle.read_pickle(in_file(data))
        assert torch.equal(inert_pickle.InertTensor(read, 0, (3,), (1,)).tensor(), storage)


def test_a_storage_that_would_run_something_is_refused_by_name(refused, marker):
    evil = Evil(marker)
    hostile = [pickle.dumps(evil), pieces(magic=evil), pieces(system=evil), pieces(content=evil), pieces(keys=[evil])]
    for data in hostile:
        assert f"asks for {SYSTEM}," in refused(in_file(data))
    assert f"asks for {SYSTEM}," in refused(in_file(pieces(system={"little_endian": evil})))


def test_a_storage_admits_its_own_names_only(refused):
    assert "asks for torch.nn.modules.container.ModuleDict," in refused(in_file(pieces(content=torch.nn.ModuleDict())))
    assert "asks for torch.storage._load_from_bytes," in refused(in_file(pickle.dumps(torch.ones(2)._typed_storage())))
    assert "asks for torch.QInt8Storage," in refused(in_file(pieces(kind=torch.QInt8Storage)))
    assert "asks for collections.OrderedDict," in refused(in_file(pieces(kind=collections.OrderedDict)))


def test_a_storage_of_another_form_is_refused(refused):
    stream = io.BytesIO()
    torch.save(torch.ones(2)._typed_storage(), stream)
    assert "a storage in a zip archive" in refused(in_file(stream.getvalue()))
    assert "has a storage that is not in torch's format" in refused(in_file(pieces(magic=1)))
    assert "little-endian" in refused(in_file(pieces(system={"little_endian": False})))
    assert "little-endian" in refused(in_file(pieces(system=[])))
    assert "has 5 where one storage should be" in refused(in_file(pieces(content=5)))
    assert "where one storage should be" in refused(in_file(pieces(keys=("0", "1"))))
    assert "persistent id" in refused(in_file(pieces(numel="3")))
    assert "persistent id" in refused(in_file(pieces(numel=-1)))
    assert "persistent id" in refused(in_file(pieces(numel=2**60)))


def test_sizes_of_a_storage_are_held_against_its_bytes(refused):
    for data in (
        pieces(numel=10**12, written=10**12),
        pieces(numel=10**12),
        pieces(written=10**12),
        pieces(raw=bytes(11)),
        pieces(raw=bytes(13)),
        pieces(raw=b""),
        pieces(kind=torch.DoubleStorage),
        pieces(raw=bytes(16)),
    ):
        assert "do not bear out" in refused(in_file(data))


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (4,), (1,)),
        (1, (3,), (1,)),
        (0, (2,), (3,)),
        (0, (10**6, 10**6), (0, 0)),  # a view that would fill memory
        (10**9, (1,), (1,)),
        (0, (2, 2), (1, 1)),
    ],
)
def test_a_tensor_lies_inside_its_storage(offset, shape, stride, refused):
    def whole(number):
        return b"J" + struct.pack("<i", number)

    def tuple_of(numbers):
        return b"(" + b"".join(map(whole, numbers)) + b"t"

    rebuild = name("torch._utils", "_rebuild_tensor_v2") + b"(" + LOAD + blob(pieces()) + b"\x85R"
    message = refused(start(rebuild, whole(offset), tuple_of(shape), tuple_of(stride), b"\x89}tR"))
    assert f"has a tensor of shape {list(shape)}, whose storage holds 3 numbers" in message


@pytest.mark.parametrize(
    ("shape", "stride"), [((-1,), (1,)), ((1, 1), (1,)), ((1,) * 9, (1,) * 9), ((1,), (-1,)), ((2**50,), (0,)), (("3",), (1,))]
)
def test_a_tensor_has_a_shape_of_small_whole_numbers(shape, stride, refused):
    def tuple_of(numbers):
        return pickle.dumps(tuple(numbers), 2)[2:-1]

    rebuild = name("torch._utils", "_rebuild_tensor_v2") + b"(" + LOAD + blob(pieces()) + b"\x85R"
    memo = b"".join(bytes([c]) for c in rebuild)  # pickled tuples number their memo from 0, as the file does
    message = refused(start(memo, b"K\x00", tuple_of(shape), tuple_of(stride), b"\x89}tR"))
    assert "_rebuild_tensor_v2 with arguments" in message


# --- damage, and other files ---------------------------------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_refused(good, refused):
    rng = random.Random(0)
    for cut in [*range(0, 60), *(rng.randrange(len(good.data)) for _ in range(60)), len(good.data) - 1]:
        refused(good.data[:cut])
    assert "is empty" in refused(b"")
    assert "cut short" in refused(good.data[: len(good.data) // 2])


def test_bytes_changed_at_random_are_refused_or_harmless(good, marker):
    rng = random.Random(0)
    refusals = 0
    for _ in range(400):
        data = bytearray(good.data)
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(len(data))] = rng.choice(b"\x80\x93\x81\x82R.btc(iobQ)}]\x94\x00\xff" + bytes(range(256)))
        seen.clear()
        watching.append("")
        try:
            inert_pickle.read_pickle(bytes(data))
        except inert_pickle.Refused:
            refusals += 1
        finally:
            watching.clear()
        assert seen == []
    assert 100 < refusals < 400


def archive(data, name="archive/data.pkl"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, data)
    return stream.getvalue()


def saved(thing, zipped):
    stream = io.BytesIO()
    torch.save(thing, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (saved({"a": torch.ones(2)}, True), "a zip archive"),
        (saved({"a": torch.ones(2)}, False), "a checkpoint written by torch.save"),
        (save({"a": torch.ones(2)}), "is a safetensors file"),
        (b"\x1f\x8b\x08" + bytes(20), "compressed by gzip"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"\x89PNG\r\n\x1a\n", "is no pickle"),
        (b"hello, this is a text", "is no pickle"),
        (bytes(100), "is no pickle"),
        (b"\x80\x09N.", "its PROTO is 9, where 5 is the last known"),
        (b"\x80\x04.", "empty stack"),
        (b"\x80\x04N", "before seeing STOP"),
        (b"\x80\x04N.more", "goes on for 4 bytes"),
        (b"\x80\x04t.", "ends a group"),
        (b"\x80\x04K\x01K\x02a.", "opcode APPEND has no list"),
        (b"\x80\x04(K\x01K\x02u.", "opcode SETITEMS has no dict"),
        (b"\x80\x04}(K\x01u.", "a key without a value"),
        (b"\x80\x04h\x07.", "refers to value 7 of 0"),
        (b"\x80\x04Nr\xf0\xff\xff\xff.", "numbers value 0 as 4294967280"),
        (b"\x80\x04K\x01K\x02\x93.", "asks for 2 of 1 as a global name"),
    ],
)
def test_other_files_are_refused_by_what_they_are(data, words, refused):
    assert words in refused(data)


def test_keys_are_text(refused):
    for key in (b"K\x01", b"N", b"K\x01\x85", b"G" + bytes(8)):
        assert "has a dictionary with the key" in refused(start(b"}", key, b"Ns"))


# --- bombs ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bounded():
    """Fails where a block takes more than `seconds`, or more than `mib` of Python's memory."""

    class Bounded:
        def __init__(self, seconds, mib):
            self.seconds, self.mib = seconds, mib

        def __enter__(self):
            tracemalloc.start()
            self.began = time.process_time()

        def __exit__(self, *_):
            took, peak = time.process_time() - self.began, tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
            assert took < self.seconds
            assert peak < self.mib

    return Bounded


def test_zip_bombs_are_not_opened(refused, bounded):
    bomb = archive(bytes(100 << 20))
    assert len(bomb) < 200 << 10
    with bounded(2, 5):
        assert "a zip archive" in refused(bomb)
        assert "a storage in a zip archive" in refused(in_file(bomb))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x",  # BINBYTES8
        b"\x80\x04\x8e" + struct.pack("<Q", 2**64 - 1) + b"x",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x",  # BINUNICODE8
        b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"x",
        b"\x80\x04X" + struct.pack("<I", 2**32 - 1) + b"x",
        b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"x",  # LONG4
        b"\x80\x04\x8b" + struct.pack("<i", -5) + b"x",
        b"\x80\x04T" + struct.pack("<i", -5) + b"x",  # BINSTRING
        b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"N.",  # FRAME
        b"\x80\x04Nr\xf0\xff\xff\xff.",  # a memo of four billion places
        b"\x80\x04Np99999999999999\n.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"F" + b"9" * 10_000 + b"x\n.",
        b"cos\nsys",
    ],
)
def test_sizes_beyond_the_file_cost_nothing(data, refused, bounded):
    with bounded(2, 5):
        refused(data)


def laughs(levels=100, width=10):
    """Lists of ten times the same list: 10^levels values, were they written out."""
    data = b"]\x94"
    for level in range(levels):
        data += b"](" + b"h" + bytes([level])
        data += (b"h" + bytes([level])) * (width - 1) + b"e\x94"
    return data


def test_billion_laughs_cost_nothing(refused, bounded, good):
    with bounded(2, 20):
        assert "containers deep" in refused(start(laughs()))
        assert "a list under 'ema'" in refused(start(laughs(90), b"0}", text("ema"), b"h\x5as"))
        assert "sets the state" in refused(start(laughs(90), b"}b"))
        message = refused(start(b"}", text("ema"), NETWORK, b"s"))
    assert "_init_args" in message
    content = good.make()
    bomb = []
    for _ in range(60):
        bomb = [bomb] * 10
    content["ema"].state["_init_kwargs"]["channel_mult"] = bomb
    with bounded(2, 20):
        assert "channel_mult" in refused(official_bytes(content))


@pytest.mark.parametrize(
    "nest",
    [
        lambda n: b")" + b"\x85" * n,  # tuples
        lambda n: b"]" * n + b"a" * (n - 1),  # lists
        lambda n: (b"}" + text("a")) * n + b"N" + b"s" * n,  # dictionaries
        lambda n: b"(" * n + b"l" * n,  # lists by MARK
        lambda n: (MODULE + b"}" + text("a")) * n + b"N" + b"sb" * n,  # modules
    ],
)
def test_deep_nesting_is_refused(nest, refused, bounded):
    with bounded(20, 200):
        assert "more than 100 containers deep" in refused(start(nest(20_000)))
    inert_pickle.read_pickle(start(nest(50)))


def test_the_number_of_opcodes_is_bounded(refused):
    for data in (b"N" * 1_100_000, b"N0" * 600_000):
        assert "more than 1,000,000 pickle opcodes" in refused(start(data))


def test_opcodes_inside_storages_count_as_well(refused):
    again = b"0" + LOAD + b"h\x00\x85R"
    assert "more than 1,000,000 pickle opcodes" in refused(start(blob(pieces()), b"\x94", again * 40_000))


def test_a_file_larger_than_any_official_one_is_not_read(tmp_path):
    path = tmp_path / "net.pkl"
    with path.open("wb") as file:
        file.truncate(3 << 30)  # a hole, which takes no room
    with pytest.raises(UserError, match="at most 2,147,483,648 are read"):
        import_edm(path, tmp_path / "model")


def test_records_that_only_look_official_hold_no_power(good, tmp_path):
    """An inert record with attributes named like methods stays data."""
    content = good.make()
    for special in ("__setstate__", "__reduce__", "__class__", "__del__", "__getattr__", "__dict__"):
        content["ema"].state[special] = "x"
    content["dataset_kwargs"] = EasyDict(path="x", __class__="y")
    content["augment_pipe"] = Persistent("AugmentPipe", {"__class__": "z"})
    path = tmp_path / "net.pkl"
    path.write_bytes(official_bytes(content))
    import_edm(path, tmp_path / "model")
