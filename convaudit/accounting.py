"""Costs of a layer graph: rows that sum to totals, and the peak of live activations."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from torch.fx import Graph, Node

from convaudit import flops, receptive_field
from convaudit.fc_layers import fc_layers
from convaudit.graph import CALL, VAL, Call, LayerGraph, once, tensors
from convaudit.result import LayerRow, Location, TensorRow, Totals

_WEIGHTED = ("conv", "linear", "norm", "embedding", "recurrent", "attention", "activation", "module", "matmul")


def cost_call(call: Call, node: Node) -> None:
    """Fill in MACs, FLOPs and activation bytes of one call."""
    call.macs, call.flops = flops.cost(call)
    call.activation_bytes = 0 if call.alias else sum(t.numel() * t.element_size() for t in tensors(node.meta[VAL]))


def account(graph: LayerGraph) -> None:
    """Cost every call of ``graph``, fill ``layers`` and ``totals``."""
    shaped = graph.tracer != "symbolic"
    for node, call in graph.calls if shaped else ():
        cost_call(call, node)
    fields = receptive_field.receptive_fields(graph)
    holders = _holders(graph)
    rows: list[LayerRow] = []
    seen: set[str] = set()
    row_of: dict[Node, int] = {}
    for node, call in graph.calls:
        names = holders.pop(call.layer, []) if _holds(call) else []
        seen.update(names)
        held = sum(graph.parameters[name].numel() for name in names)
        costs = (
            held
            or call.parameters
            or call.macs
            or call.flops
            or call.activation_bytes
            or (shaped and call.macs is None)
        )
        if node.op != "call_module" and not costs:
            continue
        field = fields.get(node)
        row_of[node] = len(rows)
        rows.append(
            LayerRow(
                name=call.layer, call=call.index, op=call.label, kind=call.kind,
                input_shapes=[list(s) for s in call.inputs] if shaped else None,
                output_shapes=[list(s) for s in call.outputs] if shaped else None,
                parameters=held, macs=call.macs, flops=call.flops, activation_bytes=call.activation_bytes,
                dtype=call.dtype, receptive_field=field.smallest if field else None,
                receptive_field_largest=field.largest if field else None,
                location=call.location if _functional(graph, call) else location_of(graph, call.layer),
            )
        )  # fmt: skip
    for node, sources in _row_sources(graph, row_of).items():
        rows[row_of[node]].inputs_from = sources
    rows += _left_over(graph, seen)
    graph.layers = rows
    graph.totals = totals(graph)


def _row_sources(graph: LayerGraph, row_of: dict[Node, int]) -> dict[Node, list[int | Literal["input"]] | None]:
    """What each node with a row reads of rows and of the input, nodes without one looked through; None where the trace lost it."""
    gives: dict[Node, tuple[int | Literal["input"], ...] | None] = {}
    reads: dict[Node, list[int | Literal["input"]] | None] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            gives[node] = ("input",)
            continue
        if node.op == "get_attr":
            value = graph.root[str(node.target)]
            lost = str(node.target).startswith("_constant_") and value.device.type == "meta"  # an operator was not recorded
            gives[node] = None if lost else ()
            continue
        sources = [gives[source] for source in node.all_input_nodes]
        known = [source for source in sources if source is not None]
        read = list(dict.fromkeys(row for source in known for row in source)) if len(known) == len(sources) else None
        if node in row_of:
            reads[node], gives[node] = read, (row_of[node],)
        else:
            gives[node] = None if read is None else tuple(read)
    return reads


def _holds(call: Call) -> bool:
    return call.kind in _WEIGHTED and not call.from_weights


def _holders(graph: LayerGraph) -> dict[str, list[str]]:
    """Parameters by the weighted layer that reads them first."""
    holders: dict[str, list[str]] = {}
    given: set[str] = set()
    for _, call in graph.calls:
        if _holds(call):
            for name in call.parameters:
                if name not in given and name in graph.parameters:
                    given.add(name)
                    holders.setdefault(call.layer, []).append(name)
    return holders


def _left_over(graph: LayerGraph, seen: set[str]) -> list[LayerRow]:
    """Rows of bare parameters (kind "parameter") and of modules that never ran (``call`` null)."""
    used = {p for _, call in graph.calls for p in call.parameters}
    used |= {str(n.target) for n in graph.graph.nodes if n.op == "get_attr"}
    groups: dict[tuple[str, bool], int] = {}
    for name, parameter in graph.parameters.items():
        if name not in seen:
            key = (name.rpartition(".")[0], name in used)
            groups[key] = groups.get(key, 0) + parameter.numel()
    modules = dict(graph.model.named_modules())
    rows = []
    for (owner, ran), count in groups.items():
        op = "Parameter" if ran else type(modules.get(owner, graph.model)).__name__
        rows.append(
            LayerRow(
                name=owner, call=0 if ran else None, op=op, kind="parameter" if ran else "module", input_shapes=None,
                output_shapes=None, parameters=count, macs=0, flops=0, activation_bytes=0, dtype=None,
                receptive_field=None, receptive_field_largest=None, location=location_of(graph, owner),
            )
        )  # fmt: skip
    return rows


@once
def module_names(graph: LayerGraph) -> set[str]:
    """Qualified names of the model's modules."""
    return {name for name, _ in graph.model.named_modules()}


@once
def call_lines(graph: LayerGraph) -> dict[str, Location]:
    """Line of the first call of each layer that is no module."""
    lines = {call.layer: call.location for _, call in reversed(graph.calls) if _functional(graph, call)}
    return {layer: line for layer, line in lines.items() if layer and line}


def _functional(graph: LayerGraph, call: Call) -> bool:
    """Whether the call is of the forward itself, not of a module that was constructed somewhere."""
    return call.location is not None and (not call.layer or call.layer not in module_names(graph))


def location_of(graph: LayerGraph, layer: str) -> Location | None:
    """The layer's constructing line; of a functional layer the line of its first call; else the nearest module's line."""
    if layer not in graph.locations and layer in call_lines(graph):
        return call_lines(graph)[layer]
    while layer and layer not in graph.locations:
        layer = layer.rpartition(".")[0]
    return graph.locations.get(layer)


def totals(graph: LayerGraph) -> Totals:
    """Sum the layers. Uncounted ops are listed once each, and not part of the sums; without shapes nothing is known."""
    parameters = list(graph.parameters.values())
    by_dtype: dict[str, int] = {}
    for parameter in parameters:
        name = str(parameter.dtype).removeprefix("torch.")
        by_dtype[name] = by_dtype.get(name, 0) + parameter.numel() * parameter.element_size()
    rows, shaped = graph.layers, graph.tracer != "symbolic"
    fc = {layer.call.layer for layer in fc_layers(graph) if not layer.cell}
    return Totals(
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        macs=sum(r.macs or 0 for r in rows) if shaped else None,
        flops=sum(r.flops or 0 for r in rows) if shaped else None,
        activation_bytes=sum(r.activation_bytes or 0 for r in rows) if shaped else None,
        peak_activation_bytes=peak_activation_bytes(graph.graph) if shaped else None,
        parameter_bytes=sum(by_dtype.values()),
        conv_parameters=sum(r.parameters for r in rows if r.kind == "conv"),
        fc_parameters=sum(r.parameters for r in rows if r.kind in ("linear", "matmul") and r.name in fc),
        uncounted_ops=sorted({call.op for _, call in graph.calls if call.macs is None}) if shaped else [],
        bytes_by_dtype=by_dtype,
        state_dict_bytes=state_dict_bytes(graph.model),
    )


def peak_activation_bytes(graph: Graph) -> int:
    """Largest sum of live activation bytes while the graph runs in order, each freed after its last use.

    Inputs of the model count while they live; views and in-place results share their source's storage.
    """
    storage: dict[Node, tuple[Node, ...]] = {}
    size: dict[Node, int] = {}
    last: dict[Node, Node] = {}
    nodes = list(graph.nodes)
    for node in nodes:
        sources = [s for n in node.all_input_nodes for s in storage.get(n, ())]
        for source in sources:
            last[source] = node
        if node.op in ("get_attr", "output"):
            continue
        call: Call | None = node.meta.get(CALL)
        if (call is None and node.op != "placeholder") or (call is not None and call.alias and sources):
            storage[node] = tuple(dict.fromkeys(sources[:1] if call is not None else sources))
        else:
            size[node] = sum(t.numel() * t.element_size() for t in tensors(node.meta.get(VAL)))
            storage[node] = (node,)
            last[node] = node
    freed: dict[Node, list[Node]] = {}
    for source, user in last.items():
        freed.setdefault(user, []).append(source)
    live = peak = 0
    for node in nodes:
        live += size.get(node, 0)
        peak = max(peak, live)
        live -= sum(size[s] for s in freed.get(node, ()))
    return peak


def state_dict_bytes(model: nn.Module) -> int:
    """Bytes of the tensors of a state_dict, shared ones once: what a checkpoint of it holds at least."""
    held = {
        id(t) if t.device.type == "meta" else t.data_ptr(): t.numel() * t.element_size()
        for t in model.state_dict(keep_vars=True).values()
        if isinstance(t, Tensor) and not nn.parameter.is_lazy(t)
    }
    return sum(held.values())


def state_dict_rows(model: nn.Module) -> list[TensorRow]:
    """The tensors of a state_dict as a checkpoint's rows (one storage for tied ones), then non-persistent buffers as "other"."""
    held = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    rows = [(name, t, "parameter" if isinstance(t, nn.Parameter) else "buffer") for name, t in held.items()]
    rows += [(name, t, "other") for name, t in model.named_buffers() if name not in held]
    return [
        TensorRow(name, list(t.shape), str(t.dtype)[6:], t.numel() * t.element_size(), str(id(t)), role)  # type: ignore[arg-type]
        for name, t, role in rows
        if not nn.parameter.is_lazy(t)
    ]


def parameters_of(graph: Graph, root: dict[str, Any]) -> int:
    """Number of distinct parameters that the nodes of ``graph`` name in ``root``."""
    held: dict[int, int] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            value = root[str(node.target)]
            found = value.parameters() if isinstance(value, nn.Module) else [value]
            held.update((id(p), p.numel()) for p in found if isinstance(p, nn.Parameter) and isinstance(p, Tensor))
    return sum(held.values())
