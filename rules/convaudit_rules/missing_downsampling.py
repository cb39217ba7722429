"""CNV408 missing-downsampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding


class MissingDownsampling(Rule):
    """most of a classifier's work runs at the input's full resolution

    ## What it does
    Sums MACs by resolution: a finding where half or more of a classifier's run at the input's own size, in layers of
    64 channels or more.

    ## Why it matters
    Each stride of 2 cuts the work of what follows to a quarter and doubles what a layer sees.

    ## Example
        nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 128, 3, padding=1), ...      # at 224×224

    ## Use instead
        a stride or a pooling after the first layers

    ## Exceptions
    Outputs per pixel; inputs up to 64 pixels wide with under 1 GMAC in all.

    ## References
    He, Sun 2015, Convolutional Neural Networks at Constrained Time Cost, arXiv:1412.1710, equation 1 (cost grows with
    the square of the output map's side).
    """

    code = "CNV408"
    name = "missing-downsampling"
    needs_input_size = True
    changes_state_dict = False
    needs_complete = True

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding."""
        image, totals = context.image_size, context.graph.totals
        if totals is None or not context.is_classifier or len(image) < 2:
            return
        if not totals.macs or (max(image) <= 64 and totals.macs < 1_000_000_000):
            return
        by_size: dict[str, int] = {}
        full = []
        for conv in context.backbone:
            key = "×".join(map(str, conv.resolution))
            by_size[key] = by_size.get(key, 0) + (conv.call.macs or 0)
            if all(out >= side for out, side in zip(conv.resolution, image)):
                full.append(conv)
        share = sum(conv.call.macs or 0 for conv in full) / totals.macs
        if share < 0.5 or max(conv.conv.out_channels for conv in full) < 64:
            return
        largest = max(full, key=lambda conv: conv.call.macs or 0)
        yield context.finding(
            f"{share:.0%} of the MACs run at the input's full {'×'.join(map(str, image))}",
            list(dict.fromkeys([largest.call.layer, *(conv.call.layer for conv in full)])),
            evidence={"share": share, "macs_by_resolution": by_size},
            suggestion="a stride or a pooling after the first layers",
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """64 channels at full resolution; a small input with much work."""
        from torch import nn

        def net(width: int) -> nn.Module:
            convs = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
            return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))

        return [
            Example(lambda: net(64), ((1, 3, 128, 128),), "64 channels at 128×128"),
            Example(lambda: net(512), ((1, 3, 32, 32),), "over 1 GMAC at 32×32"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        from torch import nn

        def net(width: int, *tail: nn.Module) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), *tail
            )

        def pooled(width: int) -> list[nn.Module]:
            return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]

        down = [nn.Conv2d(64, 512, 3, 2, 1), nn.Conv2d(512, 512, 3, 2, 1)]
        return [
            Example(lambda: net(64), ((1, 3, 128, 128),), "an output per pixel"),
            Example(lambda: net(64, *pooled(64)), ((1, 3, 32, 32),), "small and cheap"),
            Example(lambda: net(32, *pooled(32)), ((1, 3, 128, 128),), "under 64 channels"),
            Example(lambda: net(64, *down, *pooled(512)), ((1, 3, 128, 128),), "most work is further down"),
        ]
