"""A file becomes a :class:`Checkpoint`: its format by its first bytes, then headers and pickles, never a storage."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

from convaudit.checkpoints.archive import (
    BEYOND,
    Readable,
    Window,
    gathered,
    has_directory,
    read_archive,
    read_at,
)
from convaudit.checkpoints.checkpoint import Checkpoint
from convaudit.checkpoints.distributed import read_distributed
from convaudit.checkpoints.pickle_reader import (
    MAX_PICKLE,
    Work,
)
from convaudit.checkpoints.pickles import goes_on, imports_surely, objects_at, read_array, read_pickles, unpickles
from convaudit.checkpoints.recognition import MAGIC_BYTES, is_tar, packed_as, recognise, refusal, stream_of
from convaudit.checkpoints.safetensors import read_safetensors
from convaudit.checkpoints.shards import read_sharded
from convaudit.checkpoints.tensors import taken_for
from convaudit.checkpoints.zips import Zip, read_zip, scan
from convaudit.errors import TargetError


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
    if _packs(file, head):
        return "packed"
    if head.startswith(b"\x93NUMPY"):
        at, declared = objects_at(file)
        rest = None if at is None else Window(file, at, max(0, size - at))
        return "array" if rest and (declared or unpickles(rest, rest.size, alone=False)) else None
    archive = not (packed_as(head) or is_tar(head)) and has_directory(file, size) and bool(not said or read_archive(file, size, 10).members)
    if unpickles(file, size, alone=not (said or archive)) if named else imports_surely(file, 0, size):
        return "pickle"
    return "zip" if archive else None


def _packs(file: Readable, head: bytes) -> bool:
    """Whether a file is one compressed stream of what convaudit reads; a little of it is unpacked, and more while that goes on."""
    for most in (1 << 12, MAX_PICKLE // 10):
        stream = stream_of(file, head)
        data, short = gathered(stream[1], most) if stream else (b"", None)
        if short and "emory usage limit" in short:  # lzma's, of a stream that may hold anything
            return True
        if data and (recognise(data[:512], "", 1 << 62) or imports_surely(io.BytesIO(data), 0, 1 << 62 if short else len(data))):
            return True
        if not short or not goes_on(data, Work.part(MAX_PICKLE)):
            return False
    return False


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
            said = _nothing_in(path, file, kind, size)
            if said:
                return None, said
        elif kind == "array" or (kind == "pickle" and MAGIC_BYTES not in head[:32]):
            found = imports_surely(file, (objects_at(file)[0] or 0) if kind == "array" else 0, size)
            if not found and head[0] == 0x80:
                return None, "a pickle that names no code: name it to audit it"
            kind = kind if found else None
    return kind, None if kind else refusal(head) or "no checkpoint that convaudit knows"


def _nothing_in(path: str, file: BinaryIO, kind: str, size: int) -> str | None:
    """What an archive or a compressed file is that holds nothing to audit; all limits are given where a part of them is used up."""
    what = "a zip archive" if kind == "zip" else "a compressed file"
    for work in (Work.part(MAX_PICKLE // 10), Work()):
        made = Checkpoint(path, "torch-zip", size)
        try:
            _READERS[kind](made, file, size, work)
        except TargetError as error:
            said = f"{what} without a pickle" if kind == "zip" else str(error).removeprefix(f"{path}: ")
        else:
            harmless = not made.tensors and all(used.tier in ("tensors", "plain data") for used in made.globals)
            said = f"{what} whose pickles name no code: name it to audit it" if harmless else ""
        if not said or (min(work.bytes, work.opcodes, work.objects, work.members) > 0 and not (kind == "packed" and made.problems)):
            return said or None
    return None if kind == "packed" else "an archive beyond what is looked through: name it to audit it"


def read_checkpoint(path: str, *, max_pickle: int = MAX_PICKLE) -> Checkpoint:
    """Read a checkpoint's headers and pickles. Raises :class:`TargetError` where it is none, or is not readable."""
    made = read_part(path, max_pickle=max_pickle)
    _prefixes(made)
    return made


def read_part(path: str, *, max_pickle: int) -> Checkpoint:
    """As :func:`read_checkpoint`, without what is said of all names: of a shard."""
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
            if kind != "sharded" and is_tar(read_at(file, 0, 512)):
                made.problems.append("it is a tar file as well" + ("" if kind == "zip" else ", which torch.load tries first"))
    except OSError as error:
        raise TargetError("read", f"{path}: cannot be read: {error.strerror or error}", kind=type(error).__name__) from error
    made.count()
    if made.complete and (said := taken_for(made.tensors)):
        made.notes.append(said)
    if made.refused and made.format != "sharded" and not made.problems and all(used.tier == "tensors" for used in made.globals):
        made.notes.append(f"weights_only refuses it, whatever it is told to allow: {made.refused[0]}")
    return made


def _behind(made: Checkpoint, file: Readable, size: int, work: Work) -> None:
    """An archive behind what is no archive, which zip readers would open."""
    if has_directory(file, size) and (members := read_archive(file, size, work.members).members):
        said = "a zip archive stands behind it" if made.problems else "its last bytes are a zip archive"  # within its data
        (made.problems or made.notes).append(said)
        scan(made, Zip(file, size, "the archive behind it: ", members=members), work, None)


def _prefixes(made: Checkpoint) -> None:
    names = [row.name for row in made.tensors if row.role in ("parameter", "buffer")]
    for prefix, whose in (("module.", " (DataParallel)"), ("_orig_mod.", " (torch.compile)"), ("model.", "")):
        if names and all(name.startswith(prefix) for name in names):
            made.notes.append(f"every name begins with {prefix!r}{whose}")


def _packed_file(made: Checkpoint, file: BinaryIO, size: int, work: Work) -> None:
    """A checkpoint in one compressed stream: unpacked to memory, as far as half the limit of a pickle."""
    stream = stream_of(file, read_at(file, 0, 512))
    if stream is None:
        raise TargetError("read", f"{made.path}: it was changed while it was read", kind="NoCheckpoint")
    made.packed, parts = stream
    data, short = gathered(parts, min(work.pickle, work.bytes) // (4 if made.packed == "bzip2" else 2))  # which is slow
    work.bytes -= len(data)
    kind = recognise(data[:512], "", 1 << 62)
    limited = bool(short) and BEYOND in str(short)
    if limited and kind in ("zip", "safetensors"):
        packed = packed_as(read_at(file, 0, 512)) or f"a {made.packed} stream"
        raise TargetError("read", f"{made.path}: a checkpoint in {packed}: unpack it first", kind="NoCheckpoint")
    _READERS[kind or "pickle"](made, io.BytesIO(data), len(data), work)
    if limited:
        made.problems.clear()  # they say that the rest is missing
    if short:
        made.problems.insert(0, f"its {made.packed} stream {short}")
    made.complete = made.complete and not short
    made.places = [None] * len(made.places)
    made.away.update(dict.fromkeys(range(len(made.places)), "the file is compressed: unpack it first"))
    made.notes.append(f"compressed with {made.packed}: {len(data):,} bytes were unpacked and read")


_READERS: dict[str, Callable[[Checkpoint, BinaryIO, int, Work], None]] = {
    "safetensors": read_safetensors, "pickle": partial(read_pickles, apart=read_distributed), "zip": read_zip, "sharded": read_sharded, "array": read_array,
    "packed": _packed_file,
}  # fmt: skip
