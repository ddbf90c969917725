"""Pickles read as inert data: a stack machine that builds numbers, text, containers, tensors and records, and calls nothing.

`pickle` runs what a file tells it to. Here the opcodes are decoded by `pickletools`, which only decodes, and a name that a file asks for
becomes a `Global`, two strings: no module is imported, no class made, no ``__setstate__`` looked up. What a known name would have
returned is worked out here from its arguments (`CALLED`, `MADE`); a file that asks for any other name is refused. The work is bounded as
well: the opcodes of a file and of the storages inside it are counted together, no opcode copies more bytes than it names, and sizes are
checked against the bytes that the file has.
"""

import io
import math
import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

MOST_OPCODES = 1_000_000  # the CIFAR-10 networks have 70,000
DEEPEST = 100  # containers inside one another; the CIFAR-10 networks reach 10
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save's format before 1.6 begins with
LEGACY_VERSION = 1001
PROTO = b"\x80"  # the opcode that pickles of protocol 2 and later begin with
DAMAGED = "is no pickle, or is damaged or cut short"

ELEMENTS = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
SCALARS = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "b1": "<?"}  # numpy's names of dtypes, and their formats in `struct`


class Refused(Exception):
    """Raised for a file that is refused; the message is the predicate of a sentence whose subject is the file."""


class NameRefused(Refused):
    """Raised for a file that asks for a global name that is not on the whitelist."""


@dataclass(frozen=True)
class Global:
    """A global name that the file asks for, as two strings; the object of that name is not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown(f"{self.module}.{self.name}")


@dataclass(eq=False, repr=False)
class Record:
    """An object that the file describes: the name of its class, and its attributes, or None where the file has not given them yet."""

    kind: str
    state: dict[str, Any] | None


@dataclass(eq=False, repr=False)
class Storage:
    """`numel` numbers of type `dtype` in the bytes `data`, from byte `start` on, not yet copied."""

    dtype: torch.dtype
    numel: int
    data: bytes
    start: int


@dataclass(eq=False, repr=False)
class InertTensor:
    """A view of a storage, checked to lie inside the storage and to have no more elements than the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> torch.Tensor:
        """Return a copy as a contiguous tensor of shape `shape`, in the storage's dtype."""
        storage = self.storage
        if not math.prod(self.shape):
            return torch.empty(self.shape, dtype=storage.dtype)
        raw = bytearray(memoryview(storage.data)[storage.start : storage.start + storage.numel * storage.dtype.itemsize])
        return torch.frombuffer(raw, dtype=storage.dtype).as_strided(self.shape, self.stride, self.offset).contiguous()


@dataclass(eq=False, repr=False)
class _ScalarType:
    """A numpy dtype, by its name."""

    name: str


@dataclass
class _Effort:
    """The number of opcodes that may still be read, in a file and the storages inside it together."""

    left: int = MOST_OPCODES

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Refused(f"holds more than {MOST_OPCODES:,} pickle opcodes; official checkpoints have about 70,000")


def read_pickle(data: bytes) -> Any:
    """Return the content of the pickle `data` as inert values. Raises Refused for anything that no official checkpoint has."""
    stream = io.BytesIO(data)
    effort = _Effort()
    try:
        root = _Machine(stream, len(data), effort, called=CALLED, made=MADE).run()
    except NameRefused:
        raise
    except Refused:
        if data[:1] == PROTO:
            raise
        raise Refused("is no pickle of protocol 2 or later, which official checkpoints are") from None  # most likely no pickle at all
    if root == LEGACY_MAGIC:
        raise Refused("is a checkpoint written by torch.save, not a pickled network")
    if stream.tell() != len(data):
        raise Refused(f"goes on for {len(data) - stream.tell():,} bytes after the end of its pickle")
    _check_depth(root)
    return root


def shown(value: Any) -> str:
    """Return a short form of a value from a file that is safe to print."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "?" for c in value[:100]) + "..." * (len(value) > 100)
    if isinstance(value, Global):
        return f"the name {value}"
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and value.bit_length() < 100):
        return repr(value)
    if isinstance(value, list | tuple) and len(value) <= 8 and all(isinstance(v, int | float | str) for v in value):
        return f"[{', '.join(shown(v) for v in value)}]"
    return f"a {_kind(value)}"


def _kind(value: Any) -> str:
    if isinstance(value, Record):
        return f"module {shown(value.kind)}"
    names = {InertTensor: "tensor", Storage: "storage", Global: "name", _ScalarType: "numpy dtype"}
    return names.get(type(value), type(value).__name__)


@dataclass
class _Machine:
    """The stack machine of one pickle, which reads from the position of `stream` and leaves `stream` after the opcode STOP."""

    stream: io.BytesIO
    size: int
    effort: _Effort
    called: Mapping[Global, Callable[[tuple[Any, ...], _Effort], Any]] = field(default_factory=dict)
    made: Mapping[Global, Callable[[], Any]] = field(default_factory=dict)
    named: frozenset[Global] = frozenset()
    persistent: Callable[[Any], Any] | None = None
    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)  # the stacks under each open MARK
    memo: list[Any] = field(default_factory=list)

    def run(self) -> Any:
        """Return the value that the pickle holds. Raises Refused."""
        try:
            for opcode, argument, position in pickletools.genops(self.stream):
                self.effort.spend()
                if opcode.name == "STOP":
                    return self.pop()
                self.step(opcode.name, argument, position)
        except ValueError as error:  # pickletools raises it for unknown opcodes, lengths beyond the file's end and malformed numbers
            raise Refused(f"{DAMAGED} ({shown(str(error))})") from None
        raise AssertionError("genops ends with STOP or raises")

    def step(self, opcode: str, argument: Any, position: int | None) -> None:
        if opcode in ARGUMENTS:
            self.stack.append(argument)
        elif opcode in FRESH:
            self.stack.append(FRESH[opcode]())
        elif opcode in TUPLES:
            self.stack.append(tuple(reversed([self.pop() for _ in range(TUPLES[opcode])])))
        elif opcode == "MEMOIZE" or opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.remember(len(self.memo) if opcode == "MEMOIZE" else argument)
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            if not 0 <= argument < len(self.memo):
                raise Refused(f"{DAMAGED}: it refers to value {shown(argument)} of {len(self.memo)}")
            self.stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif opcode in ("TUPLE", "LIST", "DICT"):
            items = self.pop_mark()
            self.stack.append(tuple(items) if opcode == "TUPLE" else items if opcode == "LIST" else {})
            if opcode == "DICT":
                self.set_items(items)
        elif opcode in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [self.pop()] if opcode == "APPEND" else self.pop_mark()
            self.top(list, opcode).extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            self.set_items([self.pop(), self.pop()][::-1] if opcode == "SETITEM" else self.pop_mark())
        elif opcode in ("GLOBAL", "INST"):
            module, name = argument.split(" ", 1)
            self.stack.append(self.admitted(Global(module, name)))
            if opcode == "INST":
                raise Refused(f"calls {self.pop()} by the pickle opcode INST, which no official checkpoint has")
        elif opcode == "STACK_GLOBAL":
            name, module = self.pop(), self.pop()
            if not isinstance(name, str) or not isinstance(module, str):
                raise Refused(f"{DAMAGED}: it asks for {shown(name)} of {shown(module)} as a global name")
            self.stack.append(self.admitted(Global(module, name)))
        elif opcode == "REDUCE":
            arguments, function = self.pop(), self.pop()
            self.stack.append(self.call(function, arguments))
        elif opcode == "NEWOBJ":
            arguments, kind = self.pop(), self.pop()
            if not isinstance(kind, Global) or kind not in self.made or arguments != ():
                raise Refused(f"makes an object of {shown(kind)}, which no official checkpoint does")
            self.stack.append(self.made[kind]())
        elif opcode == "BUILD":
            state = self.pop()
            _build(self.top(object, opcode), state)
        elif opcode == "BINPERSID" and self.persistent is not None:
            self.stack.append(self.persistent(self.pop()))
        elif opcode in ("PROTO", "FRAME"):
            left = self.size - self.stream.tell()
            if argument > (5 if opcode == "PROTO" else left):
                allowed = "5 is the last known" if opcode == "PROTO" else f"{left:,} bytes are left"
                raise Refused(f"{DAMAGED}: its {opcode} is {argument:,}, where {allowed}")
        elif opcode in ("POP", "POP_MARK", "DUP"):
            self.discard(opcode)
        elif opcode.startswith("EXT"):
            raise Refused(f"asks for entry {argument} of Python's registry of pickle extensions, which no official checkpoint does")
        else:
            raise Refused(f"has the pickle opcode {opcode} at byte {position}, which no official checkpoint has")

    def pop(self) -> Any:
        if not self.stack:
            raise Refused(f"{DAMAGED}: its pickle takes a value from an empty stack")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.below:
            raise Refused(f"{DAMAGED}: its pickle ends a group that it did not begin")
        items, self.stack = self.stack, self.below.pop()
        return items

    def discard(self, opcode: str) -> None:
        """Run the opcode POP (of a value, or of an empty MARK), POP_MARK or DUP."""
        if opcode == "DUP":
            self.stack.append(self.top(object, opcode))
        elif opcode == "POP_MARK" or not self.stack:
            self.pop_mark()
        else:
            self.pop()

    def top(self, kind: type, opcode: str) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise Refused(f"{DAMAGED}: its pickle opcode {opcode} has no {kind.__name__} to act on")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        """Store the top of the stack in the memo as value `index`: a new one, numbered in order as by all picklers, or a replacement."""
        value = self.top(object, "PUT")
        if index == len(self.memo):
            self.memo.append(value)
        elif 0 <= index < len(self.memo):
            self.memo[index] = value
        else:
            raise Refused(f"{DAMAGED}: it numbers value {len(self.memo)} as {shown(index)}")

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict, "SETITEMS")
        if len(items) % 2:
            raise Refused(f"{DAMAGED}: a dictionary has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:  # hashes of text are salted; numbers could be chosen to collide, nested tuples to overflow the C stack
                raise Refused(f"has a dictionary with the key {shown(key)}; official checkpoints have text for keys")
            target[key] = value

    def admitted(self, name: Global) -> Global:
        if name in self.called or name in self.made or name in self.named:
            return name
        raise NameRefused(f"asks for {name}, which no official EDM checkpoint needs")

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global) or function not in self.called:
            raise Refused(f"calls {shown(function)}, which no official checkpoint does")
        if not isinstance(arguments, tuple):
            raise Refused(f"calls {function} with {shown(arguments)} for arguments")
        value = self.called[function](arguments, self.effort)
        if value is UNKNOWN:
            raise Refused(f"calls {function} with arguments that no official checkpoint gives it")
        return value


# stands for the result of a known name that is called with arguments of another form than the official one
UNKNOWN = object()

# opcodes that push the argument that `pickletools` decoded
NUMBERS = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
ARGUMENTS = NUMBERS | TEXTS | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
# opcodes that push a constant or something empty; a set is a list here, so that nothing is hashed
FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _build(target: Any, state: Any) -> None:
    """Run the opcode BUILD: give a module's record its attributes, once.

    An empty state for a dictionary and a byte order for a numpy dtype are ignored. Raises Refused for any other target or state.
    """
    if isinstance(target, Record) and target.state is None and isinstance(state, dict):
        target.state = state
    elif isinstance(target, _ScalarType) and isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", "|"):
        pass
    elif not (isinstance(target, dict) and isinstance(state, dict) and not state):
        raise Refused(f"sets the state of {shown(target)} by {shown(state)}, which no official checkpoint does")


def _persistent_object(arguments: tuple[Any, ...], effort: _Effort) -> Any:
    """Return a record of torch_utils.persistence's {type, version, module_src, class_name, state}; the source text is ignored."""
    match arguments:
        case ({"type": "class", "version": 6, "class_name": str(kind), "state": dict(state)},):
            return Record(kind, state)
        case ({"version": int(version)},) if version != 6:
            raise Refused(f"was written by version {shown(version)} of torch_utils.persistence; 6 is the one that is read")
    return UNKNOWN


def _tensor(arguments: tuple[Any, ...], effort: _Effort) -> Any:
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(stride), bool(), dict(hooks), *_) if not hooks:
            numbers = (offset, *shape, *stride)
            if len(shape) != len(stride) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
                return UNKNOWN
            numel = math.prod(shape)
            last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
            if numel and (last >= storage.numel or numel > storage.numel):
                raise Refused(f"has a tensor of shape {list(shape)}, whose storage holds {storage.numel:,} numbers")
            return InertTensor(storage, offset, shape, stride)
    return UNKNOWN


def _parameter(arguments: tuple[Any, ...], effort: _Effort) -> Any:
    match arguments:
        case (InertTensor() as tensor, bool(), dict(hooks)) if not hooks:
            return tensor
    return UNKNOWN


def _storage(arguments: tuple[Any, ...], effort: _Effort) -> Any:
    """Return what torch.storage._load_from_bytes would, of torch.save's format before 1.6: five pickles, an int64 count, raw numbers."""
    match arguments:
        case (bytes(data),):
            pass
        case _:
            return UNKNOWN
    if data[:4] == b"PK\x03\x04":
        raise Refused("has a storage in a zip archive, where official checkpoints have torch's format before 1.6")
    stream = io.BytesIO(data)

    def persistent(key: Any) -> Storage:
        match key:
            case ("storage", Global(module="torch", name=kind), str(), str(), int(numel), None):
                if 0 <= numel < 2**48:
                    return Storage(ELEMENTS[kind], numel, data, 0)
        raise Refused("has a storage whose persistent id is not of torch's form")

    named = frozenset(Global("torch", name) for name in ELEMENTS)
    magic, version, system = (_Machine(stream, len(data), effort).run() for _ in range(3))
    if magic != LEGACY_MAGIC or version != LEGACY_VERSION:
        raise Refused("has a storage that is not in torch's format before 1.6")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("has a storage that was not written on a little-endian machine")
    storage = _Machine(stream, len(data), effort, named=named, persistent=persistent).run()
    keys = _Machine(stream, len(data), effort).run()
    if not isinstance(storage, Storage) or not isinstance(keys, list) or len(keys) != 1:
        raise Refused(f"has {shown(storage)} where one storage should be")
    size, storage.start = storage.numel * storage.dtype.itemsize, stream.tell() + 8
    if data[stream.tell() : storage.start] != struct.pack("<q", storage.numel) or len(data) - storage.start != size:
        raise Refused(f"has a storage said to be of {storage.numel:,} numbers, which its {len(data):,} bytes do not bear out")
    return storage


def _empty_dictionary(arguments: tuple[Any, ...], effort: _Effort) -> Any:
    return UNKNOWN if arguments else {}


def _set(arguments: tuple[Any, ...], effort: _Effort) -> Any:
    match arguments:
        case (list(items),):
            return items
    return UNKNOWN


def _scalar_type(arguments: tuple[Any, ...], effort: _Effort) -> Any:
    match arguments:
        case (str(name), bool(), bool()) if name in SCALARS:
            return _ScalarType(name)
    return UNKNOWN


def _scalar(arguments: tuple[Any, ...], effort: _Effort) -> Any:
    """Return the value of a numpy scalar, such as the square root of 1/2 that each block keeps, as a number of Python."""
    match arguments:
        case (_ScalarType(name=name), bytes(raw)) if len(raw) == struct.calcsize(SCALARS[name]):
            return struct.unpack(SCALARS[name], raw)[0]
    return UNKNOWN


# the functions that official files call, and what stands for each
CALLED: dict[Global, Callable[[tuple[Any, ...], _Effort], Any]] = {
    Global("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Global("torch._utils", "_rebuild_parameter"): _parameter,
    Global("torch.storage", "_load_from_bytes"): _storage,
    Global("collections", "OrderedDict"): _empty_dictionary,
    Global("builtins", "set"): _set,
    Global("numpy", "dtype"): _scalar_type,
    Global("numpy.core.multiarray", "scalar"): _scalar,
    Global("numpy._core.multiarray", "scalar"): _scalar,
}
# the classes of which official files make empty objects
MADE: dict[Global, Callable[[], Any]] = {
    Global("dnnlib.util", "EasyDict"): dict,
    Global("torch.nn.modules.container", "ModuleDict"): lambda: Record("ModuleDict", None),
}


def _check_depth(root: Any) -> None:
    """Raise Refused where a value lies more than `DEEPEST` containers deep; each container is visited once, level by level."""
    level, seen = [root], {id(root)}
    for _ in range(DEEPEST):
        new = {id(part): part for value in level for part in _parts(value) if id(part) not in seen}
        if not new:
            return
        seen.update(new)
        level = list(new.values())
    raise Refused(f"holds values more than {DEEPEST} containers deep; official checkpoints reach about 10")


def _parts(value: Any) -> Iterator[Any]:
    """The containers directly inside `value`."""
    if isinstance(value, Record):
        value = value.state
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return (part for part in inside if isinstance(part, dict | list | tuple | Record))
