"""Folders of torch.distributed.checkpoint: their ``.metadata``, and the parts that it names."""

from __future__ import annotations

import math
import os
from itertools import groupby
from pathlib import Path
from typing import Any

from convaudit.checkpoints.archive import (
    Window,
    read_at,
)
from convaudit.checkpoints.checkpoint import Checkpoint
from convaudit.checkpoints.pickle_reader import (
    Call,
    Dict,
    Global,
    Reading,
    Work,
    brief,
)
from convaudit.checkpoints.pickles import read_each, record
from convaudit.checkpoints.shards import not_beside
from convaudit.checkpoints.tensors import (
    UNKNOWN,
    dtype_of,
    ints_of,
    role_at,
    size_of,
)
from convaudit.checkpoints.zips import Zip, list_members, scan
from convaudit.result import TensorRow

MAX_OVERLAPS = 100
"""Ranges of one part that are read though they begin within another, which those that torch writes never do."""


def read_distributed(made: Checkpoint, readings: list[Reading], work: Work) -> bool:
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
        wrong = not_beside(made.path, part, "its folder")
        if wrong:
            made.problems.append(f"part {part[:80]!r} {wrong}")
            continue
        try:
            file = (folder / part).open("rb")
        except OSError as error:
            made.problems.append(f"part {part[:80]!r} cannot be read: {error.strerror}")
            continue
        with file:
            length, end, again = os.fstat(file.fileno()).st_size, 0, 0
            made.file_bytes += length
            for _, start, size in ranges:
                where = f"{part[:80]}, byte {start:,}"
                again, end = again + (start < end), max(end, start + size)
                if not 0 <= start <= start + size <= length:
                    made.problems.append(f"{where}: {size:,} bytes are named, beyond what the file holds")
                elif again <= MAX_OVERLAPS:
                    _read_item(made, Window(file, start, size), where, work)
        if again:
            read = "" if again <= MAX_OVERLAPS else f"; {MAX_OVERLAPS} of those were read"
            made.problems.append(f"part {part[:80]!r}: {again:,} of its ranges of bytes begin within another{read}")


def _read_item(made: Checkpoint, item: Window, where: str, work: Work) -> None:
    if read_at(item, 0, 4) == b"PK\3\4":
        archive, known, left = Zip(item, item.size, f"{where}!", base=None), len(made.globals), work.globals
        list_members(made, archive, work)
        made.notes += [f"member {name} has a wrong CRC" for name in scan(made, archive, work, None)]
        if all(used.tier == "tensors" for used in made.globals[known:]):  # the same few in each
            del made.globals[known:]
            work.globals = left
        return
    readings = list(read_each(item, 0, item.size, min(work.pickle, work.bytes), work))
    for reading in readings:
        record(made, reading, where)
    made.problems.append(f"{where}: it is no archive" + (f": {readings[-1].problem}" if readings[-1].problem else ""))
