"""How many elements of its storages a file's tensors cover: what several views see counts once. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_MARKED = 1 << 26
"""Elements of one file that are marked one by one (64 MB), where views with gaps between their elements share a storage."""


class Region(NamedTuple):
    """The elements of a storage that a tensor sees, each of ``bits``; ``stride`` is None where that is not known."""

    storage: Hashable
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    bits: int


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor, in elements."""
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return tuple(reversed(steps)) if shape else ()


@dataclass
class _Steps:
    """A region's axes without those that repeat, smallest step first: size and step in units of so many bits."""

    start: int
    axes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, region: Region, unit: int) -> _Steps:
        """In units, of which an element takes one or more."""
        wide = region.bits // unit
        if region.stride == row_major(region.shape):
            return cls(region.offset * wide, ((math.prod(region.shape) * wide, 1),))
        axes = [(size, step * wide) for size, step in zip(region.shape, region.stride or ()) if size > 1 and step]
        return cls(region.offset * wide, tuple(sorted([*axes, *([(wide, 1)] if wide > 1 else [])], key=lambda axis: axis[1])))

    @property
    def end(self) -> int:
        """The unit behind the last."""
        return self.start + 1 + sum((size - 1) * step for size, step in self.axes)

    @property
    def most(self) -> int:
        """Units, if none is seen twice."""
        return min(self.writes, self.end - self.start)

    @property
    def writes(self) -> int:
        """Units, each as often as it is seen."""
        return math.prod(size for size, _ in self.axes)

    @property
    def exact(self) -> bool:
        """Whether none is seen twice: each step goes beyond what the smaller ones reach."""
        reach = 1
        for size, step in self.axes:
            if step < reach:
                return False
            reach += (size - 1) * step
        return True

    @property
    def dense(self) -> bool:
        """Whether every unit from the first to the last is seen."""
        return self.most == self.end - self.start and self.exact


def elements_of(regions: Sequence[Region]) -> list[int]:
    """How many elements each region adds to those before it; none of a shape with a 0 in it.

    Regions without gaps are exact. Where others share a storage, its elements are marked one by one, :data:`MAX_MARKED` of
    a file; beyond that a region counts in full, but all of a storage no more than lie between their first and last elements.
    """
    found = [0] * len(regions)
    held: dict[Hashable, dict[Region, int]] = {}
    for index, region in enumerate(regions):
        if 0 not in region.shape:
            held.setdefault(region.storage, {}).setdefault(region, index)  # the same one again adds nothing
    left = MAX_MARKED
    for together in held.values():
        only = next(iter(together))
        if len(together) == 1 and only.stride == row_major(only.shape):
            found[together[only]] = math.prod(only.shape)
            continue
        known = {region: index for region, index in together.items() if region.stride is not None and region.bits}
        for region, index in together.items():
            if region not in known:
                found[index] = math.prod(region.shape)
        unit = math.gcd(*(region.bits for region in known))
        steps = {index: _Steps.of(region, unit) for region, index in known.items()}
        alone = len(steps) == 1 and all(one.exact for one in steps.values())
        if alone or all(one.dense for one in steps.values()):
            added = [one.most for one in steps.values()] if alone else _joined(steps.values())
        else:
            first, last = min(one.start for one in steps.values()), max(one.end for one in steps.values())
            cost = last - first + sum(max(one.end - one.start, one.writes) for one in steps.values())
            added = _marked(steps.values(), first, last) if cost <= left else _bounded(steps.values())
            left -= cost if cost <= left else 0
        for (region, index), units in zip(known.items(), added):
            found[index] = units * unit // region.bits
    return found


def _joined(steps: Iterable[_Steps]) -> list[int]:
    """The units that each adds to those before it, all between its first and last taken as seen."""
    spans = [(one.start, one.end) for one in steps]
    edges = sorted({edge for span in spans for edge in span})
    places = {edge: place for place, edge in enumerate(edges)}
    free = list(range(len(edges)))
    """The first place from each on that nothing holds yet, or one on the way there."""
    added = []
    for start, end in spans:
        place, last, more = places[start], places[end], 0
        while True:
            while free[place] != place:
                free[place] = place = free[free[place]]
            if place >= last:
                break
            more += edges[place + 1] - edges[place]
            free[place] = place + 1
        added.append(more)
    return added


def _marked(steps: Iterable[_Steps], first: int, last: int) -> list[int]:
    import numpy as np

    seen, added = np.zeros(last - first, bool), []
    for one in steps:
        part = seen[one.start - first : one.end - first]
        before = int(np.count_nonzero(part))
        np.lib.stride_tricks.as_strided(part, [size for size, _ in one.axes], [step for _, step in one.axes])[...] = True
        added.append(int(np.count_nonzero(part)) - before)
    return added


def _bounded(steps: Iterable[_Steps]) -> list[int]:
    room, added = 0, []
    for one, more in zip(steps, _joined(steps)):
        room += more
        added.append(min(one.most, room))
        room -= added[-1]
    return added
