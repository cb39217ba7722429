"""Theoretical receptive fields along every branch, per spatial axis (Araujo et al., Distill 2019, eq. 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.fx import Node

from convaudit.graph import CALL, VAL, Call, LayerGraph, main_input, once, shape_of, tensors
from convaudit.layout import Layout, framed, layouts, space

Extent = "list[int] | Literal['unbounded'] | None"


@dataclass(frozen=True)
class ReceptiveField:
    """Extents in input pixels along the smallest and largest path, and the jump (stride) of each."""

    small: tuple[float, ...] | None
    large: tuple[float, ...] | None
    small_jump: tuple[float, ...]
    large_jump: tuple[float, ...]
    attended: bool = False
    """Attention over positions on every path (small) makes the field unbounded."""

    @property
    def smallest(self) -> list[int] | Literal["unbounded"] | None:
        """Extent per axis along the path with the smallest field."""
        return "unbounded" if self.small is None else [int(v) for v in self.small]

    @property
    def largest(self) -> list[int] | Literal["unbounded"] | None:
        """Extent per axis along the path with the largest field."""
        return "unbounded" if self.large is None else [int(v) for v in self.large]


@once
def receptive_fields(graph: LayerGraph) -> dict[Node, ReceptiveField]:
    """Receptive field of each node's value; nodes without spatial axes upstream are absent."""
    fields: dict[Node, ReceptiveField] = {}
    layout = layouts(graph)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            shapes = [t.shape for t in tensors(node.meta.get(VAL)) if t.dim() >= 3 and t.is_floating_point()]
            if shapes:
                axes = len(shapes[0]) - 2 - framed(layout.get(node, ()))
                ones = (1.0,) * axes
                fields[node] = ReceptiveField(ones, ones, ones, ones)
            continue
        incoming = [(n, fields[n]) for n in node.all_input_nodes if n in fields]
        if not incoming or node.op in ("get_attr", "output"):
            continue
        call: Call | None = node.meta.get(CALL)
        merged = _merge(node, incoming)
        fields[node] = merged if call is None else _through(call, merged, _mixed(node, layout))
    return fields


def _merge(node: Node, incoming: list[tuple[Node, ReceptiveField]]) -> ReceptiveField:
    if len(incoming) == 1:
        return incoming[0][1]
    maps = [f for n, f in incoming if _has_extent(n)]
    fields = maps or [f for _, f in incoming]  # a gate (map × 1×1 map) has the field of its map
    axes = len(fields[0].small_jump)
    fields = [f for f in fields if len(f.small_jump) == axes]
    small = min(fields, key=lambda f: (f.small is None, f.small or ()))
    bounded = [f for f in fields if f.small is not None]
    extent: tuple[float, ...] | None
    if bounded and small.small is not None:
        extent = tuple(min(f.small[i] for f in bounded if f.small) for i in range(axes))
    else:
        extent = None
    large = max(fields, key=lambda f: (f.large is None, f.large or ()))
    largest = None if large.large is None else tuple(max(f.large[i] for f in fields if f.large) for i in range(axes))
    return ReceptiveField(extent, largest, small.small_jump, large.large_jump)


def _has_extent(node: Node) -> bool:
    found = tensors(node.meta.get(VAL))
    return bool(found) and any(n > 1 for n in found[0].shape[2:])


def _mixed(node: Node, layout: dict[Node, Layout]) -> list[int] | None:
    """Sizes of the spatial axes that a node folds together: a flatten's, or of the positions a Linear runs along."""
    source = main_input(node)
    before, after = layout.get(source) if source else None, layout.get(node)
    if source is None or not before or not after:
        return None
    call: Call = node.meta[CALL]
    along = call.kind == "linear" and len(before) >= 3 and space(before[-1:])
    folds = call.kind == "reshape" and len(before) >= 3 and len(after) == 2 and space(after[1:])
    if not along and not folds:
        return None
    return [size for size, axis in zip(shape_of(source), before) if space((axis,))]


def _through(call: Call, field: ReceptiveField, mixed: list[int] | None) -> ReceptiveField:
    axes = len(field.small_jump)
    if mixed is not None:
        if call.kind == "reshape" and len(mixed) == axes:
            return _grow(field, [(n - 1, 1) for n in mixed])
        return ReceptiveField(None, None, field.small_jump, field.large_jump, True)
    if call.conv is not None and len(call.conv.kernel) != axes:  # frames folded into the batch: not followed
        return ReceptiveField(None, None, field.small_jump, field.large_jump, True)
    if call.conv is not None:
        conv = call.conv
        if conv.transposed:
            grown = [((k - 1) // s, 1 / s) for k, s in zip(conv.kernel, conv.stride)]
        else:
            grown = [((k - 1) * d, s) for k, d, s in zip(conv.kernel, conv.dilation, conv.stride)]
        return _grow(field, grown)
    if call.kind == "pool" and call.inputs and len(call.inputs[0]) == axes + 2:
        if "adaptive" in call.op:
            sizes = zip(call.inputs[0][2:], call.outputs[0][2:])
            return _grow(field, [(-(-n // max(1, m)) - 1, n / max(1, m)) for n, m in sizes])
        kernel = _axes(call.scalars.get("kernel_size"), axes)
        stride = _axes(call.scalars.get("stride") or call.scalars.get("kernel_size"), axes)
        dilation = _axes(call.scalars.get("dilation", 1), axes)
        if kernel and stride and dilation:
            return _grow(field, [((k - 1) * d, s) for k, d, s in zip(kernel, dilation, stride)])
    if call.op in ("mean", "sum", "amax", "max") and call.inputs and call.outputs and len(call.inputs[0]) == axes + 2:
        dims = call.scalars.get("dim")
        over = {d % (axes + 2) for d in ([dims] if isinstance(dims, int) else dims)} if dims is not None else set()
        return _grow(field, [((n - 1) if i + 2 in over else 0, 1) for i, n in enumerate(call.inputs[0][2:])])
    if (
        call.kind == "upsample"
        and call.inputs
        and call.outputs
        and len(call.outputs[0]) == axes + 2 == len(call.inputs[0])
    ):
        return _grow(field, [(0, n / max(1, m)) for n, m in zip(call.inputs[0][2:], call.outputs[0][2:])])
    if call.kind in ("attention", "recurrent"):
        return ReceptiveField(None, None, field.small_jump, field.large_jump, True)
    if call.kind == "matmul" and not call.parameters and len(call.inputs) > 1:
        return ReceptiveField(None, None, field.small_jump, field.large_jump, True)
    return field


def _axes(value: Any, axes: int) -> tuple[int, ...] | None:
    if value is None:
        return None
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values if len(values) == axes else None


def _grow(field: ReceptiveField, steps: Sequence[tuple[float, float]]) -> ReceptiveField:
    def grown(extent: tuple[float, ...] | None, jump: tuple[float, ...]) -> tuple[float, ...] | None:
        return None if extent is None else tuple(e + g * j for e, j, (g, _) in zip(extent, jump, steps))

    def jumped(jump: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(j * s for j, (_, s) in zip(jump, steps))

    return ReceptiveField(
        grown(field.small, field.small_jump), grown(field.large, field.large_jump),
        jumped(field.small_jump), jumped(field.large_jump), field.attended,
    )  # fmt: skip
