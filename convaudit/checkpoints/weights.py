"""The weights of a checkpoint, read once in small blocks by numpy. Never imports torch.

They are read into one buffer, not mapped: a mapped file that somebody shortens kills the process (SIGBUS), a read comes
back short and can be named. A block is worked on while it is in the processor's cache.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from io import FileIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convaudit.checkpoints.architecture import Architecture, Layer, owner_of, wrapper_of
from convaudit.checkpoints.checkpoint import Checkpoint, Place
from convaudit.checkpoints.kernels import gallery
from convaudit.checkpoints.tensors import BITS
from convaudit.result import KernelGallery, Severity

DEAD = 1e-6
"""A filter is dead at this share of the median norm of its layer."""
ALIKE = 0.999
"""Absolute cosine above which two filters are one up to sign and scale."""
MIN_FAN_IN = 9
"""Filters of fewer weights are not compared: of 2,048 random ones, 80 pairs are alike in 4 dimensions, 1e-5 in 9 (the
share of a sphere within arccos 0.999 of an axis)."""
_MAX_FILTERS = 1 << 14
_BLOCK = 1 << 19
"""Elements worked on at a time: 2 MB of float32."""
_LARGEST = 1 << 26
"""Bytes read at once where a tensor's elements do not lie in order, or where one filter is that large."""
_PARTS, _MAX_PARTS = 12, 512
"""A filter's sketch is the sums of so many parts of it, its weights' signs flipped at random."""
_NEAR = 0.95
"""Absolute cosine of sketches above which filters are compared. One of 1e6 pairs of random filters has it, and nearly
every pair that is alike: its sketches differ by 0.045 of their length, give or take a few times that."""
_BELOW = np.tri(64, k=-1, dtype=np.float32)

_NATIVE = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "complex64": "<c8", "complex128": "<c16", "int64": "<i8",
    "int32": "<i4", "int16": "<i2", "int8": "i1", "uint8": "u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "bool": "?",
}  # fmt: skip
_FLOAT8 = {"float8_e4m3fn": (3, 7), "float8_e4m3fnuz": (3, 8), "float8_e5m2": (2, 15), "float8_e5m2fnuz": (2, 16), "float8_e8m0fnu": (0, 127)}
"""Bits of the mantissa and bias of the exponent (Open Compute Project, OFP8 and MX; fnuz: arXiv:2206.02915)."""
_EXPONENT = {"float16": 0x7C00, "complex32": 0x7C00, "bfloat16": 0x7F80}
"""Bits that are all set in a 16-bit value that is not finite."""

Array = NDArray[Any]


class WeightsError(Exception):
    """The file is not what its headers said when they were read."""


@dataclass
class NonFinite:
    """How many elements of a tensor are NaN and infinite; ``mask``: there is no NaN and no other value than zero."""

    nan: int
    infinite: int
    mask: bool


@dataclass
class Filters:
    """The filters of a convolution: their norms, and by the number of each that is an earlier one up to sign and scale,
    that one's; None where they were not compared."""

    norms: NDArray[np.float64]
    fan_in: int
    copies: dict[int, int] | None = None
    pruned: bool = False
    """A mask lies over them."""

    @property
    def dead(self) -> NDArray[np.bool_]:
        """Which are dead; none where the layer is zero throughout, as some layers begin."""
        largest = self.norms.max()
        if not 0 < largest < math.inf or self.norms.min() > DEAD * largest:
            return np.zeros(len(self.norms), bool)
        dead: NDArray[np.bool_] = self.norms <= DEAD * np.median(self.norms)
        return dead


@dataclass
class Part:
    """Filters or channels of a layer: their numbers, how many it has in all, and the parameters that they hold."""

    numbers: list[int]
    of: int
    parameters: int


def severity_of(parts: Iterable[Part], parameters: int) -> Severity:
    """Warning where parts of at least 5% of their layer hold 1% of all parameters together, else info."""
    heavy = sum(part.parameters for part in parts if len(part.numbers) >= 0.05 * part.of)
    return "warning" if heavy and heavy >= 0.01 * parameters else "info"


def ranked(parts: dict[str, Part]) -> tuple[list[str], str]:
    """The layers of the parts, that of most parameters first; and the end of a sentence about it: how many there are in all."""
    layers = sorted(parts, key=lambda name: -parts[name].parameters)
    number = sum(len(part.numbers) for part in parts.values())
    return layers, f", {number:,} in {len(parts)} layers" if len(parts) > 1 else ""


@dataclass
class Weights:
    """What one pass over the weights tells. Tensors go by their place in ``file.tensors``, layers by name."""

    prefix: str
    """What every name begins with (``module.``)."""
    nonfinite: dict[int, NonFinite] = field(default_factory=dict)
    filters: dict[str, Filters] = field(default_factory=dict)
    norms: dict[str, dict[str, Array]] = field(default_factory=dict)
    """``weight`` and ``running_var`` of each batch norm."""
    first: tuple[Layer, int] | None = None
    """The first convolution, and its weight's place."""
    kernels: Array | None = None
    """Its first filters, as far as they have 1M weights; None where one has more."""
    unread: list[str] = field(default_factory=list)
    """Tensors of floating point that are not read: compressed, sparse, overlapping too often, or a norm of too many channels."""

    def layer(self, name: str) -> str:
        """The layer that a tensor is of, as reports name it; a tensor of the model itself is its own."""
        owner, leaf = owner_of(name.removeprefix(self.prefix))
        return owner or leaf

    def gallery(self, file: Checkpoint) -> KernelGallery | None:
        """Pictures of the first convolution's kernels."""
        if self.first is None or self.kernels is None:
            return None
        layer, index = self.first
        row = file.tensors[index]
        return gallery(layer.name, row.shape or [], row.dtype, self.kernels)


def decode(raw: NDArray[np.uint8], dtype: str) -> Array:
    """The elements in bytes; types that numpy lacks become float32 or complex64. Raises ``KeyError`` for an unknown one."""
    if dtype == "bfloat16":
        return (raw.view("<u2").astype("<u4") << 16).view("<f4")
    if dtype == "complex32":
        return raw.view("<f2").astype("<f4").view("<c8")
    found: Array = float8(dtype)[raw] if dtype in _FLOAT8 else raw.view(_NATIVE[dtype])
    return found


def decodable(dtype: str) -> bool:
    """Whether :func:`decode` knows a dtype."""
    return dtype in _NATIVE or dtype in _FLOAT8 or dtype in ("bfloat16", "complex32")


def _floats(raw: NDArray[np.uint8], dtype: str) -> Array:
    """The elements as float32, or float64 where the file has it."""
    if dtype == "float16":
        return np.take(_halves(), raw.view("<u2"))  # twice as fast as astype
    found = decode(raw, dtype)
    return found if dtype == "float64" else found.astype(np.float32, copy=False)


@cache
def _halves() -> NDArray[np.float32]:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


@cache
def float8(dtype: str) -> NDArray[np.float32]:
    """The 256 values of an 8-bit type."""
    mantissa, bias = _FLOAT8[dtype]
    code = np.arange(256)
    if not mantissa:
        return np.append(np.ldexp(1.0, code[:255] - bias), np.nan).astype(np.float32)
    exponent, fraction = (code & 127) >> mantissa, code & ((1 << mantissa) - 1)
    value = np.ldexp(fraction + ((exponent > 0) << mantissa), np.maximum(exponent, 1) - bias - mantissa) * np.where(code < 128, 1, -1)
    if dtype.endswith("fnuz"):
        value[128] = np.nan
    elif dtype == "float8_e5m2":
        value[exponent == 31] = [np.inf, *[np.nan] * 3, -np.inf, *[np.nan] * 3]
    else:
        value[[127, 255]] = np.nan
    made: NDArray[np.float32] = value.astype(np.float32)
    return made


class _Reader:
    """Ranged reads of a checkpoint's files into one buffer, which holds the last of them."""

    def __init__(self, most: float = math.inf, heard: Callable[[int], None] = lambda read: None) -> None:
        self.left = most
        """Bytes that may still be worked on: tensors that overlap are not read without end."""
        self._read, self._heard = 0, heard
        self._files: dict[str, tuple[FileIO, os.stat_result]] = {}
        self._buffer = np.empty(4 * _BLOCK, np.uint8)
        self._held = ("", 0, 0)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for file, _stat in self._files.values():
            file.close()

    def bytes(self, path: str, start: int, size: int) -> NDArray[np.uint8]:
        """A range of a file, good until the next call. Raises :class:`WeightsError` where it is not there any more."""
        held, begin, end = self._held
        if held != path or start < begin or start + size > end:
            wanted = max(size, 1 << 17)  # small tensors stand side by side
            if wanted > len(self._buffer):
                self._buffer = np.empty(wanted, np.uint8)
            begin, end = start, start + self._fill(path, start, wanted if size < 1 << 16 else size)
            self._held = path, begin, end
            if end < start + size:
                raise WeightsError(f"it ended {start + size - end:,} bytes early while its weights were read: it was changed meanwhile")
        self.left -= size
        self._read += size
        self._heard(self._read)
        return self._buffer[start - begin : start - begin + size]

    def _fill(self, path: str, start: int, size: int) -> int:
        if path not in self._files:
            opened = FileIO(path)
            self._files[path] = opened, os.fstat(opened.fileno())
        file, got = self._files[path][0], 0
        file.seek(start)
        while got < size and (more := file.readinto(self._buffer.data[got:size])):
            got += more
        return got

    def check(self) -> None:
        """Raise :class:`WeightsError` where a file was written to since it was opened."""
        for file, before in self._files.values():
            now = os.fstat(file.fileno())
            if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise WeightsError("it was changed while its weights were read")


class _Span(NamedTuple):
    """A tensor of at least one element, and the bytes from its first element to its last."""

    path: str
    start: int
    elements: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, place: Place, shape: list[int], dtype: str) -> _Span:
        """Where it lies."""
        elements = 1 + sum((size - 1) * step for size, step in zip(shape, place.stride))
        start = place.start + place.offset * BITS[dtype] // 8
        return cls(place.path, start, elements, dtype, tuple(shape), place.stride)

    def rows(self, number: int) -> _Span:
        """The first of it along the first axis."""
        shape = (number, *self.shape[1:])
        return self._replace(shape=shape, elements=1 + sum((size - 1) * step for size, step in zip(shape, self.stride)))

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return BITS[self.dtype] // 8

    @property
    def size(self) -> int:
        """Bytes from the first element to the last."""
        return self.elements * self.width

    @property
    def dense(self) -> bool:
        """Whether every element in between is the tensor's (or one that an axis of stride 0 repeats)."""
        steps = {step: size for size, step in zip(self.shape, self.stride) if size > 1 and step}
        return self.elements == math.prod(steps.values())

    @property
    def in_rows(self) -> bool:
        """Whether what has one index along the first axis stands together, in order."""
        return self.elements == math.prod(self.shape) and (self.shape[0] == 1 or self.stride[0] * self.shape[0] == self.elements)

    def follows(self, before: _Span) -> bool:
        """Whether it begins where another of its dtype ends."""
        return self.start == before.start + before.size and (self.path, self.dtype) == (before.path, before.dtype)

    def read(self, reader: _Reader, first: int = 0, elements: int | None = None) -> NDArray[np.uint8]:
        """The bytes of some of its elements in the order of the file, all by default."""
        return reader.bytes(self.path, self.start + first * self.width, (self.elements if elements is None else elements) * self.width)

    def blocks(self, reader: _Reader, elements: int = _BLOCK) -> Iterator[NDArray[np.uint8]]:
        """All bytes, so many elements at a time."""
        for at in range(0, self.elements, elements):
            yield self.read(reader, at, min(elements, self.elements - at))


def scan(file: Checkpoint, architecture: Architecture, heard: Callable[[int, int], None] = lambda read, size: None) -> Weights:
    """One pass over the parameters and buffers of floating point, each place once. ``heard`` is called with the bytes that
    are read, and with all that will be.

    Raises :class:`WeightsError` where the file is changed meanwhile, ``OSError`` where it cannot be read.
    """
    found = Weights(wrapper_of([row.name for row in file.tensors if row.role in ("parameter", "buffer")]))
    layers = {layer.name: layer for layer in architecture.layers}
    kept = {row.name: index for index, row in enumerate(file.tensors)} if any(layer.beside for layer in architecture.layers) else {}
    first = first_convolution(architecture)
    plain: list[tuple[_Span, int]] = []  # side by side
    spans = _spans(file, found.unread)
    size = sum(span.size for span, _ in spans)
    with _Reader(4 * file.file_bytes, lambda read: heard(min(read, size), size)) as reader, _Reader() as other, np.errstate(all="ignore"):
        for span, index in spans:
            name = file.tensors[index].name
            if span.size > reader.left:
                found.unread.append(name)
                continue
            owner, leaf = owner_of(name.removeprefix(found.prefix))
            layer = layers.get(owner)
            conv = layer if layer and leaf == layer.stored and has_filters(layer) and len(span.shape) > 2 else None
            rest = _beside(file, kept.get(found.prefix + conv.tensor(conv.beside)), span, conv) if conv and conv.parametrized else None
            beside = (rest, other) if rest is not None else None
            if conv is not None and beside is None and conv.parametrized not in ("", "spectral_norm"):
                conv = None  # its filters are not these
            norm = layer if layer and layer.op == "BatchNorm" and leaf in ("weight", "running_var") and len(span.shape) == 1 else None
            if conv is not None and conv is first:
                found.first, found.kernels = (conv, index), _kernels(reader, span, beside, conv.parametrized)
            if conv is not None and span.in_rows and span.size // span.shape[0] <= _LARGEST and "complex" not in span.dtype:
                compare = not conv.grouped or (conv is first and not architecture.by_name)
                found.filters[conv.name], finite = _filters(reader, span, beside, compare=compare)
            elif norm is not None and max(span.elements, span.shape[0]) <= _BLOCK:
                values = found.norms.setdefault(norm.name, {})[leaf] = _values(reader, span)
                finite = bool(np.isfinite(values).all())
            elif norm is not None:  # too large to keep
                finite = all(_finite(raw, span.dtype) for raw in span.blocks(reader))
            else:
                if plain and not span.follows(plain[-1][0]):
                    _check_plain(file, found, reader, plain)
                plain.append((span, index))
                continue
            if not finite:
                _tell(file, found, reader, span, index)
            elif norm is not None and leaf not in found.norms.get(norm.name, {}):
                found.unread.append(name)
        _check_plain(file, found, reader, plain)
        reader.check()
    return found


def _check_plain(file: Checkpoint, found: Weights, reader: _Reader, plain: list[tuple[_Span, int]]) -> None:
    """Look for elements that are not finite in tensors side by side: in all at once, and one by one where there are some."""
    if plain:
        first, last = plain[0][0], plain[-1][0]
        together = first._replace(elements=(last.start + last.size - first.start) // first.width)
        if not all(_finite(raw, first.dtype) for raw in together.blocks(reader)):
            for span, index in plain:
                if not all(_finite(raw, span.dtype) for raw in span.blocks(reader)):
                    _tell(file, found, reader, span, index)
    plain.clear()


def _tell(file: Checkpoint, found: Weights, reader: _Reader, span: _Span, index: int) -> None:
    """Count what is not finite in a tensor, some of whose bytes are not."""
    said = _count(reader, span)
    if said is None:
        found.unread.append(file.tensors[index].name)
    elif said.nan or said.infinite:
        found.nonfinite[index] = said


def _beside(file: Checkpoint, index: int | None, span: _Span, layer: Layer) -> _Span | None:
    """The mask of a pruned weight, or the norms of its filters; None where its shape or its place says that it is neither."""
    if index is None or layer.parametrized == "spectral_norm":  # which scales them all alike
        return None
    row, place = file.tensors[index], file.places[index]
    wanted = span.shape if layer.parametrized == "pruned" else (span.shape[0], *[1] * (len(span.shape) - 1))
    if place is None or tuple(row.shape or ()) != wanted or not decodable(row.dtype) or "complex" in row.dtype:
        return None
    found = _Span.of(place, [*wanted], row.dtype)
    return found if found.in_rows and (found.stride == span.stride or layer.parametrized == "weight_norm") else None


def _spans(file: Checkpoint, unread: list[str]) -> list[tuple[_Span, int]]:
    """The tensors to read in the order of the files, each place once."""
    spans: dict[_Span, int] = {}
    for index, (row, place) in enumerate(zip(file.tensors, file.places)):
        if row.role not in ("parameter", "buffer") or not row.dtype.startswith(("float", "bfloat", "complex")) or 0 in (row.shape or ()):
            continue
        if row.shape is None or place is None or not decodable(row.dtype):
            unread.append(row.name)
        else:
            spans.setdefault(_Span.of(place, row.shape, row.dtype), index)
    return sorted(spans.items(), key=lambda held: (held[0].path, held[0].start))


def first_convolution(architecture: Architecture) -> Layer | None:
    """The convolution that reads the image: in the file's order, or of three channels where names were sorted."""
    convs = [layer for layer in architecture.convs if has_filters(layer) and math.prod(layer.kernel) > 1]
    images = [layer for layer in convs if layer.inward == 3]
    return next(iter(images if architecture.by_name and images else convs), None)


def has_filters(layer: Layer) -> bool:
    """Whether a layer's weight is filters along its first axis: a convolution, by its shape."""
    return layer.kind == "conv" and not layer.transposed and (len(layer.kernel) > 1 or layer.kernel[0] <= 32)


def values_of(file: Checkpoint, index: int, most: int) -> Array:
    """The first ``most`` of a tensor along its first axis. Raises as :func:`scan`, and where it cannot be read."""
    row, place = file.tensors[index], file.places[index]
    if not row.shape or place is None or not decodable(row.dtype) or 0 in row.shape:
        raise WeightsError("its weights are not stored as such (compressed, sparse, quantized, or of an unknown type)")
    span = _Span.of(place, row.shape, row.dtype).rows(min(most, row.shape[0]))
    if max(math.prod(span.shape) * 4, span.size) > _LARGEST:
        raise WeightsError("it is too large to be shown")
    with _Reader() as reader, np.errstate(all="ignore"):
        return _values(reader, span)


def _kernels(reader: _Reader, span: _Span, beside: tuple[_Span, _Reader] | None, parametrized: str) -> Array | None:
    number = min(span.shape[0], 2 * _BLOCK // math.prod(span.shape[1:]))
    span = span.rows(number)
    if not number or span.size > _LARGEST:
        return None
    values = _values(reader, span)
    if beside is not None:
        values *= _values(beside[1], beside[0].rows(number))
    if parametrized == "weight_norm":
        values /= np.sqrt(np.square(_values(reader, span)).sum(axis=tuple(range(1, values.ndim)), keepdims=True))
    return values


def _values(reader: _Reader, span: _Span) -> Array:
    """The tensor's elements in its shape: float32, or float64 where the file has it; of complex ones the absolute value."""
    raw = decode(span.read(reader), span.dtype)
    flat = np.abs(raw) if raw.dtype.kind == "c" else raw
    if span.shape != flat.shape:
        flat = np.lib.stride_tricks.as_strided(flat, span.shape, [step * flat.itemsize for step in span.stride])
    return flat.astype(np.float64 if span.dtype == "float64" else np.float32)


def _finite(raw: NDArray[np.uint8], dtype: str) -> bool:
    """Whether all elements are finite, in one pass where that can be had."""
    if dtype in _EXPONENT:
        return not ((raw.view("<u2") & _EXPONENT[dtype]) == _EXPONENT[dtype]).any()
    if dtype in _FLOAT8:
        return bool(np.isfinite(float8(dtype))[raw].all())
    flat = raw.view("<f4" if dtype in ("float32", "complex64") else "<f8")
    squares = flat.dot(flat) if len(flat) < 1000 else np.einsum("i,i->", flat, flat)
    return math.isfinite(squares) or bool(np.isfinite(flat).all())  # squares may overflow


def _count(reader: _Reader, span: _Span) -> NonFinite | None:
    """The elements that are not finite, where some in its bytes are; None where that cannot be told."""
    if not span.dense and (max(span.size, math.prod(span.shape) * 8) > _LARGEST or len(span.shape) > 32):
        return None
    parts = (decode(raw, span.dtype) for raw in span.blocks(reader)) if span.dense else [_values(reader, span)]
    found = NonFinite(0, 0, True)
    for part in parts:
        nan, infinite = np.isnan(part), np.isinf(part)
        found.nan += int(nan.sum())
        found.infinite += int(infinite.sum())
        found.mask = found.mask and not found.nan and not part[~infinite].any()
    return found


# Filters


def _filters(reader: _Reader, span: _Span, beside: tuple[_Span, _Reader] | None, *, compare: bool) -> tuple[Filters, bool]:
    """Norms and copies of what stands along the first axis, and whether all of it is finite. ``beside`` is a mask of the
    span's shape, or the norm that each filter has."""
    number = span.shape[0]
    fan_in = span.elements // number
    mask = beside if beside is not None and beside[0].shape == span.shape else None
    parts = next((n for n in range(_PARTS, min(fan_in, _MAX_PARTS) + 1) if fan_in % n == 0), min(fan_in, _PARTS))
    compare = compare and 1 < number <= _MAX_FILTERS and fan_in >= MIN_FAN_IN and fan_in % parts == 0
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (parts, fan_in // parts))
    squares: list[Array] = []
    sketches: list[Array] = []
    finite = True

    def block(first: int, amount: int) -> Array:
        rows = _floats(span.read(reader, first * fan_in, amount * fan_in), span.dtype).reshape(-1, fan_in)
        return rows if mask is None else rows * decode(mask[0].read(mask[1], first * fan_in, amount * fan_in), mask[0].dtype).reshape(-1, fan_in)

    most = max(1, _BLOCK // fan_in)
    for first in range(0, number, most):
        rows: Any = block(first, min(most, number - first))
        squares.append(np.einsum("ij,ij->i", rows, rows))
        finite = finite and (bool(np.isfinite(squares[-1]).all()) or bool(np.isfinite(rows).all()))
        if compare:
            sketches.append(np.einsum("ijk,jk->ij", rows.reshape(-1, *signs.shape), signs))
    found = Filters(np.sqrt(np.concatenate(squares), dtype=np.float64), fan_in, pruned=mask is not None)
    if beside is not None and mask is None:
        found.norms = np.where(found.norms > 0, np.abs(_values(beside[1], beside[0]).reshape(-1)), 0.0)
    if compare and np.isfinite(found.norms).all():
        sketch = np.concatenate(sketches)
        sketch[found.dead] = 0
        found.copies = _copies(sketch, lambda row: block(row, 1)[0].astype(np.float64))
    return found, finite


def _copies(sketches: Array, row: Callable[[int], Array]) -> dict[int, int]:
    """The filters that are an earlier one up to sign and scale; candidates by their sketches, tile by tile: BLAS takes
    more threads for larger products, which is slower where the processor is busy."""
    lengths = np.linalg.norm(sketches, axis=1, keepdims=True)
    unit = np.divide(sketches, lengths, out=np.zeros_like(sketches), where=lengths > 0).astype(np.float32)
    near: dict[int, list[int]] = {}
    for top in range(0, len(unit), 64):
        rows = unit[top : top + 64]
        for left in (*range(0, top, 256), top):
            cosines = np.abs(rows @ unit[left : top if left < top else top + 64][:256].T)
            if left == top:
                cosines *= _BELOW[: len(rows), : len(rows)]
            if cosines.max() > _NEAR:
                for one, other in np.argwhere(cosines > _NEAR):
                    near.setdefault(top + int(one), []).append(left + int(other))
    copies: dict[int, int] = {}
    for one, others in near.items():
        current = row(one)
        for other in [other for other in others if other not in copies][:4]:
            earlier = row(other)
            if abs(current @ earlier) > ALIKE * np.linalg.norm(current) * np.linalg.norm(earlier):
                copies[one] = other
                break
    return copies
