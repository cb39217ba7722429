"""CNV202 large-stem-kernel."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from convaudit.graph import CALL, main_input
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.result import Finding


class LargeStemKernel(Rule):
    """the first convolution has a large kernel

    ## What it does
    Finds convolutions that read the input (fewer than 16 channels) with a kernel side of 7 or more, and puts the cost
    of stacked 3×3 beside it. A warning only at stride 1 in a classifier, where it holds 5% of the MACs.

    ## Why it matters
    At full resolution a large kernel is dear. At stride 2 it is cheap: three 3×3 cost more parameters and buy
    nonlinearity.

    ## Example
        nn.Conv2d(3, 128, 7, padding=3)

    ## Use instead
        three 3×3 convolutions, the first with stride 2 (ResNet-C, ResNet-D)

    ## Exceptions
    Patchify stems, Conv1d, gates in mid-net.

    ## References
    He, Zhang, Zhang, Zhang, Xie, Li 2019, Bag of Tricks for Image Classification with Convolutional Neural Networks,
    arXiv:1812.01187, section 4.2 and figure 2 (ResNet-C).
    """

    code = "CNV202"
    name = "large-stem-kernel"
    severity = "info"
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for each such layer."""
        total = context.graph.totals.macs if context.graph.totals else 0
        seen = set()
        for node, call in context.conv_calls:
            conv = call.conv
            if conv is None or conv.transposed or conv.patchify or len(conv.kernel) < 2 or call.layer in seen:
                continue
            if conv.in_channels >= 16 or max(conv.kernel) < 7 or not self._reads_input(node):
                continue
            seen.add(call.layer)
            macs = sum(c.macs or 0 for _, c in context.conv_calls if c.layer == call.layer)
            along = sum(k > 1 for k in conv.kernel)  # a kernel along one axis is no image filter
            warn = set(conv.stride) == {1} and along > 1 and context.is_classifier and macs >= 0.05 * (total or 1)
            count = (max(conv.kernel) - 1) // 2
            area, per = prod(conv.extent(call.outputs[0])), 3**along
            inner = max(1, conv.out_channels // 2)
            widths = [conv.in_channels] + [inner] * (count - 1) + [conv.out_channels]
            stacked = per * sum(a * b for a, b in zip(widths, widths[1:]))
            own = prod(conv.kernel) * conv.in_channels * conv.out_channels // conv.groups
            yield context.finding(
                f"{'×'.join(map(str, conv.kernel))} stem {conv.in_channels}→{conv.out_channels}: {own:,} weights, "
                f"{macs / (total or 1):.1%} of the MACs; {count} stacked {'×'.join('3' if k > 1 else '1' for k in conv.kernel)} "
                f"({'-'.join(map(str, widths[1:6]))}{'-…' * (len(widths) > 6)}): {stacked:,}",
                [call.layer],
                severity="warning" if warn else "info",
                evidence={"weights": own, "macs": macs, "stack_widths": widths[1:], "stack_weights": stacked,
                          "stack_macs": stacked * area},
                suggestion="stack 3×3 convolutions, the first strided" if warn else "a 3×3 stack buys nonlinearity, not weights",
            )  # fmt: skip

    def _reads_input(self, node: Node) -> bool:
        at: Node | None = main_input(node)
        while at is not None and at.op != "placeholder":
            call = at.meta.get(CALL)
            if (
                call is not None
                and call.kind != "norm"
                and call.op not in ("pad", "identity", "getitem", "sub", "div", "cat", "permute", "transpose")
            ):
                return False
            at = main_input(at)
        return at is not None

    @classmethod
    def bad(cls) -> list[Example]:
        """ResNet's stem; behind a norm; a stem at stride 1 that holds much of a classifier (warning)."""
        from torch import nn

        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU()), ((1, 3, 64, 64),), "7×7 stride 2"),
            Example(lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 7)), ((1, 3, 64, 64),), "behind a norm"),
            Example(lambda: nn.Sequential(nn.ZeroPad2d(3), nn.Conv2d(3, 8, (7, 3))), ((1, 3, 64, 64),), "behind a pad"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 64, 9), *head), ((1, 3, 64, 64),), "9×9 stride 1"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Gated(nn.Module):
            """CBAM's spatial attention."""

            def __init__(self) -> None:
                super().__init__()
                self.stem, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(2, 1, 7, padding=3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.stem(x)
                gate: torch.Tensor = self.gate(torch.cat([x.mean(1, True), x.amax(1, True)], 1)).sigmoid()
                return x * gate

        image = ((1, 3, 64, 64),)
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 64, 8, 8)), image, "patchify"),
            Example(lambda: nn.Sequential(nn.Conv1d(1, 8, 80, 4)), ((1, 1, 1024),), "Conv1d"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 7)), image, "mid-net"),
            Example(Gated, image, "a gate"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 5)), image, "under 7"),
            Example(lambda: nn.Sequential(nn.Conv2d(16, 8, 7)), ((1, 16, 64, 64),), "16 channels or more"),
        ]
