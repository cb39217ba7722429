"""What lies where in a layer graph: ancestors, gates that rejoin a map, values that leave the model."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from convaudit.graph import CALL, VAL, Call, LayerGraph, once, shape_of, tensors
from convaudit.layout import Layout, layouts, space

if TYPE_CHECKING:
    from torch.fx import Node

SQUASHING = frozenset({"sigmoid", "hardsigmoid", "softmax", "tanh", "hardtanh", "relu6", "clamp"})
"""Activations that end a gate."""


@once
def order(graph: LayerGraph) -> dict[Node, int]:
    """Each node's position in the graph."""
    return {node: index for index, node in enumerate(graph.graph.nodes)}


@once
def ancestors(graph: LayerGraph) -> dict[Node, int]:
    """Bit set of each node's ancestors and itself; bit i is the i-th node of the graph."""
    bits: dict[Node, int] = {}
    for node, index in order(graph).items():
        mask = 1 << index
        for source in node.all_input_nodes:
            mask |= bits[source]
        bits[node] = mask
    return bits


@once
def descendants(graph: LayerGraph) -> dict[Node, int]:
    """Bit set of the nodes that read each node's value, through others, the output left out."""
    bits: dict[Node, int] = {}
    for node, index in reversed(order(graph).items()):
        mask = 0 if node.op == "output" else 1 << index
        for user in node.users:
            mask |= bits[user]
        bits[node] = mask
    return bits


def rejoins(graph: LayerGraph, source: Node, user: Node) -> bool:
    """Whether another reader of ``source`` leads to a node that ``user`` leads to as well."""
    bits = descendants(graph)
    return any(other is not user and bits[other] & bits[user] for other in source.users)


@once
def gates(graph: LayerGraph) -> set[Node]:
    """Nodes of side branches that rejoin a map by multiplication (squeeze-and-excitation, CBAM, selective kernels).

    A gate is the factor of a product that was squashed, or holds fewer positions or channels than the other; its
    branch is what leads to it and not to the other factor.
    """
    where = order(graph)
    nodes = list(where)
    bits, layout = ancestors(graph), layouts(graph)
    found: set[Node] = set()
    for node in nodes:
        call: Call | None = node.meta.get(CALL)
        factors = [n for n in node.all_input_nodes if n in layout]
        if call is None or call.op not in ("mul", "addcmul") or len(factors) != 2:
            continue
        if not any(len(layout[f]) >= 3 for f in factors):
            continue
        gate, other = sorted(factors, key=lambda f: (_squashed(f), -_numel(f), where[f]), reverse=True)
        if not _squashed(gate) and _numel(gate) == _numel(other):
            continue
        only = bits[gate] & ~bits[other]
        while only:
            low = only & -only
            found.add(nodes[low.bit_length() - 1])
            only ^= low
    return found


def _numel(node: Node) -> int:
    return sum(t.numel() for t in tensors(node.meta.get(VAL)))


def _squashed(node: Node) -> bool:
    """Whether a value is the result of a squashing activation, through reshapes and resizing."""
    at: Node | None = node
    while at is not None:
        call: Call | None = at.meta.get(CALL)
        if call is not None and call.op in SQUASHING:
            return True
        if call is not None and call.kind not in ("reshape", "upsample"):
            return False
        at = next((n for n in at.all_input_nodes if n.op != "get_attr"), None)
    return False


@once
def outputs(graph: LayerGraph) -> set[Node]:
    """Nodes whose value leaves the model, also through what has no weights of its own and joins no two values: reshapes,
    activations, norms, resizing, a scale or an offset; not through pooling. The mean of several heads leaves as each."""
    found: set[Node] = set()
    queue = [n for node in graph.graph.nodes if node.op == "output" for n in node.all_input_nodes]
    while queue:
        node = queue.pop()
        if node in found:
            continue
        found.add(node)
        call: Call | None = node.meta.get(CALL)
        values = [n for n in node.all_input_nodes if n in layouts(graph) and n.op != "placeholder"]
        if call is None or call.kind in _PASSING or call.op == "identity" or (len(values) == 1 and call.kind == "merge") or (call.op in ("add", "sub", "mean") and len(shape_of(node)) == 2 and all(map(_scores, values))):
            queue += values
    return found


_PASSING = ("reshape", "activation", "dropout", "norm", "upsample", "elementwise")


def _scores(node: Node) -> bool:
    """Whether a value comes straight from a linear layer."""
    call: Call | None = node.meta.get(CALL)
    return call is not None and call.kind in ("linear", "matmul")


def positions(node: Node, layout: Layout) -> int:
    """Number of spatial positions of a value: the product of its spatial axes."""
    return prod(size for size, axis in zip(shape_of(node), layout) if space((axis,)) and "N" not in axis)
