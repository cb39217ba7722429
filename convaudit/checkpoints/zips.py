"""Zip checkpoints (torch.save, TorchScript, ``.pt2``): every member is looked at, and every pickle in them read."""

from __future__ import annotations

import io
import json
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Literal

from convaudit.checkpoints.archive import (
    MAX_DIRECTORY,
    UNPACKED,
    Member,
    Readable,
    Window,
    content,
    end_of,
    read_archive,
    read_at,
)
from convaudit.checkpoints.checkpoint import Checkpoint, Place
from convaudit.checkpoints.pickle_reader import (
    Persistent,
    Work,
    looks_like_pickle,
)
from convaudit.checkpoints.pickles import (
    HEADER_BYTES,
    MAGIC,
    Span,
    goes_on,
    importable,
    is_limited,
    joblib_said,
    objects_at,
    read_each,
    read_in_a_row,
    record,
    tabulate,
)
from convaudit.checkpoints.recognition import MAX_HEADER, SUFFIXES, is_tar, packed_as
from convaudit.checkpoints.regions import Region
from convaudit.checkpoints.tensors import (
    BITS,
    UNKNOWN,
    Storage,
    size_of,
    storage_of,
    table_of,
)
from convaudit.errors import TargetError
from convaudit.result import TensorRow

MAX_NESTED = 4
"""Archives in archives that are followed."""
_PICKLED = (".pickle", ".joblib", ".dat", ".data", ".p", ".pk", ".sav", ".dill", ".pth", ".th")
"""Suffixes of members that are read as pickles whatever they begin with; none of them has to be one."""
_NATIVE = (
    ".so", ".dll", ".dylib", ".pyd", ".exe", ".o", ".cubin", ".hsaco", ".py", ".pyc", ".pyw", ".pyz", ".whl", ".egg", ".jar", ".sh",
    ".bat", ".cmd", ".ps1",
)  # fmt: skip
"""Suffixes of members that are libraries, programs, or packages of them."""
_IMPORTING = re.compile(rb"import(?<=[\r\n]import)[ \t]")
"""Where a line begins that Python runs where a .pth file lies beside its packages (``site``)."""
_KNOWN_MEMBERS = ("data.pkl", "byteorder", "version", ".format_version", ".storage_alignment")
_LARGE = 1 << 16
"""Bytes of a member from which it is named, if nothing in the archive says what it is for."""
_EXPORTED = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 9: "complex32",
    10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn", 30: "float8_e5m2",
    31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz",
}  # fmt: skip
"""torch's dtype by its number in an exported program (``torch._export.serde.schema.ScalarType``)."""


@dataclass
class Zip:
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


def read_zip(made: Checkpoint, file: BinaryIO, size: int, work: Work) -> None:
    """An archive: what kind of a checkpoint it is, its pickles and its table."""
    made.format = "torch-zip"
    archive = Zip(file, size)
    list_members(made, archive, work)
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
    wrong = scan(made, archive, work, roots[0] if roots else None)
    if not made.complete and members:
        _no_checkpoint(made, names)
    if constants:
        _uncounted(made, members)
    if made.format == "pt2":
        _exported(made, archive, work)
    if wrong:
        (made.problems if made.problems else made.notes).extend(f"member {name} has a wrong CRC" for name in wrong)


def _uncounted(made: Checkpoint, members: list[Member]) -> None:
    """Say of a TorchScript archive which weights are not in its table: a frozen model's, and a quantized one's that are packed."""
    size = sum(member.size for member in members if "/constants/" in member.name)
    if size >= _LARGE:  # scalars are everywhere
        made.notes.append(f"its constants ({size:,} bytes in constants/) are not counted as tensors")
        made.complete = False
    packed = [row.name for row in made.tensors if row.role == "other" and row.dtype.startswith(("qint", "quint"))]
    if packed:
        more = f" and {len(packed) - 1:,} more" if packed[1:] else ""
        made.notes.append(f"packed for quantized layers, and not counted as parameters: {packed[0][:80]}{more}")
        made.complete = False


def _no_checkpoint(made: Checkpoint, names: set[str]) -> None:
    """Say of an archive without data.pkl what it is; raise :class:`TargetError` where nothing in it or its name is a checkpoint's."""
    arrays = all(name.endswith(".npy") for name in names)
    what = ": a NumPy archive (.npz), no checkpoint of PyTorch; save a dict of tensors by name" if arrays else ""
    what = ": a Keras archive, which is not read" if any(name.endswith("model.weights.h5") for name in names) else what
    if any(name.endswith("/.data/extern_modules") for name in names):
        made.notes.append("a torch.package archive: importing from it runs its Python")
        return
    if made.path.lower().endswith(SUFFIXES):
        made.problems.append(f"it has no data.pkl{what}")
        return
    made.codes.clear()  # any archive may hold programs
    if not made.globals:
        raise TargetError("read", f"{made.path}: {what[2:] or 'a zip archive without a pickle, no checkpoint'}", kind="NoCheckpoint")
    made.notes.append(f"it has no data.pkl{what}")


def _is_root(name: str) -> bool:
    return name == "data.pkl" or name.endswith("/data.pkl")


def list_members(made: Checkpoint, archive: Zip, work: Work) -> None:
    """An archive's members, as many as may still be read."""
    found = read_archive(archive.file, archive.size, work.members, work.bytes if archive.inside else MAX_DIRECTORY)
    work.members -= len(found.members)
    work.bytes -= found.read + min(archive.size, 65557) if archive.inside else 0
    made.problems += [f"{archive.inside}: {said}" if archive.inside else said for said in found.problems]
    archive.members = found.members


def scan(made: Checkpoint, archive: Zip, work: Work, root: str | None) -> list[str]:
    """Look at every member for pickles, archives and code; the tensors are those of ``root``. Names with a wrong CRC."""
    wrong: list[str] = []
    unsearched: list[str] = []
    unread: list[str] = []
    looked: set[tuple[object, ...]] = set()
    table = f"{root}data.pkl" if root is not None else None
    for member in archive.members:
        lower = member.name.lower()
        program = made.format == "torchscript" and "/code/" in member.name
        stored = "/data/" in member.name and member.name.rpartition("/")[2].isdigit()
        named = member.name.endswith((".pkl", ".debug_pkl"))
        native = not program and lower.endswith(_NATIVE)
        look = (
            member.start, member.packed, member.size, member.method, program, stored, named, native, lower.endswith(".pth"), lower.endswith(_PICKLED),
            member.name == table,
        )  # fmt: skip
        if look in looked:
            continue  # the same bytes under another name, which is a problem by then
        looked.add(look)
        head, short = _head(archive, member, work)
        if not program and (native or head.startswith(b"\x7fELF") or _is_path_file(archive, member, work)):
            made.codes.append(f"{archive.inside}{member.name}"[:500])
        if short and not named:
            unread.append(f"member {archive.shown(member)} {short}")
        if min(work.opcodes, work.bytes) <= 0:
            unread.append(f"member {archive.shown(member)} is beyond what is read (--max-pickle)")
            if work.opcodes <= 0:
                break
        zipped = head.startswith(b"PK\3\4")  # and no pickle: P is an id of text, which neither pickle nor torch takes
        nested = zipped or _archive_behind(archive, member, work, unsearched, storage=stored)
        packed = packed_as(head) or ("a tar file" if is_tar(head) else None)
        if named and not zipped and (not packed or looks_like_pickle(head)):
            whole, sound = _pickled_member(made, archive, member, root, work)
            root = None if member.name == table else root  # another of that name gives no table
            wrong += [] if sound else [archive.shown(member)]
            if whole:
                continue  # an archive would be within a text of it
        elif not zipped:
            sure = looks_like_pickle(head) or named or (not stored and lower.endswith(_PICKLED))
            array = head.startswith(b"\x93NUMPY") and work.bytes > 0
            if array or sure or goes_on(head, work):
                _unnamed(made, archive, member, work, sure=sure)
        if nested and work.bytes > 0:
            _nested(made, archive, member, work)
        elif packed:
            made.notes.append(f"member {archive.shown(member)} is {packed}; it was not read")
    if unread:
        made.problems.append(unread[0] + (f", and {len(unread) - 1:,} more" if unread[1:] else ""))
    if unsearched:
        more = f" and {len(unsearched) - 1:,} more" if unsearched[1:] else ""
        made.notes.append(f"not searched for archives behind their beginning (--max-pickle): {unsearched[0]}{more}")
    return wrong


def _head(archive: Zip, member: Member, work: Work) -> tuple[bytes, str | None]:
    """A member's first 512 bytes, and why there are none or they are broken; a block of bzip2 has up to 900,000 bytes."""
    if member.method == 12:
        work.bytes -= 900_000
        if work.bytes <= 0:
            return b"", "is packed by bzip2, beyond what is unpacked (--max-pickle)"
    head, short = content(archive.file, member, 512)
    return head, short if short and member.method and not head and member.size else None


def _is_path_file(archive: Zip, member: Member, work: Work) -> bool:
    """Whether a .pth member is a text with imports for Python, not a checkpoint."""
    if not member.name.lower().endswith(".pth"):
        return False
    data = content(archive.file, member, max(512, min(1 << 16, work.bytes)))[0]
    work.bytes -= len(data)
    return not data.startswith((b"PK", b"\x80")) and _IMPORTING.search(b"\n" + data) is not None


def _archive_behind(archive: Zip, member: Member, work: Work, unsearched: list[str], *, storage: bool) -> bool:
    """Whether an archive stands at the end of a member; of a ``storage``, only one without a comment is looked for.
    Names of compressed ones that are too large for that go to ``unsearched``."""
    if member.method not in (0, *UNPACKED):
        return False
    if member.method:
        if member.size > work.bytes - work.pickle or member.method != 8:  # the rest is for pickles
            unsearched.append(archive.shown(member))
            return False
        work.bytes -= member.size
    return b"PK\5\6" in end_of(archive.file, member, 22 if storage else 65557)


def _nested(made: Checkpoint, outer: Zip, member: Member, work: Work) -> None:
    """Read an archive in the archive: in place where it is stored, else unpacked within the limits."""
    inside = f"{outer.inside}{member.name[:200]}!"
    if outer.depth + 1 > MAX_NESTED:
        made.problems.append(f"{inside[-300:]} is nested more than {MAX_NESTED} archives deep; it was not read")
        return
    file, size, base = outer.file, member.packed, outer.base
    if member.method == 0:
        inner = Zip(Window(file, member.start, size), size, inside, outer.depth + 1, None if base is None else base + member.start)
    else:
        data, short = _content(outer, member, work)
        if short:
            made.problems.append(f"member {outer.shown(member)} {short}")
        inner = Zip(io.BytesIO(data), len(data), inside, outer.depth + 1, None)
    list_members(made, inner, work)
    root = next((one.name for one in inner.members if _is_root(one.name)), None) if _holds_weights(member.name) else None
    made.notes += [f"member {name} has a wrong CRC" for name in scan(made, inner, work, root and root[: -len("data.pkl")])]


def _holds_weights(name: str) -> bool:
    """Whether a member of a .pt2 of torch 2.8 or earlier is its state_dict."""
    folder, _, last = name.rpartition("/")
    return last == "serialized_state_dict.pt" or (folder.endswith("data/weights") and last.endswith(".pt"))


def _content(archive: Zip, member: Member, work: Work, share: int = 1) -> tuple[bytes, str | None]:
    """A member's bytes as far as one of ``share`` parts of the file's limits goes, and why they are not all of it."""
    cost = 4 if member.method == 12 else 1  # bzip2 is slow
    data, short = content(archive.file, member, max(0, min(work.pickle, work.bytes // share) // cost))
    work.bytes -= cost * len(data)
    return data, short


def _exported(made: Checkpoint, archive: Zip, work: Work) -> None:
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
        compiled = any("/data/aotinductor/" in member.name for member in members)
        other = "it is compiled (AOTInductor), and they are in its libraries" if compiled else "it is a .pt2 of another version"
        made.notes.append(f"where its weights are is not known: {other}")
        made.complete = False


def _unnamed(made: Checkpoint, archive: Zip, member: Member, work: Work, *, sure: bool) -> None:
    """A member that may be a pickle; weights begin like one by chance, so it is ``sure`` by a header or its suffix alone."""
    short = None
    file: Readable
    if member.method == 0:
        file, size = Window(archive.file, member.start, member.packed), member.packed
    else:
        header = content(archive.file, member, HEADER_BYTES)[0]
        if header.startswith(b"\x93NUMPY") and objects_at(io.BytesIO(header))[0] is None:
            return
        data, short = _content(archive, member, work, 1 if sure else 8)
        file, size = io.BytesIO(data), len(data)
    array = read_at(file, 0, 6) == b"\x93NUMPY"
    work.bytes -= 40 * min(int.from_bytes(read_at(file, 8, 4 if read_at(file, 6, 1) > b"\1" else 2), "little"), HEADER_BYTES) if array else 0
    at, declared = objects_at(file) if array else (0, False)
    if at is None:
        return
    most = min(work.pickle, work.bytes)
    share = work if sure or array else replace(work, opcodes=work.opcodes // 10, objects=work.objects // 10)
    before = share.opcodes, share.objects
    readings = list(read_each(file, at, max(0, size - at), most, share))
    if share is not work:  # a guess leaves most of the limits to what is sure
        work.opcodes -= before[0] - share.opcodes
        work.objects -= before[1] - share.objects
        work.bytes = share.bytes
    start = at
    for reading in readings:
        names = importable(reading)
        begun = declared or read_at(file, start, 1) == b"\x80"  # without its header, a list of words looks like one
        start = at + reading.end
        if any(use.tier != "tensors" if begun else use.called for use in names) or ((reading.globals if begun else names) and reading.problem is None):
            record(made, reading, f"{archive.inside}{member.name}")
            if not array and readings[0].value != MAGIC and not member.name.lower().endswith(_PICKLED):
                made.problems.append(f"member {archive.shown(member)} is a pickle where none should be")
    if reading.problem is None or not (sure or array):
        return
    if not reading.problem.limit and is_limited(reading, size - at, most):
        short = f"goes beyond the {most:,} bytes that are read (--max-pickle)"
    if reading.problem.limit or (short and reading.problem.truncated):
        made.problems.append(f"member {archive.shown(member)} {short or reading.problem}")
    elif declared or joblib_said(readings):
        made.problems.append(f"member {archive.shown(member)}: {reading.problem}{joblib_said(readings)}")


def _pickled_member(made: Checkpoint, archive: Zip, member: Member, root: str | None, work: Work) -> tuple[bool, bool]:
    """Read a pickle, and the table of the one at ``root``; whether it is the whole member, and whether its CRC is right."""
    data, short = _content(archive, member, work)
    readings = read_in_a_row(data, 100, work)
    first, last, shown = readings[0], readings[-1], archive.shown(member)
    for one in readings:
        record(made, one, f"{archive.inside}{member.name}", loaded=one is first and root is not None and member.name == f"{root}data.pkl")
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
        tabulate(made, table_of(first.value, "data/", work), _presence({key: other.size for key, other in held.items()}), spans)
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


def _span(archive: Zip, member: Member, *, swapped: bool = False) -> Span:
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
