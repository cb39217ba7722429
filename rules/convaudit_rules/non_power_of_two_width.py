"""CNV301 non-power-of-two-width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convaudit.graph import CALL
from convaudit.rule import Example, Options, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.context import Context
    from convaudit.graph import Call
    from convaudit.result import Finding


@dataclass(frozen=True)
class NonPowerOfTwoWidthOptions(Options):
    """``width_multiple``: 0 for powers of two; 8 makes "multiple of 8" the policy."""

    width_multiple: int = 0


class NonPowerOfTwoWidth(Rule):
    """hidden widths are not powers of two

    ## What it does
    Lists hidden convolution and FC widths that are not powers of two (or not multiples of `width-multiple`), with the
    nearest widths. One finding a model. Of a state_dict alone: those that another convolution reads as a whole.

    ## Why it matters
    Matrix units work in tiles: a width just above a multiple pays for a whole tile more.

    ## Example
        nn.Conv2d(64, 100, 3)

    ## Use instead
        nn.Conv2d(64, 96, 3) or nn.Conv2d(64, 128, 3)

    ## Exceptions
    Model inputs and outputs, depthwise convolutions, widths under 8, pointwise projections, frozen layers, widths
    that are concatenated, split or sliced on their way.

    ## References
    NVIDIA, Matrix Multiplication Background User's Guide, sections "Tensor Core Requirements" and "Tile Quantization",
    https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html
    """

    code = "CNV301"
    name = "non-power-of-two-width"
    severity = "info"
    changes_state_dict = True
    options = NonPowerOfTwoWidthOptions

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding."""
        options = context.options
        assert isinstance(options, NonPowerOfTwoWidthOptions)
        multiple = options.width_multiple
        fc = {layer.node: layer for layer in context.fc_layers if not layer.cell}
        parameters = context.graph.parameters
        odd: dict[str, int] = {}
        for node, call in context.graph.calls:
            if call.conv is not None:
                width = call.conv.out_channels
                skip = call.conv.groups > 1 and call.conv.groups == call.conv.in_channels
            elif node in fc:
                width, skip = fc[node].out_features, False
            else:
                continue
            if skip or _fine(width, multiple) or node in context.outputs or self._scores(node):
                continue
            if any(p in parameters and not parameters[p].requires_grad for p in call.parameters) or self._cut(node):
                continue
            small_map = all(n == 1 for n in call.outputs[0][2:])
            if small_map and call.conv is not None and width < 32:
                continue  # a gate's squeeze
            odd.setdefault(call.layer, width)
        if odd:
            message, evidence, suggestion = _said(odd, multiple)
            yield context.finding(
                message, list(odd), severity="warning" if multiple else None, evidence=evidence, suggestion=suggestion
            )

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """At most one finding: widths that another convolution, or the head, reads as a whole."""
        options, architecture = context.options, context.architecture
        assert isinstance(options, NonPowerOfTwoWidthOptions)
        hidden = [*architecture.convs, *(architecture.head.layers[:-1] if architecture.head else ())]
        odd: dict[str, int] = {}
        for layer in hidden if len(architecture.convs) > 1 else ():
            width = layer.outward or 0
            squeeze = width < 32 and set(layer.kernel) == {1}
            if not layer.grouped and not squeeze and not _fine(width, options.width_multiple) and architecture.read(width, but=layer):
                odd[layer.name] = width
        if odd:
            message, evidence, suggestion = _said(odd, options.width_multiple)
            yield context.from_shapes(message, list(odd), evidence=evidence, suggestion=suggestion)

    def _scores(self, node: Node) -> bool:
        """Whether no weighted layer reads the value: it leaves the model, averaged or pooled perhaps."""
        queue, seen = [node], {node}
        while queue:
            for user in queue.pop().users:
                call = user.meta.get(CALL)
                if call is not None and call.kind in ("conv", "linear", "matmul", "attention", "recurrent"):
                    return False
                if user not in seen:
                    seen.add(user)
                    queue.append(user)
        return True

    def _cut(self, node: Node) -> bool:
        """Whether the width is concatenated, split, sliced or shuffled before a weighted layer reads it."""
        queue, seen = [node], {node}
        while queue:
            for user in queue.pop().users:
                call = user.meta.get(CALL)
                if user in seen or call is None:
                    continue
                seen.add(user)
                if call.op in _CUTTING and not _crops(call):
                    return True
                if call.kind in _KEEPING or _crops(call):
                    queue.append(user)
        return False

    @classmethod
    def bad(cls) -> list[Example]:
        """A convolution of width 100; a hidden Linear of width 300; a causal convolution; a policy of eights."""
        import torch
        from torch import nn

        class Crop(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x[:, :, :-2]

        head = [nn.Flatten(), nn.Linear(8 * 900, 300), nn.ReLU(), nn.Linear(300, 10)]
        image = ((1, 3, 32, 32),)
        eights = {"rules": {"CNV301": {"width-multiple": 8}}}
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 100, 3), nn.ReLU(), nn.Conv2d(100, 10, 1)), image, "conv"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), *head), image, "hidden Linear"),
            Example(
                lambda: nn.Sequential(nn.Conv1d(3, 100, 3, padding=2), Crop(), nn.Conv1d(100, 8, 1)), ((1, 3, 32),),
                "cropped along time",
            ),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 100, 3), nn.Conv2d(100, 10, 1)), image, "no multiple of 8", eights
            ),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Joined(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.left, self.right, self.mix = nn.Conv2d(3, 24, 1), nn.Conv2d(3, 40, 1), nn.Conv2d(64, 10, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.mix(torch.cat([self.left(x).relu(), self.right(x)], 1))
                return value

        class Parted(nn.Module):
            def __init__(self, part: Callable[[torch.Tensor], torch.Tensor]) -> None:
                super().__init__()
                self.conv, self.part, self.head = nn.Conv2d(3, 96, 1), part, nn.Conv2d(64, 10, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.head(self.part(self.conv(x).relu()))
                return value

        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                squeeze = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 20, 1), nn.ReLU(), nn.Conv2d(20, 64, 1), nn.Sigmoid()]
                self.conv, self.gate, self.head = nn.Conv2d(3, 64, 3), nn.Sequential(*squeeze), nn.Conv2d(64, 10, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv(x)
                value: torch.Tensor = self.head(x * self.gate(x))
                return value

        class TwoHeads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.first, self.second = nn.Conv2d(3, 64, 3), nn.Linear(64, 100), nn.Linear(64, 100)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv(x).mean((2, 3))
                value: torch.Tensor = (self.first(x) + self.second(x)) / 2
                return value

        def frozen() -> nn.Module:
            conv = nn.Conv2d(3, 100, 3).requires_grad_(False)
            return nn.Sequential(conv, nn.Conv2d(100, 10, 1))

        image = ((1, 3, 32, 32),)
        depthwise = nn.Conv2d(24, 24, 3, groups=24)
        eights = {"rules": {"CNV301": {"width-multiple": 8}}}
        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 10, 1)), image, "inputs and outputs"),
            Example(TwoHeads, image, "two heads averaged"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 100, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), image,
                "scores pooled",
            ),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 27, 3), nn.PixelShuffle(3)), image, "before PixelShuffle"),
            Example(lambda: nn.Sequential(depthwise, nn.Conv2d(24, 8, 1)), ((1, 24, 32, 32),), "depthwise"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 10, 1)), image, "under 8"),
            Example(Gated, image, "a gate's squeeze"),
            Example(frozen, image, "frozen"),
            Example(lambda: nn.Sequential(nn.Linear(32, 100), nn.Linear(100, 32)), ((1, 16, 32),), "pointwise projections"),
            Example(Joined, image, "concatenated"),
            Example(lambda: Parted(lambda x: torch.split(x, [64, 32], 1)[0]), image, "split"),
            Example(lambda: Parted(lambda x: x[:, :64]), image, "sliced"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 100)), image,
                "a class count",
            ),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 96, 3), nn.Conv2d(96, 10, 1)), image, "a multiple of 8", eights),
        ]  # fmt: skip


def _fine(width: int, multiple: int) -> bool:
    """Whether a width is what the policy wants, or too small to matter."""
    return width < 8 or (width % multiple == 0 if multiple else width & (width - 1) == 0)


def _said(odd: dict[str, int], multiple: int) -> tuple[str, dict[str, Any], str]:
    """Message, evidence and suggestion for layers of odd widths."""
    widths = sorted(set(odd.values()))
    policy = f"multiples of {multiple}" if multiple else "powers of two"
    near = {
        w: [w // multiple * multiple, -(-w // multiple) * multiple]
        if multiple
        else [1 << (w.bit_length() - 1), 1 << w.bit_length()]
        for w in widths
    }
    return (
        f"{len(odd)} layer{'s' * (len(odd) > 1)} with widths that are not {policy}: {', '.join(map(str, widths[:8]))}{', …' * (len(widths) > 8)}",
        {"widths": odd, "nearest": {str(w): n for w, n in near.items()}},
        "; ".join(f"{w}: {low} or {high}" for w, (low, high) in list(near.items())[:4]),
    )


_CUTTING = ("cat", "stack", "chunk", "split", "getitem", "pixel_shuffle", "narrow", "unbind", "tensor_split")
_KEEPING = ("activation", "norm", "dropout", "elementwise", "reduce", "pool", "reshape", "upsample")


def _crops(call: Call) -> bool:
    """Whether a slice leaves the channels as they are: it takes positions off, as a causal convolution's does."""
    if call.op not in ("getitem", "narrow") or len(call.inputs) != 1 or len(call.outputs) != 1:
        return False
    before, after = call.inputs[0], call.outputs[0]
    return len(before) == len(after) > 2 and before[1] == after[1]
