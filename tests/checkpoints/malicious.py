"""Hostile checkpoints as bytes: (name, file name, bytes, code that must be said)."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator

CODE = [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("subprocess", "check_output"),
    ("builtins", "eval"), ("builtins", "exec"), ("builtins", "getattr"), ("builtins", "__import__"), ("builtins", "open"),
    ("__builtin__", "eval"), ("__builtin__", "apply"), ("importlib", "import_module"), ("runpy", "run_path"),
    ("pickle", "loads"), ("marshal", "loads"), ("types", "FunctionType"), ("operator", "attrgetter"), ("functools", "partial"),
    ("shutil", "rmtree"), ("socket", "socket"), ("ctypes", "CDLL"), ("webbrowser", "open"), ("commands", "getoutput"),
    ("torch", "load"), ("torch.hub", "load"), ("torch.storage", "_load_from_bytes"), ("torch.jit", "load"),
    ("numpy", "load"), ("numpy.f2py.crackfortran", "myeval"), ("numpy.testing._private.utils", "runstring"),
    ("pip._internal", "main"), ("joblib", "load"), ("cloudpickle", "loads"), ("dill", "loads"), ("bdb", "Bdb"),
]  # fmt: skip
TOP = [("os", "system"), ("builtins", "eval"), ("torch.hub", "load"), ("joblib", "load")]


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def in_zip(pickled: bytes, *more: tuple[str, bytes], compress: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compress) as archive:
        for name, data in (("a/data.pkl", pickled), ("a/version", b"3\n"), *more):
            archive.writestr(name, data)
    return out.getvalue()


GLOBAL = b"cos\nsystem\n(S'id'\ntR."
EMPTY = b"\x80\x02}."


def legacy(at: int) -> bytes:
    parts = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])]
    parts[at] = b"\x80\x02" + GLOBAL
    return b"".join(parts)


def cases() -> Iterator[tuple[str, str, bytes, str]]:
    for module, name in CODE:
        one = f"{module}\n{name}\n".encode()
        yield f"global {module}.{name}", "a.pt", b"c" + one + b"(S'x'\ntR.", "CNV601"
        yield f"fetched {module}.{name}", "a.pt", in_zip(b"\x80\x02c" + one + b"."), "CNV601"
    for module, name in TOP:
        one, two = f"{module}\n{name}\n".encode(), text(module) + text(name) + b"\x93"
        yield f"stack global {module}", "a.pt", b"\x80\x04" + two + text("x") + b"\x85R.", "CNV601"
        yield f"memo alias {module}", "a.pt", b"\x80\x04" + text(module) + b"\x94" + text(name) + b"\x940" * 1 + b"0h\x00h\x01\x93.", "CNV601"
        yield f"inst {module}", "a.pt", b"(S'x'\ni" + one + b".", "CNV601"
        yield f"obj {module}", "a.pt", b"(c" + one + b"S'x'\no.", "CNV601"
        yield f"newobj {module}", "a.pt", b"\x80\x02c" + one + b")\x81.", "CNV601"
        yield f"newobj_ex {module}", "a.pt", b"\x80\x04" + two + b")}\x92.", "CNV601"
        yield f"build {module}", "a.pt", b"\x80\x02c" + one + b"}b.", "CNV601"
        yield f"as a class's state {module}", "a.pt", b"\x80\x02c__main__\nA\n)\x81}X\x01\x00\x00\x00fc" + one + b"sb.", "CNV601"
    yield "a change of a class", "a.pt", b"\x80\x02ctorch\nTensor\nN}X\x01\x00\x00\x00fK\x01s\x86b.", "CNV601"
    yield "dotted", "a.pt", b"\x80\x04" + text("torch.serialization") + text("os.system") + b"\x93.", "CNV601"
    yield "computed name", "a.pt", b"\x80\x04" + text("os") + b"K\x01\x85\x93.", "CNV601"
    yield "computed by a call", "a.pt", b"\x80\x04c__main__\nf\n)R" + text("system") + b"\x93.", "CNV601"
    yield "the result of a call, called", "a.pt", b"c__main__\nf\n)R)R.", "CNV601"
    for code, width in ((b"\x82", 1), (b"\x83", 2), (b"\x84", 4)):
        yield f"extension {width}", "a.pt", b"\x80\x02" + code + b"\x01" * width + b".", "CNV601"
    yield "a second pickle", "a.pkl", EMPTY + b"\x80\x02" + GLOBAL, "CNV601"
    yield "code, then damage", "a.pt", GLOBAL[:-1] + b"\xff\xff", "CNV601"
    yield "code, then damage, in a zip", "a.pt", in_zip(GLOBAL[:-1]), "CNV601"
    for at in range(5):
        yield f"legacy pickle {at + 1}", "a.pt", legacy(at), "CNV601"
    yield "two data.pkl", "a.pt", in_zip(EMPTY, ("a/data.pkl", GLOBAL)), "CNV601"
    yield "two roots", "a.pt", in_zip(EMPTY, ("b/data.pkl", GLOBAL)), "CNV601"
    yield "other case", "a.pt", in_zip(EMPTY, ("a/DATA.PKL", GLOBAL)), "CNV601"
    yield "a pickle in data/0", "a.pt", in_zip(EMPTY, ("a/data/0", b"\x80\x02" + GLOBAL)), "CNV601"
    yield "an old pickle in data/0", "a.pt", in_zip(EMPTY, ("a/data/0", GLOBAL)), "CNV601"
    yield "deflated", "a.pt", in_zip(b"\x80\x02" + GLOBAL, compress=zipfile.ZIP_DEFLATED), "CNV601"
    yield "a library inside", "a.pt", in_zip(EMPTY, ("a/lib.so", b"\x7fELF" + bytes(60))), "CNV601"
    yield "python inside", "a.pt", in_zip(EMPTY, ("a/run.py", b"import os")), "CNV601"
    good = in_zip(EMPTY)
    yield "prefix polyglot", "a.pt", b"\x80\x02" + GLOBAL + good, "CNV601"
    yield "shifted archive", "a.pt", b"#!/bin/sh\n" + good, "CNV602"
    yield "trailing bytes", "a.pt", good + b"xx", "CNV602"
    yield "other local name", "a.pt", good.replace(b"a/data.pkl", b"a/data.pkx", 1), "CNV602"
    flagged = bytearray(good)
    flagged[good.index(b"PK\1\2") + 8] |= 1
    yield "encrypted", "a.pt", bytes(flagged), "CNV602"
    yield "traversal", "a.pt", in_zip(EMPTY, ("../../etc/x", b"x")), "CNV602"
    yield "absolute", "a.pt", in_zip(EMPTY, ("/etc/x", b"x")), "CNV602"
    yield "zip bomb", "a.pt", in_zip(b"\x80\x02" + b"N0" * 40_000_000 + b"N.", compress=zipfile.ZIP_DEFLATED), "CNV602"
    laughs = b"\x80\x04]\x94" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(250)) + b"."
    yield "billion laughs", "a.pt", laughs, ""
    for name, bad in (
        ("unicode", b"\x8d" + b"\xff" * 8), ("bytes", b"\x8e" + b"\xff" * 7 + b"\x7f"), ("bytearray", b"\x96" + b"\xff" * 8),
        ("long", b"\x8b\xff\xff\xff\x7f"), ("negative long", b"\x8b\xff\xff\xff\xff"), ("frame", b"\x95" + b"\xff" * 8),
        ("memo", b"j\xff\xff\xff\xff"), ("put", b"p" + b"9" * 5000 + b"\n"),
    ):  # fmt: skip
        yield f"overlong {name}", "a.pt", b"\x80\x04N" + bad + b".", "CNV602"
    yield "3,000,000 deep", "a.pt", b"\x80\x04N" + b"\x85" * 3_000_000 + b".", "CNV602"
    yield "1,000,000 deep key", "a.pt", b"\x80\x04}N" + b"\x85" * 1_000_000 + b"Ns.", ""
    yield "2^60 header", "a.safetensors", struct.pack("<Q", 2**60) + b"{}", "CNV602"
    yield "deep json", "a.safetensors", struct.pack("<Q", 200_000) + b"[" * 200_000, "CNV602"
    for name, header, data in (
        ("overlap", b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}', 6),
        ("negative", b'{"a":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}}', 4),
        ("beyond", b'{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}', 4),
        ("wrong size", b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}', 4),
        ("doubled", b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', 4),
        ("trailing", b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', 5),
    ):  # fmt: skip
        yield f"safetensors {name}", "a.safetensors", struct.pack("<Q", len(header)) + header + bytes(data), "CNV602"
    yield "shard outside", "m.index.json", b'{"weight_map": {"a": "../x.safetensors"}}', "CNV602"
    yield "missing shard", "m.index.json", b'{"weight_map": {"a": "x.safetensors"}}', "CNV602"
