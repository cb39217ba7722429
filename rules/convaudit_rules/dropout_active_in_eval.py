"""CNV411 dropout-active-in-eval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding


class DropoutActiveInEval(Rule):
    """functional dropout that runs with the model in eval mode

    ## What it does
    Finds dropout calls that were active (`training=True`) while the model was recorded in eval mode.

    ## Why it matters
    `F.dropout(x)` has `training=True` by default: predictions stay random after `model.eval()`.

    ## Example
        x = F.dropout(x, 0.5)

    ## Use instead
        x = F.dropout(x, 0.5, training=self.training)      # or an nn.Dropout module

    ## Exceptions
    nn.Dropout modules, p = 0, dropout that follows `self.training`.

    ## References
    PyTorch documentation, torch.nn.functional.dropout, parameter training (default True).
    """

    code = "CNV411"
    name = "dropout-active-in-eval"
    changes_state_dict = False

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such calls."""
        active = [
            call.layer
            for node, call in context.graph.calls
            if call.kind == "dropout"
            and node.op != "call_module"
            and call.scalars.get("training", True)
            and call.scalars.get("p", 0.5)
        ]
        if active:
            yield context.finding(
                f"{len(active)} dropout call{'s' * (len(active) > 1)} ran in eval mode: predictions are random",
                list(dict.fromkeys(active)),
                suggestion="pass training=self.training, or use an nn.Dropout module",
            )

    @classmethod
    def bad(cls) -> list[Example]:
        """F.dropout with its default."""
        import torch
        from torch import nn

        class Always(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.dropout(x, 0.3)

        return [Example(Always, ((1, 8),))]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Follows(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.dropout(x, 0.3, self.training)

        class Zero(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.dropout(x, p=0.0)

        return [
            Example(lambda: nn.Sequential(nn.Dropout(0.5)), ((1, 8),), "a module"),
            Example(Follows, ((1, 8),), "follows self.training"),
            Example(Zero, ((1, 8),), "p = 0"),
        ]
