"""What torch's weights_only loader reads once it is told what to allow (``torch/_weights_only_unpickler.py``, torch 2.13)."""

from __future__ import annotations

import re
from collections.abc import Iterable

REFUSED = {
    "0": "POP", "1": "POP_MARK", "2": "DUP", "B": "BINBYTES", "C": "SHORT_BINBYTES", "F": "FLOAT", "I": "INT", "L": "LONG",
    "P": "PERSID", "S": "STRING", "T": "BINSTRING", "V": "UNICODE", "d": "DICT", "g": "GET", "i": "INST", "l": "LIST",
    "o": "OBJ", "p": "PUT", "\x82": "EXT1", "\x83": "EXT2", "\x84": "EXT4", "\x8b": "LONG4", "\x8c": "SHORT_BINUNICODE",
    "\x8d": "BINUNICODE8", "\x8e": "BINBYTES8", "\x90": "ADDITEMS", "\x91": "FROZENSET", "\x92": "NEWOBJ_EX",
    "\x93": "STACK_GLOBAL", "\x94": "MEMOIZE", "\x95": "FRAME", "\x96": "BYTEARRAY8", "\x97": "NEXT_BUFFER",
    "\x98": "READONLY_BUFFER",
}  # fmt: skip
"""Opcodes that it refuses, whatever is allowed."""
FILLED = ("collections.OrderedDict", "collections.Counter", "builtins.dict", "builtins.list")
"""What a call may make for SETITEM(S) and APPEND(S) to put items into."""

_DTYPES = dict(
    pair.split(":")
    for pair in "b1:Bool i1:Int8 i2:Int16 i4:Int32 i8:Int64 u1:UInt8 u2:UInt16 u4:UInt32 u8:UInt64 f2:Float16 f4:Float32 f8:Float64 "
    "f12:LongDouble f16:LongDouble c8:Complex64 c16:Complex128 c24:CLongDouble c32:CLongDouble M8:DateTime64 m8:TimeDelta64".split()
)
_BY_KIND = {"S": "Bytes", "U": "Str", "V": "Void", "O": "Object"}
_MADE = {
    "numpy.random._pickle.__randomstate_ctor": "numpy.random.mtrand.RandomState",
    "numpy.random._pickle.__generator_ctor": "numpy.random._generator.Generator",
}
_BIT_GENERATORS = {"MT19937": "_mt19937", "PCG64": "_pcg64", "PCG64DXSM": "_pcg64", "Philox": "_philox", "SFC64": "_sfc64"}


def type_made(function: str, first: object) -> str | None:
    """The type of what ``function`` makes of its ``first`` argument, where it must be allowed to take a state (BUILD) and is not
    the function itself nor an argument."""
    if function == "numpy.dtype":
        if not isinstance(first, str):
            return "numpy.dtypes.VoidDType"  # of a class: numpy.record
        name = _DTYPES.get(first) or _BY_KIND.get(first[:1])
        return f"numpy.dtypes.{name}DType" if name else None
    if function == "numpy.random._pickle.__bit_generator_ctor" and isinstance(first, str) and first in _BIT_GENERATORS:
        return f"numpy.random.{_BIT_GENERATORS[first]}.{first}"  # as numpy before 1.24 wrote it
    return _MADE.get(function)


_BY_NAME = re.compile(
    r"(?!builtins\.(?:Ellipsis|NotImplemented)$|numpy\.(?!(?:ndarray|dtype|u?int\d+|float\d+|complex\d+)$|dtypes\.|random\.)|pathlib\.|typing\.|torch\.distributed\._|.*\.AttributeDict$)"
)
"""Names under which what they name is known to itself, in every version; any other is allowed by its name as it is written."""


def _item(name: str) -> tuple[str, str]:
    """A global as add_safe_globals takes it, and the module to import for that."""
    module, _, last = name.rpartition(".")
    if module in ("pathlib", "pathlib._local"):  # a path of another system, or of another Python, becomes one of this
        module, last = "pathlib", {"PosixPath": "Path", "WindowsPath": "PureWindowsPath"}.get(last, last)
    module = re.sub(r"^numpy\.core\b", "numpy._core", module)
    found = last if module == "builtins" else f"{module}.{last}"
    return found if _BY_NAME.match(name) else f'({found}, "{name}")', module


def line_allowing(names: Iterable[str]) -> str:
    """The line of Python after which weights_only allows ``names``, imports included."""
    items = [_item(name) for name in names]
    modules = sorted({module for _, module in items} - {"builtins"} | {"torch"})
    return f"import {', '.join(modules)}; torch.serialization.add_safe_globals([{', '.join(item for item, _ in items)}])"
