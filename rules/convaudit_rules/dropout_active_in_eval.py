"""CNV411 dropout-active-in-eval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.graph import Call
    from convaudit.result import Finding


class DropoutActiveInEval(Rule):
    """dropout that runs with the model in eval mode

    ## What it does
    Finds functional dropout (p > 0) that was active in the eval-mode trace: `F.dropout(x)` without
    `training=self.training`, an nn.Dropout made inside forward, scaled_dot_product_attention with a dropout_p.

    ## Why it matters
    model.eval() does not reach it: predictions are random, and worse than the model can do.

    ## Example
        x = F.dropout(x, 0.5)

    ## Use instead
        x = F.dropout(x, 0.5, training=self.training), or an nn.Dropout made in __init__

    ## Exceptions
    p = 0. Monte Carlo dropout that is meant: ignore the rule there.

    ## References
    PyTorch documentation, torch.nn.functional.dropout: "apply dropout if is True. Default: True",
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html
    """

    code = "CNV411"
    name = "dropout-active-in-eval"
    changes_state_dict = False

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such calls."""
        active: dict[str, list[float]] = {}
        for node, call in context.graph.calls:
            p = _active(node, call)
            if p:
                active.setdefault(call.layer, []).append(p)
        if active:
            count = sum(map(len, active.values()))
            shares = ", ".join(f"{p:g}" for p in sorted({p for found in active.values() for p in found}))
            yield context.finding(
                f"{count} dropout call{'s' * (count > 1)} (p = {shares}) active in eval mode: predictions are random",
                list(active),
                evidence={"p": active},
                suggestion="pass training=self.training, or make an nn.Dropout in __init__",
            )

    @classmethod
    def bad(cls) -> list[Example]:
        """Functional, of torch's own namespace, of channels, a module made in forward, in attention."""
        import torch
        from torch import nn

        functional = nn.functional
        return [
            Example(lambda: _made(lambda x: functional.dropout(x)), ((1, 8),), "F.dropout(x)"),
            Example(lambda: _made(lambda x: functional.dropout(x, 0.5, True)), ((1, 8),), "training=True"),
            Example(lambda: _made(lambda x: torch.dropout(x, 0.3, train=True)), ((1, 8),), "torch.dropout"),
            Example(lambda: _made(lambda x: functional.dropout2d(x, p=0.2)), ((1, 8, 4, 4),), "F.dropout2d"),
            Example(lambda: _made(lambda x: functional.alpha_dropout(x, 0.2, True)), ((1, 8),), "F.alpha_dropout"),
            Example(lambda: _made(lambda x: nn.Dropout(0.5)(x)), ((1, 8),), "a module made in forward"),
            Example(
                lambda: _made(lambda x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1)), ((1, 2, 4, 8),),
                "attention",
            ),
        ]  # fmt: skip

    @classmethod
    def good(cls) -> list[Example]:
        """Modules, training=self.training, p = 0, alpha dropout's own default."""
        from torch import nn

        functional = nn.functional

        class Functional(nn.Module):
            def forward(self, x: Any) -> Any:
                attended = functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1 if self.training else 0.0)
                return functional.dropout(attended, 0.5, self.training)

        return [
            Example(lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 8)), ((1, 8),), "a module"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout2d()), ((1, 3, 4, 4),), "a module of channels"),
            Example(Functional, ((1, 2, 4, 8),), "training=self.training"),
            Example(lambda: _made(lambda x: functional.dropout(x, 0.0)), ((1, 8),), "p = 0"),
            Example(lambda: _made(lambda x: functional.alpha_dropout(x, 0.2)), ((1, 8),), "off by default"),
        ]


def _active(node: Node, call: Call) -> float:
    """The share of values a functional dropout dropped; 0 where it dropped none."""
    if node.op not in ("call_function", "call_method"):
        return 0.0
    p: Any
    training: Any
    if call.op == "scaled_dot_product_attention":
        p, training = _argument(node, 4, ("dropout_p",), 0.0), True
    elif call.kind == "dropout":
        p = _argument(node, 1, ("p",), 0.5)
        training = _argument(node, 2, ("training", "train"), "alpha" not in call.op)
    else:
        return 0.0
    return float(p) if training is True and isinstance(p, (int, float)) else 0.0


def _argument(node: Node, position: int, names: tuple[str, ...], default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def _made(forward: Any) -> Any:
    """A module whose forward is ``forward``."""
    from torch import nn

    class Made(nn.Module):
        def forward(self, x: Any) -> Any:
            return forward(x)

    return Made()
