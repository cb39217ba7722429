"""A file becomes a :class:`Checkpoint`: its format by its first bytes, then headers and pickles, never a storage."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import msgspec

from convaudit.checkpoints import pickle_reader
from convaudit.checkpoints.archive import (
    MAX_DIRECTORY,
    Inflater,
    Member,
    Readable,
    Said,
    Skipping,
    Unpacker,
    Window,
    content,
    end_of,
    gathered,
    has_directory,
    read_archive,
    read_at,
    unpacked,
)
from convaudit.checkpoints.pickle_reader import (
    MAX_PICKLE,
    OLD_PICKLE,
    Call,
    Dict,
    Global,
    GlobalUse,
    Persistent,
    Reading,
    Work,
    brief,
    looks_like_pickle,
)
from convaudit.checkpoints.regions import Region, elements_of, row_major
from convaudit.checkpoints.tensors import (
    BITS,
    UNKNOWN,
    Storage,
    Table,
    Tensor,
    dtype_of,
    ints_of,
    role_at,
    role_of,
    size_of,
    storage_of,
    table_of,
)
from convaudit.errors import TargetError
from convaudit.result import GlobalRow, TensorRow

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pt2", ".pkl", ".th", ".tar", ".index.json")
"""Suffixes worth a look in a folder; what a file is, its first bytes say."""
MAX_HEADER = 100 * 1000**2
"""Bytes of a safetensors header, the official library's own limit; 8 MB are read unless --max-pickle is raised."""
MAX_SHARDS = 2000
MAX_NESTED = 4
"""Archives in archives that are followed."""
_MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of a legacy file (``torch/serialization.py``, MAGIC_NUMBER)."""
_MAGIC_BYTES = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_PICKLED = (".pickle", ".joblib", ".dat", ".data", ".p", ".pk", ".sav", ".dill", ".pth", ".th")
"""Suffixes of members that are read as pickles whatever they begin with; none of them has to be one."""
_PLAIN = rb"'[<>|=]?[?bBhHiIlLqQefdgFDGcuSaUVmM]\d*(?:\[\d*\w\w?\])?'"
_FIELD = rb"\( *(?:%b|\( *%b *, *%b *\)) *, *%b *(?:, *\([\d, L]*\) *)?,? *\)" % (*3 * (rb"'[\w .%#+*/&\x80-\xff-]*'",), _PLAIN)
_RECORD = re.compile(rb"\[ *%b *(?:, *%b *)*,? *\]" % (_FIELD, _FIELD))
_NO_OBJECTS = re.compile(rb" *\{ *'descr': *%b, *'fortran_order': *(?:True|False), *'shape': *\([\d, L]*\),? *\} *\n?" % _PLAIN)
"""The header of a numpy array of numbers, texts, dates or bytes, where a record is one of bytes; of any other, a pickle may follow."""
_OBJECTS = re.compile(rb"'[<>|=]?O\d*'|object")
_NATIVE = (
    ".so", ".dll", ".dylib", ".pyd", ".exe", ".o", ".cubin", ".hsaco", ".py", ".pyc", ".pyw", ".pyz", ".whl", ".egg", ".jar", ".sh",
    ".bat", ".cmd", ".ps1",
)  # fmt: skip
"""Suffixes of members that are libraries, programs, or packages of them."""
_LINE = re.compile(rb"V|S['\"]")
"""Opcodes whose text may take up all of a file."""
_IMPORTING = re.compile(rb"(?:\A|[\r\n])import[ \t]")
"""A line that Python runs where a .pth file lies beside its packages (``site``)."""
_PACKED = {
    b"\x1f\x8b\x08": "a gzip file", b"BZh": "a bzip2 file", b"\xfd7zXZ\0": "an xz file", b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive", b"(\xb5/\xfd": "a Zstandard file",
}  # fmt: skip
"""What is packed, by its first bytes."""
UNREAD = ("a 7z archive", "a RAR archive", "a Zstandard file", "a tar file")
"""What :func:`refusal` calls archives that are not looked into."""
_STREAMS: dict[bytes, tuple[str, Callable[[], Unpacker]]] = {
    b"\x1f\x8b\x08": ("gzip", lambda: Inflater(31)), b"BZh": ("bzip2", bz2.BZ2Decompressor),
    **dict.fromkeys((b"\xfd7zXZ\0", b"\x5d\0\0"), ("xz", lambda: lzma.LZMADecompressor(memlimit=100_000_000))),
    **dict.fromkeys((b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"), ("zlib", lambda: Inflater(15))),
}  # fmt: skip
"""How a file is unpacked that is one stream, by its first bytes (joblib writes all of them, torch none)."""

_OTHERS = {
    b"\x89HDF": "an HDF5 file (Keras, h5py), which is not read: convert its weights to safetensors",
    b"GGUF": "a GGUF file (llama.cpp), which is not read: take the safetensors file that it was made from",
    b"\x93NUMPY": "a NumPy array, no checkpoint: save a dict of tensors by name",
    b"ggml": "a GGML file, which is not read: take the checkpoint that it was made from",
    b"%PDF": "a PDF document", b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture",
}  # fmt: skip
"""Other kinds of files by their first bytes."""
_ONNX = re.compile(rb"\x08[\x01-\x0f]\x12[\x01-\x40](?:pytorch|keras|tf2onnx|onnx|skl2onnx)")
"""An ONNX ModelProto: its IR version, then its producer (``onnx/onnx.proto``)."""
_KNOWN_MEMBERS = ("data.pkl", "byteorder", "version", ".format_version", ".storage_alignment")
_LARGE = 1 << 16
"""Bytes of a member from which it is named, if nothing in the archive says what it is for."""

SAFETENSORS = {
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16), "I64": ("int64", 64),
    "I32": ("int32", 32), "I16": ("int16", 16), "I8": ("int8", 8), "U8": ("uint8", 8), "U16": ("uint16", 16),
    "U32": ("uint32", 32), "U64": ("uint64", 64), "BOOL": ("bool", 8), "C64": ("complex64", 64),
    "F8_E5M2": ("float8_e5m2", 8), "F8_E4M3": ("float8_e4m3fn", 8), "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8), "F4": ("float4_e2m1fn_x2", 4),
    "F6_E2M3": ("float6_e2m3", 6), "F6_E3M2": ("float6_e3m2", 6),
}  # fmt: skip
"""torch's dtype and bits by safetensors' name (safetensors 0.8, ``Dtype``)."""

_EXPORTED = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 9: "complex32",
    10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn", 30: "float8_e5m2",
    31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz",
}  # fmt: skip
"""torch's dtype by its number in an exported program (``torch._export.serde.schema.ScalarType``)."""

Format = Literal["safetensors", "torch-zip", "torch-legacy", "torchscript", "pt2", "sharded", "pickle"]


class Place(NamedTuple):
    """Where a tensor's elements lie: bytes ``start`` to ``start + size`` of a file hold its storage, in which it begins
    at element ``offset`` and has ``stride`` (in elements)."""

    path: str
    start: int
    size: int
    offset: int
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Parts:
    """What is stored of a sparse or nested tensor: the ``elements`` that it counts for, and bytes by dtype, indices and
    lengths under their own."""

    elements: int
    bytes: dict[str, int]


@dataclass
class Checkpoint:
    """What was read of one file. ``problems`` are contradictions, ``notes`` are not; counts are of elements, each of which
    counts once whatever number of tensors see it."""

    path: str
    format: Format
    file_bytes: int
    tensors: list[TensorRow] = field(default_factory=list)
    globals: list[GlobalRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=Said)
    notes: list[str] = field(default_factory=Said)
    unknown: list[str] = field(default_factory=list)
    """Tensors whose shape or dtype could not be told."""
    complete: bool = True
    """Whether all of its tensors are listed."""
    codes: list[str] = field(default_factory=Said)
    """Members that are libraries, programs, or packages of them."""
    parameters: int = 0
    buffers: int = 0
    parameter_bytes: int | None = 0
    """None where no parameter's dtype is known; a lower bound where one's is not."""
    bytes_by_dtype: dict[str, int] = field(default_factory=dict)
    counted: list[int] = field(default_factory=list)
    """Elements that each of ``tensors`` adds: 0 where earlier ones hold them all, and for what is no parameter or buffer."""
    regions: list[Region | None] = field(default_factory=list)
    """The elements of its storage that each of ``tensors`` sees; None where it shares them with no other."""
    packed: str = ""
    """What the whole file is compressed with."""
    wrappers: list[str] = field(default_factory=list)
    """Keys at the top that hold a state_dict; names begin with them where there is more than one."""
    places: list[Place | None] = field(default_factory=list)
    """Where each tensor's elements lie, in the order of ``tensors``; None where they cannot be read in place."""
    away: dict[int, str] = field(default_factory=dict)
    """Why not, by its number in ``tensors``."""
    parts: dict[int, Parts] = field(default_factory=dict)
    """Of sparse and nested tensors, by their numbers in ``tensors``."""
    checksums: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and CRC of a zip checkpoint's storages, by their names in ``tensors``."""
    unnamed: list[str] = field(default_factory=list)
    """Those that its pickle does not name."""
    to_allow: dict[str, None] = field(default_factory=dict)
    """Plain data of the pickles that torch.load reads, as its weights_only loader must be told."""
    refused: list[str] = field(default_factory=list)
    """What of them weights_only refuses, whatever it is told."""

    def add(
        self, row: TensorRow, region: Region | None, place: Place | None, away: str = "", parts: Parts | None = None
    ) -> None:
        """Add a row; ``away`` says why its elements cannot be read in place."""
        if place is None:
            self.away[len(self.tensors)] = away
        if parts is not None:
            self.parts[len(self.tensors)] = parts
        self.tensors.append(row)
        self.regions.append(region)
        self.places.append(place)

    def count(self) -> None:
        """Add up parameters and buffers."""
        self.counted = [0] * len(self.tensors)
        whole = {index: size for index, row in enumerate(self.tensors) if (size := self._elements(index, row)) is not None}
        for role in ("parameter", "buffer"):
            own = [index for index in whole if self.tensors[index].role == role]
            seen = [(index, region) for index in own if (region := self.regions[index]) is not None]
            for index in own:
                self.counted[index] = whole[index]
            for (index, _), added in zip(seen, elements_of([region for _, region in seen])):
                self.counted[index] = added
            if role == "buffer":
                self.buffers = sum(self.counted[index] for index in own)
                continue
            self.parameters = sum(self.counted[index] for index in own)
            for index in own:
                for dtype, size in self._sizes(index, whole=self.counted[index] == whole[index]).items():
                    self.bytes_by_dtype[dtype] = self.bytes_by_dtype.get(dtype, 0) + size
            self.parameter_bytes = None if own and not self.bytes_by_dtype else sum(self.bytes_by_dtype.values())

    def _elements(self, index: int, row: TensorRow) -> int | None:
        parts = self.parts.get(index)
        return parts.elements if parts else None if row.shape is None else math.prod(row.shape)

    def _sizes(self, index: int, *, whole: bool) -> dict[str, int]:
        """Bytes by dtype that a tensor adds, ``whole`` or what of it no earlier one holds."""
        row, parts = self.tensors[index], self.parts.get(index)
        if whole and parts:
            return parts.bytes
        size = row.bytes if whole else size_of(self.counted[index], row.dtype)
        return {} if size is None else {row.dtype: size}


def refusal(head: bytes) -> str | None:
    """What a file is that is no checkpoint, by its first 512 bytes; None where that cannot be told."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:32].lower()
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: the file itself was not downloaded (git lfs pull)"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page: an error page, or a link that was not the file's own"
    packed = _packed(head)
    if packed:
        return f"{packed}: unpack it first"
    if _is_tar(head):
        return "a tar file (torch 0.1 saved such): unpack it, and audit what is in it"
    for begin, said in _OTHERS.items():
        if head.startswith(begin):
            return said
    if _ONNX.match(head):
        return "an ONNX model: audit the PyTorch model that it was exported from"
    return None


def _packed(head: bytes) -> str | None:
    return next((said for start, said in _PACKED.items() if head.startswith(start)), None)


def _stream(file: Readable, head: bytes) -> tuple[str, Iterator[bytes]] | None:
    """What a file that is one compressed stream is packed with, and its bytes; None of any other."""
    how, make = next((found for start, found in _STREAMS.items() if head.startswith(start)), ("", None))
    return None if make is None else (how, unpacked(Window(file, 0, 1 << 62), make, several=True))


def _is_tar(head: bytes) -> bool:
    """A tar archive by its magic, or, of tars before it, by the checksum of the first header (POSIX.1-1988)."""
    if head[257:262] == b"ustar":
        return True
    said = head[148:156].strip(b"\0 ")
    return said.isdigit() and said.strip(b"01234567") == b"" and int(said, 8) == sum(head[:148]) + 8 * 32 + sum(head[156:512])


def recognise(head: bytes, name: str, size: int) -> str | None:
    """``zip``, ``safetensors``, ``pickle`` or ``sharded`` by the first bytes; the name decides where they are too few."""
    name = name.lower()
    if name.endswith(".index.json") and not (head.startswith(b"PK\3\4") or looks_like_pickle(head)):
        return "sharded"
    if refusal(head):
        return None
    if head.startswith((b"PK\3\4", b"PK\5\6")) or (len(head) < 4 and b"PK\3\4".startswith(head)):
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(size - 8, MAX_HEADER):
        return "safetensors"
    if _MAGIC_BYTES in head[:32] or (head[0] == 0x80 and (len(head) < 2 or head[1] <= 5)):
        return "pickle"
    if name.endswith(".safetensors") or (head[8:9] == b"{" and head[7] == 0):
        return "safetensors"
    if OLD_PICKLE.match(head.lstrip(b"(")) or head[:2] in (b"(d", b"(l", b"(t"):
        return "pickle"
    return None


def sniff(path: str) -> tuple[str | None, str | None]:
    """The kind of a file by its first bytes, and what else it is. Raises :class:`OSError`."""
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        head = file.read(512)
        kind = recognise(head, os.path.basename(path), size)
        if kind is None:
            kind = _otherwise(file, head, size)
    if path.endswith(".distcp") and kind != "pickle":
        return None, "a part of a distributed checkpoint: audit its folder's .metadata, which says what is in it"
    return kind, None if kind else refusal(head) or "no checkpoint that convaudit knows"


def _otherwise(file: Readable, head: bytes, size: int, *, named: bool = True) -> str | None:
    """The kind of a file that its first bytes do not tell: an array of objects, an archive behind other bytes, an old pickle.

    A pickle without a header may begin as other files do: ``G`` takes eight bytes, ``BZh`` counts them, a tar begins with a name.
    """
    said = refusal(head)
    stream = _stream(file, head)
    if stream:
        begun = gathered(stream[1], 4096)[0]
        if begun and (recognise(begun[:512], "", 1 << 62) or _imports(io.BytesIO(begun), 0, len(begun))):
            return "packed"
    if head.startswith(b"\x93NUMPY"):
        at, declared = _objects_at(file)
        rest = None if at is None else Window(file, at, max(0, size - at))
        return "array" if rest and (declared or _unpickles(rest, rest.size, alone=False)) else None
    archive = not (_packed(head) or _is_tar(head)) and has_directory(file, size) and bool(not said or read_archive(file, size, 10).members)
    if _unpickles(file, size, alone=not (said or archive)) if named else _imports(file, 0, size):
        return "pickle"
    return "zip" if archive else None


def sniff_any(path: str) -> tuple[str | None, str | None]:
    """As :func:`sniff`, of a file whose suffix is no checkpoint's: only what is one beyond doubt. Raises :class:`OSError`."""
    if path.endswith(".distcp"):
        return sniff(path)
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        head = file.read(512)
        kind = recognise(head, "", size) if head else None
        if kind == "safetensors" and int.from_bytes(head[:8], "little") > size - 8:
            kind = None
        if kind is None and head:
            kind = _otherwise(file, head, size, named=False)
        if kind in ("zip", "packed"):
            made, what = Checkpoint(path, "torch-zip", size), "a zip archive" if kind == "zip" else "a compressed file"
            try:
                _READERS[kind](made, file, size, Work.part(MAX_PICKLE // 10))
            except TargetError:
                return None, f"{what} without a pickle"
            if not made.tensors and all(used.tier in ("tensors", "plain data") for used in made.globals):
                return None, f"{what} whose pickles name no code: name it to audit it"
        elif kind == "array" or (kind == "pickle" and _MAGIC_BYTES not in head[:32]):
            found = _imports(file, (_objects_at(file)[0] or 0) if kind == "array" else 0, size)
            if not found and head[0] == 0x80:
                return None, "a pickle that names no code: name it to audit it"
            kind = kind if found else None
    return kind, None if kind else refusal(head) or "no checkpoint that convaudit knows"


def _imports(file: Readable, start: int, size: int) -> bool:
    """Whether bytes are beyond doubt a pickle that imports something: to their end, or up to where it calls that."""
    head = read_at(file, start, 512)
    reading = pickle_reader.read(head, work=Work.part(MAX_PICKLE // 100))
    problem = reading.problem
    if problem is not None and (problem.truncated or problem.limit):
        reading = _widening(file, start, max(0, size - start), MAX_PICKLE, Work.part(MAX_PICKLE // 10))
        problem = reading.problem
    names = _importable(reading)
    return bool(names and problem is None) or any(use.called for use in names) or (head[:1] == b"\x80" and _is_limited(reading, size - start, MAX_PICKLE))


def _unpickles(file: Readable, size: int, *, alone: bool) -> bool:
    """Whether a file is a pickle without a header: it would import something before it ends or breaks, or it ends and is
    nothing else (``alone``)."""
    reading = _widening(file, 0, size, MAX_PICKLE, Work.part(MAX_PICKLE // 10))
    return bool(_importable(reading)) or (alone if reading.problem is None else _is_limited(reading, size, MAX_PICKLE))


def _is_limited(reading: Reading, size: int, most: int) -> bool:
    """Whether what ends a reading is a limit: its own, or the first ``most`` of ``size`` bytes."""
    problem = reading.problem
    return problem is not None and (problem.limit or (problem.truncated and most < size and problem.needs <= size))


def _importable(reading: Reading) -> list[GlobalUse]:
    """The globals whose names are names, not what bytes that are no pickle look like."""
    return [
        use for (module, name), use in reading.globals.items()
        if name.replace(".", "").isidentifier() and module.replace(".", "").isidentifier()
    ]  # fmt: skip


def _widening(file: Readable, start: int, size: int, most: int, work: Work) -> Reading:
    """Read what could be a pickle: a little of it, and more only while it goes on."""
    window = first = 1 << 12
    while True:
        data = read_at(file, start, min(window, size, most))
        spent = Work(**vars(work))
        spent.bytes = max(0, spent.bytes - max(0, len(data) - first))
        reading = pickle_reader.read(data, work=spent)
        if reading.problem is None or not reading.problem.truncated or max(len(data), reading.problem.needs - 1) >= min(size, most):
            if reading.problem is not None and min(size, most) < reading.problem.needs <= size:  # it skips a long value
                del reading
                given = spent.bytes // 8
                rest = Skipping(file, start, size, given)
                reading = pickle_reader.read(rest, work=spent)  # type: ignore[arg-type]
                spent.bytes -= given - rest.left
            vars(work).update(vars(spent))
            return reading
        del reading
        window = window * 16 if window * 32 < size else size  # never nearly all of it twice


def _each(file: Readable, start: int, size: int, most: int, work: Work) -> Iterator[Reading]:
    """Read what could be pickles one behind the other, as a legacy file's five; what is behind them is left out."""
    at = 0
    for number in range(5):
        reading = _widening(file, start + at, size - at, most, work)
        if number and reading.problem is not None and not reading.globals:
            return
        for use in reading.globals.values():
            use.offset += at
        reading.end += at
        yield reading
        at = reading.end
        if reading.problem is not None or at >= size:
            return
        work.opcodes -= min(work.opcodes, 1000)  # for the bytes that are read again


def read_checkpoint(path: str, *, max_pickle: int = MAX_PICKLE) -> Checkpoint:
    """Read a checkpoint's headers and pickles. Raises :class:`TargetError` where it is none, or is not readable."""
    try:
        kind, other = sniff(path)
        if kind is None:
            raise TargetError("read", f"{path}: {other}", kind="NoCheckpoint")
        size = os.stat(path).st_size
        made = Checkpoint(path, "safetensors", size)
        with open(path, "rb") as file:
            work = Work.of(max_pickle)
            _READERS[kind](made, file, size, work)
            if kind in ("safetensors", "pickle", "packed"):
                _behind(made, file, size, work)
    except OSError as error:
        raise TargetError("read", f"{path}: cannot be read: {error.strerror or error}", kind=type(error).__name__) from error
    made.count()
    _prefixes(made)
    if made.refused and made.format != "sharded" and not made.problems and all(used.tier == "tensors" for used in made.globals):
        made.notes.append(f"weights_only refuses it, whatever it is told to allow: {made.refused[0]}")
    return made


def _behind(made: Checkpoint, file: Readable, size: int, work: Work) -> None:
    """An archive behind what is no archive, which zip readers would open."""
    if has_directory(file, size) and (members := read_archive(file, size, work.members).members):
        said = "a zip archive stands behind it" if made.problems else "its last bytes are a zip archive"  # within its data
        (made.problems or made.notes).append(said)
        _scan(made, _Zip(file, size, "the archive behind it: ", members=members), work, None)


def _prefixes(made: Checkpoint) -> None:
    names = [row.name for row in made.tensors if row.role in ("parameter", "buffer")]
    for prefix, whose in (("module.", "DataParallel"), ("_orig_mod.", "torch.compile"), ("model.", "a wrapping module")):
        if names and all(name.startswith(prefix) for name in names):
            made.notes.append(f"every name begins with {prefix!r} ({whose})")


# safetensors


def _safetensors(made: Checkpoint, file: BinaryIO, size: int, work: Work) -> None:
    made.complete = False
    head = read_at(file, 0, 8)
    length = int.from_bytes(head, "little")
    if pickle_reader.may_begin(head):
        readings = list(_each(file, 0, size, work.pickle, work))
        naming = [reading for reading in readings if _importable(reading)]
        for reading in naming:
            _record(made, reading, "the whole file")
        cut = readings[-1].problem
        limited = cut is not None and (cut.limit or (_LINE.search(head[:4]) is not None and _is_limited(readings[-1], size, work.pickle)))
        if naming or limited:
            made.problems.append("it is a pickle as well" + (f", which was not read whole: {cut}" if limited else ""))
    if len(head) < 8 or length > size - 8:
        made.problems.append(f"its header is to have {length:,} bytes; the file has {size:,}")
        return
    most = min(MAX_HEADER, work.header)
    if length > most:
        made.problems.append(f"its header of {length:,} bytes is beyond the {most:,} that are read (--max-pickle)")
        return
    doubled: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            doubled.extend(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        return found

    text = read_at(file, 8, length)
    if text.count(b'"data_offsets"') > work.tensors:
        made.problems.append(f"it has more than {work.tensors:,} tensors, beyond what is read (--max-pickle)")
        return
    if text.count(b"{") + text.count(b"[") > 5 * work.tensors:  # a tensor's entry has three
        made.problems.append("its header has more lists and objects than are read (--max-pickle)")
        return
    try:
        header = json.loads(text)
        if _texts(header) != text.count(b'"'):  # a key is there twice, or a text holds a quote
            header = json.loads(text, object_pairs_hook=once)
    except RecursionError:
        made.problems.append("its header is nested too deep")
        return
    except json.JSONDecodeError as error:
        made.problems.append(f"its header is not JSON: {str(error)[:120]}")
        return
    except ValueError:
        made.problems.append("its header has a number of thousands of digits, or text that is not UTF-8")
        return
    if not isinstance(header, dict):
        made.problems.append("its header is no JSON object")
        return
    made.problems += [f"key {name[:80]!r} is there more than once" for name in doubled[:5]]
    header.pop("__metadata__", None)
    made.complete = True
    spans = []
    for name, entry in header.items():
        span = _entry(made, name, entry, 8 + length)
        if span is None:
            made.complete = False
        else:
            spans.append((*span, name))
    last = 0
    for begin, end, name in sorted(spans):
        if begin != last:
            made.problems.append(f"{name[:80]}: its data {'overlaps what stands before' if begin < last else 'leaves a gap before it'}")
        last = max(last, end)
    if last != size - 8 - length:
        made.problems.append(f"its tensors take {last:,} bytes; the file holds {size - 8 - length:,}")


def _texts(header: Any) -> int:
    """Quotes around the texts of a header's entries."""
    entries = header.values() if isinstance(header, dict) else ()
    return 2 * len(entries) + sum(2 * (len(entry) + sum(type(held) is str for held in entry.values())) for entry in entries if type(entry) is dict)


def _entry(made: Checkpoint, name: str, entry: Any, data_at: int) -> tuple[int, int] | None:
    shown = name[:80]
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        made.problems.append(f"{shown}: its entry is not dtype, shape and data_offsets")
        return None
    if not isinstance(kind, str) or not isinstance(shape, list) or set(map(type, numbers)) != {int}:
        made.problems.append(f"{shown}: its dtype is no text, or its shape or offsets are no whole numbers")
        return None
    if len(shape) > 64 or min(numbers) < 0 or max(numbers) >= 2**63 or end < begin:
        made.problems.append(f"{shown}: more than 64 sizes, or a size or offset that is negative, above 2^63 or reversed")
        return None
    dtype, bits = SAFETENSORS.get(kind, (UNKNOWN, 0))
    elements = math.prod(shape)
    if not bits:
        made.unknown.append(name)
        made.notes.append(f"{shown}: unknown dtype {kind[:32]!r}")
    elif elements * bits != (end - begin) * 8:
        made.problems.append(f"{shown}: {kind} of shape {shape[:8]} takes {-(-elements * bits // 8):,} bytes, not {end - begin:,}")
    place = Place(made.path, data_at + begin, end - begin, 0, row_major(shape))
    made.add(TensorRow(name, shape, dtype, end - begin, str(begin), role_of(name, dtype)), None, place)
    return begin, end


# Pickles


def _pickle_file(made: Checkpoint, file: BinaryIO, size: int, work: Work) -> None:
    made.format = "pickle"
    window, max_pickle = 1 << 20, work.pickle
    readings: list[Reading] = []
    while True:
        data = read_at(file, 0, min(window, size, max_pickle))
        readings.clear()  # before the next are made
        spent = Work(**vars(work))
        readings = _in_a_row(data, 5 if _MAGIC_BYTES in data[:32] else 100, spent)
        short = readings[-1].problem is not None and readings[-1].problem.truncated
        short = short or (len(readings) < 5 and readings[-1].end >= len(data))
        if not short or len(data) >= min(size, max_pickle):
            break
        window = window * 8 if window * 16 < size else size
    vars(work).update(vars(spent))
    legacy = _MAGIC_BYTES in data[:32] or readings[0].value == _MAGIC
    made.format = "torch-legacy" if legacy else "pickle"
    names = ("magic number", "protocol version", "system info", "objects", "storage keys")
    for index, reading in enumerate(readings):
        member = (names[index] if index < 5 else f"pickle {index + 1}") if legacy else f"pickle {index + 1}"
        _record(made, reading, member if len(readings) > 1 or legacy else "pickle", loaded=legacy)
    broken = readings[-1].problem
    if broken is not None:
        limited = len(data) < size and broken.truncated
        said = f"its pickle goes beyond {max_pickle:,} bytes (--max-pickle)" if limited else str(broken)
        made.problems.append(said + ("" if broken.limit else _joblib(readings)))
        made.complete = False
    if not legacy:
        if not made.packed and _distributed(made, readings, work):
            return
        for reading in readings:
            _table(made, table_of(reading.value, "", work), None, {})
        if broken is None and readings[-1].end < size:
            made.problems.append(f"{size - readings[-1].end:,} bytes stand after the last pickle")
        return
    if len(readings) > 3:
        table = table_of(readings[3].value, "", work)
        if readings[0].value != _MAGIC and readings[0].problem is None:
            made.problems.append("its magic number is not torch's")
        spans: Mapping[str, _Span] = _legacy_storages(made, file, size, readings[4], table) if len(readings) == 5 and broken is None else {}
        _table(made, table, None, spans)
    if broken is None and len(readings) < 5:
        made.problems.append(f"it has {len(readings)} of a legacy file's five pickles")
        made.complete = made.complete and len(readings) > 3


def _distributed(made: Checkpoint, readings: list[Reading], work: Work) -> bool:
    """Whether a pickle is the ``.metadata`` of a distributed checkpoint (``torch/distributed/checkpoint/metadata.py``, 2.13);
    then its tensors are listed, and the parts that it names are read for their pickles."""
    folder, root = os.path.dirname(made.path) or ".", readings[0].value
    held = _fields(root, "Metadata")
    if held is None:
        if made.path.endswith(".metadata") and any(name.endswith(".distcp") for name in os.listdir(folder)):
            made.problems.append("it is no Metadata of torch.distributed.checkpoint: the parts beside it were not read")
        return False
    made.format = "sharded"
    listed, stored = held.get("state_dict_metadata"), held.get("storage_data")
    if not isinstance(listed, Dict) or not isinstance(stored, Dict):
        made.problems.append("its state_dict_metadata or storage_data is no dict")
        made.complete = False
        return True
    for name, entry in listed.pairs():
        tensor, work.tensors = _fields(entry, "TensorStorageMetadata"), work.tensors - 1
        if work.tensors < 0:
            made.problems.append("it lists more tensors than are read (--max-pickle)")
            made.complete = False
            break
        if tensor is None or not isinstance(name, str):
            made.notes += [] if _fields(entry, "BytesStorageMetadata") is not None else [f"{brief(name)}: its entry is no tensor's"]
            continue
        properties, shape = tensor.get("properties"), ints_of(tensor.get("size"))
        state = properties.state if isinstance(properties, Call) else None
        dtype = dtype_of(state[0]) if isinstance(state, tuple) and state else UNKNOWN
        if shape is None or dtype == UNKNOWN:
            made.unknown.append(name)
        size = None if shape is None else size_of(math.prod(shape), dtype)
        row = TensorRow(name, None if shape is None else list(shape), dtype, size, None, role_at(name, dtype))
        made.add(row, None, None, _IN_PARTS)
    _read_parts(made, Path(folder), stored, work)
    return True


_IN_PARTS = "it lies in parts in other files: torch.distributed.checkpoint.format_utils.dcp_to_torch_save makes one of them"


def _fields(value: Any, kind: str) -> dict[str, Any] | None:
    """The attributes of an object of one of torch.distributed.checkpoint's classes; None of any other."""
    if not isinstance(value, Call) or not isinstance(value.function, Global) or value.args:
        return None
    function, state = value.function, Dict() if value.state is None else value.state
    known = function.module.startswith("torch.distributed.checkpoint.") and function.name == kind and isinstance(state, Dict)
    return {key: item for key, item in state.pairs() if isinstance(key, str)} if known else None


def _read_parts(made: Checkpoint, folder: Path, stored: Dict, work: Work) -> None:
    """Read what a distributed checkpoint keeps in other files: each item is a file of torch.save's in a range of bytes."""
    items: set[tuple[str, int, int]] = set()
    for _, entry in stored.pairs():
        info = _fields(entry, "_StorageInfo") or {}
        part, start, size = info.get("relative_path"), info.get("offset"), info.get("length")
        if not isinstance(part, str) or type(start) is not int or type(size) is not int or info.get("transform_descriptors"):
            made.problems.append("an entry of its storage_data is transformed or no range of bytes: what it names was not read")
        else:
            items.add((part, start, size))
    most = work.members // 10
    if len(items) > most:
        made.problems.append(f"it names {len(items):,} ranges of bytes; only {most:,} are read (--max-pickle)")
    for part, ranges in groupby(sorted(items)[:most], lambda item: item[0]):
        path = folder / part
        if os.path.basename(part) != part or part in ("", ".", "..") or path.resolve().parent != folder.resolve():
            made.problems.append(f"part {part[:80]!r} lies outside its folder; it was not opened")
        elif not path.is_file():
            made.problems.append(f"part {part[:80]!r} is not there")
        else:
            with path.open("rb") as file:
                length = os.fstat(file.fileno()).st_size
                made.file_bytes += length
                for _, start, size in ranges:
                    where = f"{part[:80]}, byte {start:,}"
                    if 0 <= start <= start + size <= length:
                        _read_item(made, Window(file, start, size), where, work)
                    else:
                        made.problems.append(f"{where}: {size:,} bytes are named, beyond what the file holds")


def _read_item(made: Checkpoint, item: Window, where: str, work: Work) -> None:
    if read_at(item, 0, 4) == b"PK\3\4":
        archive, known, left = _Zip(item, item.size, f"{where}!", base=None), len(made.globals), work.globals
        _members(made, archive, work)
        made.notes += [f"member {name} has a wrong CRC" for name in _scan(made, archive, work, None)]
        if all(used.tier == "tensors" for used in made.globals[known:]):  # the same few in each
            del made.globals[known:]
            work.globals = left
        return
    readings = list(_each(item, 0, item.size, min(work.pickle, work.bytes), work))
    for reading in readings:
        _record(made, reading, where)
    made.problems.append(f"{where}: it is no archive" + (f": {readings[-1].problem}" if readings[-1].problem else ""))


def _array_file(made: Checkpoint, file: BinaryIO, size: int, work: Work) -> None:
    """A numpy array of objects: a pickle behind a header."""
    start = _objects_at(file)[0] or 0
    _pickle_file(made, Window(file, start, size - start), max(0, size - start), work)  # type: ignore[arg-type]


def _packed_file(made: Checkpoint, file: BinaryIO, size: int, work: Work) -> None:
    """A checkpoint in one compressed stream: unpacked to memory, as far as half the limit of a pickle."""
    stream = _stream(file, read_at(file, 0, 512))
    if stream is None:
        raise TargetError("read", f"{made.path}: it was changed while it was read", kind="NoCheckpoint")
    made.packed, parts = stream
    data, short = gathered(parts, min(work.pickle, work.bytes) // (4 if made.packed == "bzip2" else 2))  # which is slow
    work.bytes -= len(data)
    if short:
        made.problems.append(f"its {made.packed} stream {short}")
    kind = recognise(data[:512], "", len(data))
    _READERS[kind or "pickle"](made, io.BytesIO(data), len(data), work)
    made.complete = made.complete and not short
    made.places = [None] * len(made.places)
    made.away.update(dict.fromkeys(range(len(made.places)), "the file is compressed: unpack it first"))
    made.notes.append(f"compressed with {made.packed}: {len(data):,} bytes were unpacked and read")


def _joblib(readings: list[Reading]) -> str:
    """Why a pickle that joblib wrote breaks off; nothing of any other."""
    wrapped = any(("joblib.numpy_pickle", "NumpyArrayWrapper") in reading.globals for reading in readings)
    return ": joblib puts raw arrays between its opcodes, and nothing behind the first was read" if wrapped else ""


def _in_a_row(data: bytes, most: int, work: Work) -> list[Reading]:
    readings = [pickle_reader.read(data, work=work)]
    while readings[-1].problem is None and len(readings) < most and readings[-1].end < len(data):
        reading = pickle_reader.read(data, readings[-1].end, work=work)
        if reading.problem is not None and not reading.globals and most > 5:
            break  # other bytes
        readings.append(reading)
    return readings


def _legacy_storages(made: Checkpoint, file: BinaryIO, size: int, keys: Reading, table: Table) -> dict[str, tuple[int, int]]:
    """Walk the storages behind the last pickle; the start and size in bytes of each that is where it should be."""
    at = keys.end
    spans: dict[str, tuple[int, int]] = {}
    if not isinstance(keys.value, list):
        made.problems.append("its storage keys are no list")
        return spans
    given = [str(key) for key in keys.value if isinstance(key, (str, int))]
    if len(given) != len(keys.value) or len(set(given)) != len(given):
        made.problems.append("its storage keys are doubled or no texts")
    for key in given:
        storage = table.storages.get(key)
        if storage is None or storage.dtype not in BITS:
            made.notes.append(f"storage {key[:40]} is of an unknown type: what follows it was not checked")
            return spans
        head = read_at(file, at, 8)
        if len(head) < 8:
            made.problems.append(f"it ends before storage {key[:40]}")
            return spans
        elements = struct.unpack("<q", head)[0]
        if elements != storage.elements:
            made.problems.append(f"storage {key[:40]} holds {elements:,} elements where {storage.elements:,} are named")
            return spans
        spans[key] = at + 8, storage.bytes() or 0
        at += 8 + spans[key][1]
    missing = sorted(table.storages.keys() - set(given))
    if missing:
        made.problems.append(f"storage {missing[0][:40]} is named and not there" + (f", and {len(missing) - 1} more" if missing[1:] else ""))
    if at != size:
        made.problems.append(f"it ends {at - size:,} bytes early" if at > size else f"{size - at:,} bytes stand after its storages")
    return spans


def _record(made: Checkpoint, reading: Reading, member: str, *, loaded: bool = False) -> None:
    """Take a pickle's globals; ``loaded`` where torch.load reads it."""
    if loaded:
        made.to_allow |= {use.name: None for use in reading.globals.values() if use.tier == "plain data"} | reading.types
        made.refused += reading.refused
    made.globals += [
        GlobalRow(use.name, use.tier, use.called, member, use.offset, use.arguments) for use in reading.globals.values()
    ]
    held: dict[int, list[str]] = {}
    for offset, name in reading.inside:
        held.setdefault(offset, []).append(name)
    for offset, names in held.items():
        called = ", ".join(dict.fromkeys(names[:5]))
        made.notes.append(f"{member[:200]}, byte {offset:,}: a bytes value is itself a pickle that names {called}; loading does not read it")


def _table(
    made: Checkpoint, table: Table, missing: Callable[[Storage], str | None] | None, spans: Mapping[str, _Span]
) -> None:
    """Take a table's rows; ``spans`` say where the storages lie."""
    made.wrappers += table.wrappers
    made.complete = made.complete and table.complete
    for row, tensor in zip(table.rows, table.tensors):
        storage, shape, stride = tensor.storage, tensor.shape, tensor.stride
        span = spans.get(storage.key, "its storage is not in the file") if storage else "its elements are not in the file"
        regular = shape is not None and stride is not None and len(shape) == len(stride) and min((*shape, *stride, tensor.offset), default=0) >= 0
        region = place = None
        elements, parts = tensor.elements(), _parts(tensor)
        if storage is not None and elements is not None:
            steps = stride if regular and not tensor.parts else None
            region = Region((made.path, row.storage), tensor.offset, shape or (elements,), steps, BITS.get(row.dtype, 0))
        if tensor.kind:
            span = f"it is {tensor.kind}"
        elif not isinstance(span, str) and regular and stride is not None:
            place = Place(made.path, *span, tensor.offset, stride)
        made.add(row, region, place, span if isinstance(span, str) else "its shape or its strides are not known", parts)
    made.notes += _composed_said(table)
    made.problems += table.problems[:20]
    made.unknown += table.unknown
    if missing is not None:
        made.problems += [said for storage in table.storages.values() if (said := missing(storage))][:20]


def _parts(tensor: Tensor) -> Parts | None:
    elements = tensor.elements()
    if not tensor.parts or elements is None or tensor.bytes is None:
        return None
    sizes: dict[str, int] = {}
    for part in tensor.parts:
        sizes[part.dtype] = sizes.get(part.dtype, 0) + (part.bytes or 0)
    return Parts(elements, sizes)


def _composed_said(table: Table) -> Iterator[str]:
    """What of its sparse tensors is stored, and what its nested ones count for."""
    for kind in ("sparse", "nested"):
        found = [(row.name, tensor) for row, tensor in zip(table.rows, table.tensors) if tensor.parts and tensor.kind == kind]
        if not found:
            continue
        named = found[0][0][:80] + (f" and {len(found) - 1:,} more" if found[1:] else "")
        stored, counted = (sum(size or 0 for size in sizes) for sizes in zip(*((t.parts[0].elements(), t.elements()) for _, t in found)))
        if kind == "sparse":
            yield f"sparse ({named}): {stored:,} of {counted:,} elements are stored, with their indices"
        else:
            yield f"nested ({named}): its parts have several lengths, so it has no shape; {counted:,} elements are counted"


_Span = tuple[int, int] | str
"""Start and size in bytes of a storage in the file; or why it cannot be read there."""

# Zip archives


@dataclass
class _Zip:
    """An archive of the file: itself, or one in it whose members are shown as ``outer!inner``. ``base`` is where it begins
    in the file; None where it had to be unpacked."""

    file: Readable
    size: int
    inside: str = ""
    depth: int = 0
    base: int | None = 0
    members: list[Member] = field(default_factory=list)

    def shown(self, member: Member) -> str:
        """A member's name for a sentence."""
        return repr(f"{self.inside}{member.name[:80]}"[-300:])


def _zip(made: Checkpoint, file: BinaryIO, size: int, work: Work) -> None:
    made.format = "torch-zip"
    archive = _Zip(file, size)
    _members(made, archive, work)
    members = archive.members
    names = {member.name for member in members}
    roots = sorted({name[: -len("data.pkl")] for name in names if _is_root(name)})
    named = made.path.lower().endswith(SUFFIXES)
    constants = any(name.endswith("constants.pkl") for name in names) and any("/code/" in name for name in names)
    packaged = any(name.endswith(("archive_format", "serialized_exported_program.json")) or ("/models/" in name and named) for name in names)
    if constants:
        made.format = "torchscript"
    elif made.path.lower().endswith(".pt2") or (packaged and not roots):
        made.format = "pt2"
    if len(roots) > 1:
        made.problems.append(f"it has {len(roots)} data.pkl: {', '.join(root[:80] for root in roots[:3])}")
    made.complete = bool(roots) or made.format == "pt2"
    wrong = _scan(made, archive, work, roots[0] if roots else None)
    if not made.complete and members:
        _no_checkpoint(made, names)
    if made.format == "pt2":
        _exported(made, archive, work)
    if wrong:
        (made.problems if made.problems else made.notes).extend(f"member {name} has a wrong CRC" for name in wrong)


def _no_checkpoint(made: Checkpoint, names: set[str]) -> None:
    """Say of an archive without data.pkl what it is; raise :class:`TargetError` where nothing in it or its name is a checkpoint's."""
    arrays = all(name.endswith(".npy") for name in names)
    what = ": a NumPy archive (.npz), no checkpoint of PyTorch; save a dict of tensors by name" if arrays else ""
    what = ": a Keras archive, which is not read" if any(name.endswith("model.weights.h5") for name in names) else what
    if made.path.lower().endswith(SUFFIXES):
        made.problems.append(f"it has no data.pkl{what}")
        return
    made.codes.clear()  # any archive may hold programs
    if not made.globals:
        raise TargetError("read", f"{made.path}: {what[2:] or 'a zip archive without a pickle, no checkpoint'}", kind="NoCheckpoint")
    made.notes.append(f"it has no data.pkl{what}")


def _is_root(name: str) -> bool:
    return name == "data.pkl" or name.endswith("/data.pkl")


def _members(made: Checkpoint, archive: _Zip, work: Work) -> None:
    found = read_archive(archive.file, archive.size, work.members, work.bytes if archive.inside else MAX_DIRECTORY)
    work.members -= len(found.members)
    work.bytes -= found.read if archive.inside else 0
    made.problems += [f"{archive.inside}: {said}" if archive.inside else said for said in found.problems]
    archive.members = found.members


def _scan(made: Checkpoint, archive: _Zip, work: Work, root: str | None) -> list[str]:
    """Look at every member for pickles, archives and code; the tensors are those of ``root``. Names with a wrong CRC."""
    wrong: list[str] = []
    unsearched: list[str] = []
    file = archive.file
    for member in archive.members:
        head, _ = content(file, member, 512)
        program = made.format == "torchscript" and "/code/" in member.name
        if not program and (head.startswith(b"\x7fELF") or member.name.lower().endswith(_NATIVE) or _is_path_file(file, member)):
            made.codes.append(f"{archive.inside}{member.name}"[:500])
        stored = "/data/" in member.name and member.name.rpartition("/")[2].isdigit()
        zipped = head.startswith(b"PK\3\4")  # and no pickle: P is an id of text, which neither pickle nor torch takes
        nested = zipped or _archive_behind(archive, member, work, unsearched, storage=stored)
        packed = _packed(head) or ("a tar file" if _is_tar(head) else None)
        named = member.name.endswith((".pkl", ".debug_pkl"))
        if named and not zipped and (not packed or looks_like_pickle(head)):
            whole, sound = _pickled_member(made, archive, member, root, work)
            wrong += [] if sound else [archive.shown(member)]
            if whole:
                continue  # an archive would be within a text of it
        elif not zipped:
            sure = looks_like_pickle(head) or named or (not stored and member.name.lower().endswith(_PICKLED))
            if head.startswith(b"\x93NUMPY") or sure or _goes_on(head, work):
                _unnamed(made, archive, member, work, sure=sure)
        if nested:
            _nested(made, archive, member, work)
        elif packed:
            made.notes.append(f"member {archive.shown(member)} is {packed}; it was not read")
    if unsearched:
        more = f" and {len(unsearched) - 1:,} more" if unsearched[1:] else ""
        made.notes.append(f"not searched for archives behind their beginning (--max-pickle): {unsearched[0]}{more}")
    return wrong


def _is_path_file(file: Readable, member: Member) -> bool:
    """Whether a .pth member is a text with imports for Python, not a checkpoint."""
    data = content(file, member, 1 << 16)[0] if member.name.lower().endswith(".pth") else b""
    return not data.startswith((b"PK", b"\x80")) and _IMPORTING.search(data) is not None


def _goes_on(head: bytes, work: Work) -> bool:
    """Whether bytes without a pickle's header could be a pickle's: they end, or call something, before they break."""
    if not pickle_reader.may_begin(head):
        return False
    reading = pickle_reader.read(head, work=Work.part(work.pickle // 100))
    problem = reading.problem
    return problem is None or problem.limit or problem.truncated or any(use.called for use in _importable(reading))


def _archive_behind(archive: _Zip, member: Member, work: Work, unsearched: list[str], *, storage: bool) -> bool:
    """Whether an archive stands at the end of a member; of a ``storage``, only one without a comment is looked for.
    Names of compressed ones that are too large for that go to ``unsearched``."""
    if member.method not in (0, 8):
        return False
    if member.method:
        if member.size > work.bytes - work.pickle:  # the rest is for pickles
            unsearched.append(archive.shown(member))
            return False
        work.bytes -= member.size
    return b"PK\5\6" in end_of(archive.file, member, 22 if storage else 65557)


def _nested(made: Checkpoint, outer: _Zip, member: Member, work: Work) -> None:
    """Read an archive in the archive: in place where it is stored, else unpacked within the limits."""
    inside = f"{outer.inside}{member.name[:200]}!"
    if outer.depth + 1 > MAX_NESTED:
        made.problems.append(f"{inside[-300:]} is nested more than {MAX_NESTED} archives deep; it was not read")
        return
    file, size, base = outer.file, member.packed, outer.base
    if member.method == 0:
        inner = _Zip(Window(file, member.start, size), size, inside, outer.depth + 1, None if base is None else base + member.start)
    else:
        data, short = _content(outer, member, work)
        if short:
            made.problems.append(f"member {outer.shown(member)} {short}")
        inner = _Zip(io.BytesIO(data), len(data), inside, outer.depth + 1, None)
    _members(made, inner, work)
    root = next((one.name for one in inner.members if _is_root(one.name)), None) if _holds_weights(member.name) else None
    made.notes += [f"member {name} has a wrong CRC" for name in _scan(made, inner, work, root and root[: -len("data.pkl")])]


def _holds_weights(name: str) -> bool:
    """Whether a member of a .pt2 of torch 2.8 or earlier is its state_dict."""
    folder, _, last = name.rpartition("/")
    return last == "serialized_state_dict.pt" or (folder.endswith("data/weights") and last.endswith(".pt"))


def _content(archive: _Zip, member: Member, work: Work) -> tuple[bytes, str | None]:
    """A member's bytes as far as the file's limits go, and why they are not all of it."""
    data, short = content(archive.file, member, min(work.pickle, work.bytes))
    work.bytes -= len(data)
    return data, short


def _objects_at(file: Readable) -> tuple[int | None, bool]:
    """Where the pickle of a numpy array of objects begins (``numpy/lib/format.py``), None where its elements are none; and
    whether its header names objects, or is only not known."""
    head = read_at(file, 0, 12)
    start, size = (10, 2) if head[6:7] == b"\1" else (12, 4)
    length = int.from_bytes(head[8 : 8 + size], "little")
    header = read_at(file, start, min(length, 1 << 16))
    plain = header
    for _ in range(10):  # records in records, the innermost first
        plain = _RECORD.sub(b"'V1'", plain)
    return None if _NO_OBJECTS.fullmatch(plain) else start + length, _OBJECTS.search(header) is not None


def _exported(made: Checkpoint, archive: _Zip, work: Work) -> None:
    """The weights that an exported program's ``data/weights/*_config.json`` lists (``torch/export/pt2_archive``, 2.13).

    Before 2.9 they are a state_dict, ``data/weights/*.pt`` or ``serialized_state_dict.pt``, which is read by then.
    """
    members = archive.members
    stored = {member.name: member for member in members}
    known = any(_holds_weights(member.name) for member in members)
    for member in members:
        folder, _, name = member.name.rpartition("/")
        if not folder.endswith("data/weights") or not name.endswith("_config.json"):
            continue
        known = True
        try:
            config = json.loads(content(archive.file, member, min(MAX_HEADER, work.header))[0])["config"]
            for key, entry in config.items():
                meta, path = entry["tensor_meta"], f"{folder}/{entry['path_name']}"
                shape = [size["as_int"] for size in meta["sizes"]]
                dtype = _EXPORTED.get(meta["dtype"], UNKNOWN)
                if not all(type(n) is int and 0 <= n < 2**63 for n in shape):
                    raise ValueError(f"{key[:80]} has no plain shape")
                offset, stride = meta["storage_offset"]["as_int"], tuple(step["as_int"] for step in meta["strides"])
                plain = len(stride) == len(shape) and all(type(n) is int and 0 <= n < 2**63 for n in (offset, *stride))
                if path not in stored:
                    made.problems.append(f"weight {path[:80]!r} is named and not there")
                if dtype == UNKNOWN or entry.get("use_pickle"):
                    made.unknown.append(key)
                role: Literal["parameter", "buffer"] = "parameter" if entry["is_param"] else "buffer"
                row = TensorRow(key, shape, dtype, size_of(math.prod(shape), dtype), entry["path_name"], role)
                region = Region(path, offset, tuple(shape), stride if plain else None, BITS.get(dtype, 0))
                span = "its storage is not in the file" if path not in stored else _span(archive, stored[path])
                if entry.get("use_pickle"):
                    span = "it is pickled"
                place = Place(made.path, *span, offset, stride) if plain and not isinstance(span, str) else None
                made.add(row, region, place, span if isinstance(span, str) else "its strides are not known")
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            made.problems.append(f"member {member.name[:80]!r} lists no weights: {type(error).__name__}: {str(error)[:80]}")
            made.complete = False
    if not known:
        made.notes.append("where its weights are is not known: it is a .pt2 of another version")
        made.complete = False


def _unnamed(made: Checkpoint, archive: _Zip, member: Member, work: Work, *, sure: bool) -> None:
    """A member that may be a pickle; weights begin like one by chance, so it is ``sure`` by a header or its suffix alone."""
    short = None
    file: Readable
    if member.method == 0:
        file, size = Window(archive.file, member.start, member.packed), member.packed
    else:
        data, short = _content(archive, member, work)
        file, size = io.BytesIO(data), len(data)
    array = read_at(file, 0, 6) == b"\x93NUMPY"
    at, declared = _objects_at(file) if array else (0, False)
    if at is None:
        return
    most = min(work.pickle, work.bytes)
    share = work if sure or array else replace(work, opcodes=work.opcodes // 10, objects=work.objects // 10)
    before = share.opcodes, share.objects
    readings = list(_each(file, at, max(0, size - at), most, share))
    if share is not work:  # a guess leaves most of the limits to what is sure
        work.opcodes -= before[0] - share.opcodes
        work.objects -= before[1] - share.objects
        work.bytes = share.bytes
    start = at
    for reading in readings:
        names = _importable(reading)
        begun = declared or read_at(file, start, 1) == b"\x80"  # without its header, a list of words looks like one
        start = at + reading.end
        if any(use.tier != "tensors" if begun else use.called for use in names) or ((reading.globals if begun else names) and reading.problem is None):
            _record(made, reading, f"{archive.inside}{member.name}")
            if not array and readings[0].value != _MAGIC and not member.name.lower().endswith(_PICKLED):
                made.problems.append(f"member {archive.shown(member)} is a pickle where none should be")
    if reading.problem is None or not (sure or array):
        return
    if not reading.problem.limit and _is_limited(reading, size - at, most):
        short = f"goes beyond the {most:,} bytes that are read (--max-pickle)"
    if reading.problem.limit or (short and reading.problem.truncated):
        made.problems.append(f"member {archive.shown(member)} {short or reading.problem}")
    elif declared or _joblib(readings):
        made.problems.append(f"member {archive.shown(member)}: {reading.problem}{_joblib(readings)}")


def _pickled_member(made: Checkpoint, archive: _Zip, member: Member, root: str | None, work: Work) -> tuple[bool, bool]:
    """Read a pickle, and the table of the one at ``root``; whether it is the whole member, and whether its CRC is right."""
    data, short = _content(archive, member, work)
    readings = _in_a_row(data, 100, work)
    first, last, shown = readings[0], readings[-1], archive.shown(member)
    for one in readings:
        _record(made, one, f"{archive.inside}{member.name}", loaded=one is first and root is not None and member.name == f"{root}data.pkl")
    if short:
        made.problems.append(f"member {shown} {short}")
    elif last.problem is not None:
        made.problems.append(f"member {shown}: {last.problem}")
    elif (len(readings) > 1 or first.end != len(data)) and not member.name.endswith(".debug_pkl"):
        made.problems.append(f"member {shown}: {len(data) - first.end:,} bytes stand after its pickle")
    if root is not None and member.name == f"{root}data.pkl":
        made.complete = made.complete and first.problem is None
        at = len(root) + len("data/")
        held = {other.name[at:]: other for other in archive.members if other.name.startswith(f"{root}data/")}
        swapped = any(m.name == f"{root}byteorder" and content(archive.file, m, 8)[0] == b"big" for m in archive.members)
        spans = {key: _span(archive, other, swapped=swapped) for key, other in held.items()}
        _table(made, table_of(first.value, "data/", work), _presence({key: other.size for key, other in held.items()}), spans)
        made.checksums = {f"data/{key}": (other.size, other.crc) for key, other in held.items()}
        named = {storage.key for one in first.persistent if (storage := storage_of(Persistent(one))) is not None}
        made.unnamed = [f"data/{key}" for key in held if key not in named]
        made.notes += [f"member {archive.shown(held[key])} ({held[key].size:,} bytes) is no tensor's storage" for key in held if key not in named]
        if made.format == "torch-zip":
            folders = (f"{root}data/", f"{root}.data/")
            made.notes += [
                f"member {archive.shown(other)} ({other.size:,} bytes) is none of a checkpoint's"
                for other in archive.members
                if other.size >= _LARGE and not other.name.startswith(folders) and other.name.removeprefix(root) not in _KNOWN_MEMBERS
            ]
    whole = not short and last.problem is None and last.end == len(data)
    return whole, bool(short) or zlib.crc32(data) == member.crc


def _span(archive: _Zip, member: Member, *, swapped: bool = False) -> _Span:
    if swapped:
        return "its bytes are in big-endian order"
    if archive.base is None or member.method:
        return "it is compressed in the file"
    return archive.base + member.start, member.size


def _presence(sizes: dict[str, int]) -> Callable[[Storage], str | None]:
    def missing(storage: Storage) -> str | None:
        size, wanted = sizes.get(storage.key), storage.bytes()
        if size is None:
            return f"storage data/{storage.key[:40]} is named and not there"
        if wanted is not None and size != wanted:
            return f"storage data/{storage.key[:40]} has {size:,} bytes where {wanted:,} are named"
        return None

    return missing


# Shards


class _Index(msgspec.Struct):
    """An index of shards; what else is in it is skipped, not made."""

    weight_map: msgspec.Raw


_INDICES = msgspec.json.Decoder(_Index)  # made now: it evaluates annotations


def _weight_map(text: bytes, most: int) -> dict[str, str] | None:
    """Shards by the names of their tensors; None for more than ``most``. Raises msgspec's errors for what is no index."""
    raw = bytes(_INDICES.decode(text).weight_map)
    return None if raw.count(b'"') > 4 * most else msgspec.json.decode(raw, type=dict[str, str])


def shards_of(index: Path) -> list[Path]:
    """The files beside an index that it names as its shards; none where it is no index."""
    try:
        with index.open("rb") as file:
            held = _weight_map(read_at(file, 0, 2 * Work.header), 4 * Work.tensors)
        return [index.parent / name for name in set((held or {}).values()) if os.path.basename(name) == name]
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []


def _sharded(made: Checkpoint, file: BinaryIO, size: int, work: Work) -> None:
    made.format = "sharded"
    most = min(MAX_HEADER, 2 * work.header)
    if size > most:
        made.problems.append(f"the index has {size:,} bytes, beyond the {most:,} that are read (--max-pickle)")
        made.complete = False
        return
    try:
        wanted = _weight_map(file.read(), 4 * work.tensors)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TargetError("read", f"{made.path}: no index of shards (no weight_map)", kind="NoCheckpoint") from error
    if wanted is None:
        made.problems.append(f"it names more than {4 * work.tensors:,} tensors, beyond what is read (--max-pickle)")
        made.complete = False
        return
    folder = Path(made.path).parent.resolve()
    store = {folder, Path(made.path).resolve().parent}  # a hub's cache links both the index and its shards into one store
    held: dict[str, str] = {}
    shards = list(dict.fromkeys(wanted.values()))
    if len(shards) > MAX_SHARDS:
        made.problems.append(f"it names {len(shards):,} shards; only {MAX_SHARDS:,} are read")
        made.complete = False
    for shard in sorted(shards[:MAX_SHARDS]):
        path = folder / shard
        if os.path.basename(shard) != shard or shard in ("", ".", "..") or path.resolve().parent not in store:
            made.problems.append(f"shard {shard[:80]!r} lies outside the index's folder; it was not opened")
            continue
        if shard.endswith(".index.json"):
            made.problems.append(f"shard {shard[:80]!r} is itself an index; not followed")
            continue
        if not path.is_file():
            made.problems.append(f"shard {shard[:80]!r} is not there")
            continue
        try:
            part = read_checkpoint(str(path), max_pickle=work.pickle)
        except TargetError as error:
            made.problems.append(f"shard {shard[:80]!r}: {str(error).removeprefix(f'{path}: ')}")
            continue
        made.file_bytes += part.file_bytes
        made.complete = made.complete and part.complete
        made.problems += [f"{shard[:80]}: {said}" for said in part.problems]
        made.notes += [f"{shard[:80]}: {said}" for said in part.notes]
        made.unknown += part.unknown
        made.to_allow |= part.to_allow
        made.refused += part.refused
        made.codes += [f"{shard}: {name}" for name in part.codes]
        made.checksums.update({f"{shard}:{name}": known for name, known in part.checksums.items()})
        made.unnamed += [f"{shard}:{name}" for name in part.unnamed]
        for used in part.globals:
            used.member = f"{shard}: {used.member}"
            made.globals.append(used)
        for index, (row, region, lies) in enumerate(zip(part.tensors, part.regions, part.places)):
            if row.name in held:
                made.problems.append(f"{row.name[:80]} is in {held[row.name]} and in {shard[:80]}")
            held[row.name] = shard
            place = row.storage
            row.storage = f"{shard}:{place}" if place is not None else None
            made.add(row, region, lies, part.away.get(index, ""), part.parts.get(index))
    absent = [name for name, shard in wanted.items() if held.get(name) != shard]
    made.complete = made.complete and not absent
    if absent and not made.problems:
        made.problems.append(f"{absent[0][:80]} is not in its shard" + (f", and {len(absent) - 1} more" if absent[1:] else ""))


_READERS: dict[str, Callable[[Checkpoint, BinaryIO, int, Work], None]] = {
    "safetensors": _safetensors, "pickle": _pickle_file, "zip": _zip, "sharded": _sharded, "array": _array_file,
    "packed": _packed_file,
}  # fmt: skip
