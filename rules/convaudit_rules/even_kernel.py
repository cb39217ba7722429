"""CNV203 even-kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.graph import CALL, main_input
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.result import Finding


class EvenKernel(Rule):
    """an even kernel at stride 1

    ## What it does
    Lists convolutions with an even kernel side above 1 at stride 1 on that axis.

    ## Why it matters
    An even kernel has no centre: each layer shifts the map by half a pixel, and no padding keeps its size.

    ## Example
        nn.Conv2d(64, 64, 4, padding=1)

    ## Use instead
        nn.Conv2d(64, 64, 3, padding=1)

    ## Exceptions
    Patchify and strided layers, transposed convolutions, 1×1 outputs, an explicit asymmetric pad right before.

    ## References
    Wu et al. 2019, Convolution with even-sized kernels and symmetric padding, arXiv:1903.08385, section 3.1 (the shift problem).
    """

    code = "CNV203"
    name = "even-kernel"
    severity = "info"
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such layers."""
        even: dict[str, tuple[int, ...]] = {}
        for node, call in context.conv_calls:
            conv = call.conv
            if conv is None or conv.transposed or conv.patchify or all(n == 1 for n in call.outputs[0][2:]):
                continue
            if any(k > 1 and k % 2 == 0 and s == 1 for k, s in zip(conv.kernel, conv.stride)) and not self._padded(
                node
            ):
                even.setdefault(call.layer, conv.kernel)
        if even:
            kernels = ", ".join(sorted({"×".join(map(str, kernel)) for kernel in even.values()}))
            yield context.finding(
                f"{len(even)} convolution{'s' * (len(even) > 1)} with an even kernel ({kernels}) at stride 1: each shifts the "
                "map by half a pixel",
                list(even),
                evidence={"kernels": {k: list(v) for k, v in even.items()}},
                suggestion="an odd kernel",
            )

    def _padded(self, node: Node) -> bool:
        source = main_input(node)
        call = source.meta.get(CALL) if source is not None else None
        return call is not None and call.op == "pad"

    @classmethod
    def bad(cls) -> list[Example]:
        """4×4 at stride 1; even on one axis."""
        from torch import nn

        image = ((1, 3, 8, 8),)
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 4, padding=1)), image, "4×4"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, (2, 3))), image, "2×3"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        from torch import nn

        image = ((1, 3, 8, 8),)
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4)), image, "patchify"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1)), image, "stride 2"),
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 4)), image, "transposed"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 8)), image, "output 1×1"),
            Example(lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(3, 8, 4)), image, "an asymmetric pad"),
        ]
