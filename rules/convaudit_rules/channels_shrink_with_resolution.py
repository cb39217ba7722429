"""CNV302 channels-shrink-with-resolution."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from convaudit.fc_layers import TRANSPARENT, untouched
from convaudit.graph import CALL, main_input, shape_of
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.result import Finding


class ChannelsShrinkWithResolution(Rule):
    """a stage is narrower than the one before it, at a lower resolution

    ## What it does
    Compares stages of a classifier (layers at one resolution) by the maps that every path passes: a finding where all
    of a stage's have fewer channels than the last of the stage before.

    ## Why it matters
    Downsampling already drops three of four values; with fewer channels as well the net forgets more than it
    summarises.

    ## Example
        128 channels at 16×16, then 64 at 8×8

    ## Use instead
        as many channels or more each time the resolution halves

    ## Exceptions
    The stem, squeezes and expansions inside a stage, decoders, an autoencoder's code, DenseNet's transitions, the last
    convolution before the head.

    ## References
    Simonyan, Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv:1409.1556,
    section 2.2.

    He, Zhang, Ren, Sun 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385, section 3.3, rule (ii).
    """

    code = "CNV302"
    name = "channels-shrink-with-resolution"
    changes_state_dict = True
    needs_complete = True

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding, at the first narrower stage."""
        if not context.is_classifier:
            return
        convs = {conv.node: conv for conv in context.backbone if not conv.last and not self._stem(conv.node)}
        first: dict[tuple[int, ...], str] = {}
        for conv in convs.values():
            first.setdefault(conv.resolution, conv.call.layer)
        widths: dict[tuple[int, ...], int] = {}
        widest: dict[tuple[int, ...], int] = {}
        for node in context.bottlenecks:
            call, shape = node.meta.get(CALL), shape_of(node)
            if call is None or len(shape) < 4 or shape[2:] not in first or call.op == "cat":
                continue
            if call.conv is None and call.kind not in ("merge", "pool"):
                continue
            conv = call.conv
            widens = conv is not None and conv.out_channels > conv.in_channels
            if conv is not None and (node not in convs or conv.depthwise or (widens and self._feeds_grouped(node))):
                continue
            widths[shape[2:]] = shape[1]
            if call.kind != "pool" and call.op != "mul":
                widest[shape[2:]] = max(shape[1], widest.get(shape[2:], 0))
        stages = [(size, widths[size]) for size in first if size in widths]
        for (larger, before), (smaller, after) in zip(stages, stages[1:]):
            narrower = max(after, widest.get(smaller, 0)) < before
            if prod(smaller) < prod(larger) and narrower and prod(smaller) > 1:
                yield context.finding(
                    f"{before} channels at {'×'.join(map(str, larger))}, then {after} at {'×'.join(map(str, smaller))}",
                    [first[smaller]],
                    evidence={"stages": [{"resolution": list(size), "width": width} for size, width in stages]},
                    suggestion="keep or double the channels where the resolution halves",
                )
                return

    def _stem(self, node: Node) -> bool:
        source = main_input(node)
        return source is not None and untouched(source)

    def _feeds_grouped(self, node: Node) -> bool:
        """Whether the value is the wide middle of an inverted bottleneck.

        A depthwise or grouped convolution reads it, or a 1×1 convolution that narrows it with a stride or behind an
        average pool.
        """
        at: Node | None = node
        pooled = False
        while at is not None and len(at.users) == 1:
            at = next(iter(at.users))
            call = at.meta.get(CALL)
            if call is None:
                return False
            if call.conv is not None:
                squeezes = set(call.conv.kernel) == {1} and call.conv.out_channels < call.conv.in_channels
                return call.conv.groups > 1 or (squeezes and (pooled or max(call.conv.stride) > 1))
            pooled = pooled or call.op.startswith("avg_pool")
            if call.kind not in (*TRANSPARENT, "reshape") and call.op != "pad" and not call.op.startswith("avg_pool"):
                return False
        return False

    @classmethod
    def bad(cls) -> list[Example]:
        """128 channels, then 64: behind a stride, behind a pooling, with residual blocks."""
        import torch
        from torch import nn

        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.convs = nn.ModuleList(
                    [nn.Conv2d(a, b, 3, s, 1) for a, b, s in ((128, 128, 1), (128, 64, 2), (64, 64, 1))]
                )
                self.stem, self.shortcut, self.head = nn.Conv2d(3, 128, 3), nn.Conv2d(128, 64, 1, 2), nn.Linear(64, 10)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.stem(x)
                x = x + self.convs[0](x)
                x = self.convs[1](x) + self.shortcut(x)
                value: torch.Tensor = self.head((x + self.convs[2](x)).mean((2, 3)))
                return value

        def pooled() -> nn.Module:
            convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 32), (32, 128), (128, 64), (64, 64))]
            pools = [nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Identity(), nn.AdaptiveAvgPool2d(1)]
            blocks = [layer for pair in zip(convs, pools) for layer in pair]
            return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64, 10))

        image = ((1, 3, 64, 64),)
        return [
            Example(lambda: _net(32, 128, 64, 64), image, "behind a stride"),
            Example(pooled, image, "behind a pooling"),
            Example(Residual, image, "residual"),
        ]

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

        def inverted() -> nn.Module:
            wide = [nn.Conv2d(16, 96, 1), nn.ReLU(), nn.Conv2d(96, 96, 3, 2, 1, groups=96), nn.Conv2d(96, 24, 1)]
            return nn.Sequential(
                nn.Conv2d(3, 16, 3), *wide, nn.Conv2d(24, 24, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )

        up = [nn.Upsample(scale_factor=2), nn.Conv2d(128, 32, 3, padding=1), nn.AvgPool2d(4), nn.Conv2d(32, 32, 3)]
        decoder = [nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, 128, 3, 2, 1), *up, nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        reduced = [
            nn.Conv2d(3, 64, 3),
            nn.Conv2d(64, 128, 3, 2, 1),
            nn.MaxPool2d(2),
            nn.Conv2d(128, 8, 1),
            nn.Flatten(),
        ]

        def pooled() -> nn.Module:
            wide = [nn.Conv2d(16, 96, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(96, 24, 1)]
            return nn.Sequential(
                nn.Conv2d(3, 16, 3), *wide, nn.Conv2d(24, 24, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )

        def strided() -> nn.Module:
            wide = [nn.Conv2d(16, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 24, 1, 2)]
            return nn.Sequential(
                nn.Conv2d(3, 16, 3), *wide, nn.Conv2d(24, 24, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )

        class ChannelsLast(nn.LayerNorm):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

        def normed() -> nn.Module:
            wide = [nn.Conv2d(16, 96, 1), ChannelsLast(96), nn.Conv2d(96, 96, 3, 2, 1, groups=96), nn.Conv2d(96, 24, 1)]
            return nn.Sequential(
                nn.Conv2d(3, 16, 3), *wide, nn.Conv2d(24, 24, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )

        def wide_first() -> nn.Module:
            narrow = [nn.Conv2d(128, 32, 1), nn.Conv2d(32, 32, 3, padding=1)]
            tail = [nn.Conv2d(32, 256, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            return nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 128, 3, 2), *narrow, *tail)

        image = ((1, 3, 64, 64),)
        return [
            Example(inverted, image, "the wide middle of an inverted bottleneck"),
            Example(pooled, image, "such a middle pooled in place of a depthwise stride"),
            Example(strided, image, "such a middle narrowed by a 1×1 with the stride"),
            Example(normed, image, "such a middle with a channels-last norm"),
            Example(wide_first, image, "a stage that ends narrow and was wide enough"),
            Example(lambda: _net(32, 64, 64, 128), image, "never narrower"),
            Example(lambda: _net(32, 64, 128, 32), image, "the last convolution before the head"),
            Example(squeezed, image, "a squeeze inside a stage"),
            Example(Dense, image, "a transition"),
            Example(autoencoder, image, "a code and a decoder"),
            Example(lambda: nn.Sequential(*decoder), image, "a decoder in a classifier"),
            Example(lambda: nn.Sequential(*reduced), image, "the reducing convolution before the flatten"),
        ]


def _net(*widths: int) -> object:
    from torch.nn import AdaptiveAvgPool2d, Conv2d, Flatten, Linear, Sequential

    convs = [Conv2d(a, b, 3, 2, 1) for a, b in zip((3, *widths), widths)]
    return Sequential(*convs, AdaptiveAvgPool2d(1), Flatten(), Linear(widths[-1], 10))
