"""CNV207 dead-kernel-weights."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.graph import ConvConfig
    from convaudit.result import Finding


class DeadKernelWeights(Rule):
    """kernel taps that only ever meet zero padding

    ## What it does
    Works out, axis by axis, which taps of each convolution meet data at any output position, and counts the weights
    that never do. Speaks where they are 1% of the model's parameters or more.

    ## Why it matters
    Such weights get no gradient and change no output: a 3×3 on a 1×1 map uses one of its nine taps.

    ## Example
        an ImageNet ResNet-18 on 32×32: its last stage runs 3×3 convolutions on 1×1 maps

    ## Use instead
        fewer strides, a larger input, or 1×1 kernels where the map is one pixel

    ## Exceptions
    A kernel larger than its map is not enough: 3×3 with padding 1 on 2×2 uses every tap. Reflecting, replicating and
    circular padding, gates, and nets with attention.

    ## References
    Dumoulin, Visin 2016, A guide to convolution arithmetic for deep learning, arXiv:1603.07285, section 2.2 (zero
    padding, unit strides).
    """

    code = "CNV207"
    name = "dead-kernel-weights"
    needs_input_size = True
    changes_state_dict = True
    needs_complete = True

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such layers."""
        totals = context.graph.totals
        if totals is None or context.attends:
            return
        alive: dict[str, list[set[int]]] = {}
        convs: dict[str, ConvConfig] = {}
        for node, call in context.conv_calls:
            conv = call.conv
            if conv is None or node in context.gates or conv.padding_mode != "zeros" or not call.inputs:
                continue
            convs[call.layer] = conv
            met = live_taps(conv, conv.extent(call.inputs[0]), conv.extent(call.outputs[0]))
            known = alive.setdefault(call.layer, [set() for _ in conv.kernel])
            alive[call.layer] = [a | b for a, b in zip(known, met)]
        dead: dict[str, int] = {}
        for layer, conv in convs.items():
            weights = prod(conv.kernel) * conv.in_channels * conv.out_channels // conv.groups
            lost = weights - weights // prod(conv.kernel) * prod(map(len, alive[layer]))
            if lost:
                dead[layer] = lost
        total = sum(dead.values())
        if not total or total < 0.01 * totals.parameters:
            return
        layers = sorted(dead, key=lambda layer: -dead[layer])
        yield context.finding(
            f"{total:,} kernel weights ({total / totals.parameters:.1%} of the parameters) in {len(dead)} "
            f"layer{'s' * (len(dead) > 1)} only ever meet zero padding at this input size",
            layers,
            evidence={"dead_weights": dead, "share": total / totals.parameters},
            suggestion="downsample less, or use smaller kernels where the map is that small",
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """3×3 on 1×1; 4×4 stride 2 on 2×2; three taps on one frame; transposed."""
        from torch import nn

        return [
            Example(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), ((1, 8, 1, 1),), "3×3 on 1×1"),
            Example(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), ((8, 1, 1),), "no batch axis"),
            Example(lambda: nn.Sequential(nn.Conv2d(8, 8, 4, 2, 1)), ((1, 8, 2, 2),), "4×4 stride 2 on 2×2"),
            Example(lambda: nn.Sequential(nn.Conv3d(8, 8, 3, padding=1)), ((1, 8, 1, 8, 8),), "one frame"),
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3, padding=1)), ((1, 8, 1, 1),), "transposed"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Attends(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.mix, self.conv = nn.MultiheadAttention(8, 2, batch_first=True), nn.Conv1d(8, 8, 3, padding=1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.conv(self.mix(x, x, x)[0].mean(1)[:, :, None])
                return value

        def gate() -> nn.Module:
            class Gated(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.squeeze, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 3, padding=1)

                def forward(self, x: torch.Tensor) -> torch.Tensor:
                    gate: torch.Tensor = self.conv(self.squeeze(x)).sigmoid()
                    return x * gate

            return Gated()

        return [
            Example(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), ((1, 8, 2, 2),), "3×3 on 2×2"),
            Example(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), ((8, 2, 2),), "no batch axis"),
            Example(lambda: nn.Sequential(nn.Conv2d(8, 8, 5, padding=2)), ((1, 8, 4, 4),), "5×5 on 4×4"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate")),
                ((1, 8, 1, 1),),
                "replicate padding",
            ),
            Example(
                lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")),
                ((1, 8, 1, 1),),
                "circular padding",
            ),
            Example(gate, ((1, 8, 8, 8),), "a gate"),
            Example(Attends, ((1, 4, 8),), "attention"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(8, 256, 8), nn.Conv2d(256, 4, 1), nn.Conv2d(4, 4, 3, padding=1)),
                ((1, 8, 8, 8),),
                "under 1%",
            ),
        ]


def live_taps(conv: ConvConfig, size: tuple[int, ...], output: tuple[int, ...]) -> list[set[int]]:
    """Per axis, the taps that meet data at one output position or more (padding is not data)."""
    taps = []
    for axis, kernel in enumerate(conv.kernel):
        stride, dilation, low = conv.stride[axis], conv.dilation[axis], conv.padding[axis][0]
        moved, fixed = (size[axis], output[axis]) if conv.transposed else (output[axis], size[axis])
        taps.append(
            {t for t in range(kernel) if any(0 <= i * stride - low + t * dilation < fixed for i in range(moved))}
        )
    return taps
