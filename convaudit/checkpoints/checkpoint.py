"""What was read of one file: tensors, globals, contradictions and notes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from convaudit.checkpoints.archive import (
    Said,
)
from convaudit.checkpoints.regions import Region, elements_of
from convaudit.checkpoints.tensors import (
    size_of,
)
from convaudit.result import GlobalRow, TensorRow

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
