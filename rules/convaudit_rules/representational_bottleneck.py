"""CNV303 representational-bottleneck."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from convaudit.graph import CALL, main_input, shape_of
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.result import Finding


class RepresentationalBottleneck(Rule):
    """one layer that every path passes drops most of what is known

    ## What it does
    Finds a convolution or pooling that every path from input to output passes and that leaves fewer than one value in
    eight (2-D; one in sixteen in 3-D): twice the drop of halving every axis. A convolution must follow.

    ## Why it matters
    What is dropped there no later layer gets back; width and resolution should fall gently.

    ## Example
        nn.MaxPool2d(4)      # between two stages: 16 values become 1

    ## Use instead
        two strides of 2 with a convolution between, or more channels where the resolution falls

    ## Exceptions
    1×1 reductions of one branch, gates, attention, global pooling heads, patchify stems.

    ## References
    Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2016, Rethinking the Inception Architecture for Computer Vision,
    arXiv:1512.00567, section 2, principle 1.
    """

    code = "CNV303"
    name = "representational-bottleneck"
    severity = "info"
    changes_state_dict = True
    needs_complete = True

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such layers."""
        drops: dict[str, tuple[int, int]] = {}
        for node in context.bottlenecks:
            call, source = node.meta.get(CALL), main_input(node)
            if call is None or source is None or not (call.conv is not None or call.kind == "pool"):
                continue
            before, after, axes = prod(shape_of(source)), prod(shape_of(node)), len(shape_of(node)) - 2
            if axes < 2 or after * 4 * 2 ** (axes - 1) >= before or context.positions(node) <= 1:
                continue
            if (call.conv is None or not call.conv.patchify) and self._goes_on(context, node):
                drops.setdefault(call.layer, (before, after))
        if drops:
            layer, (before, after) = max(drops.items(), key=lambda item: item[1][0] / item[1][1])
            yield context.finding(
                f"{layer} leaves {after:,} of {before:,} values, and every path passes it",
                [layer, *(other for other in drops if other != layer)],
                evidence={"values": {k: list(v) for k, v in drops.items()}},
                suggestion="two smaller steps with a convolution between, or more channels there",
            )

    def _goes_on(self, context: Context, node: Node) -> bool:
        return any(conv.node is not node and context.leads_to(node, conv.node) for conv in context.backbone)

    @classmethod
    def bad(cls) -> list[Example]:
        """A pooling of 4; a convolution to few channels with a stride; in 3-D."""
        from torch import nn

        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.MaxPool2d(4), nn.Conv2d(64, 64, 3)), ((1, 3, 64, 64),), "pool"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 16, 3, 2), nn.Conv2d(16, 64, 3)), ((1, 3, 64, 64),),
                "stride and fewer channels",
            ),
            Example(
                lambda: nn.Sequential(nn.Conv3d(3, 16, 3), nn.MaxPool3d(3), nn.Conv3d(16, 16, 3)), ((1, 3, 32, 32, 32),), "3-D"
            ),
        ]  # fmt: skip

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Branches(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.reduce = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 4, 1)
                self.grow, self.other, self.last = nn.Conv2d(4, 64, 1), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.stem(x)
                value: torch.Tensor = self.last(self.grow(self.reduce(x)) + self.other(x))
                return value

        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.last = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3)
                self.gate = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(64, 4, 1), nn.Upsample(62), nn.Conv2d(4, 64, 1))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.stem(x)
                value: torch.Tensor = self.last(x * self.gate(x).sigmoid())
                return value

        class Attends(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.keys, self.last = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 4, 1), nn.Conv2d(64, 64, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.stem(x)
                keys = self.keys(x).flatten(2)
                seen = x.flatten(2) @ (keys.transpose(1, 2) @ keys).softmax(-1)
                value: torch.Tensor = self.last(x + seen.reshape(x.shape))
                return value

        class Mel(nn.Module):
            """40 bands of 801 frequencies."""

            def __init__(self) -> None:
                super().__init__()
                self.bands, self.conv = nn.Linear(801, 40, bias=False), nn.Conv2d(1, 16, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.conv(self.bands(x.transpose(2, 3)).transpose(2, 3))
                return value

        head = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 10, 1), nn.Flatten()]
        image = ((1, 3, 64, 64),)
        return [
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.MaxPool2d(2), nn.Conv2d(64, 64, 3)),
                image,
                "plain halving",
            ),
            Example(Branches, image, "one branch of two"),
            Example(Gated, image, "a gate"),
            Example(Attends, ((1, 3, 16, 16),), "attention"),
            Example(Mel, ((1, 1, 801, 100),), "a mel filter bank"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 64, 3), *head), image, "a global pooling head"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.Conv2d(8, 8, 3)), image, "a patchify stem"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 3, 3, 2)), image, "the output"),
        ]
