"""Whether two checkpoints hold the same values, where names and shapes agree. Never imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from convaudit.checkpoints.audit import MAX_WEIGHTS
from convaudit.checkpoints.checkpoint import Checkpoint
from convaudit.checkpoints.convert import elements
from convaudit.checkpoints.formats import read_checkpoint
from convaudit.checkpoints.tensors import BITS
from convaudit.checkpoints.weights import decodable, decode
from convaudit.comparison import TensorChange, Tensors, comparable
from convaudit.errors import TargetError
from convaudit.settings import AuditSettings

_BLOCK = 1 << 20
"""Elements compared at a time."""


def compare_values(found: Tensors, old: str, new: str, settings: AuditSettings) -> None:
    """Say in ``found`` which tensors of one name and shape hold other values, and in ``found.values`` what was not read."""
    if settings.weights == "never":
        return
    try:
        files = [read_checkpoint(path, max_pickle=settings.max_pickle * 1000**2) for path in (old, new)]
        if any(file.problems for file in files):
            found.values = "not compared: a file contradicts itself"
            return
        size = max(file.file_bytes for file in files)
        if size > MAX_WEIGHTS and settings.weights == "auto":
            found.values = f"not compared ({size / 1e9:.3g} GB): --weights"
            return
        with contextlib.ExitStack() as stack:
            _compare(found, files[0], files[1], stack)
    except (TargetError, OSError) as error:
        found.values = f"not compared: {error}"


def _compare(found: Tensors, old: Checkpoint, new: Checkpoint, stack: contextlib.ExitStack) -> None:
    opened: dict[str, BinaryIO] = {}

    def values(file: Checkpoint, index: int) -> Iterator[NDArray[np.uint8]] | None:
        row, place = file.tensors[index], file.places[index]
        if place is None or BITS.get(row.dtype, 1) % 8:
            return None
        if place.path not in opened:
            opened[place.path] = stack.enter_context(open(place.path, "rb"))  # noqa: SIM115 - the stack closes it
        return _blocks(elements(opened[place.path], row, place), _BLOCK * BITS[row.dtype] // 8)

    known = {change.name: change for change in found.changed}
    places = comparable(new.tensors)
    unread = 0
    for name, index in comparable(old.tensors).items():
        before, after = old.tensors[index], new.tensors[places[name]] if name in places else None
        if after is None or before.shape != after.shape or 0 in (before.shape or ()):
            continue
        kinds = before.dtype, after.dtype
        readable = all(map(decodable, kinds)) or before.dtype == after.dtype
        left, right = (values(old, index), values(new, places[name])) if readable else (None, None)
        if left is None or right is None:
            unread += 1
        elif difference := _difference(left, right, kinds):
            if name not in known:
                known[name] = TensorChange(name, [])
                found.changed.append(known[name])
                found.same -= 1
            known[name].differing, known[name].largest = difference
    found.values = f"of {unread:,} tensors not compared: they are not stored as such" if unread else None


def _blocks(parts: Iterator[bytes], size: int) -> Iterator[NDArray[np.uint8]]:
    """The same bytes, ``size`` at a time."""
    held = bytearray()
    for part in parts:
        held += part
        while len(held) >= size:
            yield np.frombuffer(bytes(held[:size]), np.uint8)
            del held[:size]
    if held:
        yield np.frombuffer(bytes(held), np.uint8)


def _difference(
    left: Iterator[NDArray[np.uint8]], right: Iterator[NDArray[np.uint8]], kinds: tuple[str, str]
) -> tuple[int | None, float | None] | None:
    """How many elements differ, and by how much at most; None where none does. NaN equals NaN; no "most" where one side alone is NaN or infinite."""
    differing, largest = 0, 0.0
    unnumbered = False
    with np.errstate(all="ignore"):
        for mine, other in zip_longest(left, right):
            if kinds[0] == kinds[1] and np.array_equal(mine, other):
                continue
            if not decodable(kinds[0]):
                return None, None
            before, after = _numbers(mine, kinds[0]), _numbers(other, kinds[1])
            apart = np.abs(before - after)
            differs = (before != after) & ~(np.isnan(before) & np.isnan(after))
            differing += int(differs.sum())
            unnumbered = unnumbered or bool((~np.isfinite(apart) & differs).any())
            largest = max(largest, float(np.max(apart, where=differs & np.isfinite(apart), initial=0.0)))
    return (differing, None if unnumbered else largest) if differing else None


def _numbers(raw: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    found = decode(raw, dtype)
    return found if found.dtype.kind == "c" else found.astype(np.float64)
