"""The layer graph: a torch.fx graph whose every node says what it did, with which shapes and parameters.

``node.meta`` keys: ``VAL`` holds the node's value on meta (a tensor or a nest of them, as torch.fx does), ``CALL``
the :class:`Call` of an operator or module node. Placeholders and get_attr nodes have ``VAL`` alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from convaudit.result import InputInfo, LayerRow, Location, Totals

if TYPE_CHECKING:
    import torch
    from torch.fx import Graph, GraphModule, Node
    from torch.nn import Module, Parameter

T = TypeVar("T")
VAL = "val"
CALL = "convaudit.call"

KINDS = ("conv", "linear", "norm", "activation", "pool", "dropout", "attention", "recurrent", "embedding", "matmul",
         "reshape", "upsample", "reduce", "merge", "elementwise", "constant", "parameter", "module", "other")  # fmt: skip
"""Layer kinds; :data:`convaudit.ops.KIND` says which op is of which."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ConvConfig:
    """Geometry of a convolution, one entry a spatial axis; ``padding`` is the effective (low, high) per axis."""

    in_channels: int
    out_channels: int
    kernel: Shape
    stride: Shape
    padding: tuple[tuple[int, int], ...]
    dilation: Shape
    groups: int
    transposed: bool
    bias: bool
    padding_mode: str = "zeros"

    @property
    def depthwise(self) -> bool:
        """One filter group per input channel."""
        return self.groups == self.in_channels and self.groups > 1

    def extent(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The spatial sizes of a map, with a batch axis or without."""
        return tuple(shape[-len(self.kernel) :])

    @property
    def patchify(self) -> bool:
        """Kernel equals stride, no padding: cuts the map into patches."""
        return self.kernel == self.stride and not any(low or high for low, high in self.padding)


@dataclass
class Call:
    """What one node did. Shapes are of the tensors among its arguments, in order, parameters left out."""

    op: str
    """Lower-case functional name: ``conv2d``, ``linear``, ``batch_norm``, ``relu``, ``flatten``, ``add``, …"""
    kind: str
    layer: str
    """Qualified name of the layer: the module that holds its parameters, else owner + functional name."""
    label: str
    """What to show as the layer's type: the class name of a module, else ``op``."""
    index: int
    """0 for the first call of this layer, 1 for the next, …"""
    owner: str
    """Qualified name of the innermost module whose forward made the call ("" is the model)."""
    inputs: list[Shape]
    outputs: list[Shape]
    dtype: str | None
    parameters: tuple[str, ...] = ()
    """Qualified names of the parameters it reads, shared ones under their first name."""
    conv: ConvConfig | None = None
    linear: tuple[int, int] | None = None
    """(in_features, out_features) of a linear layer."""
    location: Location | None = None
    macs: int | None = None
    flops: int | None = None
    activation_bytes: int | None = None
    alias: bool = False
    """Its output shares the storage of its first input: views, in-place ops, dropout in eval."""
    scalars: dict[str, Any] = field(default_factory=dict)
    """Plain arguments worth keeping, by name: eps, p, output_size, dim, …"""
    weights: list[Shape] = field(default_factory=list)
    """Shapes of the parameters it reads, or of tensors made of parameters alone (standardised weights)."""
    biased: bool = False
    """A conv or linear layer adds a bias."""
    from_weights: bool = False
    """It reads parameters and nothing of the input: weight standardisation, a bias table."""
    operands: list[Shape] = field(default_factory=list)
    """Shapes of all tensors among its arguments, in order, parameters and buffers included."""


@dataclass
class LayerGraph:
    """One recorded forward pass of ``model``. ``status`` is "ok" or "partial" (totals are then lower bounds)."""

    model: Module
    graph: Graph
    tracer: str
    inputs: list[InputInfo]
    status: str = "ok"
    notes: list[str] = field(default_factory=list)
    problem: str | None = None
    """Why the trace is partial."""
    parameters: dict[str, Parameter] = field(default_factory=dict)
    """Every parameter once, under its first qualified name; all may be on meta."""
    locations: dict[str, Location] = field(default_factory=dict)
    """Constructing line by module name ("" is the model's class or factory)."""
    layers: list[LayerRow] = field(default_factory=list)
    totals: Totals | None = None
    cache: dict[str, Any] = field(default_factory=dict)
    """Analyses computed once, by name."""
    root: dict[str, Any] = field(default_factory=dict)
    """Modules, parameters and constants the graph's nodes name, for ``graph_module``."""

    @property
    def graph_module(self) -> GraphModule:
        """A GraphModule that shares the model's parameters and gives the model's own output."""
        from convaudit.tracer import build_graph_module

        if "graph_module" not in self.cache:
            self.cache["graph_module"] = build_graph_module(self)
        module: GraphModule = self.cache["graph_module"]
        return module

    @property
    def calls(self) -> list[tuple[Node, Call]]:
        """Operator and module nodes in execution order."""
        if "calls" not in self.cache:
            self.cache["calls"] = [(n, n.meta[CALL]) for n in self.graph.nodes if CALL in n.meta]
        result: list[tuple[Node, Call]] = self.cache["calls"]
        return result


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in a nest of tuples, lists and dicts, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in tensors(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors(item)]
    return []


def once(analysis: Callable[[LayerGraph], T]) -> Callable[[LayerGraph], T]:
    """An analysis of a graph that is computed when first asked for, and kept in ``graph.cache``."""
    key = f"{analysis.__module__}.{analysis.__name__}"

    @functools.wraps(analysis)
    def kept(graph: LayerGraph) -> T:
        if key not in graph.cache:
            graph.cache[key] = analysis(graph)
        found: T = graph.cache[key]
        return found

    return kept


def mapped(change: Callable[[torch.Tensor], Any]) -> Callable[[Any], Any]:
    """A function that applies ``change`` to each tensor of a nest of tuples, lists and dicts."""

    import torch

    def walk(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return change(value)
        if isinstance(value, tuple):
            items = [walk(v) for v in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        if isinstance(value, list):
            return [walk(v) for v in value]
        if isinstance(value, dict):
            return {k: walk(v) for k, v in value.items()}
        return value

    return walk


def main_input(node: Node) -> Node | None:
    """The node's first input that is a value of the forward pass, not a parameter."""
    return next((n for n in node.all_input_nodes if n.op != "get_attr"), None)


def shape_of(node: Node) -> Shape:
    """Shape of the node's value (of its first tensor); () where it has none."""
    found = tensors(node.meta.get(VAL))
    return tuple(found[0].shape) if found else ()
