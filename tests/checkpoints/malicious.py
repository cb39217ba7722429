"""Hostile checkpoints as bytes: (name, file name, bytes, code that must be said; ~CODE: only a note may say it)."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
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
PUBLISHED = [
    line.split()
    for line in """
    pip main|asyncio.unix_events _UnixSubprocessTransport._start|bdb Bdb.run|cProfile runctx|code InteractiveInterpreter.runcode
    distutils.file_util write_file|doctest debug_script|ensurepip _run_pip|idlelib.autocomplete AutoComplete.fetch_completions
    idlelib.calltip get_entity|idlelib.debugobj ObjectTreeItem.SetText|idlelib.pyshell ModifiedInterpreter.runcode
    idlelib.run Executive.runcode|imaplib IMAP4_stream|lib2to3.pgen2.grammar Grammar.loads|lib2to3.pgen2.pgen ParserGenerator.make_label
    logging FileHandler|_io FileIO|numpy.f2py.crackfortran getlincoef|numpy.f2py.diagnose run|pkgutil resolve_name|profile Profile.runctx
    pty spawn|pydoc pipepager|pydoc locate|sys exit|test.support.script_helper assert_python_ok|timeit timeit|trace Trace.runctx
    types CodeType|urllib.request urlopen|uuid _get_command_stdout|venv create|_osx_support _read_output|_aix_support _read_cmd_output
    _pyrepl.pager pipe_pager|torch._dynamo.guards GuardBuilder.get|torch._inductor.codecache compile_file
    torch.fx.experimental.symbolic_shapes ShapeEnv.evaluate_guards_expression|torch.jit.unsupported_tensor_ops execWrapper
    torch.utils._config_module ConfigModule.load_config|torch.utils.bottleneck.__main__ run_cprofile|torch.utils.collect_env run
    torch.utils.data.datapipes.utils.decoder basichandlers|torch.fx.graph_module reduce_graph_module|torch.package PackageImporter
    torch.quantization.fx.graph_module GraphModule|requests.api get|aiohttp.client ClientSession|cloudpickle.cloudpickle _make_function
    __builtin__ breakpoint|builtins delattr|inspect currentframe|gc get_objects|multiprocessing.util spawnv_passfds|sqlite3 connect
    ssl get_server_certificate|tempfile mktemp|zipimport zipimporter|linecache getline|codeop compile_command|atexit register
    torchvision.datasets.utils Popen|mypackage.tools exec|mypackage __import__|copyreg add_extension|_posixsubprocess fork_exec
    mpmath.libmp.backend exec_|six exec_|typing_extensions get_type_hints|click edit|pygments.lexers load_lexer_from_file|rich.style loads
    yaml unsafe_load_all|jinja2.environment reduce|mypackage.tools partial|mypackage attrgetter|mypackage itemgetter|mypackage methodcaller
    mypackage CodeType|mypackage FunctionType|mypackage call|mypackage get_type_hints|mypackage import_string|mypackage load_module|mypackage getattr
    """.strip().replace("\n", "|").split("|")
]  # fmt: skip
"""Names that published advisories on scanners of pickles are about, and relatives of theirs."""
TOP = [("os", "system"), ("builtins", "eval"), ("torch.hub", "load"), ("joblib", "load")]


class Sparse(bytes):
    """Bytes with zeros behind them up to ``size``, which need not be written, and a ``tail``."""

    size: int
    tail: bytes

    def __new__(cls, data: bytes, size: int, tail: bytes = b"") -> Sparse:
        made = super().__new__(cls, data)
        made.size, made.tail = size, tail
        return made


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


def many(count: int, name: str, data: bytes) -> bytes:
    """An archive of many small stored members."""
    local, central = [], []
    at = 0
    for index in range(count):
        raw = (name % index).encode()
        sizes = struct.pack("<3L2H", zlib.crc32(data), len(data), len(data), len(raw), 0)
        local.append(b"PK\3\4" + bytes([20, 0, 0, 0, 0, 0, 0, 0, 0, 0]) + sizes + raw + data)
        central.append(b"PK\1\2" + bytes([20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0]) + sizes + bytes(10) + struct.pack("<L", at) + raw)
        at += len(local[-1])
    directory = b"".join(central)
    wide = b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, count, count, len(directory), at)
    wide += b"PK\6\7" + struct.pack("<LQL", 0, at + len(directory), 1)
    return b"".join(local) + directory + wide + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0)


def tensor(key: str = "0", elements: int = 2) -> bytes:
    """The opcodes of a tensor of float32."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU" + bytes([len(key)]) + key.encode()
        + b"U\x03cpuI%d\ntQK\x00I%d\n\x85K\x01\x85\x89NtR" % (elements, elements)
    )  # fmt: skip


STACKED = text("os") + text("system") + b"\x93" + text("id") + b"\x85R."
"""A pickle of protocol 4 without its header."""


BEGUN = {
    "a pickle without its header": STACKED, "an INST": b"(S'x'\nibuiltins\neval\n.", "items for nothing": b"N(e(u(\x90" + GLOBAL,
    "a long beginning": b"N0" * 300 + GLOBAL, "an old pickle": GLOBAL, "a pickle": b"\x80\x02" + GLOBAL,
}  # fmt: skip
"""Pickles that other things may stand behind."""


def framed(data: bytes, more: int = 0) -> bytes:
    """A frame, which says that it is longer by ``more`` than its ``data``."""
    return b"\x95" + struct.pack("<Q", len(data) + more) + data


HIDDEN = b"U" + bytes([len(GLOBAL)]) + GLOBAL
"""Code as a text: opcodes, if its two first bytes are dropped."""
FRAMES = {
    "code behind a text that crosses": framed(b"U\4aa") + b"bb" + HIDDEN + b"N.", "code behind a number that crosses": framed(b"J\1\2") + b"bb" + HIDDEN + b"N.",
    "code behind a long integer that crosses": framed(b"\x8a\4ab") + b"cd" + HIDDEN + b"N.", "code whose line crosses": framed(b"c__") + b"os\nremove\n)R.",
    "code behind a line that crosses": framed(b"c__") + b"a\nb\n0" + GLOBAL, "code after an end in a frame": framed(b"N." + HIDDEN[:2]) + GLOBAL,
    "code in what an end in a frame leaves": framed(b"N." + GLOBAL), "code behind frames in frames": framed(framed(b"NN") + framed(b"U\4aa")) + b"bb" + HIDDEN + b"N.",
    "code, perhaps, behind frames that are crossed again and again": (framed(b"U\2a") + b"U") * 20 + b"bN.",
    "a size that crosses": framed(b"X\0\0") + b"\0\0N.", "a frame in a frame": framed(framed(b"NN") + b"NN") + b".",
    "a frame that crosses": framed(framed(b"N0", 4) + b"0") + b"N0N.", "an end in a frame": framed(b"N.N"), "bytes that cross": framed(b"C\4aa") + b"bb.",
}  # fmt: skip
"""What unpicklers read differently, as it does not keep to its frames."""


def as_tar(pickled: bytes) -> bytes:
    """A pickle that is a tar archive by its magic."""
    return pickled.ljust(257, b"\0") + b"ustar" + bytes(1500)


LIKE = {
    "GGUF": b"GGUF\3\0\0\0\0" + GLOBAL, "bzip2": b"BZh\0\0" + bytes(0x685A) + GLOBAL, "a tar": as_tar(b"\x80\x02" + GLOBAL),
    "an old tar": as_tar(STACKED), "safetensors": b"X\5\0\0\0\0\0\0{a" + GLOBAL + bytes(2000),
    "safetensors, and breaks": b"X\5\0\0\0\0\0\0{a" + STACKED[:-1] + bytes(2000), "safetensors, then code": b"X\5\0\0\0\0\0\0{a.\x80\x02" + GLOBAL + bytes(2000),
}  # fmt: skip
"""Pickles whose first bytes are those of other files."""


def numpy_array(pickled: bytes, descr: bytes = b"'descr': '|O'") -> bytes:
    header = b"{" + descr + b", 'fortran_order': False, 'shape': (1,), }\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + pickled


def in_tar(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def cases() -> Iterator[tuple[str, str, bytes, str]]:
    yield from names()
    yield from opcodes()
    yield from archives()
    yield from nested()
    yield from blow_ups()
    yield from safetensors()


def unlisted() -> bytes:
    """An archive whose directory leaves one member out."""
    whole = in_zip(EMPTY, ("a/hidden.pkl", GLOBAL), ("a/byteorder", b"little"))
    start = whole.index(b"a/hidden.pkl", whole.index(b"PK\1\2")) - 46
    end = whole.index(b"PK\1\2", start + 4)
    cut = bytearray(whole[:start] + whole[end:])
    at = cut.index(b"PK\5\6")
    cut[at + 8 : at + 16] = struct.pack("<2HL", 3, 3, len(cut) - 22 - cut.index(b"PK\1\2"))
    return bytes(cut)


def overlapping() -> bytes:
    """Two entries of a directory for one local header."""
    whole = in_zip(EMPTY)
    central = whole.index(b"PK\1\2")
    entry = whole[central : whole.index(b"PK\1\2", central + 4)]
    end = whole.index(b"PK\5\6")
    size = end - central + len(entry)
    return whole[:end] + entry + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 3, 3, size, central, 0)


def names() -> Iterator[tuple[str, str, bytes, str]]:
    for module, name in CODE:
        one = f"{module}\n{name}\n".encode()
        yield f"global {module}.{name}", "a.pt", b"c" + one + b"(S'x'\ntR.", "CNV601"
        yield f"fetched {module}.{name}", "a.pt", in_zip(b"\x80\x02c" + one + b"."), "CNV601"
    for module, name in PUBLISHED:
        yield f"published {module}.{name}", "a.pt", in_zip(b"\x80\x04c" + f"{module}\n{name}\n".encode() + b"(S'x'\ntR."), "CNV601"


def opcodes() -> Iterator[tuple[str, str, bytes, str]]:
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
    member = b"c__builtin__\ngetattr\nq\x00c__main__\nA\nq\x01X\x01\x00\x00\x00Bq\x02\x86R"
    for what, more in (
        ("of a name in lower case", b"h\x00h\x01X\x01\x00\x00\x00b\x86R"), ("of data", b"h\x00cpathlib\nPath\nh\x02\x86R"), ("called", b")R"),
        ("of a module", b"h\x00c__main__\na\nh\x02\x86R"), ("of a part of torch", b"h\x00ctorch.nn.modules.conv\nConv2d\nh\x02\x86R"),
        ("with a default", b"h\x00h\x01h\x02N\x87R"), ("as an argument", b"0c__main__\nA\nh\x00\x85R"), ("as an element", b"0]h\x00a"),
        ("doubled", b"0c__builtin__\ngetattr\n2h\x01h\x02\x86R"), ("as a state", b"0h\x01)R}h\x02h\x00sb"), ("fetched again", b"c__builtin__\ngetattr\n"),
    ):
        yield f"a member of an enum, then getattr {what}", "a.pt", b"\x80\x02" + member + more + b".", "CNV601"
    yield "the result of a call, called", "a.pt", b"c__main__\nf\n)R)R.", "CNV601"
    for code, width in ((b"\x82", 1), (b"\x83", 2), (b"\x84", 4)):
        yield f"extension {width}", "a.pt", b"\x80\x02" + code + b"\x01" * width + b".", "CNV601"
    yield "a second pickle", "a.pkl", EMPTY + b"\x80\x02" + GLOBAL, "CNV601"
    yield "code, then damage", "a.pt", GLOBAL[:-1] + b"\xff\xff", "CNV601"
    yield "code, then damage, in a zip", "a.pt", in_zip(GLOBAL[:-1]), "CNV601"
    yield "a dotted name of the standard library", "a.pt", b"\x80\x04cpathlib\nos.system\n(S'x'\ntR.", "CNV601"
    yield "a name built by bytes", "a.pt", b"\x80\x04C\x02os" + text("system") + b"\x93.", "CNV601"
    yield "a memo's numbers from PUT and MEMOIZE", "a.pt", b"\x80\x04" + b"U\x02osq\x00U\x06systemq\x01" + text("torch") + b"\x94" + text("Size") + b"\x94h\x00h\x01\x93.", "CNV601"
    yield "a memo entry put anew", "a.pt", b"\x80\x04" + text("torch") + b"q\x00" + text("os") + b"q\x00" + text("system") + b"q\x01h\x00h\x01\x93.", "CNV601"
    yield "after items for nothing", "a.pt", b"N(e(u(\x90" + GLOBAL, "CNV601"
    yield "after a frame that is too long", "a.pt", b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + GLOBAL, "CNV601"
    for what, data in FRAMES.items():
        yield f"framed: {what}", "a.pt", b"\x80\x04" + data, "CNV602"
        yield f"framed in a zip: {what}", "a.pt", in_zip(b"\x80\x04" + data), "CNV602"
        if "code" in what:
            yield f"framed: {what}, named", "a.pt", in_zip(b"\x80\x04" + data), "CNV601"
    for line in (b"I0\0x\n", b"I\0\n", b"L0\0x\n", b"F1.0\0x\n", b"Np1\n0g1\0\n", b"Np" + b"0" * 30 + b"1\n0g1\n", b"Np+1\0\n0h\1"):
        for head in (b"", b"\x80\x04"):
            yield f"after a line that C reads to its NUL, {line!r} {head!r}", "a.pt", head + line + b"0" + GLOBAL, "CNV601"
    yield "after an open mark", "a.pt", b"(((" + GLOBAL, "CNV601"
    yield "after numbers as C reads them", "a.pt", b"I0x1f\nI017\nI 7\nL0x5L\n" + GLOBAL, "CNV601"
    yield "after a long line", "a.pt", b"S'" + b"x" * 300_000 + b"'\n0" + GLOBAL, "CNV601"
    yield "after a long line, in a legacy number", "a.pt", b"I" + b" " * 300_000 + b"7\n" + GLOBAL, "CNV601"
    yield "after an item of a list by its index", "a.pt", b"](NeK\x00K\x01s" + GLOBAL, "CNV601"
    yield "after a bytearray is extended", "a.pt", b"\x80\x05\x96\1\0\0\0\0\0\0\0a(K\x01e" + GLOBAL, "CNV601"
    yield "through pickle.loads", "a.pt", b"\x80\x04cpickle\nloads\nB" + struct.pack("<L", len(GLOBAL)) + GLOBAL + b"\x85R.", "CNV601"
    yield from guarded()
    partial, net = b"cfunctools\npartial\n", b"ctorch.nn.modules.normalization\nLayerNorm\n"
    yield "a partial of code", "a.pt", b"\x80\x02" + partial + b"cos\nsystem\n\x85R.", "CNV601"
    yield "a partial of what a call gives", "a.pt", b"\x80\x02" + partial + b"c__main__\nf\n)R\x85R.", "CNV601"
    yield "a partial of a partial", "a.pt", b"\x80\x02" + partial + partial + b"\x85R.", "CNV601"
    yield "a partial whose state is code", "a.pt", b"\x80\x02" + partial + net + b"\x85R(cos\nsystem\n)}Ntb.", "CNV601"
    yield "a partial whose state is what a call gives", "a.pt", b"\x80\x02" + partial + net + b"\x85R(c__main__\nf\n)R)}Ntb.", "CNV601"
    yield "a partial, called", "a.pt", b"\x80\x02" + partial + net + b"\x85R)R.", "CNV601"
    yield "one good partial, one bad", "a.pt", b"\x80\x02" + partial + net + b"\x85R0" + partial + b")R.", "CNV601"
    yield "a name that the file's end ends", "a.pkl", b"\x80\x02}0cantigravity\nx\0", "CNV601"
    yield "a class that the file's end ends", "a.pkl", b"\x80\x02}0(iantigravity\nx\0", "CNV601"
    for at in range(5):
        yield f"cut after {at}", "a.pt", GLOBAL[: len(GLOBAL) - 1 - at], "CNV601"
    for at in range(5):
        yield f"legacy pickle {at + 1}", "a.pt", legacy(at), "CNV601"


def guarded() -> Iterator[tuple[str, str, bytes, str]]:
    """Misuse of what is no code where honest pickles use it."""
    fetch, zone, math = b"c__builtin__\ngetattr\n", b"czoneinfo\nZoneInfo\n", b"ctorch._C\n_VariableFunctionsClass\n"
    sharded = b"ctorch.distributed._shard.sharded_tensor.api\nShardedTensor\n"
    unpickle = fetch + zone + text("_unpickle") + b"\x86R"
    for key in ("../../etc/passwd", "/etc/passwd", "Europe/../x", "a.b", "", "Europe/Rome\n", "\xe9"):
        yield f"a time zone named {key!r}", "a.pt", b"\x80\x04" + unpickle + b"\x8c" + bytes([len(key.encode())]) + key.encode() + b"K\1\x86R.", "CNV601"
    rome, head, tail = text("Europe/Rome"), b"\x80\x04", b"."
    none, item = b"c__builtin__\ntype\nN\x85R", b"c_operator\ngetitem\nctyping\nList\n"
    for what, data in (
        ("a time zone by one argument", unpickle + rome + b"\x85R"), ("a time zone by no text", unpickle + b"](K\1eK\1\x86R"),
        ("a time zone's key of code", unpickle + b"cos\nsystem\nK\1\x86R"), ("a time zone from a call", zone + rome + b"\x85R"),
        ("a time zone by NEWOBJ", zone + rome + b"\x85\x81"), ("another method of time zones", fetch + zone + text("from_file") + b"\x86R"),
        ("a time zone, changed", unpickle + b"N}\x86b"), ("a class of time zones, changed", zone + b"N}" + text("a") + b"K\1s\x86b"),
        ("a function that reads files", fetch + math + text("from_file") + b"\x86R"), ("a function of torch, called", fetch + math + text("relu") + b"\x86R)R"),
        ("a function of torch, changed", fetch + math + text("relu") + b"\x86RN}" + text("a") + b"K\1s\x86b"),
        ("a function of torch by a name in capitals", fetch + math + text("RELU") + b"\x86R"), ("its class's globals", fetch + math + text("__init__") + b"\x86R"),
        ("a method of a sharded tensor", fetch + sharded + text("__init__") + b"\x86R"), ("a state of a sharded tensor with arguments", fetch + sharded + text("ProcessGroupState") + b"\x86RN\x85\x81"),
        ("a state's class, changed", fetch + sharded + text("ProcessGroupState") + b"\x86RN}" + text("__init__") + b"K\1s\x86b"),
        ("a good zone, then getattr", unpickle + b"0" + fetch + zone + text("__init__") + b"\x86R"), ("getattr of a call", fetch + b"c__main__\nf\n)R" + text("relu") + b"\x86R"),
        ("a class made by type", b"c__builtin__\ntype\n" + text("A") + b")}\x87R"), ("the class of a name", b"c__builtin__\ntype\nc__main__\nA\n\x85R"),
        ("the class of None, called", none + b")R"), ("type beside None's class", none + b"0c__builtin__\ntype\n"), ("type as an element", none + b"](c__builtin__\ntype\ne"),
        ("a reduction by another function", b"cfunctools\nreduce\nc__main__\nf\nc__main__\nA\nN\x86\x86R"),
        ("a reduction of code", b"cfunctools\nreduce\nc_operator\nor_\ncos\nsystem\nN\x86\x86R"), ("a reduction of no hints", b"cfunctools\nreduce\nc_operator\nor_\n](c__main__\nA\nNe\x86R"),
        ("a reduction twice, and its function", b"cfunctools\nreduce\nq\0c_operator\nor_\nq\1c__main__\nA\nN\x86\x86q\2R0h\0h\2R0h\1."),
        ("hints of literals that are compiled", b"c_operator\ngetitem\nctyping\nUnion\n" + text("a") + text("b") + b"\x86\x86R"),
        ("arguments that are compiled", b"c_operator\ngetitem\nctyping\nCallable\n](" + text("a") + b"eN\x86\x86R"), ("a literal of code", b"c_operator\ngetitem\nctyping\nLiteral\ncos\nsystem\n\x86R"),
        ("a hint that is compiled", item + text("__import__('os')") + b"\x86R"), ("a hint, called", item + b"c__builtin__\nint\n\x86R)R"),
        ("an item of a list", b"c_operator\ngetitem\n](c__main__\nA\neK\0\x86R"), ("a hint of code", item + b"cos\nsystem\n\x86R"),
        ("a hint of a list of hints", item + b"]\x86R"), ("an item of what is called", b"c_operator\ngetitem\nc__main__\nA\n)R" + text("a") + b"\x86R"),
        ("a union of code", b"c_operator\nor_\ncos\nsystem\nN\x86R"), ("an attribute by operator", b"c_operator\nattrgetter\n" + text("system") + b"\x85R"),
        ("a call by operator", b"c_operator\nmethodcaller\n" + text("system") + b"\x85R"), ("operator.call", b"c_operator\ncall\nc__main__\nA\n\x85R"),
        ("a partial of a sharded tensor, called", b"cfunctools\npartial\n" + sharded + b"\x85R)R"),
        ("a partial of time zones, called", b"cfunctools\npartial\n" + zone + b"\x85R" + rome + b"K\1\x86R"), ("a partial of getattr", b"cfunctools\npartial\n" + fetch + b"\x85R"), ("a partial of torch.load", b"cfunctools\npartial\nctorch.serialization\nload\n\x85R"),
        ("a partial by NEWOBJ_EX", b"cfunctools\npartial\nctorch.nn.init\nzeros_\n\x85}\x92"), ("a partial beside a good one", b"cfunctools\npartial\nq\0ctorch.nn.init\nzeros_\n\x85R](h\0e"),
        ("a good partial of a name that is put anew", b"cfunctools\npartial\n2ctorch.nn.init\nzeros_\n\x85R0"), ("an initializer of no tensor", b"ctorch.nn.init\n_no_grad_fill_\n"),
        ("a loss that calls", b"ctorch.nn.functional\ntriplet_margin_with_distance_loss\n"), ("dispatch of torch", b"ctorch.nn.functional\nhandle_torch_function\n"),
        ("a class given back by TorchScript's tag", b"ctorch.jit._pickle\nrestore_type_tag\n(cpathlib\nPath\nX\0\0\0\0tRN}" + text("a") + b"K\1s\x86b"),
        ("a call given back", b"ctorch.jit._pickle\nbuild_intlist\nc__main__\nf\n)R\x85R"), ("TorchScript's tag, not called", b"ctorch.jit._pickle\nrestore_type_tag\n"),
        ("a list given back, changed", b"ctorch.jit._pickle\nbuild_intlist\n]\x85R}b"),
        ("a class as a scalar", b"cnumpy.core.multiarray\nscalar\nNcpathlib\nPath\n\x86R"), ("a call as a scalar", b"cnumpy._core.multiarray\nscalar\nNc__main__\nf\n)R\x86R"),
        ("a class for omegaconf", b"comegaconf.dictconfig\nDictConfig\nc__main__\nA\n\x85R"), ("a class for omegaconf by NEWOBJ_EX", b"comegaconf.nodes\nAnyNode\n)}" + text("value") + b"c__main__\nA\ns\x92"),
        ("a base that is no class", b"ccopyreg\n_reconstructor\ncargparse\nNamespace\ncargparse\nNamespace\n)\x81N\x87R"),
        ("a tensor's maker that gives back", b"ctorch._tensor\n_rebuild_from_type_v2\n(cnumpy.core.multiarray\nscalar\nc__main__\nA\n)}tR"),
        ("a function of typing", b"ctyping\nget_type_hints\n"), ("a name of collections.abc that is none", b"ccollections.abc\nsys\n"),
    ):  # fmt: skip
        yield what, "a.pt", head + data + tail, "CNV601"


def archives() -> Iterator[tuple[str, str, bytes, str]]:
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
    yield "a member that the directory does not list", "a.pt", unlisted(), "CNV602"
    crc = bytearray(in_zip(b"\x80\x02" + GLOBAL))
    for at in (14, crc.index(b"PK\1\2") + 16):
        crc[at] ^= 0xFF
    yield "a wrong CRC on a malicious pickle", "a.pt", bytes(crc), "CNV601"
    method = bytearray(in_zip(b"\x80\x02" + GLOBAL))
    method[method.index(b"PK\1\2") + 10] = 99
    yield "a method nobody reads", "a.pt", bytes(method), "CNV602"
    yield "only the local header says encrypted", "a.pt", good[:6] + b"\1" + good[7:], "CNV602"
    yield "all flags", "a.pt", in_zip(b"\x80\x02" + GLOBAL).replace(b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\x09\0", 1), "CNV601"
    yield "a drive letter", "a.pt", in_zip(EMPTY, ("C:/x", b"x")), "CNV602"
    yield "a backslash traversal", "a.pt", in_zip(EMPTY, ("a\\..\\..\\x", b"x")), "CNV602"
    yield "other extension", "a.pt", in_zip(EMPTY, ("a/config.p", b"\x80\x02" + GLOBAL)), "CNV601"
    yield "a pickle that begins after a megabyte of nothing", "a.pt", in_zip(EMPTY, ("a/data/0", b"\x80\x02" + b"N0" * 600_000 + GLOBAL)), "CNV601"
    yield "a deflated pickle in data/0", "a.pt", in_zip(EMPTY, ("a/data/0", b"\x80\x02" + GLOBAL), compress=zipfile.ZIP_DEFLATED), "CNV601"
    for head in (b"\x89PNG\r\n\x1a\n", b"<!doctype html>", b"%PDF-1.4", b"\x89HDF\r\n\x1a\n", b"GGUF\3\0\0\0"):
        yield f"an archive behind {head!r}", "a.pt", head + bytes(40) + in_zip(GLOBAL), "CNV601"
    yield "an archive behind a comment", "a.pt", good[:-2] + b"\x05\0PK\5\6x", "CNV602"
    yield "a second archive behind the first", "a.pt", good + in_zip(b"\x80\x02" + GLOBAL), "CNV601"
    yield "compiled code of an exported program", "a.pt2", in_zip(EMPTY, ("m/data/aotinductor/model/x.wrapper.so", b"\x7fELF")), "CNV601"
    for name, begun in BEGUN.items():
        for what, archive in (("an archive", good), ("an archive of no pickle", in_zip(b"")), ("an archive with a comment", good[:-2] + b"\5\0hello")):
            for place in ("a.pt", "a"):
                yield f"{name} before {what}, {place}", place, begun + archive, "CNV601"
        for member in ("data.pkl", "x.pkl", "in.bin", "data/1", "x.pickle"):
            more = [] if member == "data.pkl" else [(f"a/{member}", begun + good)]
            yield f"{name} before an archive in {member}", "a.pt", in_zip(EMPTY if more else begun + good, *more), "CNV601"
    for name, data in LIKE.items():
        for place in ("a.pt", "a.dat", "a.gguf"):
            yield f"a pickle like {name}, {place}", place, data, "CNV601"
        yield f"a pickle like {name}, as data.pkl", "a.pt", in_zip(data), "CNV601"
        yield f"a pickle like {name}, in in.bin", "a.pt", in_zip(EMPTY, ("a/in.bin", data)), "CNV601"
    for at in range(1, 5):
        yield f"a legacy file with code in its pickle {at + 1}, in in.bin", "a.pt", in_zip(EMPTY, ("a/in.bin", legacy(at))), "CNV601"
    yield "a pickle called an index", "a.index.json", b"\x80\x02" + GLOBAL, "CNV601"
    yield "overlapping members", "a.pt", overlapping(), "CNV602"


def nested() -> Iterator[tuple[str, str, bytes, str]]:
    evil = b"\x80\x02" + GLOBAL
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield f"an archive in an archive {packing}", "a.pt", in_zip(EMPTY, ("a/model.pt", in_zip(evil)), compress=packing), "CNV601"
    deep = in_zip(evil)
    for level in range(1, 6):
        deep = in_zip(EMPTY, ("a/m.zip", deep))
        if level > 2:
            yield f"{level} archives deep", "a.pt", deep, "CNV601" if level <= 4 else "CNV602"
    yield "in an exported program's samples", "a.pt2", in_zip(EMPTY, ("m/archive_format", b"pt2"), ("m/data/sample_inputs/model.pt", in_zip(evil))), "CNV601"
    yield "in an older exported program", "a.pt2", in_zip(EMPTY, ("serialized_state_dict.pt", in_zip(evil)), ("serialized_exported_program.json", b"{}")), "CNV601"
    yield "an archive behind a member's bytes", "a.pt", in_zip(EMPTY, ("a/data/0", bytes(600) + in_zip(evil))), "CNV601"
    for descr in (b"'descr': 'O'", b"'descr': 'object'", b" " * 600 + b"'descr': '|O'", b"'descr': [('a', '|O')]", b"'descr': [('a', [('b', '<f4'), ('c', '|O', (2,))])]", b"'descr': '<f4,O'",
                  b"""'descr': [("x[(", '|O'), (",'<f4')]", '<f4')]""", b"'descr': '<f4', 'descr': '|O'", b"'descr': '<f4', 'd\\x65scr': '|O'"):
        array = numpy_array(evil, descr)
        yield f"an array of {descr.strip().decode()}, {len(descr)} bytes", "a.pt", in_zip(EMPTY, ("a/x.npy", array)), "CNV601"
        yield f"an archive of arrays of {descr.strip().decode()}, {len(descr)} bytes", "a.npz", in_zip(EMPTY, ("x.npy", array)), "CNV601"
    yield "an array of objects that is no pickle", "a.pt", in_zip(EMPTY, ("a/x.npy", numpy_array(b"\x80\n"))), "CNV602"
    yield "an array that joblib wrote in a member", "a.pt", in_zip(EMPTY, ("a/x.joblib", b"\x80\x04cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}b\7")), "CNV602"
    yield "an array of objects by itself", "a.npy", numpy_array(evil), "CNV601"
    for member in ("x.pickle", "x.joblib", "x.DAT", "x.data", "x.p", "x.pk"):
        yield f"an old pickle, late, in {member}", "a.pt", in_zip(EMPTY, (f"a/{member}", b"N0" * 400 + GLOBAL)), "CNV601"
    for member in ("x.bin", "data/1", "x"):
        for end in (b"", b"\xff"):
            yield f"a pickle without a header in {member}{end!r}", "a.pt", in_zip(EMPTY, (f"a/{member}", STACKED[:-1] + (end or b"."))), "CNV601"
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        behind = (("a/in.bin", b"hello" * 200 + in_zip(evil)),)
        yield f"an archive behind a prefix in a member {packing}", "a.pt", in_zip(EMPTY, *behind, compress=packing), "CNV601"
    yield "an array of objects", "a.pt", in_zip(EMPTY, ("a/x.npy", numpy_array(evil))), "CNV601"
    yield "an array of objects in an archive of arrays", "a.pt", in_zip(EMPTY, ("a/x.npz", in_zip(EMPTY, ("x.npy", numpy_array(evil))))), "CNV601"
    yield "a library two archives deep", "a.pt", in_zip(EMPTY, ("a/m.zip", in_zip(EMPTY, ("x.so", b"\x7fELF")))), "CNV601"
    yield "a damaged archive in an archive", "a.pt", in_zip(EMPTY, ("a/m.zip", in_zip(evil)[:-30])), "CNV602"
    for name, data in (
        ("a gzip file", gzip.compress(evil)), ("a bzip2 file", bz2.compress(evil)), ("an xz file", lzma.compress(evil)),
        ("a tar file", in_tar("x.pkl", evil)), ("a 7z archive", b"7z\xbc\xaf\x27\x1c" + bytes(60)), ("a RAR archive", b"Rar!\x1a\x07\1\0" + bytes(60)),
    ):  # fmt: skip
        yield f"inside: {name}", "a.pt", in_zip(EMPTY, ("a/x", data)), f"~is {name}; it was not read"
    for name, held in (
        ("bytes", b"\x80\x04B" + struct.pack("<L", len(evil)) + evil + b"."), ("short bytes", b"\x80\x04C" + bytes([len(evil)]) + evil + b"."),
        ("bytearray", b"\x80\x05\x96" + struct.pack("<Q", len(evil)) + evil + b"."), ("protocol 2", pickle.dumps(evil, 2)),
        ("protocol 0", pickle.dumps(evil, 0)), ("in bytes", pickle.dumps(pickle.dumps(evil))), ("long bytes", pickle.dumps(evil[:-1] + b"N" * 200_000 + b".", 2)),
    ):  # fmt: skip
        yield f"a pickle held as {name}", "a.pt", in_zip(held), "~a bytes value is itself a pickle that names os.system"


def blow_ups() -> Iterator[tuple[str, str, bytes, str]]:
    laughs = b"\x80\x04]\x94" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(250)) + b"."
    yield "billion laughs", "a.pt", laughs, ""
    shared = b"\x80\x02}q\x00(" + b"K\x01]" * 100_000 + b"u0}(" + b"K\x01h\x00" * 300_000 + b"u."
    yield "one dict under 300,000 keys", "a.pt", shared, ""
    for name, bad in (
        ("unicode", b"\x8d" + b"\xff" * 8), ("bytes", b"\x8e" + b"\xff" * 7 + b"\x7f"), ("bytearray", b"\x96" + b"\xff" * 8),
        ("long", b"\x8b\xff\xff\xff\x7f"), ("negative long", b"\x8b\xff\xff\xff\xff"), ("frame", b"\x95" + b"\xff" * 8),
        ("memo", b"j\xff\xff\xff\xff"), ("put", b"p" + b"9" * 5000 + b"\n"),
    ):  # fmt: skip
        yield f"overlong {name}", "a.pt", b"\x80\x04N" + bad + b".", "CNV602"
    for place, begun, said in (("a.pt", b"\x80\4", "CNV602"), ("b.pt", b"N", "CNV602"), ("a.safetensors", b"X\5\0\0\0\0\0\0{a0", "CNV601")):
        begun += b"\x8e" + struct.pack("<Q", 100_000_000)
        yield f"more than is read, then code, {place}", place, Sparse(begun, len(begun) + 100_000_000, b"0" + GLOBAL), said
    yield "3,000,000 deep", "a.pt", b"\x80\x04N" + b"\x85" * 3_000_000 + b".", "CNV602"
    yield "300,000 lists deep", "a.pt", b"\x80\x04" + b"]" * 300_000 + b"a" * 299_999 + b".", "CNV602"
    for name, once, steps in (
        ("lists", b"]", 1), ("dicts", b"}", 1), ("marks", b"(", 1), ("memo entries", b"N\x94", 2), ("nothing", b"N0", 2),
        ("numbers", b"K\x01", 1), ("calls of calls", b"c__main__\nf\n)R)R", 5), ("short texts", b"\x8c\x04abcd", 1),
        ("floats", b"G12345678", 1),
    ):  # fmt: skip
        yield f"millions of {name}", "a.pt", b"\x80\x04" + once * (2_100_000 // steps) + b".", "CNV602"
    yield "500,000 globals", "a.pt", b"\x80\x02" + b"".join(b"ca%d\nb\n0" % i for i in range(500_000)) + b"N.", "CNV602"
    yield "100,000 pickles in bytes", "a.pt", b"\x80\x04](" + (b"C\x20\x80\x04" + b"N0" * 14 + b"N.") * 100_000 + b"e.", ""
    latin = b"c_codecs\nencode\nq\0X"
    for name, data in (
        ("letters", b"B" + struct.pack("<L", 512) + b"c" * 512 + b"0"), ("lines", b"B" + struct.pack("<L", 512) + b"ab\n" * 170 + b"ab0"),
    ):  # fmt: skip
        yield f"many bytes of {name}", "a.pkl", b"\x80\x04" + data * 20_000 + b"N.", ""
    for name, held in (("letters", b"c" * 512), ("pickles", b"\xc2\x80\4." + b"\xc3\xa9" * 1_500_000)):
        yield f"one text of {name}, encoded again and again", "a.pkl", b"\x80\2" + latin + struct.pack("<L", len(held)) + held + b"q\1h\0h\1\x85R0" * 10_000 + b"N.", ""
    yield "a large pickle that crosses its frame", "a.pkl", b"\x80\4" + framed(b"U\3a") + b"bbB" + struct.pack("<L", 60_000_000) + bytes(60_000_000) + b".", "CNV602"
    yield "a state that doubles", "a.pt", b"\x80\x02c__main__\nA\n)\x81}(" + b"K\x01K\x01" * 1000 + b"uq\x00b" + b"h\x00b" * 10_000 + b".", "CNV602"
    yield "a name of 10,000,000 characters", "a.pt", b"\x80\x02c" + b"a" * 10_000_000 + b"\nb\n.", "CNV601"
    yield "a key of 10,000,000 characters", "a.pt", in_zip(b"\x80\x02}X" + struct.pack("<L", 10_000_000) + b"a" * 10_000_000 + tensor() + b"s."), "CNV602"
    long = b"X" + struct.pack("<L", 65000) + b"a" * 65000
    yield "long names of many tensors", "a.pt", in_zip(b"\x80\x02}" + long + b"}(" + b"X\1\0\0\0a" + tensor() + b"q\x06" + b"".join(b"X\6\0\0\0%06dh\x06" % i for i in range(100_000)) + b"us."), "CNV602"
    inner = b"ctorch._utils\n_rebuild_sparse_tensor\nq\x00c__main__\na\nq\x01q\x02"
    yield "sparse tensors of sparse tensors", "a.pt", in_zip(b"\x80\x02" + inner + b"".join(b"0h\x00h\x01(h" + bytes([i]) + b"h" + bytes([i]) + b"K\x01\x85t\x86Rq" + bytes([i + 1]) for i in range(2, 200)) + b"."), "CNV610"
    yield "a list of itself a million times", "a.pt", b"\x80\x04]\x94(" + b"h\x00" * 1_000_000 + b"e.", ""
    for name, data, packing in (("pickles", bytes(30_000_000), 8), ("storages that look like pickles", EMPTY + bytes(30_000_000), 8)):
        more = [(f"a/{'data/' if len(name) > 10 else ''}{i}{'' if len(name) > 10 else '.pkl'}", data) for i in range(6)]
        yield f"6 bombs of {name}", "a.pt", in_zip(EMPTY, *more, compress=packing), "CNV602"
    yield "150,000 members", "a.pt", many(150_000, "a/data/%d", b""), "CNV602"
    yield "50,000 members that look like pickles", "a.pt", many(50_000, "a/data/%d", EMPTY), "CNV602"
    yield "20,000 roots", "a.pt", many(20_000, "r%d/data.pkl", EMPTY), "CNV602"
    yield "20,000 traversals", "a.pt", many(20_000, "../r%d/x", EMPTY), "CNV602"
    yield "5,000 archives", "a.pt", many(5_000, "a/%d.zip", in_zip(EMPTY)), "CNV602"
    yield "650,000 dicts", "a.pkl", b"\x80\x02](" + b"}" * 650_000 + b"e.", ""
    yield "1,000,000 deep key", "a.pt", b"\x80\x04}N" + b"\x85" * 1_000_000 + b"Ns.", ""


def safetensors() -> Iterator[tuple[str, str, bytes, str]]:
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
    for name, header in (
        ("of 100 MB", None), ("of lists", b'{"a":[' + b"[]," * 2_600_000 + b"[]]}"), ("of objects", b'{"a":[' + b'{"":0},' * 1_140_000 + b"0]}"), ("of keys", b"{" + b",".join(b'"%05x":0' % i for i in range(790_000)) + b"}"),
        ("of dimensions", b'{"a":{"dtype":"U8","shape":[' + b"9223372036854775807," * 390_000 + b'1],"data_offsets":[0,1]}}'),
        ("of one key", b"{" + b",".join([b'"a":1'] * 1_300_000) + b"}"), ("of unknown dtypes", b"{" + b",".join(b'"a%d":{"dtype":"X","shape":[1],"data_offsets":[0,1]}' % i for i in range(90_000)) + b"}"),
        ("of 140,000 tensors", b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(140_000)) + b"}"),
        ("of one digit after another", b'{"a":' + b"1" * 7_000_000 + b"}"),
    ):  # fmt: skip
        data = Sparse(struct.pack("<Q", 99_000_000) + b'{"a":', 99_100_000) if header is None else struct.pack("<Q", len(header)) + header
        yield f"safetensors header {name}", "a.safetensors", data, "CNV602"
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    pickled = b"\x80\x02X\x05\0\0\0\0{aaacos\nsystem\n(S'id'\ntR."
    yield "a pickle that looks like safetensors", "a.safetensors", Sparse(pickled, 0x05580300), "CNV601"
    yield "an old pickle called safetensors", "a.safetensors", GLOBAL, "CNV601"
    yield "a pickle without a header, called safetensors", "a.safetensors", STACKED, "CNV601"
    yield "an archive behind safetensors", "a.safetensors", struct.pack("<Q", len(header)) + header + b"\0" + in_zip(GLOBAL), "CNV601"
    yield "an archive behind a pickle", "a.pkl", EMPTY + in_zip(GLOBAL), "CNV601"
    yield "an index of a million shards", "m.index.json", b'{"weight_map":{' + b",".join(b'"%d":"%d.x"' % (i, i) for i in range(700_000)) + b"}}", "CNV602"
    yield "an index of a million lists", "m.index.json", b'{"weight_map":{},"x":[' + b'{"":[]},' * 1_900_000 + b"0]}", ""
    yield "an index of a million names", "m.index.json", b'{"weight_map":{' + b",".join(b'"%d":""' % i for i in range(1_200_000)) + b"}}", "CNV602"
    yield "an index of itself", "m.index.json", b'{"weight_map": {"a": "m.index.json", "b": "M.index.json"}}', "CNV602"
    yield "shard outside", "m.index.json", b'{"weight_map": {"a": "../x.safetensors"}}', "CNV602"
    yield "missing shard", "m.index.json", b'{"weight_map": {"a": "x.safetensors"}}', "CNV602"
