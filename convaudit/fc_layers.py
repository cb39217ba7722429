"""Fully connected layers, as the rules mean them: a Linear (or a product with a parameter) on one vector per image.

Not among them: projections of tokens or pixels, gates that rejoin a map, and layers whose output becomes a map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convaudit.graph import CALL, Call, LayerGraph, main_input, once, shape_of
from convaudit.layout import Layout, layouts, space, spatial_axes
from convaudit.topology import gates, outputs

if TYPE_CHECKING:
    from torch.fx import Node

TRANSPARENT = ("activation", "dropout", "norm", "elementwise")
"""Kinds that leave positions and features where they are."""


@dataclass(frozen=True)
class Flatten:
    """Where a map became a vector: the map's node and the first node behind it that mixes its positions."""

    map: Node
    node: Node
    layout: Layout
    """Of the map."""


@dataclass(frozen=True)
class FCLayer:
    """One call of a fully connected layer. ``channels`` and ``spatial`` are those of the flattened map it reads."""

    node: Node
    call: Call
    in_features: int
    out_features: int
    cell: bool
    """The input projection of an RNN cell."""
    flattens: tuple[Flatten, ...]
    channels: int
    spatial: tuple[int, ...]
    raw_image: bool
    after_fc: bool
    is_head: bool

    @property
    def weights(self) -> int:
        """Number of weights, bias left out."""
        return self.in_features * self.out_features

    @property
    def positions(self) -> int:
        """H·W of the map it reads; 1 where it reads a vector."""
        return math.prod(self.spatial)


@once
def fc_layers(graph: LayerGraph) -> list[FCLayer]:
    """The FC layers of ``graph`` in execution order, one entry a call."""
    layout = layouts(graph)
    layers: list[FCLayer] = []
    for node, call in graph.calls:
        width = _width(call)
        source = main_input(node)
        if width is None or source is None or source not in layout:
            continue
        axes = layout[source]
        if len(axes) != 2 or space(axes[:1]) or node in gates(graph):
            continue
        flattens = _flattens(source, layout) if space(axes) else ()
        if _feeds_map(node, through_linear=not flattens):
            continue
        channels, spatial = _map_size(flattens[0]) if flattens else (width[0], ())
        layers.append(
            FCLayer(
                node, call, *width, cell=call.kind == "recurrent", flattens=flattens, channels=channels, spatial=spatial,
                raw_image=bool(flattens) and untouched(flattens[0].map), after_fc=_reads_fc(node),
                is_head=node in outputs(graph),
            )
        )  # fmt: skip
    return layers


def _width(call: Call) -> tuple[int, int] | None:
    """(in_features, out_features) of what may be an FC layer."""
    if call.op == "bilinear":
        return None
    if call.linear is not None:
        return call.linear
    if call.kind == "recurrent" and call.op.endswith("cell") and call.weights:
        return call.weights[0][1], call.weights[0][0]
    if call.op in ("matmul", "mm", "addmm") and len(call.inputs) == 1 and call.weights and len(call.weights[-1]) == 2:
        return call.inputs[0][-1], call.outputs[0][-1]
    return None


def _flattens(node: Node, layout: dict[Node, Layout]) -> tuple[Flatten, ...]:
    """Every place where a map became part of the vector ``node``, past layers that keep positions."""
    found: list[Flatten] = []
    queue: list[tuple[Node, Node]] = [(node, node)]
    seen = {node}
    while queue:
        at, behind = queue.pop(0)
        axes = layout.get(at)
        if axes is None:
            continue
        if len(axes) >= 3 and not any(space((a,)) and "C" in a for a in axes):
            if space(axes) and not _tokens(at):
                found.append(Flatten(at, behind, axes))
            continue
        call: Call | None = at.meta.get(CALL)
        if call is None or call.kind in (*TRANSPARENT, "reshape", "merge"):
            for source in at.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    queue.append((source, at))
    return tuple(found)


def _tokens(node: Node) -> bool:
    """Whether a value is a sequence of tokens: made by a projection, attention or recurrence."""
    at: Node | None = node
    while at is not None:
        call: Call | None = at.meta.get(CALL)
        if call is not None and call.kind not in (*TRANSPARENT, "reshape", "merge", "pool", "reduce", "upsample"):
            return call.kind in ("attention", "recurrent", "linear", "matmul", "embedding")
        at = main_input(at)
    return False


def _map_size(flatten: Flatten) -> tuple[int, tuple[int, ...]]:
    axes = spatial_axes(flatten.layout)
    sizes = list(enumerate(shape_of(flatten.map)))
    channels = math.prod(size for i, size in sizes if i not in axes and "N" not in flatten.layout[i])
    return channels, tuple(size for i, size in sizes if i in axes)


def untouched(node: Node) -> bool:
    """Whether a value is the input itself, at most normalised, activated or reordered."""
    at: Node | None = node
    while at is not None and at.op != "placeholder":
        call: Call | None = at.meta.get(CALL)
        if call is not None and call.kind not in (*TRANSPARENT, "reshape", "merge"):
            return False
        at = main_input(at)
    return at is not None


def _reads_fc(node: Node) -> bool:
    at = main_input(node)
    while at is not None:
        call: Call | None = at.meta.get(CALL)
        if call is not None and call.linear is not None and len(shape_of(at)) == 2:
            return True
        if call is not None and call.kind not in (*TRANSPARENT, "reshape"):
            return False
        at = main_input(at)
    return False


def _feeds_map(node: Node, through_linear: bool) -> bool:
    """Whether the layer's value comes back as a map: reshaped to C×H×W, or to C×L that a spatial layer reads, or joined
    to one (a gate, a condition). ``through_linear``: behind further Linear layers as well, as in a generator."""
    queue, seen = [node], {node}
    while queue:
        for user in queue.pop().users:
            call: Call | None = user.meta.get(CALL)
            if user in seen or user.op == "output":
                continue
            seen.add(user)
            shape = shape_of(user)
            if call is None or (call.linear is not None and through_linear) or call.kind in (*TRANSPARENT, "reshape") or call.op == "stack":
                if len(shape) >= 4 and any(n > 1 for n in shape[2:]):
                    return True
                queue.append(user)
            elif call.conv is not None or (call.kind in ("upsample", "pool", "merge") and len(shape) >= 3):
                return True  # a convolution's kernel too, as in CondConv
    return False
