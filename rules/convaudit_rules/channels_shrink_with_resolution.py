"""CNV302 channels-shrink-with-resolution."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding


class ChannelsShrinkWithResolution(Rule):
    """a stage is narrower than the one before it, at a lower resolution

    ## What it does
    Compares stages of a classifier (layers at one resolution): a finding where the widest map of one has fewer
    channels than the widest of the stage before.

    ## Why it matters
    Downsampling already drops three of four values; with fewer channels as well the net forgets more than it
    summarises.

    ## Example
        128 channels at 16×16, then 64 at 8×8

    ## Use instead
        as many channels or more each time the resolution halves

    ## Exceptions
    Squeezes inside a stage, decoders, an autoencoder's code, DenseNet's transitions, the last convolution before the
    head.

    ## References
    Simonyan, Zisserman 2015, arXiv:1409.1556, section 2.1; He et al. 2016, arXiv:1512.03385, section 3.3, rule (ii).
    """

    code = "CNV302"
    name = "channels-shrink-with-resolution"
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding, at the first narrower stage."""
        if context.graph.status == "partial" or not context.is_classifier:
            return
        widths: dict[tuple[int, ...], int] = {}
        first: dict[tuple[int, ...], str] = {}
        convs = {conv.node: conv for conv in context.backbone if not conv.last}
        for node, call in context.graph.calls:
            if node in convs:
                size, width = convs[node].resolution, convs[node].conv.out_channels
                first.setdefault(size, call.layer)
            elif call.op == "cat" and call.outputs and call.outputs[0][2:] in widths and len(call.outputs[0]) >= 4:
                size, width = call.outputs[0][2:], call.outputs[0][1]
            else:
                continue
            widths[size] = max(width, widths.get(size, 0))
        stages = [(size, widths[size]) for size in first]
        for (larger, before), (smaller, after) in zip(stages, stages[1:]):
            if prod(smaller) < prod(larger) and after < before and prod(smaller) > 1:
                yield context.finding(
                    f"{before} channels at {'×'.join(map(str, larger))}, then {after} at {'×'.join(map(str, smaller))}",
                    [first[smaller]],
                    evidence={"stages": [{"resolution": list(size), "width": width} for size, width in stages]},
                    suggestion="keep or double the channels where the resolution halves",
                )
                return

    @classmethod
    def bad(cls) -> list[Example]:
        """128 channels, then 64."""

        return [Example(lambda: _net(32, 128, 64, 64), ((1, 3, 64, 64),))]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Dense(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.grow = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
                self.transition, self.pool = nn.Conv2d(128, 64, 1), nn.AvgPool2d(2)
                self.again, self.last, self.head = (
                    nn.Conv2d(64, 64, 3, padding=1),
                    nn.Conv2d(128, 64, 1),
                    nn.Linear(64, 10),
                )

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.stem(x)
                x = self.pool(self.transition(torch.cat([x, self.grow(x)], 1)))
                x = torch.cat([x, self.again(x)], 1)
                value: torch.Tensor = self.head(self.last(x).relu().mean((2, 3)))
                return value

        def squeezed() -> nn.Module:
            inner = [nn.Conv2d(64, 16, 1), nn.Conv2d(16, 64, 3, padding=1)]
            tail = [
                nn.Conv2d(64, 64, 3, 2, 1),
                nn.Conv2d(64, 64, 3),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(64, 10),
            ]
            return nn.Sequential(nn.Conv2d(3, 64, 3), *inner, *tail)

        def autoencoder() -> nn.Module:
            code = [nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, 8, 3, 2, 1)]
            return nn.Sequential(*code, nn.ConvTranspose2d(8, 64, 2, 2), nn.ConvTranspose2d(64, 3, 2, 2))

        image = ((1, 3, 64, 64),)
        return [
            Example(lambda: _net(32, 64, 64, 128), image, "never narrower"),
            Example(lambda: _net(32, 64, 128, 32), image, "the last convolution before the head"),
            Example(squeezed, image, "a squeeze inside a stage"),
            Example(Dense, image, "a transition"),
            Example(autoencoder, image, "a code and a decoder"),
        ]


def _net(*widths: int) -> object:
    from torch.nn import AdaptiveAvgPool2d, Conv2d, Flatten, Linear, Sequential

    convs = [Conv2d(a, b, 3, 2, 1) for a, b in zip((3, *widths), widths)]
    return Sequential(*convs, AdaptiveAvgPool2d(1), Flatten(), Linear(widths[-1], 10))
