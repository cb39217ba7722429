"""CNV201 large-kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.graph import Call, ConvConfig
    from convaudit.result import Finding
    from convaudit.rewrite import Rewrite


class LargeKernel(Rule):
    """one large kernel where stacked 3×3 convolutions would do

    ## What it does
    Finds a dense convolution with a square odd kernel of 5 to 11 (dilation 1, 16 or more channels on both sides)
    that a row of (k-1)/2 3×3 convolutions replaces with the same receptive field, stride and output shape. It
    speaks only where that saves 10% of the layer's parameters and of its MACs; both are measured on the rewritten graph.

    ## Why it matters
    Two 3×3 layers see 5×5 with 18 weights a channel pair in place of 25, and add a nonlinearity.

    ## Example
        nn.Conv2d(128, 256, 5, padding=2)      # 819,456 parameters

    ## Use instead
        nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 256, 3, padding=1)      # 442,752

    ## Exceptions
    Depthwise, patchify, even, non-square, transposed and dilated kernels, Conv1d, output layers, 1×1 outputs.

    ## References
    Simonyan, Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv:1409.1556,
    section 2.3.

    Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2016, Rethinking the Inception Architecture for Computer Vision,
    arXiv:1512.00567, section 3.1.
    """

    code = "CNV201"
    name = "large-kernel"
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such layers."""
        found: list[tuple[Node, Call, ConvConfig]] = []
        seen: set[str] = set()
        for node, call in context.conv_calls:
            conv = call.conv
            if (
                conv is None
                or node.op != "call_module"
                or call.layer in seen
                or not self._fits(context, node, call, conv)
            ):
                continue
            seen.add(call.layer)
            found.append((node, call, conv))
        if not found:
            return
        replaced = {call.layer: conv for _, call, conv in found}

        def rewrite(attempt: Rewrite) -> None:
            stacks = {layer: stack_of_3x3(conv) for layer, conv in replaced.items()}  # a layer called twice stays one
            for node, call in context.conv_calls:
                if call.layer in replaced and node.op == "call_module":
                    attempt.replace(node, stacks[call.layer])

        saving = context.prove("stack3x3:" + ",".join(replaced), rewrite)
        saves = saving is not None and saving.parameters[1] < saving.parameters[0]
        _, call, conv = found[0]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        count = (conv.kernel[0] - 1) // 2
        yield context.finding(
            f"{'×'.join(map(str, conv.kernel))} convolution {conv.in_channels}→{conv.out_channels}{more}: {count} stacked "
            f"{'×'.join('3' * len(conv.kernel))} see as much for less",
            [c.layer for _, c, _ in found],
            severity=None if saves else "info",
            saving=saving if saves else None,
            evidence={"layers": {c.layer: [k.in_channels, k.out_channels, *k.kernel] for _, c, k in found}},
            suggestion=f"{count} 3-wide convolutions in a row, {min(conv.in_channels, conv.out_channels)} channels between",
        )

    def _fits(self, context: Context, node: Node, call: Call, conv: ConvConfig) -> bool:
        kernel = conv.kernel
        axes = len(kernel)
        if axes < 2 or conv.transposed or conv.groups != 1 or len(set(kernel)) != 1 or kernel[0] % 2 == 0:
            return False
        if not 5 <= kernel[0] <= 11 or set(conv.dilation) != {1} or min(conv.in_channels, conv.out_channels) < 16:
            return False
        output = call.outputs[0][2:]
        if conv.patchify or all(n == 1 for n in output) or node in context.outputs:
            return False
        stack = stack_geometry(conv, call.inputs[0][2:])
        own = conv.in_channels * conv.out_channels * kernel[0] ** axes
        parameters = sum(i * o for i, o, _ in stack) * 3**axes
        own_macs = own * _area(output)
        macs = sum(i * o * _area(size) for i, o, size in stack) * 3**axes
        return bool(parameters <= 0.9 * own and macs <= 0.9 * own_macs)

    @classmethod
    def bad(cls) -> list[Example]:
        """5×5, 7×7, 11×11 and 5×5×5 between other convolutions; little padding; a stride."""
        from torch import nn

        return [
            Example(
                lambda: nn.Sequential(nn.Conv2d(128, 256, 5, padding=2), nn.ReLU(), nn.Conv2d(256, 8, 1)),
                ((1, 128, 16, 16),), "5×5",
            ),
            Example(
                lambda: nn.Sequential(nn.Conv2d(64, 64, 7, padding=3), nn.ReLU(), nn.Conv2d(64, 8, 1)), ((1, 64, 32, 32),),
                "7×7",
            ),
            Example(
                lambda: nn.Sequential(nn.Conv3d(32, 32, 5, padding=2), nn.ReLU(), nn.Conv3d(32, 8, 1)), ((1, 32, 8, 8, 8),),
                "5×5×5",
            ),
            Example(lambda: nn.Sequential(nn.Conv2d(64, 64, 11, padding=5), nn.Conv2d(64, 8, 1)), ((1, 64, 32, 32),), "11×11"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(64, 64, 7, padding=1), nn.Conv2d(64, 8, 1)), ((1, 64, 32, 32),),
                "little padding",
            ),
            Example(
                lambda: nn.Sequential(nn.Conv2d(16, 256, 5, 2, 2), nn.Conv2d(256, 8, 1)), ((1, 16, 32, 32),), "stride 2"
            ),
        ]  # fmt: skip

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        from torch import nn

        def between(conv: nn.Module, channels: int = 64) -> nn.Module:
            return nn.Sequential(conv, nn.ReLU(), nn.Conv2d(channels, 8, 1))

        shape = ((1, 64, 16, 16),)
        return [
            Example(lambda: between(nn.Conv2d(64, 64, 5, padding=2, groups=64)), shape, "depthwise"),
            Example(lambda: between(nn.Conv2d(64, 64, 7, 7)), ((1, 64, 28, 28),), "patchify"),
            Example(lambda: between(nn.Conv2d(64, 64, (1, 7), padding=(0, 3))), shape, "1×k"),
            Example(lambda: between(nn.Conv2d(64, 64, (7, 1), padding=(3, 0))), shape, "k×1"),
            Example(lambda: between(nn.Conv2d(64, 64, 13, padding=6)), shape, "over 11"),
            Example(lambda: between(nn.Conv2d(64, 64, (7, 5))), shape, "not square"),
            Example(lambda: between(nn.Conv2d(64, 64, 6)), shape, "even"),
            Example(lambda: between(nn.ConvTranspose2d(64, 64, 5)), shape, "transposed"),
            Example(lambda: between(nn.Conv2d(64, 64, 5, dilation=2)), shape, "dilated"),
            Example(lambda: nn.Sequential(nn.Conv1d(64, 64, 5), nn.Conv1d(64, 8, 1)), ((1, 64, 16),), "Conv1d"),
            Example(lambda: nn.Sequential(nn.Conv2d(64, 64, 7, padding=3)), shape, "an output convolution"),
            Example(lambda: between(nn.Conv2d(64, 3, 7, padding=3), 3), shape, "too few channels"),
            Example(lambda: between(nn.Conv2d(3, 64, 7, padding=3)), ((1, 3, 16, 16),), "too few channels in"),
            Example(lambda: between(nn.Conv2d(64, 64, 5)), ((1, 64, 5, 5),), "output 1×1"),
            Example(lambda: between(nn.Conv2d(24, 36, 5, 2), 36), ((1, 24, 31, 98),), "strided: MACs would rise"),
        ]


def _area(size: tuple[int, ...]) -> int:
    total = 1
    for n in size:
        total *= n
    return total


def stack_geometry(conv: ConvConfig, size: tuple[int, ...]) -> list[tuple[int, int, tuple[int, ...]]]:
    """(in, out, output size) of each 3-wide convolution of the stack that replaces ``conv`` on a map of ``size``."""
    count = (conv.kernel[0] - 1) // 2
    inner = min(conv.in_channels, conv.out_channels)
    left = [low for low, _ in conv.padding]
    rows, inward = [], conv.in_channels
    for index in range(count):
        last = index == count - 1
        pads = _share_padding(left, count - index)
        steps = conv.stride if last else (1,) * len(size)
        size = tuple((n + 2 * p - 3) // s + 1 for n, p, s in zip(size, pads, steps))
        outward = conv.out_channels if last else inner
        rows.append((inward, outward, size))
        inward = outward
    return rows


def _share_padding(left: list[int], layers: int) -> list[int]:
    """One pixel a layer, the earliest first; the last takes what is left. Updates ``left``."""
    taken = [p if layers == 1 else min(1, p) for p in left]
    for axis, amount in enumerate(taken):
        left[axis] -= amount
    return taken


def stack_of_3x3(conv: ConvConfig) -> list[nn.Module]:
    """The modules of :func:`stack_geometry` on meta, a ReLU between."""
    from torch import nn

    kinds: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
    make = kinds[len(conv.kernel)]
    count = (conv.kernel[0] - 1) // 2
    inner = min(conv.in_channels, conv.out_channels)
    left = [low for low, _ in conv.padding]
    modules: list[nn.Module] = []
    inward = conv.in_channels
    for index in range(count):
        last = index == count - 1
        outward = conv.out_channels if last else inner
        stride = conv.stride if last else 1
        padding = tuple(_share_padding(left, count - index))
        modules.append(make(inward, outward, 3, stride=stride, padding=padding, bias=conv.bias, device="meta"))
        if not last:
            modules.append(nn.ReLU(inplace=True))
        inward = outward
    return modules
