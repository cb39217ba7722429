"""CNV501 separable-candidate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convaudit.rule import Example, Options, Rule

if TYPE_CHECKING:
    from torch import nn

    from convaudit.context import Context
    from convaudit.graph import Call, ConvConfig
    from convaudit.result import Finding
    from convaudit.rewrite import Rewrite


@dataclass(frozen=True)
class SeparableCandidateOptions(Options):
    """``min_channels``: in and out, from which a convolution is a candidate."""

    min_channels: int = 64


class SeparableCandidate(Rule):
    """dense convolutions that depthwise-separable blocks could replace

    ## What it does
    Finds dense convolutions of 3×3 or more with `min-channels` on both sides and measures the model with a
    depthwise-separable block in the place of each: depthwise, BatchNorm, ReLU, pointwise.

    ## Why it matters
    A k×k convolution costs k²·C·O weights, the block k²·C + C·O: some eighth of it at 3×3. It is another function,
    and has to be trained anew; accuracy often falls by a point or so.

    ## Example
        nn.Conv2d(128, 128, 3, padding=1)      # 147,584 parameters

    ## Use instead
        nn.Conv2d(128, 128, 3, padding=1, groups=128, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
        nn.Conv2d(128, 128, 1)      # 17,920

    ## Exceptions
    Off unless selected. Models that have depthwise convolutions already, transposed and grouped convolutions, patchify.

    ## References
    Howard et al. 2017, MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications,
    arXiv:1704.04861, section 3.1.
    """

    code = "CNV501"
    name = "separable-candidate"
    severity = "info"
    default = False
    changes_state_dict = True
    options = SeparableCandidateOptions

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all candidates."""
        options = context.options
        assert isinstance(options, SeparableCandidateOptions)
        if any(call.conv is not None and call.conv.depthwise for _, call in context.conv_calls):
            return
        found = [
            (node, call, call.conv)
            for node, call in context.conv_calls
            if call.conv is not None and node.op == "call_module" and self._fits(call.conv, options.min_channels)
        ]
        if not found:
            return
        blocks: dict[str, list[nn.Module]] = {}

        def rewrite(attempt: Rewrite) -> None:
            for node, call, conv in found:  # a layer called twice stays one block
                attempt.replace(node, blocks.setdefault(call.layer, separable(conv, call)))

        layers = list(dict.fromkeys(call.layer for _, call, _ in found))
        saving = context.prove("separable:" + ",".join(layers), rewrite)
        if saving is None or saving.parameters[1] >= saving.parameters[0]:
            return
        before, after = saving.parameters
        yield context.finding(
            f"{len(layers)} dense convolution{'s' * (len(layers) > 1)} as depthwise-separable blocks: {before:,} → {after:,} "
            f"parameters ({after / before - 1:.1%})",
            layers,
            saving=saving,
            evidence={"layers": {c.layer: [k.in_channels, k.out_channels, *k.kernel] for _, c, k in found}},
            suggestion="depthwise, BatchNorm, ReLU, pointwise",
        )

    def _fits(self, conv: ConvConfig, channels: int) -> bool:
        wide = min(conv.in_channels, conv.out_channels) >= channels
        return (
            wide
            and conv.groups == 1
            and not conv.transposed
            and not conv.patchify
            and len(conv.kernel) > 1
            and min(conv.kernel) >= 3
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """3×3, 5×5 with stride, 3×3×3; one layer called twice."""
        import torch
        from torch import nn

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(64, 64, 3, padding=1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.conv(self.conv(x).relu())
                return value

        image = ((1, 64, 16, 16),)
        return [
            Example(lambda: nn.Conv2d(64, 64, 3, padding=1), image, "3×3"),
            Example(lambda: nn.Conv2d(64, 128, 5, 2, bias=False), image, "5×5, stride 2"),
            Example(lambda: nn.Conv3d(64, 64, 3), ((1, 64, 8, 8, 8),), "3×3×3"),
            Example(Twice, image, "called twice"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        from torch import nn

        image = ((1, 64, 16, 16),)
        depthwise = nn.Conv2d(64, 64, 3, groups=64)
        return [
            Example(lambda: nn.Sequential(depthwise, nn.Conv2d(64, 64, 3)), image, "depthwise already"),
            Example(lambda: nn.Conv2d(64, 64, 1), image, "pointwise"),
            Example(lambda: nn.Conv2d(64, 64, (1, 7)), image, "1×k"),
            Example(lambda: nn.Conv2d(64, 32, 3), image, "few channels"),
            Example(lambda: nn.Conv2d(64, 64, 3, groups=4), image, "grouped"),
            Example(lambda: nn.ConvTranspose2d(64, 64, 3), image, "transposed"),
            Example(lambda: nn.Conv2d(64, 64, 4, 4), image, "patchify"),
        ]


def separable(conv: ConvConfig, call: Call) -> list[nn.Module]:
    """The block that replaces ``conv``, on meta."""
    from torch import nn

    two = len(conv.kernel) == 2
    make: type[nn.Module] = nn.Conv2d if two else nn.Conv3d
    norm: type[nn.Module] = nn.BatchNorm2d if two else nn.BatchNorm3d
    inward = conv.in_channels
    pads = [low for low, _ in conv.padding]
    asymmetric = any(low != high for low, high in conv.padding)
    depthwise = make(
        inward, inward, conv.kernel, stride=conv.stride, padding="same" if asymmetric else tuple(pads),
        dilation=conv.dilation, groups=inward, bias=False, device="meta",
    )  # fmt: skip
    return [
        depthwise,
        norm(inward, device="meta").eval(),
        nn.ReLU(),
        make(inward, conv.out_channels, 1, bias=call.biased, device="meta"),
    ]
