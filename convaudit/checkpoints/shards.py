"""Sharded checkpoints: an index, and the files that it names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import msgspec

from convaudit.checkpoints.archive import (
    read_at,
)
from convaudit.checkpoints.checkpoint import Checkpoint
from convaudit.checkpoints.pickle_reader import (
    Work,
)
from convaudit.checkpoints.recognition import MAX_HEADER, recognise
from convaudit.errors import TargetError

MAX_SHARDS = 2000


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
            text = read_at(file, 0, 2 * Work.header)
        held = _weight_map(text, 4 * Work.tensors) if recognise(text[:512], index.name, len(text)) == "sharded" else None
        return [index.parent / name for name in list(dict.fromkeys((held or {}).values()))[:MAX_SHARDS] if os.path.basename(name) == name]
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []


def not_beside(file: str, name: str, where: str) -> str | None:
    """Why a name that ``file`` gives is not that of a file beside it; ``where`` that is, in words."""
    folder = Path(file).parent
    store = {folder.resolve(), Path(file).resolve().parent}  # a hub's cache links both the index and its shards into one store
    try:
        if os.path.basename(name) != name or name in ("", ".", "..") or (folder / name).resolve().parent not in store:
            return f"lies outside {where}; it was not opened"
        return None if (folder / name).is_file() else "is not there"
    except (ValueError, OSError, RuntimeError):  # NUL, a lone surrogate, a name too long, links in a loop
        return "is no name of a file"


def read_sharded(made: Checkpoint, file: BinaryIO, size: int, work: Work) -> None:
    """The shards that an index names, and whether they hold what it says."""
    from convaudit.checkpoints.formats import read_part  # which reads shards itself

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
    folder = Path(made.path).parent
    held: dict[str, str] = {}
    shards = list(dict.fromkeys(wanted.values()))
    if len(shards) > MAX_SHARDS:
        made.problems.append(f"it names {len(shards):,} shards; only {MAX_SHARDS:,} are read")
        made.complete = False
    for shard in sorted(shards[:MAX_SHARDS]):
        wrong = not_beside(made.path, shard, "the index's folder")
        if wrong is None and shard.endswith(".index.json"):
            wrong = "is itself an index; not followed"
        if wrong:
            made.problems.append(f"shard {shard[:80]!r} {wrong}")
            continue
        path = folder / shard
        try:
            part = read_part(str(path), max_pickle=work.pickle)
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
