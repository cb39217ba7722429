"""CNV203 even-kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.graph import CALL, main_input, shape_of
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
    Patchify and strided layers, transposed convolutions, axes of one output, an explicit asymmetric pad right before,
    causal convolutions that cut off the end, fixed filters without parameters.

    ## References
    Wu, Wang, Tang, Chen, Shi 2019, Convolution with even-sized kernels and symmetric padding, arXiv:1903.08385, section
    3.1 (the shift problem).
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
            if conv is None or conv.transposed or conv.patchify or not call.parameters or self._trimmed(node):
                continue
            padded = self._padded(context, node)
            size = call.outputs[0][-len(conv.kernel) :]
            if any(
                k % 2 == 0 and s == 1 and n > 1 and axis - len(size) not in padded
                for axis, (k, s, n) in enumerate(zip(conv.kernel, conv.stride, size))
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

    def _padded(self, context: Context, node: Node) -> set[int]:
        """Axes, counted from the last (-1), that an explicit pad right before makes longer on one side."""
        source = main_input(node)
        call = source.meta.get(CALL) if source is not None else None
        if source is None or call is None or call.op != "pad":
            return set()
        if source.op == "call_module":
            amounts = context.graph.root[str(source.target)].padding
        else:
            amounts = source.args[1] if len(source.args) > 1 else source.kwargs.get("pad", ())
        return {-1 - i // 2 for i in range(0, len(amounts) - 1, 2) if amounts[i] != amounts[i + 1]}

    def _trimmed(self, node: Node) -> bool:
        """Whether all that reads the value cuts off an end of it, as causal convolutions do."""
        cuts = [u for u in node.users if u.meta.get(CALL) is not None and u.meta[CALL].op in ("getitem", "narrow")]
        return len(cuts) == len(node.users) > 0 and all(
            len(shape_of(u)) == len(shape_of(node)) and shape_of(u) != shape_of(node) for u in cuts
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """4×4 at stride 1; even on one axis."""
        from torch import nn

        image = ((1, 3, 8, 8),)
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 4, padding=1)), image, "4×4"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, (2, 3))), image, "2×3"),
            Example(lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 4)), image, "behind a symmetric pad"),
            Example(lambda: nn.Sequential(nn.Conv1d(3, 8, 2)), ((1, 3, 8),), "Conv1d"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Causal(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv1d(3, 8, 2, padding=1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.conv(x)[..., :-1]
                return value

        class Blur(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("filter", torch.ones(3, 1, 4, 4) / 16)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.conv2d(x, self.get_buffer("filter"), padding=2, groups=3)

        class Padded(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 8, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.conv(nn.functional.pad(x, (1, 2, 1, 2)))
                return value

        image = ((1, 3, 8, 8),)
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4)), image, "patchify"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1)), image, "stride 2"),
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 4)), image, "transposed"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 8)), image, "output 1×1"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, (8, 3))), image, "one output on the even axis"),
            Example(lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(3, 8, 4)), image, "an asymmetric pad"),
            Example(Padded, image, "a functional asymmetric pad"),
            Example(lambda: nn.Sequential(nn.MaxPool2d(2, 1)), image, "pooling"),
            Example(Causal, ((1, 3, 8),), "causal"),
            Example(Blur, image, "a fixed filter"),
        ]
