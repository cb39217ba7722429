"""CNV404 unused-parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.graph import LayerGraph
    from convaudit.result import Finding


class UnusedParameters(Rule):
    """trainable parameters that no forward pass reads

    ## What it does
    Lists trainable parameters that nothing leading to the output reads, neither in eval nor in train mode, by
    reachability in the recorded graphs.

    ## Why it matters
    They are saved, loaded and kept by the optimizer for nothing, and DistributedDataParallel stops on them
    (`find_unused_parameters`).

    ## Example
        self.shortcut = nn.Conv2d(64, 64, 1)     # built, and skipped when stride == 1

    ## Use instead
        nn.Identity() where the layer is skipped

    ## Exceptions
    Frozen parameters, heads that run in training only, tied weights. Info where forward takes an argument that is no
    tensor (another value may read them) and where the layers do run (their value may be kept for a loss).

    ## References
    PyTorch documentation, torch.nn.parallel.DistributedDataParallel, parameter find_unused_parameters,
    https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html
    """

    code = "CNV404"
    name = "unused-parameters"
    changes_state_dict = True
    needs_complete = True

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding, with the modules that hold them."""
        graph = context.graph
        unread = {n for n, p in graph.parameters.items() if p.requires_grad} - read_parameters(graph)
        if not unread:
            return
        trained = context.trained()
        if trained is None or trained.problem:
            return
        unread -= read_parameters(trained)
        if not unread:
            return
        computed = {name for g in (graph, trained) for _, call in g.calls for name in call.parameters}
        names = [name for name in graph.parameters if name in unread]
        count = sum(graph.parameters[name].numel() for name in names)
        total = graph.totals.parameters if graph.totals else 0
        owners = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
        yield context.finding(
            f"{count:,} trainable parameters ({count / max(1, total):.1%}) are read by no forward pass: "
            f"{', '.join(names[:3])}{', …' * (len(names) > 3)}",
            owners,
            severity="info" if self._takes_more(context) or computed >= unread else None,
            evidence={"parameters": names, "count": count},
            suggestion="leave the layers out, or freeze them (requires_grad=False)",
        )

    def _takes_more(self, context: Context) -> bool:
        """Whether forward takes arguments beyond the tensors it was given."""
        parameters = inspect.signature(context.graph.model.forward).parameters.values()
        given = sum(node.op == "placeholder" for node in context.graph.graph.nodes)
        return any(p.kind is p.VAR_KEYWORD for p in parameters) or len(parameters) > given

    @classmethod
    def bad(cls) -> list[Example]:
        """A layer that is never called; one whose value is never used; one that is deep-copied and kept."""
        import torch
        from torch import nn

        class Idle(nn.Module):
            def __init__(self, called: bool) -> None:
                super().__init__()
                self.conv, self.idle, self.called = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), called

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.conv(x)
                if self.called:
                    self.idle(value)
                return value

        class Copied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
                self.encoder = nn.TransformerEncoder(self.layer, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.encoder(x)
                return value

        image = ((1, 3, 8, 8),)
        return [
            Example(lambda: Idle(False), image, "never called"),
            Example(lambda: Idle(True), image, "never used"),
            Example(Copied, ((1, 4, 8),), "copied"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Aux(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.aux = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
                value: torch.Tensor = self.conv(x)
                return (value, self.aux(value)) if self.training else value

        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encode, self.decode = nn.Linear(8, 4, bias=False), nn.Linear(4, 8, bias=False)
                self.decode.weight = nn.Parameter(self.encode.weight.t())
                self.decode.weight = self.encode.weight

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.linear(self.encode(x), self.decode.weight.t())

        def frozen() -> nn.Module:
            net = Aux()
            net.aux = nn.Conv2d(8, 8, 1).requires_grad_(False)
            return net

        return [
            Example(Aux, ((1, 3, 8, 8),), "runs in training only"),
            Example(frozen, ((1, 3, 8, 8),), "frozen"),
            Example(Tied, ((1, 8),), "tied weights"),
        ]


def read_parameters(graph: LayerGraph) -> set[str]:
    """Names of the parameters that something leading to the output reads, in-place writes included."""
    from convaudit.graph import CALL

    alive = [n for n in graph.graph.nodes if n.op == "output" or _writes(n)]
    seen = set(alive)
    while alive:
        for source in alive.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                alive.append(source)
    read = {str(node.target) for node in seen if node.op == "get_attr"}
    return read | {name for node in seen if CALL in node.meta for name in node.meta[CALL].parameters}


def _writes(node: object) -> bool:
    name = str(getattr(getattr(node, "target", ""), "__name__", getattr(node, "target", "")))
    return name == "setitem" or (name.endswith("_") and not name.endswith("__"))
