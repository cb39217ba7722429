"""The tensor table of a pickle: what its rebuild calls say, without their storages (``torch/_utils.py``, 2.13)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from convaudit.checkpoints.pickle_reader import Call, Dict, Global, Persistent, Set, Work, brief
from convaudit.result import TensorRow

Role = Literal["parameter", "buffer", "optimizer", "ema", "other"]
UNKNOWN = "unknown"
MAX_DEPTH = 1000
"""Containers in containers that are looked through for tensors; a network's modules are a dozen deep."""
MAX_NAMES = 32_000_000
"""Characters of all names together."""

BITS = {
    "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16, "int64": 64, "int32": 32, "int16": 16, "int8": 8,
    "uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64, "bool": 8, "complex32": 32, "complex64": 64, "complex128": 128,
    "float8_e4m3fn": 8, "float8_e4m3fnuz": 8, "float8_e5m2": 8, "float8_e5m2fnuz": 8, "float8_e8m0fnu": 8,
    "float4_e2m1fn_x2": 8, "qint8": 8, "quint8": 8, "qint32": 32, "quint4x2": 4, "quint2x4": 2, "bits8": 8, "bits16": 16,
    "bits1x8": 8, "bits2x4": 8, "bits4x2": 8,
}  # fmt: skip
"""Bits an element takes in a storage, by torch's name of its dtype."""
STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "Long": "int64", "Int": "int32", "Short": "int16",
    "Char": "int8", "Byte": "uint8", "Bool": "bool", "BFloat16": "bfloat16", "ComplexDouble": "complex128",
    "ComplexFloat": "complex64", "QInt8": "qint8", "QInt32": "qint32", "QUInt8": "quint8", "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4", "Untyped": "uint8",
}  # fmt: skip
"""Element type by the first part of a storage class's name (``torch.storage._dtype_to_storage_type_map``)."""
_ARRAYS = {
    "b1": "bool", "f2": "float16", "f4": "float32", "f8": "float64", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64",
    "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64", "c8": "complex64", "c16": "complex128",
}  # fmt: skip
"""torch's dtype by the type code of numpy's ``dtype.__reduce__``."""
_ARRAY = (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"))

_MODELS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "model_state", "blobs")
_PACKED = re.compile(r"(?:.*\.)?(?:_packed_params|_all_weight_values\.\d+\.param)")
"""Keys of a quantized Linear's weight and bias, which are a pair, and of a quantized LSTM's (``torch/ao/nn/quantized``, 2.13)."""
_PACKED_CONV = 10
"""Place of a quantized convolution's weight in the tuple that it is pickled as; its bias is the next (``_ConvNd.__getstate__``)."""
_HOLDERS = (list, tuple, Call, Persistent)
_LISTED = "[]"
_DEEP, _MOST_SEARCHED, _MOST_LISTED, _LONGEST = 4, 20_000, 1000, 200
"""Keys that may stand before a state_dict's own, values in which one is looked for, the most of a list, and characters of a key."""
_GENERATOR, _MOST_GENERATORS = (5056,), 64
"""Shape of the state of torch's generator on the CPU, in bytes (``at::CPUGeneratorImpl``), and keys of a dict with one."""
_TAKEN_FOR = {"optimizer": "optimizer state", "ema": "of EMA copies", "other": "in no state_dict"}
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "weight_mask", "bias_mask", "weight_u", "_u", "_v")
"""The last five are pruning's and spectral_norm's (``torch.nn.utils``)."""
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")


@dataclass
class Storage:
    """A storage as a persistent id names it: its key, element type and size in elements (in bytes, where several elements are
    in one); ``begin`` is the element at which a part of it begins, as torch 0.1 could name one."""

    key: str
    dtype: str
    elements: int
    begin: int = 0

    def bytes(self) -> int | None:
        """Bytes that it takes; None where its type is not known."""
        return self.elements if BITS.get(self.dtype, 8) < 8 else size_of(self.elements, self.dtype)


@dataclass
class Tensor:
    """A tensor as its rebuild call describes it; None is not known. Offsets and strides are in elements; ``kind`` says what
    it is where its elements do not lie in its storage as they are, ``parts`` what a sparse or nested one is stored as:
    its values, then indices or lengths; ``beside`` are the scales and zero points of a quantized one. ``held`` are the
    elements of one that has no one shape."""

    shape: tuple[int, ...] | None
    dtype: str
    storage: Storage | None = None
    offset: int = 0
    stride: tuple[int, ...] | None = None
    bytes: int | None = None
    parameter: bool = False
    kind: str = ""
    parts: tuple[Tensor, ...] = ()
    beside: tuple[Tensor, ...] = ()
    held: int | None = None

    def elements(self) -> int | None:
        """How many elements the shape holds."""
        if self.shape is None:
            return self.held
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass
class Table:
    """Rows of one pickle and what could not be told."""

    rows: list[TensorRow] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    storages: dict[str, Storage] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    complete: bool = True
    """Whether all of its tensors are listed."""
    unknown: list[str] = field(default_factory=list)
    wrappers: list[str] = field(default_factory=list)
    """Keys that hold a state_dict, joined by dots; names begin with them where there is more than one."""


def size_of(elements: int | None, dtype: str) -> int | None:
    """Bytes that a number of elements takes; None where the dtype or the number is not known."""
    return None if elements is None or dtype not in BITS else -(-elements * BITS[dtype] // 8)


def storage_of(value: Any) -> Storage | None:
    """The storage of a persistent id ``("storage", class, key, location, elements[, view])``."""
    if not isinstance(value, Persistent) or not isinstance(value.id, tuple) or len(value.id) < 5:
        return None
    word, kind, key, _, elements = value.id[:5]
    view = value.id[5] if len(value.id) > 5 else None
    if word not in ("storage", b"storage") or not isinstance(elements, int) or not isinstance(key, (str, int)):
        return None
    name = kind.name if isinstance(kind, Global) else ""
    begin = view[1] if isinstance(view, tuple) and len(view) == 3 and type(view[1]) is int else 0
    return Storage(str(key), STORAGES.get(name.removesuffix("Storage"), UNKNOWN), elements, begin)


def tensor_of(value: Any, depth: int = 0) -> Tensor | None:
    """The tensor that a call rebuilds; None where it is no tensor, or one in one in one."""
    parameter = False
    if depth > 2:
        return None
    for _ in range(8):  # a Parameter of a subclass of a tensor …
        if not isinstance(value, Call) or not isinstance(value.function, Global):
            return None
        module, name = value.function.module, value.function.name
        args = value.args if isinstance(value.args, tuple) else ()
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2") and len(args) >= 3:
            value = Call(args[0], args[2])
            parameter = parameter or (isinstance(args[1], Global) and args[1].name == "Parameter")
        elif name in ("_rebuild_parameter", "_rebuild_parameter_with_state", "Parameter") and args:
            parameter, value = True, args[0]
        else:
            break
    else:
        return None
    made = _rebuilt(module, name, args, value.state, depth)
    if made is not None:
        made.parameter = parameter
    return made


def _part(value: Any, depth: int) -> Tensor | None:
    """As :func:`tensor_of`, of a part of a tensor: made once, however many hold it."""
    if not isinstance(value, Call):
        return None
    if value.rebuilt is None:
        value.rebuilt = {}
    if depth not in value.rebuilt:
        value.rebuilt[depth] = tensor_of(value, depth)
    found: Tensor | None = value.rebuilt[depth]
    return found


def _rebuilt(module: str, name: str, args: tuple[Any, ...], state: Any, depth: int) -> Tensor | None:
    if module in ("torch", "torch.cuda") and name.endswith("Tensor"):  # tensors of torch 0.1: BUILD with set_()'s arguments
        if not isinstance(state, tuple) or len(state) < 4:
            return None
        return _strided(state, None)
    if (module, name) in _ARRAY:
        return _array(state[1], state[2]) if isinstance(state, tuple) and len(state) == 5 else None
    if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":  # protocol 5
        return _array(args[2], args[1]) if len(args) > 2 else None
    if (module, name) == ("torch.nested._internal.nested_tensor", "_rebuild_njt") and args and isinstance(args[0], Dict):
        return _jagged(args[0], depth)
    if module != "torch._utils":
        return None
    if name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_qtensor") and len(args) >= 4:
        made = _strided(args, None)
        if name == "_rebuild_tensor_v2" and len(args) > 6 and args[6]:
            made.kind = "conjugated" if isinstance(args[6], Dict) and "conj" in args[6][::2] else "negated"
        if name == "_rebuild_qtensor" and len(args) > 4 and isinstance(args[4], tuple):
            made.beside = tuple(inner for part in args[4][:4] if (inner := _part(part, depth + 1)) is not None)
        return made
    if name == "_rebuild_tensor_v3" and len(args) >= 7:
        return _strided(args, dtype_of(args[6]))
    if name == "_rebuild_meta_tensor_no_storage" and len(args) >= 3:
        return Tensor(ints_of(args[1]), dtype_of(args[0]), bytes=0, kind="on the meta device")
    if name == "_rebuild_wrapper_subclass" and len(args) >= 3:
        return Tensor(ints_of(args[2]), dtype_of(args[1]), kind="a wrapper of others")
    if name == "_rebuild_sparse_tensor" and len(args) == 2 and isinstance(args[1], tuple):
        parts = [(part, _part(part, depth + 1)) for part in args[1][:8]]
        shape = next((found for part, inner in parts if inner is None and (found := ints_of(part)) is not None), None)
        return _composed("sparse", shape, [inner for _, inner in reversed(parts) if inner is not None])
    if name == "_rebuild_device_tensor_from_cpu_tensor" and args:
        return _part(args[0], depth + 1)
    if name == "_rebuild_nested_tensor":
        made = _composed("nested", None, [inner for part in args[:8] if (inner := _part(part, depth + 1)) is not None])
        made.held = made.parts[0].elements() if made.parts else None
        return made
    if name == "_rebuild_device_tensor_from_numpy":
        return Tensor(None, dtype_of(args[1]) if len(args) > 1 else UNKNOWN, kind="a numpy array")
    return None


def _composed(kind: str, shape: tuple[int, ...] | None, parts: list[Tensor]) -> Tensor:
    """A tensor that is stored as several, the first of which are its values; its bytes are those of all."""
    values = parts[0] if parts else Tensor(None, UNKNOWN)
    sizes = [part.bytes for part in parts if part.bytes is not None]
    size = sum(sizes) if parts and len(sizes) == len(parts) else None
    return Tensor(shape, values.dtype, values.storage, values.offset, bytes=size, kind=kind, parts=tuple(parts))


def _jagged(fields: Dict, depth: int) -> Tensor:
    """A nested tensor of the jagged layout; one that skips values, by ``lengths``, does not tell how many it has."""
    pairs = dict.fromkeys(("values", "offsets", "lengths", "_metadata_cache"))
    pairs.update((key, item) for key, item in fields.pairs() if isinstance(key, str) and key in pairs)
    cached = pairs.pop("_metadata_cache")
    items = [*pairs.values(), *(cached[1:9:2] if isinstance(cached, Dict) else [])]
    made = _composed("nested", None, [inner for item in items if (inner := _part(item, depth + 1)) is not None])
    made.held = made.parts[0].elements() if made.parts and pairs["lengths"] is None else None
    return made


def _strided(args: tuple[Any, ...], dtype: str | None) -> Tensor:
    storage = storage_of(args[0])
    found = dtype or (storage.dtype if storage else UNKNOWN)
    offset = (args[1] if isinstance(args[1], int) else 0) + (storage.begin if storage else 0)
    made = Tensor(ints_of(args[2]), found, storage, offset, ints_of(args[3]))
    if _is_call(args[0], ("torch.storage", "_load_from_bytes")):
        made.kind = "in a file of torch within the pickle"  # pickled without torch.save
    made.bytes = size_of(made.elements(), found)
    return made


def _is_call(value: Any, *names: tuple[str, str]) -> bool:
    return isinstance(value, Call) and isinstance(value.function, Global) and (value.function.module, value.function.name) in names


def _array(shape: Any, dtype: Any) -> Tensor | None:
    """A numpy array; None for objects, texts, dates and records."""
    code = dtype.args[0] if isinstance(dtype, Call) and isinstance(dtype.args, tuple) and dtype.args else None
    found = code.name if isinstance(code, Global) else _ARRAYS.get(code) if isinstance(code, str) else None
    if found not in BITS:
        return None
    made = Tensor(ints_of(shape), found, kind="a numpy array in the pickle")
    made.bytes = size_of(made.elements(), found)
    return made


def dtype_of(value: Any) -> str:
    """torch's name of a dtype, or "unknown"."""
    return value.name if isinstance(value, Global) and value.module == "torch" and value.name in BITS else UNKNOWN


def ints_of(value: Any) -> tuple[int, ...] | None:
    """A shape or stride: a tuple, or a ``torch.Size`` of one."""
    if isinstance(value, Call) and isinstance(value.args, tuple) and len(value.args) == 1:
        value = value.args[0]
    if isinstance(value, (tuple, list)) and len(value) <= 64 and all(type(n) is int and abs(n) < 2**63 for n in value):
        return tuple(value)
    return None


class _Path(NamedTuple):
    """A name's last part and what it is a part of: joined only where a tensor is."""

    above: _Path | None
    part: str

    def __str__(self) -> str:
        parts, at = [], self
        while at.above is not None:
            parts.append(at.part)
            at = at.above
        return ".".join(reversed(parts))


class _State(NamedTuple):
    """A state_dict and the keys that it stands under."""

    path: _Path
    value: Any


def table_of(root: Any, where: str, work: Work) -> Table:
    """Every tensor reachable from a pickle's value, as many as ``work`` allows; ``where`` is put before storage names.

    Names are the keys of the file joined by dots, without those of the wrapper that holds a state_dict.
    """
    root = _unwrapped(root)
    states = _Search().states(root)
    table = Table(wrappers=[str(path) for path, _ in states])
    seen: set[int] = set()
    letters = MAX_NAMES
    top = _Path(None, "")
    first: list[_Child] = [(item, path if states[1:] else top, "parameter" if type(item) is list else None) for path, item in states]
    waiting: list[Iterator[_Child]] = [iter([(root, top, None)]), iter(first)]  # what they share with an EMA copy is theirs
    while waiting:
        value, path, role = next(waiting[-1], _NONE)
        if path is None:
            waiting.pop()
            continue
        if isinstance(value, Call):
            tensor = tensor_of(value)
            if tensor is not None:
                name = str(path)
                letters -= len(name)
                work.tensors -= 1
                if work.tensors < 0 or letters < 0:
                    table.problems.append("it has more tensors, or longer names, than are read (--max-pickle); the rest is not listed")
                    table.complete = False
                    break
                _add(table, tensor, name, role, where)
                continue
        elif isinstance(value, Persistent):
            storage = storage_of(value)
            if storage is not None:
                table.storages.setdefault(storage.key, storage)
            continue
        elif not isinstance(value, (list, tuple)) or not any(isinstance(item, _HOLDERS) for item in value):
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        if len(waiting) > MAX_DEPTH:
            table.problems.append(f"it is nested more than {MAX_DEPTH:,} deep; what lies below is not listed")
            table.complete = False
            break
        waiting.append(_children(value, path, role, table.wrappers if value is root else None))
    return table


_Child = tuple[Any, _Path | None, Role | None]
_NONE: _Child = (None, None, None)


def _children(value: Any, path: _Path, role: Role | None, wrappers: list[str] | None) -> Iterator[_Child]:
    """What a value holds; ``wrappers`` are the root's, None of any other."""
    if role is None and _PACKED.fullmatch(path.part):
        role = "parameter"
    if isinstance(value, Dict):
        yield from _entries(value, path, role, wrappers)
        return
    if isinstance(value, (tuple, list)):
        kept: Role | None = role or ("other" if wrappers is None else None)
        for i, item in enumerate(value):
            if isinstance(item, _HOLDERS):
                yield item, _Path(path, str(i)), kept
        return
    if isinstance(value.function, Global) and value.function.module.startswith("numpy.random."):
        return  # a generator's state
    if value.items is not None:
        yield from _entries(value.items, path, role, wrappers)
    if isinstance(value.state, tuple) and len(value.state) > _PACKED_CONV + 1 and _is_quantized(value.function):
        for word, item in zip(("weight", "bias"), value.state[_PACKED_CONV:]):
            yield item, _Path(path, word), role
        return
    state = value.state[0] if isinstance(value.state, tuple) and len(value.state) == 2 else value.state
    if isinstance(state, Dict) and role in (None, "other") and _kind_of(state) == "optimizer":  # pickled whole, with parameters that have no names
        for key, item in state.pairs():
            yield item, _Path(path, _key(key)), "other" if key == "param_groups" else "optimizer"
        return
    keys = state[::2] if isinstance(state, Dict) else []
    if "_parameters" in keys and "_modules" in keys:  # an nn.Module, pickled whole
        unsaved = next((_members(item) for key, item in state.pairs() if key == "_non_persistent_buffers_set"), [])
        for key, item in state.pairs():
            if key == "_buffers" and unsaved:
                for word, buffer in _pairs(item):
                    yield buffer, _Path(path, _key(word)), "other" if word in unsaved else "buffer"
                continue
            if key == "param" and isinstance(value.function, Global) and value.function.name == "PackedParameter" and _is_quantized(value.function):
                yield item, _Path(path, key), "parameter"  # a quantized LSTM's
                continue
            part: Role | None = {"_parameters": "parameter", "_buffers": "buffer", "_modules": role, "_packed_params": role}.get(str(key), "other")
            yield item, path if key in ("_parameters", "_buffers", "_modules") else _Path(path, _key(key)), part
    elif value.items is None or wrappers is None:
        yield state, path, role
    if isinstance(value.args, tuple):
        for item in value.args:
            if isinstance(item, _HOLDERS):
                yield item, path, role or "other"


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """The entries of a dict, or of what is made as one (``OrderedDict``)."""
    entries = value.items if isinstance(value, Call) else value
    return entries.pairs() if isinstance(entries, Dict) else []


def _members(value: Any) -> list[str]:
    """The texts of a set, which protocols 0 to 3 make of a list."""
    if isinstance(value, Call) and isinstance(value.args, tuple) and value.args:
        value = value.args[0]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _is_quantized(kind: Any) -> bool:
    return isinstance(kind, Global) and kind.module.startswith(("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.", "torch.nn.quantized.", "torch.nn.intrinsic.quantized."))


def _unwrapped(root: Any) -> Any:
    """What a numpy array of objects holds: one value (``numpy.save`` of a dict), or several."""
    state = root.state if _is_call(root, *_ARRAY) else None
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[4], list):
        return root
    return state[4][0] if state[1] == () and len(state[4]) == 1 else state[4]


class _Search:
    """Finds the state_dicts of a file. Each container is looked into once, as it may stand under many keys."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, str], bool] = {}
        self.seen: set[int] = set()
        self.left = _MOST_SEARCHED

    def states(self, root: Any) -> list[_State]:
        """Those under a model's usual names, else under any (a GAN's two), else EMA copies; each once."""
        self.seen.add(id(root))
        found = self.below(root, _Path(None, ""), 0)
        return list({id(state.value): state for state in reversed(found["other"] or found["ema"])}.values())[::-1]

    def below(self, value: Any, path: _Path, depth: int) -> dict[Role, list[_State]]:
        """Those in a container, and in what it holds to a depth of :data:`_DEEP`."""
        held, entries = _held(value), _dict_of(value)
        named = [_State(_Path(path, word), item) for word, item in held if word in _MODELS and self.holds(item, "")]
        found: dict[Role, list[_State]] = {"other": named, "ema": [], "optimizer": []}
        if named or (entries and _kind_of(entries)) or (depth == 0 and any(tensor_of(item) is not None for _, item in held)):
            return found
        last = depth == _DEEP or (depth == 0 and any(word in _MODELS and _dict_of(item) and _held(item) for word, item in held))
        for word, item in held:
            if depth and (self.left <= 0 or len(word) > _LONGEST):
                continue
            kind, within = _beside(word), not last and self.left > 0 and len(word) <= _LONGEST
            if self.holds(item, ".weight" if depth else "weight") or (kind == "ema" and self.holds(item, _LISTED)):
                found[kind].append(_State(_Path(path, word), item))
            elif within and kind != "optimizer" and id(item) not in self.seen:
                self.left -= 1
                self.seen.add(id(item))
                deeper = self.below(item, _Path(path, word), depth + 1)
                found[kind] += deeper["other"]
                found["ema"] += deeper["ema"]
        return found

    def holds(self, item: Any, leaf: str) -> bool:
        """Whether a value is a state_dict (with a tensor whose name ends as ``leaf`` does), or something that is built with
        one; of :data:`_LISTED`, whether it is a list of tensors."""
        answer = self.known.get((id(item), leaf))
        if answer is None:
            entries = _dict_of(item)
            if leaf == _LISTED:
                answer = type(item) is list and bool(item) and all(tensor_of(value) is not None for value in item[:100])
            elif entries is not None:
                answer = any(((word := _key(key)).endswith(leaf) or word == leaf.removeprefix(".")) and tensor_of(value) is not None for key, value in entries.pairs())
            else:
                answer = isinstance(item, Call) and isinstance(item.state, Dict) and "_modules" in item.state[::2]
            self.known[id(item), leaf] = answer
        return answer


def _dict_of(item: Any) -> Dict | None:
    """The entries of a dict, or of what is made as one (``OrderedDict``); None of anything else."""
    entries = item.items if isinstance(item, Call) else item
    return entries if isinstance(entries, Dict) else None


def _held(value: Any) -> list[tuple[str, Any]]:
    """What a dict or a short list holds, by keys as parts of names."""
    entries = _dict_of(value)
    if entries is not None:
        return [(_key(key), item) for key, item in entries.pairs() if isinstance(item, _HOLDERS)]
    if not isinstance(value, (list, tuple)) or len(value) > _MOST_LISTED:
        return []
    return [(str(i), item) for i, item in enumerate(value) if isinstance(item, _HOLDERS)]


def _kind_of(entries: Dict) -> Role | None:
    """What a dict is whatever its key: an optimizer's state, or states of random number generators."""
    keys = entries[::2]
    if "state" in keys and "param_groups" in keys:
        return "optimizer"
    tensors = [tensor for item in entries[1::2] if (tensor := tensor_of(item)) is not None] if len(keys) < _MOST_GENERATORS else []
    bytes_only = all(tensor.dtype == "uint8" and len(tensor.shape or ()) == 1 for tensor in tensors)
    return "other" if bytes_only and any(tensor.shape == _GENERATOR for tensor in tensors) else None


def _beside(word: str) -> Role:
    """What stands under a key that is no model's usual one."""
    if ("ema" in word.lower() and "ema" in word.lower().split("_")) or word in ("shadow", "shadow_params"):
        return "ema"
    return "optimizer" if word.startswith(("optim", "opt_")) or "optimizer" in word else "other"


def _entries(entries: Dict, path: _Path, role: Role | None, wrappers: list[str] | None) -> Iterator[_Child]:
    models = {*_MODELS, *(wrappers or ())}
    bare = wrappers == [] and any(tensor_of(item) is not None or _PACKED.fullmatch(_key(key)) for key, item in entries.pairs())
    one = len(wrappers or ()) < 2  # else names begin with them
    if role in (None, "other"):
        role = _kind_of(entries) or role
    for key, item in entries.pairs():
        if not isinstance(item, _HOLDERS):
            continue
        word, inner = _key(key), role
        if wrappers is not None and not bare and role is None:
            if word in models:
                yield item, path if one else _Path(path, word), None
                continue
            inner = _beside(word)
        elif role == "other":
            inner = _beside(word)
        yield item, _Path(path, word), inner


def _key(key: Any) -> str:
    """A key as a part of a name: a text as it is, others about as Python shows them."""
    if isinstance(key, (str, bytes)):
        return key if isinstance(key, str) else key.decode("utf-8", "backslashreplace")
    if isinstance(key, Call) and isinstance(key.function, Global):
        return f"{key.function.name}{brief(key.args)}"
    return str(key) if isinstance(key, (int, float)) else f"{{{brief(key)[1:-1]}}}" if isinstance(key, Set) else brief(key)


def _add(table: Table, tensor: Tensor, name: str, role: Role | None, where: str) -> None:
    storage = tensor.storage
    if role is None:
        role = "other" if tensor.dtype == "uint8" and tensor.shape == _GENERATOR else role_of(name, tensor.dtype)
    for part in (*(tensor.parts or (tensor,)), *tensor.beside):
        if part.storage is not None:
            known = table.storages.setdefault(part.storage.key, part.storage)
            _check(table, part, known, name)
    if tensor.dtype == UNKNOWN or tensor.elements() is None:
        table.unknown.append(name)
    table.tensors.append(tensor)
    shape = list(tensor.shape) if tensor.shape is not None else None
    table.rows.append(
        TensorRow(name, shape, tensor.dtype, tensor.bytes, f"{where}{storage.key}" if storage else None, role)
    )


def role_of(name: str, dtype: str) -> Role:
    """Parameter or buffer, as far as a state_dict tells: by name and dtype."""
    return "buffer" if name.rpartition(".")[2] in _BUFFERS or dtype in _INTEGERS else "parameter"


def role_at(name: str, dtype: str) -> Role:
    """As :func:`role_of`, of a name with the keys that it stands under."""
    beside = _beside(name.partition(".")[0])
    return role_of(name, dtype) if beside == "other" else beside


def taken_for(rows: Iterable[TensorRow]) -> str | None:
    """What a file's tensors were taken for where none of them counts; None where one does, or where there is none."""
    found = Counter(row.role for row in rows)
    if not found or found["parameter"] or found["buffer"]:
        return None
    return f"no parameters: its tensors are {', '.join(f'{_TAKEN_FOR[role]} ({count:,})' for role, count in found.most_common())}"


def _check(table: Table, tensor: Tensor, storage: Storage, name: str) -> None:
    """The tensor lies inside its storage."""
    shape, stride = tensor.shape, tensor.stride
    if shape is None or stride is None:
        return
    shown = name[:80] or "a tensor"
    if min((*shape, *stride, tensor.offset), default=0) < 0:
        table.problems.append(f"{shown} has a negative size, stride or offset")
        return
    if len(shape) != len(stride):
        table.problems.append(f"{shown} has {len(shape)} sizes and {len(stride)} strides")
        return
    bits, held = BITS.get(tensor.dtype), storage.bytes()
    if bits is None or held is None or 0 in shape:
        return
    last = tensor.offset + sum((size - 1) * step for size, step in zip(shape, stride)) + 1
    if last * bits > held * 8:
        table.problems.append(f"{shown} reaches element {last:,} of storage {storage.key[:40]}, which holds {held * 8 // bits:,}")

