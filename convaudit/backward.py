"""Whether a model can be trained: writes in place over what autograd keeps, found in the graph and proved by a backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Node

from convaudit.graph import CALL, Call, LayerGraph, mapped, tensors
from convaudit.tracer import _CPU_MACS, META, _as_it_was, _plain_output, _Recorder

_CPU_PARAMETERS = 10**8  # a backward on the CPU makes a gradient of each
_KEEP_RESULT = frozenset("relu sigmoid tanh softmax log_softmax exp sqrt rsqrt reciprocal elu selu celu threshold "
                         "leaky_relu cumprod norm amax amin max min std softmax2d".split())  # fmt: skip
"""Ops whose gradient is computed from their result."""
_KEEP_NOTHING = frozenset({"reshape", "dropout", "upsample", "constant", "embedding"})
_KEEP_NO_OPERAND = _KEEP_RESULT | frozenset("add sub rsub neg cat stack hstack vstack mean sum identity fill zero setitem "
                                            "copy clone round floor ceil sign eq ne lt le gt ge argmax".split())  # fmt: skip
_SPLIT = ("chunk", "split", "unbind", "tensor_split", "split_with_sizes", "hsplit", "vsplit")
_ERRORS = ("modified by an inplace operation", "is being modified inplace", "used in an in-place operation")


def overwritten(graph: LayerGraph) -> list[tuple[Node, Node]]:
    """Pairs (write in place, earlier op that may need what it overwrites): a superset of those that fail."""
    memory: dict[Node, Node] = {}
    kept: dict[Node, Node] = {}
    found: list[tuple[Node, Node]] = []
    for node in graph.graph.nodes:
        call: Call | None = node.meta.get(CALL)
        sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
        memory[node] = node
        if call is None:
            if sources and node.op == "call_function":  # an element of a tuple
                memory[node] = memory[sources[0]]
            continue
        target = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        writes = target is not None and in_place(node, call)
        if writes and target in memory:
            memory[node] = memory[target]
            if memory[node] in kept:
                found.append((node, kept[memory[node]]))
        elif sources and call.alias and call.kind != "dropout":
            memory[node] = memory[sources[0]]
        if call.op in _KEEP_RESULT or call.op in _SPLIT:
            kept[memory[node]] = node
        lone = call.op in ("mul", "div") and len(node.all_input_nodes) < 2
        if call.kind not in _KEEP_NOTHING and call.op not in _KEEP_NO_OPERAND and not lone:
            for source in sources:
                if not (writes and source is target):  # autograd keeps a copy of it
                    kept[memory[source]] = node
    return found


def in_place(node: Node, call: Call) -> bool:
    """Whether an op writes into its first argument."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_module":
        return bool(call.scalars.get("inplace"))
    named = (name.endswith("_") and not name.endswith("__")) or name == "setitem"
    return (
        named or bool(node.kwargs.get("inplace")) or name in ("iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior")
    )


def backward_error(graph: LayerGraph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Autograd's complaint about a write in place when the model is trained; None where it makes none.

    Runs on meta, and where it fails there, or cannot run, on stand-in values on the CPU if the model is small enough.
    """
    macs, parameters = (graph.totals.macs or 0, graph.totals.parameters) if graph.totals else (0, 0)
    small = macs <= _CPU_MACS and parameters <= _CPU_PARAMETERS
    told, ran = _attempt(graph.model, args, kwargs, on_meta=True)
    if (ran and told is None) or not small:
        return told
    again, ran = _attempt(graph.model, args, kwargs, on_meta=False)
    return again if ran else told


def _attempt(model: nn.Module, args: Any, kwargs: Any, *, on_meta: bool) -> tuple[str | None, bool]:
    """(autograd's complaint, whether the run came so far as to tell)."""
    for batch in (2, None):  # batch norm wants two values
        try:
            _run(model, args, kwargs, batch, on_meta)
        except Exception as error:  # noqa: BLE001 - the user's forward may raise anything
            if any(part in str(error) for part in _ERRORS):
                return str(error).partition(" Hint:")[0].strip().splitlines()[0], True
        else:
            return None, True
    return None, False


def _run(model: nn.Module, args: Any, kwargs: Any, batch: int | None, on_meta: bool) -> None:
    def place(t: torch.Tensor) -> torch.Tensor:
        shape = (batch, *t.shape[1:]) if batch and t.dim() > 1 else tuple(t.shape)
        make = torch.empty if on_meta else torch.zeros
        return make(shape, dtype=t.dtype, device=META if on_meta else "cpu")

    with _as_it_was(model), torch.enable_grad(), torch.device("meta" if on_meta else "cpu"):
        recorder = _Recorder(model, on_meta=on_meta, formulas=False, training=True)
        recorder._stand_in()
        output = model(*mapped(place)(args), **mapped(place)(kwargs))
        losses = [
            t.abs().sum() if t.is_complex() else t.sum() for t in tensors(_plain_output(output)) if t.requires_grad
        ]
        trained = [p for p in model.parameters() if p.requires_grad]
        if losses and trained:
            torch.autograd.grad(losses, trained, allow_unused=True)
