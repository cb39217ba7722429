"""safetensors files: the header alone is read."""

from __future__ import annotations

import json
import math
import re
from typing import Any, BinaryIO

from convaudit.checkpoints import pickle_reader
from convaudit.checkpoints.archive import (
    Readable,
    read_at,
)
from convaudit.checkpoints.checkpoint import Checkpoint, Place
from convaudit.checkpoints.pickle_reader import (
    MAX_PICKLE,
    Reading,
    Work,
)
from convaudit.checkpoints.pickles import MAGIC, goes_wrong, importable, is_limited, read_each, record
from convaudit.checkpoints.recognition import MAX_HEADER
from convaudit.checkpoints.regions import row_major
from convaudit.checkpoints.tensors import (
    UNKNOWN,
    role_of,
)
from convaudit.result import TensorRow

_LINE = re.compile(rb"V|S['\"]")
"""Opcodes whose text may take up all of a file."""
SAFETENSORS = {
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16), "I64": ("int64", 64),
    "I32": ("int32", 32), "I16": ("int16", 16), "I8": ("int8", 8), "U8": ("uint8", 8), "U16": ("uint16", 16),
    "U32": ("uint32", 32), "U64": ("uint64", 64), "BOOL": ("bool", 8), "C64": ("complex64", 64),
    "F8_E5M2": ("float8_e5m2", 8), "F8_E4M3": ("float8_e4m3fn", 8), "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8), "F4": ("float4_e2m1fn_x2", 4),
    "F6_E2M3": ("float6_e2m3", 6), "F6_E3M2": ("float6_e3m2", 6),
}  # fmt: skip
"""torch's dtype and bits by safetensors' name (safetensors 0.8, ``Dtype``)."""


def read_safetensors(made: Checkpoint, file: BinaryIO, size: int, work: Work) -> None:
    """A header's tensors, and whether their bytes are all of the rest, each once."""
    made.complete = False
    head = read_at(file, 0, 8)
    length = int.from_bytes(head, "little")
    if pickle_reader.may_begin(head):
        given = work.opcodes
        readings = list(read_each(file, 0, size, work.pickle, work))
        naming = [reading for reading in readings if importable(reading)]
        for reading in naming:
            record(made, reading, "the whole file")
        cut = readings[-1].problem
        limited = cut is not None and (cut.limit or (_LINE.search(head[:4]) is not None and is_limited(readings[-1], size, work.pickle)))
        far = readings[0].value == MAGIC or (not readings[1:] and _goes_far(file, readings[0], given - work.opcodes, 8 + length))
        if naming or limited or far:
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


def _goes_far(file: Readable, reading: Reading, used: int, data_at: int) -> bool:
    """Whether a pickle's ``used`` opcodes are many, or it breaks at one behind the header; a persistent id or a name that is
    none, which a header has by chance, ends the loading."""
    problem = reading.problem
    if problem is None or problem.truncated or problem.limit or reading.persistent or reading.globals:
        return False
    if used >= 32 or reading.end <= data_at:
        return used >= 32
    work = Work.part(MAX_PICKLE // 100)
    left = work.opcodes
    pickle_reader.read(read_at(file, 0, data_at), work=work)
    return used > left - work.opcodes and (used >= 6 or goes_wrong(reading, used, begun=True))


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
