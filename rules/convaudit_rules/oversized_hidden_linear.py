"""CNV104 oversized-hidden-linear."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.context import Context
    from convaudit.result import Finding
    from convaudit.rewrite import Rewrite


class OversizedHiddenLinear(Rule):
    """a hidden fully connected layer holds millions of weights

    ## What it does
    Finds a hidden Linear after another fully connected layer with 1,000,000 weights or more, or on a pooled vector
    with 4,000,000 or more, in a net with convolutions. The saving is the model without it, retraced. Info where only a
    state_dict is known.

    ## Why it matters
    Behind the first fully connected layer there is no spatial structure left to use; later nets do without.

    ## Example
        nn.Linear(4096, 4096)     # between two others, as in VGG

    ## Use instead
        one Linear from the features to the classes

    ## Exceptions
    The head, that of training alone as well, layers whose value is also an output, nets without convolutions.

    ## References
    Simonyan, Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv:1409.1556, table
    1 (FC-4096 twice).

    He, Zhang, Ren, Sun 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385, table 1 (none).
    """

    code = "CNV104"
    name = "oversized-hidden-linear"
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for each layer."""
        if not context.conv_calls:
            return
        for layer in {layer.call.layer: layer for layer in context.fc_layers}.values():
            if layer.cell or layer.is_head or layer.positions > 1 or layer.weights < _least(after_fc=layer.after_fc):
                continue
            if not context.reaches_output(layer.node):  # the head of training, run and dropped
                continue
            nodes = [other.node for other in context.fc_layers if other.call.layer == layer.call.layer]

            def without(attempt: Rewrite, nodes: list[Node] = nodes) -> None:
                for node in nodes:
                    attempt.replace(node, [])

            saving = context.prove(f"remove:{layer.call.layer}", without)
            saves = saving is not None and saving.parameters[1] < saving.parameters[0]
            yield context.finding(
                f"hidden {layer.call.label} {layer.in_features:,}→{layer.out_features:,} {_holds(layer.weights)}",
                [layer.call.layer],
                severity=None if saves else "info",
                saving=saving if saves else None,
                evidence={"weights": layer.weights},
                suggestion=_SUGGESTION,
            )

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding for each layer between the first and the last of the head, and for a large first one."""
        head = context.architecture.head
        for place, layer in enumerate(head.layers[:-1] if head else ()):
            if layer.weights >= _least(after_fc=place > 0) and (place or head is None or head.side == 1):
                yield context.from_shapes(
                    f"hidden {layer.op} {_holds(layer.weights)}", [layer.name], evidence={"weights": layer.weights}, suggestion=_SUGGESTION
                )

    @classmethod
    def bad(cls) -> list[Example]:
        """A second hidden layer; a first one of four million weights on a pooled vector, on a 1×1 map."""
        from torch import nn

        def net(*widths: int) -> nn.Module:
            pairs = zip(widths, [*widths[1:], 10])
            head = [layer for a, b in pairs for layer in (nn.Linear(a, b), nn.ReLU())][:-1]
            return nn.Sequential(nn.Conv2d(3, widths[0], 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)

        image = ((1, 3, 32, 32),)
        return [
            Example(lambda: net(8, 1024, 1024), image, "behind another"),
            Example(lambda: net(1024, 4096), image, "on a pooled vector"),
            Example(
                lambda: nn.Sequential(
                    nn.Conv2d(3, 1024, 8), nn.Flatten(), nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 10)
                ),
                ((1, 3, 8, 8),),
                "on a 1×1 map",
            ),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.first = nn.Conv2d(3, 8, 3), nn.Linear(8, 1024)
                self.features, self.head = nn.Linear(1024, 1024), nn.Linear(1024, 10)

            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                features = self.features(self.first(self.conv(x).mean((2, 3))).relu())
                return self.head(features), features

        class Embedding(Both):
            def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
                embedding: torch.Tensor = self.first(self.conv(x).mean((2, 3))).relu()
                scores: torch.Tensor = self.features(embedding)
                return scores if self.training else embedding

        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 1024, 3), nn.Linear(1024, 10)
                self.gate = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.Sigmoid())

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv(x)
                x = x * self.gate(x.mean((2, 3)))[:, :, None, None]
                value: torch.Tensor = self.head(x.mean((2, 3)))
                return value

        def pooled(*head: nn.Module) -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 960, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)

        image = ((1, 3, 32, 32),)
        generator = [nn.Linear(9, 1024), nn.Linear(1024, 2048), nn.Unflatten(1, (128, 4, 4)), nn.Conv2d(128, 3, 3)]
        return [
            Example(
                lambda: nn.Sequential(nn.Linear(8, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 10)), ((1, 8),),
                "no convolution",
            ),
            Example(lambda: pooled(nn.Linear(960, 1280), nn.Hardswish(), nn.Linear(1280, 1000)), image, "MobileNetV3's head"),
            Example(lambda: pooled(nn.Linear(960, 64), nn.Linear(64, 20000), nn.Identity()), image, "the head"),
            Example(Embedding, image, "the head of training, dropped in eval"),
            Example(Both, image, "its value is an output too"),
            Example(Gated, image, "a gate"),
            Example(lambda: pooled(nn.Linear(960, 512), nn.GRUCell(512, 1024), nn.Linear(1024, 10)), image, "an RNN cell"),
            Example(lambda: nn.Sequential(*generator), ((1, 9),), "a generator's projection"),
        ]  # fmt: skip


_SUGGESTION = "leave it out: the next Linear reads its input directly"


def _least(*, after_fc: bool) -> int:
    return 1_000_000 if after_fc else 4_000_000


def _holds(weights: int) -> str:
    return f"holds {weights:,} weights"
