"""What a rule sees: the graph, its options, shared analyses, measured savings, and the one maker of findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from convaudit import topology
from convaudit.accounting import location_of
from convaudit.backbone import BackboneConv, backbone, bottlenecks
from convaudit.errors import TargetError
from convaudit.fc_layers import FCLayer, fc_layers
from convaudit.graph import CALL, VAL, Call, LayerGraph, mapped, shape_of, tensors
from convaudit.layout import Layout, framed, layouts, space
from convaudit.paths import target_key
from convaudit.receptive_field import ReceptiveField, receptive_fields
from convaudit.result import Alternative, Finding, Saving
from convaudit.rewrite import Rewrite, RewriteFailed
from convaudit.rule import Options, Rule


@dataclass(frozen=True)
class Retrace:
    """The model's own forward at another input: its output shapes, or where and how it failed."""

    input_shapes: list[list[int]]
    output_shapes: list[tuple[int, ...]]
    error: str | None
    failed_at: Node | None = None
    """The node of the original graph at which it failed, where that can be told."""


class Context:
    """One rule's view of one audit; analyses are shared between rules through ``graph.cache``."""

    def __init__(
        self, graph: LayerGraph, rule: Rule, options: Options, settings: Any, target: str, example: Any
    ) -> None:
        self.graph, self.rule, self.options, self.settings, self.target = graph, rule, options, settings, target
        self._args, self._kwargs = example

    # -- shared analyses -------------------------------------------------------------------------------------------

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """``compute()`` the first time any rule asks for ``name`` on this graph."""
        if name not in self.graph.cache:
            self.graph.cache[name] = compute()
        return self.graph.cache[name]

    @property
    def outputs(self) -> set[Node]:
        """Nodes whose value leaves the model, through reshapes, activations and dropout as well."""
        return topology.outputs(self.graph)

    @property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors that leave the model."""
        return _output_shapes(self.graph)

    @property
    def is_classifier(self) -> bool:
        """All outputs are vectors, one for each image: not the rows of a map."""
        out = next(n for n in self.graph.graph.nodes if n.op == "output")
        rows = any(space(self.layouts.get(node, ())[:1]) for node in out.all_input_nodes)
        return bool(self.output_shapes) and not rows and all(len(shape) <= 2 for shape in self.output_shapes)

    @property
    def layouts(self) -> dict[Node, Layout]:
        """Which axis of each value is batch, channels or space (:mod:`convaudit.layout`)."""
        return layouts(self.graph)

    @property
    def gates(self) -> set[Node]:
        """Nodes of side branches that rejoin a map by multiplication."""
        return topology.gates(self.graph)

    @property
    def backbone(self) -> list[BackboneConv]:
        """Convolutions on the backbone path (:mod:`convaudit.backbone`), in execution order."""
        return backbone(self.graph)

    @property
    def bottlenecks(self) -> list[Node]:
        """Nodes that every path from the input to the output passes."""
        return bottlenecks(self.graph)

    def bypassed(self, source: Node, user: Node) -> bool:
        """Whether ``source`` has another reader whose path meets that of ``user`` again before the output."""
        return topology.rejoins(self.graph, source, user)

    @property
    def receptive_fields(self) -> dict[Node, ReceptiveField]:
        """Receptive field of each node's value (:mod:`convaudit.receptive_field`)."""
        return receptive_fields(self.graph)

    @property
    def attends(self) -> bool:
        """Whether values are mixed over positions by attention or recurrence."""
        return self.has_attention or any(call.kind == "recurrent" for _, call in self.graph.calls)

    @property
    def has_attention(self) -> bool:
        """Whether the forward calls attention, or multiplies two of its own values as matrices."""
        return self.once("attention", lambda: any(map(_is_attention, (c for _, c in self.graph.calls))))  # type: ignore[no-any-return]

    @property
    def image_size(self) -> tuple[int, ...]:
        """Spatial size of the first input map, () where no input is one."""
        node = self.image
        return tuple(shape_of(node)[i] for i in self.image_axes) if node is not None else ()

    @property
    def image(self) -> Node | None:
        """The first input that is a map."""
        maps = (n for n in self.graph.graph.nodes if n.op == "placeholder" and len(self.layouts.get(n, ())) >= 3)
        return next(maps, None)

    @property
    def image_axes(self) -> tuple[int, ...]:
        """Spatial axes of :attr:`image`, those of one position among them."""
        if self.image is None:
            return ()
        layout = self.layouts[self.image]
        if len(layout) >= 4 and layout[-1] == {"C"}:
            return tuple(range(1, len(layout) - 1))
        return tuple(range(3 if framed(layout) else 2, len(layout)))

    def positions(self, node: Node) -> int:
        """Number of spatial positions of a node's value."""
        return topology.positions(node, self.layouts.get(node, ()))

    def reaches_output(self, node: Node) -> bool:
        """Whether the value has part in what leaves the model."""
        return self.leads_to(node, next(n for n in self.graph.graph.nodes if n.op == "output"))

    def leads_to(self, node: Node, later: Node) -> bool:
        """Whether ``later`` is ``node`` or reads, through others, what it gives."""
        return node is later or bool(topology.ancestors(self.graph)[later] >> topology.order(self.graph)[node] & 1)

    @property
    def conv_calls(self) -> list[tuple[Node, Call]]:
        """Convolutions in execution order, one entry a call."""
        return [(n, c) for n, c in self.graph.calls if c.conv is not None]

    @property
    def fc_layers(self) -> list[FCLayer]:
        """FC layers (:mod:`convaudit.fc_layers`), one entry a call."""
        return fc_layers(self.graph)

    # -- proofs ----------------------------------------------------------------------------------------------------

    def prove(self, key: str, rewrite: Callable[[Rewrite], None]) -> Saving | None:
        """The whole model's figures before and after ``rewrite``, retraced; None where it does not trace.

        ``key`` names the rewrite: the same key on the same graph is measured once.
        """

        def measure() -> Saving | None:
            try:
                attempt = Rewrite(self.graph)
                rewrite(attempt)
                return attempt.measure()
            except RewriteFailed:
                return None

        return self.once(f"prove:{key}", measure)  # type: ignore[no-any-return]

    def retrace(self, spatial: tuple[int, ...]) -> Retrace:
        """Run the model's own forward on meta with ``spatial`` on the image axes of its inputs of the image's rank."""
        return self.once(f"retrace:{spatial}", lambda: self._retrace(spatial))  # type: ignore[no-any-return]

    def _retrace(self, spatial: tuple[int, ...]) -> Retrace:
        from convaudit.tracer import record

        rank = len(shape_of(self.image)) if self.image is not None else 0

        def resize(t: torch.Tensor) -> torch.Tensor:
            if t.dim() != rank:
                return t
            sizes = dict(zip(self.image_axes, spatial, strict=True))
            shape = [sizes.get(axis, size) for axis, size in enumerate(t.shape)]
            return torch.empty(shape, dtype=t.dtype, device="meta")

        args, kwargs = mapped(resize)(self._args), mapped(resize)(self._kwargs)
        shapes = [list(t.shape) for t in tensors((args, kwargs))]
        try:
            again = record(self.graph.model, args, kwargs, costs=False)
        except TargetError as error:
            nodes = list(self.graph.graph.nodes)[error.recorded or len(self.graph.graph.nodes) :]
            return Retrace(shapes, [], str(error), next((n for n in nodes if CALL in n.meta), None))
        if again.problem:
            return Retrace(shapes, [], again.problem)
        return Retrace(shapes, _output_shapes(again), None)

    def trained(self) -> LayerGraph | None:
        """The model's forward recorded in train mode, two samples at once; None where it does not run so."""
        return self.once("trained", self._trained)  # type: ignore[no-any-return]

    def _trained(self) -> LayerGraph | None:
        from convaudit.tracer import record

        def pair(t: torch.Tensor) -> torch.Tensor:
            return torch.empty((2, *t.shape[1:]), dtype=t.dtype, device="meta") if t.dim() > 1 else t

        try:
            return record(self.graph.model, *mapped(pair)((self._args, self._kwargs)), costs=False, training=True)
        except TargetError:
            return None

    def backward_error(self) -> str | None:
        """Autograd's complaint about a write in place when the model is trained (:mod:`convaudit.backward`)."""
        from convaudit.backward import backward_error

        return self.once("backward_error", lambda: backward_error(self.graph, self._args, self._kwargs))  # type: ignore[no-any-return]

    # -- findings --------------------------------------------------------------------------------------------------

    def finding(
        self,
        message: str,
        layers: list[str],
        *,
        severity: Any = None,
        saving: Saving | None = None,
        alternatives: list[Alternative] | None = None,
        evidence: dict[str, Any] | None = None,
        suggestion: str = "",
        changes_state_dict: bool | None = None,
    ) -> Finding:
        """A finding of this rule; location and fingerprint come from its first layer (none: the whole model)."""
        first = layers[0] if layers else ""
        return Finding(
            rule=self.rule.code,
            name=self.rule.name,
            severity=severity or self.rule.severity,
            message=message,
            layers=layers,
            location=location_of(self.graph, first),
            saving=saving,
            alternatives=alternatives or [],
            evidence=evidence or {},
            changes_state_dict=self.rule.changes_state_dict if changes_state_dict is None else changes_state_dict,
            suggestion=suggestion,
            fingerprint=f"{self.rule.code}:{target_key(self.target)}:{first or '*'}",
        )


def _is_attention(call: Call) -> bool:
    return call.kind == "attention" or (call.kind == "matmul" and len(call.inputs) > 1)


def _output_shapes(graph: LayerGraph) -> list[tuple[int, ...]]:
    out = next(n for n in graph.graph.nodes if n.op == "output")
    return [tuple(t.shape) for n in out.all_input_nodes for t in tensors(n.meta.get(VAL))]
