"""CNV103 low-conv-parameter-share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.context import Context
    from convaudit.result import Finding
    from convaudit.rewrite import Rewrite


class LowConvParameterShare(Rule):
    """most parameters of a convolutional net are in its fully connected layers

    ## What it does
    Compares parameters of convolutions and fully connected layers: below half in convolutions, with 100,000 or more
    fully connected, is a finding at the largest of these layers. Offers global pooling, measured. Info where only a
    state_dict is known.

    ## Why it matters
    Weights in a Linear are used once an image, those of a convolution at every position: the capacity is paid for
    where it generalises least.

    ## Example
        VGG16: 14.7M parameters in convolutions, 123.6M in three Linear layers

    ## Use instead
        global average pooling and one Linear

    ## Exceptions
    Models without convolutions, transformers. Info where every Linear reads a pooled vector: then it is only a head.

    ## References
    Lin, Chen, Yan 2014, Network In Network, arXiv:1312.4400, section 3.2.

    Simonyan, Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv:1409.1556, table
    2.
    """

    code = "CNV103"
    name = "low-conv-parameter-share"
    changes_state_dict = True
    needs_complete = True

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding."""
        graph = context.graph
        if context.has_attention:
            return
        conv = sum(row.parameters for row in graph.layers if row.kind == "conv")
        layers = {layer.call.layer: layer for layer in context.fc_layers if not layer.cell}
        fc = sum(layer.weights + layer.out_features * layer.call.biased for layer in layers.values())
        if not _low(conv, fc):
            return
        largest = max(layers.values(), key=lambda layer: layer.weights)
        flattens = dict.fromkeys(f for layer in context.fc_layers if layer.positions > 1 for f in layer.flattens)
        saving = None
        if flattens:

            def rewrite(attempt: Rewrite) -> None:
                for flatten in flattens:
                    attempt.pool(flatten, 1)

            saving = context.prove("pool-all", rewrite)
        yield context.finding(
            _message(conv, fc),
            [largest.call.layer],
            severity="warning" if flattens else "info",
            saving=saving,
            evidence=_evidence(conv, fc),
            suggestion=_suggestion(bool(flattens)),
        )

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """At most one finding, where every Linear is of the head."""
        head, conv, fc = context.architecture.head, context.architecture.conv_parameters, context.architecture.fc_parameters
        if head is None or fc is None or not _low(conv, fc):
            return
        largest = max(head.layers, key=lambda layer: layer.weights)
        yield context.from_shapes(
            _message(conv, fc), [largest.name], evidence=_evidence(conv, fc), suggestion=_suggestion(head.side > 1)
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """A large Linear behind a small convolution; a pooled head, one on a 1×1 map (info)."""
        from torch import nn

        return [
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(7200, 64)), ((1, 3, 32, 32),)),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2000)),
                ((1, 3, 32, 32),), "a pooled head",
            ),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 64, 8), nn.Flatten(), nn.Linear(64, 2000)), ((1, 3, 8, 8),), "a 1×1 map"
            ),
        ]  # fmt: skip

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 512, 1)
                self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 512), nn.Sigmoid())

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv(x)
                gated: torch.Tensor = x * self.gate(x)[:, :, None, None]
                return gated.mean((2, 3))

        class ConvGated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 256, 1), nn.Linear(256, 500)
                self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(256, 512, 1), nn.Conv2d(512, 256, 1))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv(x)
                x = x * self.gate(x).sigmoid()
                value: torch.Tensor = self.head(x.mean((2, 3)))
                return value

        image = ((1, 3, 32, 32),)
        attention = nn.TransformerEncoderLayer(64, 4, 2048, batch_first=True)
        transformer = [nn.Conv2d(3, 64, 8, 8), nn.Flatten(2), nn.Unflatten(1, (16, 4)), nn.Flatten(2), attention]
        generator = [nn.Linear(100, 128 * 16), nn.Unflatten(1, (128, 4, 4)), nn.Conv2d(128, 3, 3)]
        return [
            Example(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 100)), image, "no convolution"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(7200, 10)), image, "under 100,000"
            ),
            Example(lambda: nn.Sequential(*transformer, nn.Flatten(), nn.Linear(1024, 200)), image, "a transformer"),
            Example(Gated, image, "a gate's Linear counts on neither side"),
            Example(ConvGated, image, "a gate's convolutions count"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.GRUCell(7200, 10)), image, "an RNN cell"
            ),
            Example(lambda: nn.Sequential(*generator), ((1, 100),), "a generator's projection"),
        ]


def _low(conv: int, fc: int) -> bool:
    return bool(conv) and fc >= 100_000 and conv < 0.5 * (conv + fc)


def _message(conv: int, fc: int) -> str:
    return f"convolutions hold {conv / (conv + fc):.1%} of {conv + fc:,} conv and FC parameters; {fc:,} are fully connected"


def _evidence(conv: int, fc: int) -> dict[str, float]:
    return {"conv_parameters": conv, "fc_parameters": fc, "share": conv / (conv + fc)}


def _suggestion(flattens: bool) -> str:
    return "pool the last map globally before the first Linear" if flattens else "a smaller head, or none"
