"""CNV410 backward-fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.result import Finding


class BackwardFails(Rule):
    """the model runs forward, and its backward pass raises

    ## What it does
    Where an in-place op may overwrite what an earlier op keeps for its gradient, runs the model's own forward and
    backward in train mode on stand-in values. Fires where autograd raises, with its error.

    ## Why it matters
    Inference and shape checks pass; the first training step does not.

    ## Example
        nn.ReLU(), nn.Dropout(0.5, inplace=True)      # ReLU's gradient is computed from its output

    ## Use instead
        nn.ReLU(), nn.Dropout(0.5)

    ## Exceptions
    Models without trainable parameters. In-place ops on what no gradient needs: a ReLU behind a BatchNorm or a
    convolution.

    ## References
    PyTorch documentation, Autograd mechanics, "In-place operations with autograd", in-place correctness checks,
    https://docs.pytorch.org/docs/stable/notes/autograd.html
    """

    code = "CNV410"
    name = "backward-fails"
    changes_state_dict = False

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding, with autograd's error."""
        from convaudit.backward import overwritten
        from convaudit.graph import CALL

        graph = context.graph
        if not any(p.requires_grad for p in graph.parameters.values()):
            return
        pairs = overwritten(graph)
        error = context.backward_error() if pairs else None
        if error is None:
            return
        write, keeper = blamed(pairs, error)[-1]  # a backward meets the last first
        at, kept = write.meta[CALL], keeper.meta[CALL]
        others = [w.meta[CALL].layer for w, _ in reversed(blamed(pairs, error))]
        yield context.finding(
            f"backward raises: {at.op} ({at.layer}) overwrites in place what {kept.op} ({kept.layer}) keeps for its gradient",
            list(dict.fromkeys([at.layer, *others])),
            evidence={"error": error, "overwrites": [at.layer, kept.layer]},
            suggestion="leave out inplace=True, or write out of place (x = x + y)",
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """An in-place module, method, operator, function and item; what was kept is a result or an operand."""
        import torch
        from torch import nn
        from torch.nn import functional as F

        class Net(nn.Module):
            def __init__(self, how: str) -> None:
                super().__init__()
                self.first, self.last, self.how = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), how

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.first(x)
                if self.how == "method":
                    x = torch.relu(x)
                    x.unsqueeze_(1).squeeze_(1)
                elif self.how == "operator":
                    x = torch.sigmoid(x)
                    x += 1
                elif self.how == "function":
                    x = F.dropout(x.relu(), 0.5, self.training, True)
                elif self.how == "item":
                    x = x.tanh()
                    x[:, :, 0] = 0
                elif self.how == "operand":
                    gate = F.silu(x)
                    x.relu_()
                    x = x + gate
                elif self.how == "view":
                    left, right = x.chunk(2, 1)
                    x = torch.cat([F.relu(left, inplace=True), right], 1)
                value: torch.Tensor = self.last(x)
                return value

        image = ((1, 3, 8, 8),)
        behind = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5, inplace=True), nn.Conv2d(8, 8, 1)]
        hows = ("method", "operator", "function", "item", "operand", "view")
        return [
            Example(lambda: nn.Sequential(*behind), image, "Dropout(inplace) behind ReLU"),
            *[Example(partial(Net, how), image, how) for how in hows],
        ]  # fmt: skip

    @classmethod
    def good(cls) -> list[Example]:
        """In-place ops that overwrite nothing a gradient needs; nothing trainable."""
        import torch
        from torch import nn

        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.act = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), nn.ReLU(inplace=True)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                out = self.body(x)
                out += x
                value: torch.Tensor = self.act(out)
                return value

        def frozen() -> nn.Module:
            layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5, inplace=True), nn.Conv2d(8, 8, 1)]
            return nn.Sequential(*layers).requires_grad_(False)

        image = ((1, 3, 8, 8),)
        norm = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)]
        kept = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.Hardtanh(inplace=True), nn.Conv2d(8, 8, 1)]
        return [
            Example(lambda: nn.Sequential(*norm), image, "behind a norm"),
            Example(lambda: nn.Sequential(*kept), image, "behind a copy"),
            Example(lambda: nn.Sequential(Residual(), Residual()), image, "a residual sum"),
            Example(frozen, image, "nothing trainable"),
        ]


def blamed(pairs: list[tuple[Node, Node]], error: str) -> list[tuple[Node, Node]]:
    """The pairs whose overwritten value has the shape the error names (the batch left out), else all."""
    from convaudit.graph import shape_of

    named = re.search(r"Type \[([\d, ]*)\]|Tensor \[([\d, ]*)\]", error)
    if named is None:
        return pairs
    shape = tuple(int(n) for n in (named[1] or named[2] or "").split(",") if n.strip())
    return [p for p in pairs if shape_of(p[0])[1:] == shape[1:] or shape_of(p[1])[1:] == shape[1:]] or pairs
