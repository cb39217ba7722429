"""What a rule sees: the graph, its options, shared analyses, measured savings, and the one maker of findings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from convaudit.accounting import location_of
from convaudit.errors import ConvauditError
from convaudit.graph import CALL, VAL, Call, LayerGraph, main_input, tensors
from convaudit.result import Alternative, Finding, Saving
from convaudit.rewrite import Rewrite, RewriteFailed
from convaudit.rule import Options, Rule

TRANSPARENT = ("activation", "dropout", "norm", "elementwise")
"""Kinds that leave positions and features where they are."""


@dataclass(frozen=True)
class FCLayer:
    """A Linear on one vector per image. ``map`` is the node of the flattened map it reads, if any: C × spatial."""

    node: Node
    call: Call
    weights: int
    map: Node | None
    flatten: Node | None
    channels: int
    spatial: tuple[int, ...]
    raw_image: bool
    after_fc: bool
    is_head: bool

    @property
    def positions(self) -> int:
        """H·W of the map it reads; 1 where it reads a vector."""
        return math.prod(self.spatial)


@dataclass(frozen=True)
class Retrace:
    """The model's own forward at another input: its output shapes, or where and how it failed."""

    input_shapes: list[list[int]]
    output_shapes: list[tuple[int, ...]]
    error: str | None


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
        """Nodes whose value leaves the model, through reshapes as well."""
        return self.once("outputs", self._outputs)  # type: ignore[no-any-return]

    def _outputs(self) -> set[Node]:
        found: set[Node] = set()
        queue = [n for node in self.graph.graph.nodes if node.op == "output" for n in node.all_input_nodes]
        while queue:
            node = queue.pop()
            if node in found:
                continue
            found.add(node)
            call = node.meta.get(CALL)
            if call is None or call.kind in ("reshape", "activation", "dropout"):
                queue += node.all_input_nodes
        return found

    @property
    def is_classifier(self) -> bool:
        """All outputs are vectors."""
        shapes = [
            t.shape
            for n in self.graph.graph.nodes
            if n.op == "output"
            for i in n.all_input_nodes
            for t in tensors(i.meta.get(VAL))
        ]
        return bool(shapes) and all(len(s) <= 2 for s in shapes)

    @property
    def conv_calls(self) -> list[tuple[Node, Call]]:
        """Convolutions in execution order, one entry a call."""
        return [(n, c) for n, c in self.graph.calls if c.conv is not None]

    @property
    def fc_layers(self) -> list[FCLayer]:
        """FC layers as RULES defines them: no gates, no projections of tokens, no generator's latent projection."""
        return self.once("fc_layers", self._fc_layers)  # type: ignore[no-any-return]

    def _fc_layers(self) -> list[FCLayer]:
        layers = []
        for node, call in self.graph.calls:
            if call.linear is None or not call.inputs or len(call.inputs[0]) != 2:
                continue
            if self._feeds_map(node):
                continue
            flatten = self._flatten_before(node)
            source = flatten.all_input_nodes[0] if flatten is not None else None
            shape = tensors(source.meta[VAL])[0].shape if source is not None else ()
            layers.append(
                FCLayer(
                    node, call, call.linear[0] * call.linear[1], source, flatten,
                    channels=int(shape[1]) if shape else call.linear[0], spatial=tuple(shape[2:]) if shape else (),
                    raw_image=source is not None and self._untouched(source),
                    after_fc=self._reads_fc(node), is_head=node in self.outputs,
                )
            )  # fmt: skip
        return layers

    def _flatten_before(self, node: Node) -> Node | None:
        """The reshape that turned a map [N, C, …] into the vector this layer reads, past transparent layers."""
        at = main_input(node)
        while at is not None:
            value = tensors(at.meta.get(VAL))
            source = main_input(at)
            if not value or value[0].dim() != 2 or source is None:
                return None
            before = tensors(source.meta.get(VAL))
            call: Call | None = at.meta.get(CALL)
            if before and before[0].dim() >= 3:
                flat = (
                    call is not None and call.kind == "reshape" and value[0].shape[1] == math.prod(before[0].shape[1:])
                )
                return at if flat else None
            if call is None or call.kind not in (*TRANSPARENT, "reshape"):
                return None
            at = source
        return None

    def _untouched(self, node: Node) -> bool:
        """Whether a value is the input image itself, at most normalised."""
        at: Node | None = node
        while at is not None:
            if at.op == "placeholder":
                value = tensors(at.meta.get(VAL))
                return bool(value) and value[0].is_floating_point()
            call: Call | None = at.meta.get(CALL)
            if call is not None and call.op in ("mean", "sum", "amax", "max", "min"):
                return False
            if call is not None and call.kind not in (*TRANSPARENT, "reshape"):
                return False
            at = main_input(at)
        return False

    def _reads_fc(self, node: Node) -> bool:
        at = main_input(node)
        while at is not None:
            call: Call | None = at.meta.get(CALL)
            if call is not None and call.linear is not None and call.inputs and len(call.inputs[0]) == 2:
                return True
            if call is not None and call.kind not in (*TRANSPARENT, "reshape"):
                return False
            at = main_input(at)
        return False

    def _feeds_map(self, node: Node) -> bool:
        """Whether the layer's value comes back as a map: reshaped to C×H×W, or multiplied onto one (a gate)."""
        queue, seen = [node], {node}
        while queue:
            at = queue.pop()
            for user in at.users:
                call: Call | None = user.meta.get(CALL)
                if user in seen or user.op == "output":
                    continue
                seen.add(user)
                value = tensors(user.meta.get(VAL))
                if call is None or call.kind in (*TRANSPARENT, "reshape") or (call.linear is not None):
                    if value and value[0].dim() >= 3 and any(n > 1 for n in value[0].shape[2:]):
                        return True
                    queue.append(user)
                elif call.kind == "merge" and value and value[0].dim() >= 3:
                    return True
        return False

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
        """Run the model's own forward on meta with its image inputs at ``spatial`` size."""
        return self.once(f"retrace:{spatial}", lambda: self._retrace(spatial))  # type: ignore[no-any-return]

    def _retrace(self, spatial: tuple[int, ...]) -> Retrace:
        from convaudit.tracer import _mapper, record

        def resize(t: torch.Tensor) -> torch.Tensor:
            fits = t.dim() == len(spatial) + 2
            return torch.empty((*t.shape[:2], *spatial), dtype=t.dtype, device="meta") if fits else t

        args, kwargs = _mapper(resize)(self._args), _mapper(resize)(self._kwargs)
        shapes = [list(t.shape) for t in tensors((args, kwargs))]
        try:
            again = record(self.graph.model, args, kwargs)
        except ConvauditError as error:
            return Retrace(shapes, [], str(error))
        if again.problem:
            return Retrace(shapes, [], again.problem)
        out = next(n for n in again.graph.nodes if n.op == "output")
        return Retrace(shapes, [tuple(t.shape) for n in out.all_input_nodes for t in tensors(n.meta[VAL])], None)

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
            fingerprint=f"{self.rule.code}:{self.target}:{first or '*'}",
        )
