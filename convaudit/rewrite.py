"""Rewrites a copy of the traced graph as a rule advises, evaluates what changed, and measures the difference."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from convaudit import accounting
from convaudit.fc_layers import Flatten
from convaudit.graph import CALL, VAL, Call, LayerGraph, tensors
from convaudit.layout import spatial_axes
from convaudit.result import Saving


class RewriteFailed(Exception):
    """The rewritten graph does not run: there is no figure to give."""


class Rewrite:
    """A copy of the graph to edit. Nodes are named by those of the original graph."""

    def __init__(self, graph: LayerGraph) -> None:
        self.source = graph
        self.root = dict(graph.root)
        self.graph = Graph()
        self._copy: dict[Node, Node] = {}
        output = self.graph.graph_copy(graph.graph, self._copy)
        self.graph.output(output)
        for old, new in self._copy.items():
            new.meta = dict(old.meta)
        self._changed: set[Node] = set()
        self._made = 0
        self._refitted: dict[tuple[str, int], str] = {}

    def replace(self, node: Node, modules: list[nn.Module]) -> None:
        """Put ``modules`` in a row in place of the layer ``node`` calls (an empty list removes it)."""
        at = self._copy[node]
        value = next(n for n in at.all_input_nodes if n.op != "get_attr")
        with self.graph.inserting_before(at):
            for module in modules:
                value = self._call(module, value)
        at.replace_all_uses_with(value)
        if not modules:
            self._changed.update(value.users)
        self.graph.erase_node(at)

    def drop_bias(self, node: Node) -> None:
        """Leave out the bias of the conv or linear layer ``node`` calls."""
        at = self._copy[node]
        if at.op == "call_module":
            module = copy.copy(self.root[str(at.target)])
            module.__dict__["_parameters"] = {**module._parameters, "bias": None}
            self.root[f"{at.target}:no_bias"] = module
            at.target = f"{at.target}:no_bias"
            self._changed.add(at)
            return
        bias = at.args[2] if len(at.args) > 2 else at.kwargs.get("bias")
        at.args = (*at.args[:2], None, *at.args[3:]) if len(at.args) > 2 else at.args
        at.kwargs = {**at.kwargs, "bias": None} if "bias" in at.kwargs else at.kwargs
        if isinstance(bias, Node) and not bias.users:
            self.graph.erase_node(bias)

    def pool(self, flatten: Flatten, size: int) -> None:
        """Pool the flattened map to ``size`` per spatial axis (adaptive average), and flatten that, channels first."""
        at, value = self._copy[flatten.node], self._copy[flatten.map]
        axes = spatial_axes(flatten.layout)
        order = [i for i in range(len(flatten.layout)) if i not in axes]
        pools: tuple[type[nn.Module], ...] = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
        if len(order) != 2 or len(axes) > 3:
            raise RewriteFailed(f"{flatten.map.name}: not one channel axis and up to three spatial ones")
        with self.graph.inserting_before(at):
            if [*order, *axes] != list(range(len(flatten.layout))):
                value = self._function(torch.permute, value, [*order, *axes])
            value = self._call(pools[len(axes) - 1](size), value)
            value = self._call(nn.Flatten(1), value)
        at.replace_all_uses_with(value)
        self.graph.erase_node(at)

    def _function(self, function: Any, value: Node, *args: Any) -> Node:
        node = self.graph.call_function(function, (value, *args))
        self._changed.add(node)
        return node

    def _call(self, module: nn.Module, value: Node) -> Node:
        name = f"_rewritten_{self._made}"
        self._made += 1
        self.root[name] = module
        node = self.graph.call_module(name, (value,))
        self._changed.add(node)
        return node

    def measure(self) -> Saving:
        """Evaluate the nodes whose inputs changed and compare parameters, MACs and peak activation bytes.

        Raises :class:`RewriteFailed` where a node does not run any more.
        """
        totals = self.source.totals
        assert totals is not None
        before_macs = sum(c.macs or 0 for _, c in self.source.calls)
        before = accounting.parameters_of(self.source.graph, self.source.root)
        for node in self.graph.nodes:
            if node.op in ("placeholder", "get_attr", "output"):
                continue
            if node in self._changed or any(n in self._changed for n in node.all_input_nodes):
                self._evaluate(node)
        macs = sum(n.meta[CALL].macs or 0 for n in self.graph.nodes if CALL in n.meta)
        parameters = accounting.parameters_of(self.graph, self.root)
        return Saving(
            parameters=(totals.parameters, totals.parameters - before + parameters),
            macs=(before_macs, macs),
            peak_activation_bytes=(
                totals.peak_activation_bytes or 0,
                accounting.peak_activation_bytes(self.graph),
            ),
        )

    def _evaluate(self, node: Node) -> None:
        from convaudit.describe import LEAVES
        from convaudit.tracer import evaluate

        args = map_arg(node.args, lambda n: n.meta[VAL])
        kwargs = map_arg(node.kwargs, lambda n: n.meta[VAL])
        args = self._refit(node, args)
        try:
            value = evaluate(node, self.root, args, kwargs)
        except Exception as error:
            raise RewriteFailed(f"{node.name}: {error}") from error
        old = tensors(node.meta.get(VAL))
        new = tensors(value)
        call: Call | None = node.meta.get(CALL)
        if CALL not in node.meta or [t.shape for t in old] != [t.shape for t in new]:
            self._changed.add(node)
        node.meta[VAL] = value
        if node.op == "call_module":
            module = self.root[str(node.target)]
            if type(module) not in LEAVES:
                raise RewriteFailed(f"{node.name}: {type(module).__name__} is opaque")
            op, kind = LEAVES[type(module)]
            weights = [tuple(p.shape) for p in module.parameters()]
            inputs = [tuple(t.shape) for t in tensors(args)]
            call = Call(
                op, kind, str(node.target), type(module).__name__, 0, "", inputs, [], None,
                alias=op in ("flatten", "identity") or kind == "dropout" or bool(getattr(module, "inplace", False)),
                weights=weights, operands=inputs + weights,
            )  # fmt: skip
        elif call is not None:
            inputs = [tuple(t.shape) for t in tensors((args, kwargs))]
            call = dataclasses.replace(call, inputs=inputs, operands=inputs)
        if call is not None:
            call.outputs = [tuple(t.shape) for t in new]
            accounting.cost_call(call, node)
            node.meta[CALL] = call

    def _refit(self, node: Node, args: Any) -> Any:
        """Give a Linear or batch norm behind a changed width the width it now reads; the node's values then."""
        if not args or not isinstance(args[0], torch.Tensor):
            return args
        if node.op != "call_module":
            return self._refit_function(node, args)
        module, value = self.root[str(node.target)], args[0]
        width = value.shape[-1] if type(module) is nn.Linear or value.dim() < 2 else value.shape[1]
        key = (str(node.target), width)  # a layer called twice stays one layer
        if key not in self._refitted:
            made: nn.Module
            if type(module) is nn.Linear and module.in_features != width:
                made = nn.Linear(width, module.out_features, module.bias is not None, device="meta")
            elif type(module) is nn.BatchNorm1d and value.dim() == 2 and module.num_features != width:
                made = nn.BatchNorm1d(width, affine=module.affine, device="meta").eval()
            else:
                return args
            self._refitted[key] = f"_rewritten_{self._made}"
            self._made += 1
            self.root[self._refitted[key]] = made
        node.target = self._refitted[key]
        self._changed.add(node)
        return args

    def _refit_function(self, node: Node, args: Any) -> Any:
        """As :meth:`_refit`, for a linear function whose weight the model holds as a parameter of its own."""
        weight = node.args[1] if len(node.args) > 1 else None
        if node.target is not nn.functional.linear or not isinstance(weight, Node) or weight.op != "get_attr":
            return args
        width = args[0].shape[-1]
        if args[1].shape[1] == width:
            return args
        key = (str(weight.target), width)
        if key not in self._refitted:
            self._refitted[key] = f"_rewritten_{self._made}"
            self._made += 1
            self.root[self._refitted[key]] = nn.Parameter(torch.empty(args[1].shape[0], width, device="meta"))
        weight.target = self._refitted[key]
        weight.meta[VAL] = self.root[self._refitted[key]]
        self._changed.add(node)
        return (args[0], weight.meta[VAL], *args[2:])
