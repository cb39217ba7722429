"""CNV211 padding-beyond-kernel."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.graph import ConvConfig
    from convaudit.result import Finding


class PaddingBeyondKernel(Rule):
    """a convolution padded by more than its kernel covers

    ## What it does
    Finds convolutions whose zero padding is larger than the kernel less one (dilation counted), with the exact share of
    outputs that read nothing but zeros.

    ## Why it matters
    Those outputs are the bias, whatever the input; all later layers pay for them too.

    ## Example
        nn.Conv2d(3, 64, 3, padding=100)

    ## Use instead
        nn.Conv2d(3, 64, 3, padding=1)

    ## Exceptions
    Transposed convolutions; reflect, replicate and circular padding.

    ## References
    Dumoulin, Visin 2016, A guide to convolution arithmetic for deep learning, arXiv:1603.07285, section 2.2.2 (full
    padding, k - 1, takes every position in which kernel and input overlap).
    """

    code = "CNV211"
    name = "padding-beyond-kernel"
    severity = "info"
    changes_state_dict = False

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such layers."""
        empty: dict[str, float] = {}
        padding: dict[str, int] = {}
        macs = 0
        for _, call in context.conv_calls:
            conv = call.conv
            if conv is None or not call.inputs or not _beyond(conv):
                continue
            share = empty_share(conv, call.inputs[0][-len(conv.kernel) :], call.outputs[0][-len(conv.kernel) :])
            if share:
                empty[call.layer] = max(share, empty.get(call.layer, 0.0))
                padding.setdefault(call.layer, max(max(pair) for pair in conv.padding))
                macs += round((call.macs or 0) * share)
        if empty:
            layer = max(empty, key=lambda name: empty[name])
            layers = [layer, *(name for name in empty if name != layer)]
            more = f" ({len(empty)} such layers)" if len(empty) > 1 else ""
            yield context.finding(
                f"padding {padding[layer]} reaches beyond the kernel: {empty[layer]:.0%} of the outputs read nothing but "
                f"zeros{more}",
                layers,
                evidence={"share": empty, "macs": macs},
                suggestion="a padding of at most kernel - 1",
            )

    @classmethod
    def bad(cls) -> list[Example]:
        """FCN's 100; a padded 1×1; one axis."""
        from torch import nn

        image = ((1, 3, 16, 16),)
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=100)), image, "100 around 3×3"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 1, padding=1)), image, "a padded 1×1"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, (1, 3), padding=(1, 1))), image, "on one axis"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        from torch import nn

        image = ((1, 3, 16, 16),)
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=2)), image, "kernel - 1"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=4, dilation=2)), image, "kernel - 1, dilated"),
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 1, 2, padding=1)), image, "transposed"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 8, 1, padding=1, padding_mode="circular")), image, "circular padding"
            ),
        ]


def _beyond(conv: ConvConfig) -> bool:
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel)]
    return (
        not conv.transposed
        and conv.padding_mode == "zeros"
        and any(max(pair) > r for pair, r in zip(conv.padding, reach))
    )


def empty_share(conv: ConvConfig, size: tuple[int, ...], output: tuple[int, ...]) -> float:
    """Share of the outputs that read no position of a map of ``size``."""
    reading = [
        sum(any(0 <= o * s - low + d * t < n for t in range(k)) for o in range(m))
        for n, m, k, s, d, (low, _) in zip(size, output, conv.kernel, conv.stride, conv.dilation, conv.padding)
    ]
    return 1 - prod(reading) / max(1, prod(output))
