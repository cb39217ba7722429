"""CNV210 adaptive-pool-upsamples."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding
    from convaudit.rewrite import Rewrite


class AdaptivePoolUpsamples(Rule):
    """adaptive pooling to more positions than it reads

    ## What it does
    Finds adaptive pooling whose output is larger than its input, with a Linear behind that pays for each copy. The
    saving is measured with the pooling at its input's size.

    ## Why it matters
    Each value is copied: torchvision's VGG on 32×32 copies a 1×1 map into 7×7, and multiplies 49 equal values by 103
    million weights.

    ## Example
        nn.AdaptiveAvgPool2d(7)      # on a 1×1 map

    ## Use instead
        nn.AdaptiveAvgPool2d(1), and a Linear of that size; or a larger input

    ## Exceptions
    Equal sizes, no Linear behind.

    ## References
    PyTorch documentation, torch.nn.AdaptiveAvgPool2d ("The output is of size H x W, for any input size"),
    https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveAvgPool2d.html
    """

    code = "CNV210"
    name = "adaptive-pool-upsamples"
    needs_input_size = True
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model's first such pooling."""
        for node, call in context.graph.calls:
            if "adaptive" not in call.op or not call.inputs or not call.outputs or node in context.gates:
                continue
            before, after = call.inputs[0][2:], call.outputs[0][2:]
            readers = [fc for fc in context.fc_layers if any(context.leads_to(node, f.map) for f in fc.flattens)]
            if len(before) != len(after) or prod(after) <= prod(before) or not readers:
                continue

            def shrunk(attempt: Rewrite) -> None:
                from torch import nn

                pools: tuple[type[nn.Module], ...] = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
                attempt.replace(node, [pools[len(before) - 1](before)])  # noqa: B023 - proved at once

            saving = context.prove(f"pool-at-size:{call.layer}", shrunk)
            saves = saving is not None and saving.parameters[1] < saving.parameters[0]
            yield context.finding(
                f"{call.label} makes {'×'.join(map(str, after))} of {'×'.join(map(str, before))}: "
                f"{prod(after) // max(1, prod(before))} copies of each value, and {readers[0].call.layer} pays for each",
                [call.layer],
                severity=None if saves else "info",
                saving=saving if saves else None,
                evidence={"before": list(before), "after": list(after), "reader": readers[0].call.layer},
                suggestion="pool to the size there is, or give a larger input",
            )
            return

    @classmethod
    def bad(cls) -> list[Example]:
        """1×1 to 7×7, by mean and by maximum."""
        from torch import nn

        def net(pool: nn.Module) -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 8, 8), pool, nn.Flatten(), nn.Linear(392, 10))

        return [
            Example(lambda: net(nn.AdaptiveAvgPool2d(7)), ((1, 3, 8, 8),), "mean"),
            Example(lambda: net(nn.AdaptiveMaxPool2d(7)), ((1, 3, 8, 8),), "maximum"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """Equal and smaller sizes; no Linear behind."""
        from torch import nn

        head = [nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(392, 10)]
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 2), *head), ((1, 3, 8, 8),), "equal sizes"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 2), *head), ((1, 3, 32, 32),), "smaller"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 8), nn.AdaptiveAvgPool2d(7)), ((1, 3, 8, 8),), "no Linear"),
        ]
