"""A checkpoint's tensors as a safetensors file, through the reader that runs nothing: bytes are copied, never computed with.

Never imports torch, and holds one block of a tensor at a time where its elements lie in order.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from convaudit.checkpoints.checkpoint import Checkpoint, Place
from convaudit.checkpoints.regions import row_major
from convaudit.checkpoints.safetensors import SAFETENSORS
from convaudit.checkpoints.tensors import BITS, UNKNOWN, taken_for
from convaudit.errors import UsageError
from convaudit.output import replaced
from convaudit.result import TensorRow

_KINDS = {dtype: kind for kind, (dtype, _) in reversed(SAFETENSORS.items())}
"""safetensors' name by torch's dtype."""
_STRIPPED = ("module.", "_orig_mod.")
"""Prefixes that are nobody's own: DataParallel's and torch.compile's."""
_UNNAMED = "tensor"
"""The name of a tensor that is all a file holds."""
_PACKED = ("_packed_params.", "_all_weight_values.")
"""Keys below which quantized layers keep weights in tuples, which a safetensors file cannot give back."""
_MOST_LISTED = 20
"""State_dicts that are named in a sentence."""
_BLOCK = 1 << 23
_MOST_REORDERED = 1 << 31
"""Bytes of a tensor that is read whole, because its elements do not lie in order."""

_MOST_TOLD_APART = 1 << 27
"""Elements of a storage whose owners are written down one by one (512 MB)."""


@dataclass
class Taken:
    """One tensor to write: where its elements lie, and under which name."""

    name: str
    row: TensorRow
    place: Place | None
    """None where it has no elements."""


@dataclass
class Plan:
    """What a conversion writes, and what it leaves out or changes."""

    tensors: list[Taken] = field(default_factory=list)
    ties: dict[str, str] = field(default_factory=dict)
    """Names that are left out → the name that holds the same tensor."""
    lines: list[str] = field(default_factory=list)
    """What a user should know."""

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(taken.row.bytes or 0 for taken in self.tensors)


def plan(file: Checkpoint, key: str | None = None) -> Plan:
    """What to write. ``key`` names the state_dict where there is more than one. Raises :class:`UsageError` for a file that
    contradicts itself, that holds several state_dicts, or tensors that safetensors has no words for."""
    where = file.path
    if file.problems:
        raise UsageError(f"{where}: {file.problems[0]}: nothing is converted from a file that contradicts itself (CNV602)")
    made = Plan()
    chosen = _chosen(file, key, made)
    names = [name for name, _ in chosen]
    for prefix in _STRIPPED:
        if names and all(name.startswith(prefix) for name in names):
            names = [name.removeprefix(prefix) for name in names]
            made.lines.append(f"the prefix {prefix!r} of every name is left out")
    if "" in names:
        names = [name or _UNNAMED for name in names]
        made.lines.append(f"a tensor without a name is written as {_UNNAMED!r}")
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UsageError(f"{where}: {doubled[0][:80]!r} is there twice")
    if "__metadata__" in names:
        raise UsageError(f"{where}: a tensor named '__metadata__' cannot be written: safetensors keeps that name for itself")
    for name, (_, index) in zip(names, chosen):
        made.tensors.append(_taken(file, index, name))
    _tie(made)
    total = made.bytes
    if total > 4 * file.file_bytes + (1 << 20):
        raise UsageError(f"{where}: its tensors repeat what the file holds once: they would take {total:,} bytes of a file of {file.file_bytes:,}")
    _check_storages(made, where)
    made.tensors.sort(key=lambda taken: -BITS[taken.row.dtype])  # each begins where its elements may be read in place
    return made


def _chosen(file: Checkpoint, key: str | None, made: Plan) -> list[tuple[str, int]]:
    """Names and places in the table of one state_dict's tensors."""
    rows = list(enumerate(file.tensors))
    own = [(row.name, index) for index, row in rows if row.role in ("parameter", "buffer")]
    if key is not None and file.wrappers != [key]:
        found = [(row.name[len(key) + 1 :], index) for index, row in rows if row.name.startswith(f"{key}.")]
    elif len(file.wrappers) > 1:
        raise UsageError(f"{file.path}: holds more than one state_dict: choose with --key: {_listed(file.wrappers)}")
    else:
        found = own
        if own and file.wrappers and key is None:
            made.lines.append(f"the state_dict is what stands under {file.wrappers[0]!r}")
    if not found:
        keys = Counter(row.name.partition(".")[0][:80] for row in file.tensors if "." in row.name)
        held = ", ".join(f"{word} ({count:,})" for word, count in keys.most_common(8))
        what = f"has no tensors under {key!r}" if key is not None else taken_for(file.tensors) or "has no state_dict of its own: it holds no tensors"
        raise UsageError(f"{file.path}: {what}" + (f"; --key takes one of these (tensors): {held}" if held else ""))
    taken = {index for _, index in found}
    packed = next((row for index, row in rows if index in taken and any(part in row.name for part in _PACKED)), None)
    if packed is not None:
        raise UsageError(f"{file.path}: {packed.name[:80]!r} holds a quantized layer's packed weights: safetensors has no word for them")
    left = Counter(_whose(file, row) for index, row in rows if index not in taken)
    if left:
        made.lines.append(f"left out (tensors): {', '.join(f'{whose} ({count:,})' for whose, count in left.items())}")
    behind = [row for row in file.globals if row.tier != "tensors"]
    if behind:
        more = f" and {len(behind) - 1:,} more" if len(behind) > 1 else ""
        made.lines.append(f"left behind, and not run: {behind[0].name[:120]}{more}")
    return found


def _listed(words: list[str]) -> str:
    more = len(words) - _MOST_LISTED
    return ", ".join(words[:_MOST_LISTED]) + (f" and {more:,} more" if more > 0 else "")


def _whose(file: Checkpoint, row: TensorRow) -> str:
    """The state_dict that a tensor is of, or its role where it is of none."""
    return next((word for word in file.wrappers[:_MOST_LISTED] if row.name.startswith(f"{word}.") and row.role in ("parameter", "buffer")), row.role)


def _taken(file: Checkpoint, index: int, name: str) -> Taken:
    row, place, shown = file.tensors[index], file.places[index], f"{file.path}: {name[:80]!r}"
    if row.shape is None:
        raise UsageError(f"{shown} has no shape that is known: {file.away[index]}")
    if row.dtype == UNKNOWN:
        raise UsageError(f"{shown} is of no dtype that is known: {file.away.get(index, 'the file does not tell')}")
    if row.dtype not in _KINDS:
        raise UsageError(f"{shown} is of dtype {row.dtype}: safetensors has no word for it")
    if row.bytes is not None and not math.prod(row.shape):
        return Taken(name, row, None)
    if place is None or row.bytes is None:
        raise UsageError(f"{shown} cannot be read in place: {file.away.get(index, 'its size is not known')}")
    taken = Taken(name, row, place)
    if _span(taken)[1] * BITS[row.dtype] > place.size * 8:
        raise UsageError(f"{shown} reaches beyond its storage")
    return taken


def _tie(made: Plan) -> None:
    """Write what is one tensor under several names once, as ``safetensors.torch.save_model`` does and ``load_model`` knows."""
    first: dict[tuple[Place, tuple[int, ...]], str] = {}
    for taken in made.tensors:
        if taken.place is not None and (kept := first.setdefault((taken.place, tuple(taken.row.shape or ())), taken.name)) != taken.name:
            made.ties[taken.name] = kept
    made.tensors = [taken for taken in made.tensors if taken.name not in made.ties]
    if made.ties:
        name, kept = next(iter(made.ties.items()))
        more = f" and {len(made.ties) - 1:,} more" if len(made.ties) > 1 else ""
        made.lines.append(f"{name[:80]!r} is {kept[:80]!r}{more}: written once, load it with safetensors.torch.load_model")


def _check_storages(made: Plan, where: str) -> None:
    """Raise :class:`UsageError` where two tensors share some elements and are not the same."""
    storages: dict[tuple[str, int], list[Taken]] = {}
    for taken in made.tensors:
        if taken.place is not None:
            storages.setdefault((taken.place.path, taken.place.start), []).append(taken)
    for together in storages.values():
        if len(together) > 1:
            _check_apart(together, where)


def _check_apart(together: list[Taken], where: str) -> None:
    """No element of a storage is of two tensors."""
    import numpy as np

    spans = sorted(_span(taken) for taken in together)
    if all(before[1] <= after[0] for before, after in zip(spans, spans[1:])):
        return
    elements = max(end for _, end in spans)
    owner = np.zeros(elements if elements < _MOST_TOLD_APART else 0, np.int32)
    for number, taken in enumerate(together, 1):
        place = taken.place
        assert place is not None
        if not len(owner):
            raise UsageError(f"{where}: {taken.name[:80]!r} and {together[0].name[:80]!r} may share elements: the storage is too large to tell")
        mine = np.lib.stride_tricks.as_strided(owner[place.offset :], taken.row.shape, [4 * step for step in place.stride])
        other = int(mine.max())
        if other:
            raise UsageError(
                f"{where}: {taken.name[:80]!r} and {together[other - 1].name[:80]!r} share elements and are not the same tensor: "
                "safetensors cannot say that"
            )
        mine[...] = number


def _span(taken: Taken) -> tuple[int, int]:
    """The first element of its storage that a tensor holds, and the one behind its last."""
    place = taken.place
    assert place is not None
    return place.offset, place.offset + 1 + sum((size - 1) * step for size, step in zip(taken.row.shape or (), place.stride))


def write(made: Plan, path: Path) -> None:
    """Write the file aside, then rename it. Raises :class:`ReportError` where that fails."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **made.ties}}
    at = 0
    for taken in made.tensors:
        size = taken.row.bytes or 0
        header[taken.name] = {"dtype": _KINDS[taken.row.dtype], "shape": taken.row.shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replaced(path) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        sources: dict[str, BinaryIO] = {}
        try:
            for taken in made.tensors:
                if taken.place is not None:
                    source = sources.get(taken.place.path)
                    if source is None:
                        source = sources[taken.place.path] = open(taken.place.path, "rb")  # noqa: SIM115 - one for many tensors
                    out.writelines(elements(source, taken.row, taken.place))
        finally:
            for source in sources.values():
                source.close()


def elements(source: BinaryIO, row: TensorRow, place: Place) -> Iterator[bytes]:
    """A tensor's bytes, in order."""
    shape, width = tuple(row.shape or ()), BITS[row.dtype] // 8
    if all(size == 1 or step == right for size, step, right in zip(shape, place.stride, row_major(shape))):
        at, left = place.start + place.offset * BITS[row.dtype] // 8, row.bytes or 0
        while left:
            source.seek(at)
            block = source.read(min(_BLOCK, left))
            if not block:
                raise UsageError(f"{place.path}: ended while {row.name[:80]!r} was read: it was changed meanwhile")
            at, left = at + len(block), left - len(block)
            yield block
        return
    import numpy as np

    elements = 1 + sum((size - 1) * step for size, step in zip(shape, place.stride))
    if max(elements, math.prod(shape)) * width > _MOST_REORDERED:
        raise UsageError(f"{place.path}: {row.name[:80]!r} does not lie in order and is too large to be put in order")
    source.seek(place.start + place.offset * width)
    data = np.frombuffer(source.read(elements * width), np.dtype((np.void, width)), elements)
    ordered = np.lib.stride_tricks.as_strided(data, shape, [step * width for step in place.stride], writeable=False)
    for part in ordered if len(shape) > 1 else (ordered,):
        yield part.tobytes()
