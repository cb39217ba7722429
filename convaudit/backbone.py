"""The backbone path: convolutions on maps between the input and the last map, gates and decoders left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from convaudit.fc_layers import TRANSPARENT
from convaudit.graph import CALL, Call, ConvConfig, LayerGraph, main_input, once, shape_of
from convaudit.layout import layouts, space
from convaudit.topology import gates, positions

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.layout import Layout


@dataclass(frozen=True)
class BackboneConv:
    """One call of a convolution on the backbone path."""

    node: Node
    call: Call
    conv: ConvConfig
    resolution: tuple[int, ...]
    """Spatial size of its output."""
    last: bool
    """Its value goes to a flatten, a global pool or the output, with no other convolution between."""


@once
def backbone(graph: LayerGraph) -> list[BackboneConv]:
    """Backbone convolutions in execution order.

    Left out: gates, transposed convolutions, what lies behind an upsampling, a flatten or attention, and 1×1 maps.
    """
    layout, gated = layouts(graph), gates(graph)
    behind: set[Node] = set()
    found = []
    for node in graph.graph.nodes:
        call: Call | None = node.meta.get(CALL)
        if any(n in behind for n in node.all_input_nodes):
            behind.add(node)
        if call is None or node not in layout:
            continue
        source = main_input(node)
        transposed = call.conv is not None and call.conv.transposed
        fc = call.kind in ("linear", "matmul", "attention", "recurrent") and len(layout[node]) < 4
        if transposed or fc or call.op in ("interpolate", "upsample", "grid_sample", "pixel_shuffle", "max_unpool2d"):
            behind.add(node)
        conv = call.conv
        if conv is None or len(conv.kernel) < 2 or node in behind or node in gated or source not in layout:
            continue
        if positions(source, layout[source]) > 1:
            found.append(BackboneConv(node, call, conv, call.outputs[0][2:], _is_last(node, layout)))
    return found


def _is_last(node: Node, layout: dict[Node, Layout]) -> bool:
    """Whether no other convolution on a map reads the value."""
    queue, seen = [node], {node}
    while queue:
        for user in queue.pop().users:
            call: Call | None = user.meta.get(CALL)
            if user in seen or call is None:
                continue
            seen.add(user)
            if call.conv is not None and shape_of(main_input(user) or user)[2:] != (1,) * len(call.conv.kernel):
                return False
            if call.kind in (*TRANSPARENT, "pool", "reduce", "merge", "upsample") or space(layout.get(user, ())):
                queue.append(user)
    return True


@once
def bottlenecks(graph: LayerGraph) -> list[Node]:
    """Nodes that every path from the input to the output passes, in order."""
    nodes = [node for node in graph.graph.nodes if node in layouts(graph) or node.op == "output"]
    where = {node: index for index, node in enumerate(nodes)}
    end = len(nodes) - 1
    useful: set[Node] = set()
    for node in reversed(nodes):
        if node.op == "output" or any(user in useful for user in node.users):
            useful.add(node)
    found = []
    reach = 0  # the furthest reader of any value made so far, this node's own aside
    for node in nodes:
        if node not in useful or node.op == "output":
            continue
        if reach <= where[node]:
            found.append(node)
        reach = max([reach, *(where[user] for user in node.users if user in useful and user in where)])
        reach = min(reach, end)
    return found
