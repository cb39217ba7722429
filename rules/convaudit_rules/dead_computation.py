"""CNV412 dead-computation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from convaudit.graph import CALL
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.graph import Call, LayerGraph
    from convaudit.result import Finding


class DeadComputation(Rule):
    """values are computed and never used

    ## What it does
    Finds calls whose value never reaches an output, in eval mode and in train mode alike, where they hold a weighted
    layer or 1% of the MACs.

    ## Why it matters
    They cost time and memory and change nothing. Often a variable was overwritten or a branch forgotten.

    ## Example
        y = self.conv1(x)
        y = self.conv2(x)

    ## Use instead
        y = self.conv2(self.conv1(x))

    ## Exceptions
    Auxiliary outputs that leave the model in train mode.

    ## References
    Aho, Lam, Sethi, Ullman 2006, Compilers: Principles, Techniques, and Tools, 2nd edition, section 9.1.6 (dead-code
    elimination).
    """

    code = "CNV412"
    name = "dead-computation"
    severity = "info"
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such layers."""
        if not _complete(context.graph):
            return
        dead = _dead(context.graph)
        total = sum(call.macs or 0 for _, call in context.graph.calls)
        if not _counts(dead, total):
            return
        trained = context.trained()
        if trained is None or not _complete(trained):
            return
        unused = {call.layer for call in _dead(trained)}
        dead = [call for call in dead if call.layer in unused]
        if not _counts(dead, total):
            return
        weighted = [call for call in dead if _weighted(call)]
        macs = sum(call.macs or 0 for call in dead)
        layers = list(dict.fromkeys(call.layer for call in weighted or [call for call in dead if call.macs]))
        share = f", {macs / total:.1%} of the MACs" if total and macs else ""
        yield context.finding(
            f"the value of {layers[0]}{f' and {len(layers) - 1} more' if len(layers) > 1 else ''} is computed and never "
            f"used{share}",
            layers,
            evidence={"macs": macs, "share": macs / total if total else 0.0},
            suggestion="use the value, or do not compute it",
            changes_state_dict=bool(weighted),
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """A layer whose value is overwritten; a branch without weights."""
        import torch
        from torch import nn

        class Overwritten(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = self.first(x).relu_()
                y = self.second(x)
                value: torch.Tensor = y.relu()
                return value

        class Product(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(8, 8)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.fc(x)
                value @ value.transpose(1, 2)
                return value

        return [
            Example(Overwritten, ((1, 3, 8, 8),), "a value overwritten"),
            Example(Product, ((1, 16, 8),), "a product nobody reads"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)

        class Auxiliary(Two):
            def forward(self, x: torch.Tensor) -> Any:
                first, second = self.first(x), self.second(x)
                return (first, second) if self.training else first

        class InPlace(Two):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y: torch.Tensor = self.first(x)
                y[:, :4].add_(self.second(x)[:, :4])
                y[:, 4:] = self.second(x)[:, 4:]
                return y

        class Shape(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x.relu()
                return x * 2

        class Small(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(128, 128)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.fc(x)
                value[:, :, :8] @ value[:, :, :8].transpose(1, 2)
                return value

        class Held(Two):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("last", torch.zeros(1, 8, 8, 8))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.get_buffer("last").copy_(self.second(x)[:1])
                value: torch.Tensor = self.first(x)
                return value

        image = ((1, 3, 8, 8),)
        return [
            Example(Auxiliary, image, "an auxiliary output"),
            Example(InPlace, image, "written into a view"),
            Example(Held, image, "kept in a buffer"),
            Example(Shape, image, "no weights, no MACs"),
            Example(Small, ((1, 4, 128),), "under 1% of the MACs"),
        ]


def _dead(graph: LayerGraph) -> list[Call]:
    """Calls that no output, and no tensor that outlives the forward, depends on. What is made of weights alone may be
    kept in a parameter's ``.data``, as a spectral norm's vectors are."""
    live: set[Node] = set()
    work = [node for node in graph.graph.nodes if node.op == "output"]
    while work:
        while work:
            node = work.pop()
            if node not in live:
                live.add(node)
                work += node.all_input_nodes
        # what writes into a live value keeps its inputs alive
        work = [node for node, call in graph.calls if node not in live and _writes(node, call) and _base(node) in live]
        work += [node for node, call in graph.calls if node not in live and _writes(node, call) and _kept(_base(node))]
    return [call for node, call in graph.calls if node not in live and not call.from_weights]


def _writes(node: Node, call: Call) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = node.op != "call_module" and name.endswith("_") and not name.endswith("__")
    return in_place or name.startswith("__i") or call.op == "setitem" or call.scalars.get("inplace") is True


def _base(node: Node) -> Node:
    """The value whose storage ``node`` writes: its first input, past views."""
    at = node
    while at.all_input_nodes:
        call: Call | None = at.meta.get(CALL)
        if call is not None and not call.alias and not _writes(at, call):
            break
        at = at.all_input_nodes[0]
    return at


def _kept(node: Node) -> bool:
    return node.op in ("get_attr", "placeholder")


def _weighted(call: Call) -> bool:
    return bool(call.parameters)


def _counts(dead: list[Call], total: int) -> bool:
    macs = sum(call.macs or 0 for call in dead)
    return any(map(_weighted, dead)) or (macs > 0 and macs >= 0.01 * total)


def _complete(graph: LayerGraph) -> bool:
    """Whether all that leaves the model was seen."""
    from torch.fx import Node

    def plain(value: Any) -> bool:
        if isinstance(value, (tuple, list)):
            return all(map(plain, value))
        if isinstance(value, dict):
            return all(map(plain, value.values()))
        return value is None or isinstance(value, (Node, bool, int, float, str))

    found = next(node for node in graph.graph.nodes if node.op == "output")
    return graph.status == "ok" and bool(found.all_input_nodes) and plain(found.args[0])
