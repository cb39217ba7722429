"""CNV209 checkerboard-upsampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding


class CheckerboardUpsampling(Rule):
    """a transposed convolution whose kernel is no multiple of its stride

    ## What it does
    Finds transposed convolutions with a stride above 1 that does not divide the kernel on some axis.

    ## Why it matters
    Output pixels then get contributions from different numbers of taps, in a checkerboard that training has to undo.

    ## Example
        nn.ConvTranspose2d(128, 64, 3, stride=2, padding=1, output_padding=1)

    ## Use instead
        nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), or nn.Upsample(scale_factor=2) and a 3×3 convolution

    ## Exceptions
    Kernels divisible by the stride; stride 1; inputs of one pixel, where nothing overlaps.

    ## References
    Odena, Dumoulin, Olah 2016, Deconvolution and Checkerboard Artifacts, Distill, section "Deconvolution & Overlap",
    https://distill.pub/2016/deconv-checkerboard/
    """

    code = "CNV209"
    name = "checkerboard-upsampling"
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such layers."""
        uneven: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for _, call in context.conv_calls:
            conv = call.conv
            if conv is None or not conv.transposed or not call.inputs:
                continue
            size = call.inputs[0][-len(conv.kernel) :]
            if any(k % s and n > 1 for k, s, n in zip(conv.kernel, conv.stride, size)):
                uneven.setdefault(call.layer, (conv.kernel, conv.stride))
        if uneven:
            kernel, stride = next(iter(uneven.values()))
            taps = [sorted({len(range(o % s, k, s)) for o in range(s)}) for k, s in zip(kernel, stride)]
            yield context.finding(
                f"{'×'.join(map(str, kernel))} transposed convolution with stride {'×'.join(map(str, stride))}: output pixels "
                f"get {' or '.join(map(str, next(t for t in taps if len(t) > 1)))} taps an axis by turns",
                list(uneven),
                evidence={"layers": {k: [list(v[0]), list(v[1])] for k, v in uneven.items()}, "taps": taps},
                suggestion="a kernel divisible by the stride, or upsampling and a convolution",
            )

    @classmethod
    def bad(cls) -> list[Example]:
        """3/2, on one axis too; 5/3; 1-D."""
        from torch import nn

        image = ((1, 8, 8, 8),)
        return [
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3, 2, 1, 1)), image, "3/2"),
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, (2, 3), 2)), image, "on one axis"),
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 3)), image, "kernel below stride"),
            Example(lambda: nn.Sequential(nn.ConvTranspose1d(8, 8, 5, 3)), ((1, 8, 8),), "1-D"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """4/2, 2/2, stride 1."""
        from torch import nn

        image = ((1, 8, 8, 8),)
        return [
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1)), image, "4/2"),
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2)), image, "2/2"),
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3)), image, "stride 1"),
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 5, 2)), ((1, 8, 1, 1),), "one pixel"),
        ]
