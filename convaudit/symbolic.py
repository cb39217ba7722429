"""The symbolic trace: layers and parameters of a model that no example input is known for, without a single shape."""

from __future__ import annotations

from torch import nn
from torch.fx import Tracer

from convaudit.accounting import account
from convaudit.describe import LEAVES, function_name
from convaudit.errors import TargetError
from convaudit.graph import CALL, Call, LayerGraph
from convaudit.inputs import wanted
from convaudit.ops import KIND
from convaudit.result import Location


class _LeafTracer(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in LEAVES or super().is_leaf_module(m, module_qualified_name)


def trace_symbolically(model: nn.Module, locations: dict[str, Location] | None = None, why: str = "") -> LayerGraph:
    """``torch.fx``'s own symbolic trace as a partial :class:`LayerGraph`: MACs, FLOPs and activations are not known.

    ``why`` there is no input goes into its ``problem``.

    Raises :class:`TargetError` (step "input") where the forward cannot be traced without an input.
    """
    try:
        graph = _LeafTracer().trace(model)
    except Exception as error:
        said = f"the model cannot be traced without an input ({type(error).__name__}); {wanted(model)}"
        raise TargetError("input", said, kind="InputError") from error
    modules = dict(model.named_modules())
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            module, layer = modules[str(node.target)], str(node.target)
            op, kind = LEAVES.get(type(module), (type(module).__name__.lower(), "module"))
            names = tuple(f"{layer}.{name}" for name, _ in module.named_parameters())
            call = Call(op, kind, layer, type(module).__name__, 0, layer, [], [], None, names)
        elif node.op in ("call_function", "call_method"):
            op = function_name(node.target) if callable(node.target) else str(node.target).rstrip("_")
            call = Call(op, KIND.get(op, "other"), op, op, 0, "", [], [], None)
        else:
            continue
        call.index = calls.get(call.layer, 0)
        calls[call.layer] = call.index + 1
        node.meta[CALL] = call
    result = LayerGraph(
        model=model, graph=graph, tracer="symbolic", inputs=[], status="partial", parameters=dict(model.named_parameters()),
        problem=f"no shapes, MACs, FLOPs or activations: {why or f'no example input is known; {wanted(model)}'}",
        locations=locations or {}, root={**modules, **dict(model.named_parameters()), **dict(model.named_buffers())},
    )  # fmt: skip
    account(result)
    return result
