"""CNV206 receptive-field-exceeds-input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.graph import main_input
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding


class ReceptiveFieldExceedsInput(Rule):
    """layers whose input has already seen the whole image

    ## What it does
    Finds backbone convolutions of a classifier whose incoming receptive field, along the path with the smallest one,
    covers the input on every axis already. A warning where they hold half of the backbone's conv parameters, 1×1
    convolutions counted and not (those look for no context).

    ## Why it matters
    Depth there adds no new context; trained nets solve the task before these layers, which then only pass it on.

    ## Example
        VGG16 on 32×32: 92% of its conv parameters lie behind a receptive field of 32

    ## Use instead
        fewer layers or strides at this size, or a larger input

    ## Exceptions
    Attention, decoders, outputs per pixel, 1×1 maps, gates, vector inputs.

    ## References
    Richter, Schöning, Wiedenroth, Krumnack 2021, Should You Go Deeper? Optimizing Convolutional Neural Network
    Architectures without Training by Receptive Field Analysis, arXiv:2106.12307 (the border layer).
    """

    code = "CNV206"
    name = "receptive-field-exceeds-input"
    severity = "info"
    needs_input_size = True
    changes_state_dict = True
    needs_complete = True

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding."""
        image = context.image_size
        if not context.is_classifier or len(image) < 2 or context.attends:
            return
        if max(image) <= 1:
            return
        held: dict[str, int] = {}
        idle: dict[str, tuple[float, ...]] = {}
        parameters = context.graph.parameters
        for conv in context.backbone:
            if conv.node in context.outputs or set(conv.resolution) == {1}:
                continue  # the head, or a Linear written as a convolution
            held[conv.call.layer] = sum(parameters[p].numel() for p in conv.call.parameters if p in parameters)
            source = main_input(conv.node)
            field = context.receptive_fields.get(source) if source is not None else None
            if field is None or field.small is None or len(field.small) != len(image):
                continue
            if all(extent >= side for extent, side in zip(field.small, image)):
                idle[conv.call.layer] = field.small
        if not idle:
            return
        share = sum(held[layer] for layer in idle) / max(1, sum(held.values()))
        wide = {conv.call.layer for conv in context.backbone if max(conv.conv.kernel) > 1 and not conv.conv.depthwise}
        context_share = sum(held[k] for k in idle if k in wide) / max(1, sum(n for k, n in held.items() if k in wide))
        needed = [int(max(field[axis] for field in idle.values())) + 1 for axis in range(len(image))]
        loud = min(share, context_share) >= 0.5
        yield context.finding(
            f"{len(idle)} convolution{'s' * (len(idle) > 1)} with {share:.0%} of the backbone's conv parameters read maps "
            f"that have seen all of {'×'.join(map(str, image))} already; all are productive from {'×'.join(map(str, needed))}",
            list(idle),
            severity="warning" if loud else "info",
            evidence={
                "share": share,
                "incoming": {k: [int(v) for v in f] for k, f in idle.items()},
                "input_needed": needed,
            },
            suggestion="fewer layers or strides at this input size, or a larger input",
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """A plain net that covers 31×31 early (warning); late, in a small layer, and by 1×1 kernels alone (info)."""
        from torch import nn

        def net(late: int) -> nn.Module:
            pairs = [(3, 32), (32, 32), (32, 32), (32, late)]
            convs = [layer for a, b in pairs for layer in (nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())]
            tail = [nn.Conv2d(late, late, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(late, 10)]
            return nn.Sequential(*convs, *tail)

        pointwise = [nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
        return [
            Example(lambda: net(256), ((1, 3, 31, 31),), "most of the parameters"),
            Example(lambda: net(8), ((1, 3, 31, 31),), "few of them"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 8, 31, padding=15), *pointwise), ((1, 3, 31, 31),), "1×1 kernels"
            ),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 31, padding=15), nn.Linear(8, 10)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.stem(x)
                for _ in range(3):
                    x = x + self.conv(x).relu()
                value: torch.Tensor = self.head(x.mean((2, 3)))
                return value

        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
                self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv(x)
                x = x * self.gate(x).sigmoid()
                value: torch.Tensor = self.head(x.mean((2, 3)))
                return value

        class Attends(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.mix = nn.Conv2d(3, 8, 31, padding=15), nn.MultiheadAttention(8, 2, batch_first=True)
                self.conv, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                tokens = self.conv(self.stem(x)).flatten(2).transpose(1, 2)
                value: torch.Tensor = self.head(self.mix(tokens, tokens, tokens)[0].mean(1))
                return value

        big = [nn.Conv2d(3, 8, 31, padding=15), nn.Conv2d(8, 8, 3, padding=1)]
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8, 10)]
        upsampled = [nn.Conv2d(3, 8, 31, padding=15), nn.MaxPool2d(2), nn.Upsample(scale_factor=2), big[1]]
        projected = [nn.Flatten(), nn.Linear(192, 512), nn.Unflatten(1, (8, 8, 8)), big[1]]
        clip = [nn.Conv3d(3, 8, 7, padding=3), nn.Conv3d(8, 8, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten()]
        return [
            Example(Residual, ((1, 3, 31, 31),), "the smallest path skips"),
            Example(lambda: nn.Sequential(*big), ((1, 3, 31, 31),), "an output per pixel"),
            Example(lambda: nn.Sequential(big[0], *pooled), ((1, 3, 31, 31),), "1×1 maps"),
            Example(lambda: nn.Sequential(*big, *pooled), ((1, 3, 31, 64),), "covered on one axis only"),
            Example(lambda: nn.Sequential(*clip), ((1, 3, 4, 32, 32),), "covered in time only"),
            Example(lambda: nn.Sequential(*upsampled, *pooled), ((1, 3, 31, 31),), "behind an upsampling"),
            Example(lambda: nn.Sequential(*projected, *pooled), ((1, 3, 8, 8),), "behind a Linear"),
            Example(Gated, ((1, 3, 8, 8),), "a gate"),
            Example(Attends, ((1, 3, 31, 31),), "attention"),
            Example(lambda: nn.Sequential(big[1], *pooled), ((1, 8, 1, 1),), "an input of one pixel"),
        ]
