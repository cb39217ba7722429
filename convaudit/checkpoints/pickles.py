"""Pickles as files: torch's legacy format, plain ones, numpy arrays of objects; and the table that a pickle gives."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from convaudit.checkpoints import pickle_reader
from convaudit.checkpoints.archive import (
    Readable,
    Skipping,
    Window,
    read_at,
)
from convaudit.checkpoints.checkpoint import Checkpoint, Parts, Place
from convaudit.checkpoints.pickle_reader import (
    MAX_PICKLE,
    GlobalUse,
    Reading,
    Work,
)
from convaudit.checkpoints.recognition import MAGIC_BYTES
from convaudit.checkpoints.regions import Region
from convaudit.checkpoints.tensors import (
    BITS,
    Storage,
    Table,
    Tensor,
    table_of,
)
from convaudit.result import GlobalRow

MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of a legacy file (``torch/serialization.py``, MAGIC_NUMBER)."""
_PLAIN = rb"'[<>|=]?[?bBhHiIlLqQefdgFDGcuSaUVmM]\d*(?:\[\d*\w\w?\])?'"
_FIELD = rb"\( *(?:%b|\( *%b *, *%b *\)) *, *%b *(?:, *\([\d, L]*\) *)?(?:, *)?\)" % (*3 * (rb"'[\w .%#+*/&\x80-\xff-]*'",), _PLAIN)
_RECORD = re.compile(rb"\[ *%b(?: *, *%b)* *(?:, *)?\]" % (_FIELD, _FIELD))
_NO_OBJECTS = re.compile(rb" *\{ *'descr': *%b, *'fortran_order': *(?:True|False), *'shape': *\([\d, L]*\),? *\} *\n?" % _PLAIN)
"""The header of a numpy array of numbers, texts, dates or bytes, where a record is one of bytes; of any other, a pickle may follow."""
HEADER_BYTES = 1 << 16
"""Bytes of a numpy array's beginning that are read for its header."""
_OBJECTS = re.compile(rb"'[<>|=]?O\d*'|object")


def imports_surely(file: Readable, start: int, size: int) -> bool:
    """Whether bytes are beyond doubt a pickle that imports something: to their end, or up to where it calls that; or one that
    may do so where it is not read, or read otherwise."""
    head = read_at(file, start, 512)
    work = Work.part(MAX_PICKLE // 100)
    given, reading = work.opcodes, pickle_reader.read(head, work=work)
    problem = reading.problem
    if problem is not None and (problem.truncated or problem.limit):
        work = Work.part(MAX_PICKLE // 10)
        given, reading = work.opcodes, read_widening(file, start, max(0, size - start), MAX_PICKLE, work)
        problem = reading.problem
    names = importable(reading)
    if bool(names and problem is None) or any(use.called for use in names):
        return True
    begun, used = head[:1] == b"\x80", given - work.opcodes
    return (is_limited(reading, size - start, MAX_PICKLE) and (begun or used >= 1000)) or goes_wrong(reading, used, begun=begun)


def unpickles(file: Readable, size: int, *, alone: bool) -> bool:
    """Whether a file is a pickle without a header: it would import something before it ends or breaks, or it ends and is
    nothing else (``alone``), or breaks late."""
    work = Work.part(MAX_PICKLE // 10)
    given, reading = work.opcodes, read_widening(file, 0, size, MAX_PICKLE, work)
    if importable(reading) or is_limited(reading, size, MAX_PICKLE):
        return True
    return alone if reading.problem is None else goes_wrong(reading, given - work.opcodes)


def goes_wrong(reading: Reading, used: int, *, begun: bool = False) -> bool:
    """Whether a pickle of ``used`` opcodes, or one with a header (``begun``), breaks where Python may read on: at an opcode
    that is not taken, not where its bytes end or one is no opcode."""
    problem = reading.problem
    if problem is None or problem.truncated or problem.limit or "is no pickle opcode" in str(problem):
        return False
    return used >= (2 if begun else 16)


def is_limited(reading: Reading, size: int, most: int) -> bool:
    """Whether what ends a reading is a limit: its own, or the first ``most`` of ``size`` bytes."""
    problem = reading.problem
    return problem is not None and (problem.limit or (problem.truncated and most < size and problem.needs <= size))


def importable(reading: Reading) -> list[GlobalUse]:
    """The globals whose names are names, not what bytes that are no pickle look like."""
    return [
        use for (module, name), use in reading.globals.items()
        if name.replace(".", "").isidentifier() and module.replace(".", "").isidentifier()
    ]  # fmt: skip


def read_widening(file: Readable, start: int, size: int, most: int, work: Work) -> Reading:
    """Read what could be a pickle: a little of it, and more only while it goes on."""
    window = first = 1 << 12
    while True:
        data = read_at(file, start, min(window, size, most))
        spent = Work(**vars(work))
        spent.bytes = max(0, spent.bytes - max(0, len(data) - first))
        reading = pickle_reader.read(data, work=spent)
        whole = len(data) < min(window, size, most)  # the file ends before the size that it names
        if whole or reading.problem is None or not reading.problem.truncated or max(len(data), reading.problem.needs - 1) >= min(size, most):
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


def read_each(file: Readable, start: int, size: int, most: int, work: Work) -> Iterator[Reading]:
    """Read what could be pickles one behind the other, as a legacy file's five; what is behind them is left out."""
    at = 0
    for number in range(5):
        reading = read_widening(file, start + at, size - at, most, work)
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


def read_pickles(
    made: Checkpoint, file: BinaryIO, size: int, work: Work, *, apart: Callable[[Checkpoint, list[Reading], Work], bool] | None = None
) -> None:
    """The pickles of a file that is no archive, and the tables of those that torch loads; ``apart`` is asked first whether they
    tell of tensors in other files."""
    made.format = "pickle"
    window, max_pickle = 1 << 20, work.pickle
    readings: list[Reading] = []
    while True:
        data = read_at(file, 0, min(window, size, max_pickle))
        readings.clear()  # before the next are made
        spent = Work(**vars(work))
        readings = read_in_a_row(data, 5 if MAGIC_BYTES in data[:32] else 100, spent)
        short = readings[-1].problem is not None and readings[-1].problem.truncated
        short = short or (len(readings) < 5 and readings[-1].end >= len(data))
        if not short or len(data) >= min(size, max_pickle):
            break
        window = window * 8 if window * 16 < size else size
    vars(work).update(vars(spent))
    legacy = MAGIC_BYTES in data[:32] or readings[0].value == MAGIC
    made.format = "torch-legacy" if legacy else "pickle"
    names = ("magic number", "protocol version", "system info", "objects", "storage keys")
    for index, reading in enumerate(readings):
        member = (names[index] if index < 5 else f"pickle {index + 1}") if legacy else f"pickle {index + 1}"
        record(made, reading, member if len(readings) > 1 or legacy else "pickle", loaded=legacy)
    broken = readings[-1].problem
    if broken is not None:
        limited = len(data) < size and broken.truncated
        said = f"its pickle goes beyond {max_pickle:,} bytes (--max-pickle)" if limited else str(broken)
        made.problems.append(said + ("" if broken.limit else joblib_said(readings)))
        made.complete = False
    if not legacy:
        if apart is not None and not made.packed and apart(made, readings, work):
            return
        for reading in readings:
            tabulate(made, table_of(reading.value, "", work), None, {})
        if broken is None and readings[-1].end < size:
            made.problems.append(f"{size - readings[-1].end:,} bytes stand after the last pickle")
        return
    if len(readings) > 3:
        table = table_of(readings[3].value, "", work)
        if readings[0].value != MAGIC and readings[0].problem is None:
            made.problems.append("its magic number is not torch's")
        spans: Mapping[str, Span] = _legacy_storages(made, file, size, readings[4], table) if len(readings) == 5 and broken is None else {}
        tabulate(made, table, None, spans)
    if broken is None and len(readings) < 5:
        made.problems.append(f"it has {len(readings)} of a legacy file's five pickles")
        made.complete = made.complete and len(readings) > 3


def read_array(made: Checkpoint, file: BinaryIO, size: int, work: Work) -> None:
    """A numpy array of objects: a pickle behind a header."""
    start = objects_at(file)[0] or 0
    read_pickles(made, Window(file, start, size - start), max(0, size - start), work)  # type: ignore[arg-type]


def joblib_said(readings: list[Reading]) -> str:
    """Why a pickle that joblib wrote breaks off; nothing of any other."""
    wrapped = any(("joblib.numpy_pickle", "NumpyArrayWrapper") in reading.globals for reading in readings)
    return ": joblib puts raw arrays between its opcodes, and nothing behind the first was read" if wrapped else ""


def read_in_a_row(data: bytes, most: int, work: Work) -> list[Reading]:
    """Up to ``most`` pickles that follow each other."""
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


def record(made: Checkpoint, reading: Reading, member: str, *, loaded: bool = False) -> None:
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


def tabulate(
    made: Checkpoint, table: Table, missing: Callable[[Storage], str | None] | None, spans: Mapping[str, Span]
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


Span = tuple[int, int] | str
"""Start and size in bytes of a storage in the file; or why it cannot be read there."""


def goes_on(head: bytes, work: Work) -> bool:
    """Whether bytes without a pickle's header could be a pickle's: they end, or call something, before they break."""
    if not pickle_reader.may_begin(head):
        return False
    part = Work.part(work.pickle // 100)
    given = part.opcodes
    reading = pickle_reader.read(head, work=part)
    work.opcodes -= given - part.opcodes
    problem = reading.problem
    return problem is None or problem.limit or problem.truncated or any(use.called for use in importable(reading))


def objects_at(file: Readable) -> tuple[int | None, bool]:
    """Where the pickle of a numpy array of objects begins (``numpy/lib/format.py``), None where its elements are none; and
    whether its header names objects, or is only not known."""
    head = read_at(file, 0, 12)
    start, size = (10, 2) if head[6:7] == b"\1" else (12, 4)
    length = int.from_bytes(head[8 : 8 + size], "little")
    header = read_at(file, start, min(length, HEADER_BYTES - 12))
    plain = header
    for _ in range(10):  # records in records, the innermost first
        plain, found = _RECORD.subn(b"'V1'", plain)
        if not found:
            break
    return None if _NO_OBJECTS.fullmatch(plain) else start + length, _OBJECTS.search(header) is not None
