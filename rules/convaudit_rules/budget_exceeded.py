"""CNV503 budget-exceeded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from convaudit.budgets import Budget
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding


class BudgetExceeded(Rule):
    """a budget configured for the target is exceeded

    ## What it does
    Compares the model with the `budget` of its target table: `params`, `macs`, `activation-bytes` (the sum over the
    layers) and `checkpoint-bytes` (the tensors of its state_dict). A budget is absolute (`25_000_000`, `"25M"`,
    `"100MB"`) or relative to the `baseline`'s figure (`"+5%"`, `"-10%"`).

    ## Why it matters
    A model grows a layer at a time; a budget says which commit was one too many.

    ## Example
        budget = {params = "25M", macs = "+5%"}      # a ResNet-50 of 25.6 million parameters

    ## Use instead
        a smaller model, or a larger budget, in a commit that says why

    ## Exceptions
    A partial trace's totals are lower bounds: they exceed a budget, but never prove that one is kept. A relative budget
    without a figure in the baseline is said as info. A baseline accepts no exceeded budget: raise the budget.

    ## References
    Mihajlija 2018, Performance budgets 101, web.dev (the practice comes from web pages).
    """

    code = "CNV503"
    name = "budget-exceeded"
    severity = "error"
    changes_state_dict = False
    needs_shapes = False

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for all exceeded budgets, and one info for those that could not be compared."""
        totals = context.graph.totals
        if totals is None:
            return
        figures: dict[str, int | None] = {
            "params": totals.parameters, "macs": totals.macs, "activation-bytes": totals.activation_bytes,
            "checkpoint-bytes": totals.state_dict_bytes,
        }  # fmt: skip
        exceeded: dict[str, dict[str, Any]] = {}
        unknown: list[str] = []
        for name, given in context.settings.here.budget.items():
            budget, before = Budget.parse(given), context.settings.reference.get(name)
            figure = figures[name]
            limit = budget.limit(before)
            if figure is None:
                unknown.append(f"{name} is not known of this trace")
            elif limit is None:
                unknown.append(f"{name} {given!r} compares with a baseline that has no figure for this target")
            elif figure > limit:
                exceeded[name] = {"figure": figure, "budget": limit, "baseline": before if budget.relative else None}
        if exceeded:
            yield context.finding(
                "; ".join(
                    f"{name} {e['figure']:,} exceed the budget of {e['budget']:,}"
                    + (f" ({context.settings.here.budget[name]} of {e['baseline']:,})" if e["baseline"] else "")
                    for name, e in exceeded.items()
                ),
                [],
                evidence=exceeded,
                suggestion="a smaller model, or a larger budget",
            )
        if unknown:
            yield context.finding(
                f"budget not compared: {'; '.join(unknown)}", [], severity="info",
                suggestion="convaudit check --write-baseline FILE keeps a target's figures",
            )  # fmt: skip

    @classmethod
    def bad(cls) -> list[Example]:
        """Each figure, absolute; a percentage without a baseline."""
        from torch import nn

        def net() -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

        image = ((1, 3, 10, 10),)
        return [
            Example(net, image, note, {"target": [{"match": "*", "budget": budget}]})
            for note, budget in (
                ("params", {"params": 239}),
                ("macs", {"macs": "13.8K"}),
                ("activation-bytes", {"activation-bytes": "4KB"}),
                ("checkpoint-bytes", {"checkpoint-bytes": "1KB"}),
                ("no baseline", {"macs": "+5%"}),
            )
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """No budget; budgets kept to the last parameter."""
        from torch import nn

        def net() -> nn.Module:
            return nn.Conv2d(3, 8, 3)

        image = ((1, 3, 10, 10),)
        exact = {"params": 224, "macs": 8 * 27 * 64, "activation-bytes": 4 * 8 * 64, "checkpoint-bytes": 4 * 224}
        return [
            Example(net, image, "no budget"),
            Example(net, image, "kept exactly", {"target": [{"match": "*", "budget": exact}]}),
        ]
