"""CNV107 conv-as-linear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from convaudit.fc_layers import untouched
from convaudit.graph import main_input
from convaudit.result import Alternative
from convaudit.rule import Example, Options, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.graph import Call, ConvConfig
    from convaudit.result import Finding
    from convaudit.rewrite import Rewrite


@dataclass(frozen=True)
class ConvAsLinearOptions(Options):
    """``min_params``: weights from which such a convolution is reported."""

    min_params: int = 1_000_000


class ConvAsLinear(Rule):
    """a convolution that covers its whole map: a Linear in disguise

    ## What it does
    Finds convolutions whose unpadded kernel is as large as the map they read, with 1,000,000 weights or more. The saving
    is measured: global average pooling and a 1×1 convolution in its place, retraced.

    ## Why it matters
    At one output position no weight is shared: it is the giant Linear of CNV101, written as a convolution.

    ## Example
        nn.Conv2d(512, 4096, 7)      # on a 512×7×7 map

    ## Use instead
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(512, 4096, 1)

    ## Exceptions
    Patchify stems, 1×1 maps, depthwise convolutions, codes that become a map again.

    ## References
    Long, Shelhamer, Darrell 2015, Fully Convolutional Networks for Semantic Segmentation, arXiv:1411.4038, section 3.1
    (fully connected layers as convolutions).
    """

    code = "CNV107"
    name = "conv-as-linear"
    changes_state_dict = True
    options = ConvAsLinearOptions

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for each layer."""
        options = context.options
        assert isinstance(options, ConvAsLinearOptions)
        seen: set[str] = set()
        for node, call in context.conv_calls:
            conv = call.conv
            if conv is None or call.layer in seen or conv.groups > 1 or not self._covers(node, call, conv):
                continue
            weights = conv.in_channels * conv.out_channels * prod(conv.kernel)
            if weights < options.min_params or self._becomes_a_map(context, node):
                continue
            seen.add(call.layer)
            best, other = (self._pooled(context, call.layer, conv, size) for size in (1, 2))
            saves = best.saving is not None and best.saving.parameters[1] < best.saving.parameters[0]
            yield context.finding(
                f"{'×'.join(map(str, conv.kernel))} convolution {conv.in_channels:,}→{conv.out_channels:,} covers its whole "
                f"map: {weights:,} weights, each used once",
                [call.layer],
                severity=None if saves else "info",
                saving=best.saving if saves else None,
                alternatives=[other] if other.saving and min(conv.kernel) > 2 else [],
                evidence={"weights": weights, "map": [conv.in_channels, *conv.kernel]},
                suggestion="pool the map globally before a 1×1 convolution",
            )

    def _covers(self, node: Node, call: Call, conv: ConvConfig) -> bool:
        source = main_input(node)
        if conv.transposed or prod(conv.kernel) == 1 or any(low or high for low, high in conv.padding):
            return False
        return tuple(conv.kernel) == conv.extent(call.inputs[0]) and source is not None and not untouched(source)

    def _becomes_a_map(self, context: Context, node: Node) -> bool:
        """Whether the value grows into a map again: an autoencoder's code, which no pooling can replace."""
        return any(context.leads_to(node, other) and context.positions(other) > 1 for other in context.layouts)

    def _pooled(self, context: Context, layer: str, conv: ConvConfig, size: int) -> Alternative:
        def rewrite(attempt: Rewrite) -> None:
            from torch import nn

            axes = len(conv.kernel) - 1
            pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes]
            make: type[nn.Module] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes]
            small = make(conv.in_channels, conv.out_channels, size, bias=conv.bias, device="meta")
            for node, call in context.conv_calls:
                if call.layer == layer:
                    attempt.replace(node, [pool(size), small])

        saving = context.prove(f"pool-conv:{layer}:{size}", rewrite)
        return Alternative(
            f"pool to {'×'.join([str(size)] * len(conv.kernel))} before a convolution of that size", saving
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """7×7 on a 7×7 map."""
        from torch import nn

        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 128, 1), nn.Conv2d(128, 256, 7), nn.Flatten()), ((1, 3, 7, 7),))
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        from torch import nn

        def behind(conv: nn.Module, stem: int = 128) -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, stem, 1), conv)

        return [
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 1024, 32, 32)), ((1, 3, 32, 32),), "a patchify stem of one patch"
            ),
            Example(lambda: behind(nn.Conv2d(128, 8192, 1)), ((1, 3, 1, 1),), "a 1×1 map"),
            Example(lambda: behind(nn.Conv2d(128, 256, 7, padding=3)), ((1, 3, 7, 7),), "padded"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 128, 1), nn.Conv2d(128, 256, 7), nn.ConvTranspose2d(256, 3, 7)),
                ((1, 3, 7, 7),),
                "an autoencoder's code",
            ),
            Example(lambda: behind(nn.Conv2d(128, 64, 7)), ((1, 3, 7, 7),), "under min-params"),
            Example(lambda: behind(nn.Conv2d(8192, 8192, 15, groups=8192), 8192), ((1, 3, 15, 15),), "depthwise"),
        ]
