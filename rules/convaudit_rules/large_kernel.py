"""CNV201 large-kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import Node

    from convaudit.checkpoints.architecture import Architecture, Layer
    from convaudit.checkpoints.audit import CheckpointContext
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
    Info where only a state_dict is known: it tells no MACs.

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
        conv = found[0][2]
        yield context.finding(
            _message(conv.kernel, conv.in_channels, conv.out_channels, len(found) - 1),
            [c.layer for _, c, _ in found],
            severity=None if saves else "info",
            saving=saving if saves else None,
            evidence={"layers": {c.layer: [k.in_channels, k.out_channels, *k.kernel] for _, c, k in found}},
            suggestion=_suggestion(conv.kernel, conv.in_channels, conv.out_channels),
        )

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding for the file; strides and dilations are not known, so that only parameters are compared."""
        architecture = context.architecture
        last = max((i for i, conv in enumerate(architecture.convs) if set(conv.kernel) != {1}), default=-1)
        disguised = last + 1 < len(architecture.convs)  # what only 1×1 follow may be an FC layer written as a convolution
        turned = any(conv.transposed for conv in architecture.convs)
        found = [
            layer for i, layer in enumerate(architecture.convs)
            if self._large(architecture, layer, turned=turned) and not (i == last and disguised)
        ]  # fmt: skip
        if not found:
            return
        inward, outward = found[0].inward or 0, found[0].outward or 0
        yield context.from_shapes(
            _message(found[0].kernel, inward, outward, len(found) - 1),
            [layer.name for layer in found],
            evidence={"layers": {layer.name: [layer.inward, layer.outward, *layer.kernel] for layer in found}},
            suggestion=_suggestion(found[0].kernel, inward, outward),
        )

    def _large(self, architecture: Architecture, layer: Layer, *, turned: bool) -> bool:
        """Whether a convolution that is certainly dense, and no output, fits; ``turned``: there are transposed ones."""
        inward, outward = layer.inward or 0, layer.outward or 0
        if not _fitting(layer.kernel, inward, outward) or layer.grouped:
            return False
        told = layer.transposed is False or (layer.transposed is None and inward == outward and not turned)
        inner, count = min(inward, outward), (layer.kernel[0] - 1) // 2
        stack = (inward * inner + (count - 2) * inner * inner + inner * outward) * 3 ** len(layer.kernel)
        return told and stack <= 0.9 * layer.weights and architecture.made(inward, but=layer) and architecture.read(outward, but=layer)

    def _fits(self, context: Context, node: Node, call: Call, conv: ConvConfig) -> bool:
        kernel = conv.kernel
        axes = len(kernel)
        if conv.transposed or conv.groups != 1 or set(conv.dilation) != {1}:
            return False
        if not _fitting(kernel, conv.in_channels, conv.out_channels):
            return False
        output = conv.extent(call.outputs[0])
        if conv.patchify or all(n == 1 for n in output) or node in context.outputs:
            return False
        stack = stack_geometry(conv, conv.extent(call.inputs[0]))
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


def _fitting(kernel: tuple[int, ...], inward: int, outward: int) -> bool:
    """Whether a kernel is square, odd and of 5 to 11, between enough channels."""
    odd = len(kernel) > 1 and len(set(kernel)) == 1 and kernel[0] % 2 == 1
    return odd and 5 <= kernel[0] <= 11 and min(inward, outward) >= 16


def _message(kernel: tuple[int, ...], inward: int, outward: int, others: int) -> str:
    more = f" and {others} more" if others else ""
    size, small = "×".join(map(str, kernel)), "×".join("3" * len(kernel))
    return f"{size} convolution {inward}→{outward}{more}: {(kernel[0] - 1) // 2} stacked {small} see as much for less"


def _suggestion(kernel: tuple[int, ...], inward: int, outward: int) -> str:
    return f"{(kernel[0] - 1) // 2} 3-wide convolutions in a row, {min(inward, outward)} channels between"


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
