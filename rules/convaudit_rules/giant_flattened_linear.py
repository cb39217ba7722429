"""CNV101 giant-flattened-linear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convaudit.result import Alternative
from convaudit.rule import Example, Options, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.context import Context
    from convaudit.fc_layers import FCLayer
    from convaudit.result import Finding
    from convaudit.rewrite import Rewrite


@dataclass(frozen=True)
class GiantFlattenedLinearOptions(Options):
    """``min_params``: weights from which a Linear is giant; ``min_share``: of the model's parameters."""

    min_params: int = 1_000_000
    min_share: float = 0.1


class GiantFlattenedLinear(Rule):
    """a Linear reads a flattened feature map and holds much of the model

    ## What it does
    Finds a fully connected layer that reads a flattened C×H×W feature map (H·W > 1) with at least `min-params`
    weights and `min-share` of the model's parameters. The saving is measured: global average pooling and a
    Linear(C, out) in its place, retraced. Of a state_dict alone: where the first Linear reads k·k positions of each channel
    of the last convolution.

    ## Why it matters
    Each position of each channel gets weights of its own. They grow with the map's area, tie the model to one
    resolution and are the first to over-fit.

    ## Example
        nn.Flatten(), nn.Linear(512 * 7 * 7, 4096)

    ## Use instead
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 4096)

    ## Exceptions
    Where position matters (faces, landmarks), a depthwise convolution over the whole map keeps it at C·H·W weights.

    ## References
    Lin, Chen, Yan 2014, Network In Network, arXiv:1312.4400, section 3.2 (global average pooling).
    """

    code = "CNV101"
    name = "giant-flattened-linear"
    changes_state_dict = True
    options = GiantFlattenedLinearOptions

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for each flattened map, with the layers that read it."""
        options = context.options
        assert isinstance(options, GiantFlattenedLinearOptions)
        totals = context.graph.totals
        assert totals is not None
        readers: dict[tuple[Node, ...], list[FCLayer]] = {}
        for layer in {layer.call.layer: layer for layer in context.fc_layers}.values():
            large = layer.weights >= max(options.min_params, options.min_share * totals.parameters)
            if large and layer.positions > 1 and not layer.raw_image:
                readers.setdefault(tuple(flatten.map for flatten in layer.flattens), []).append(layer)
        for layers in readers.values():
            yield self._finding(context, layers, sum(layer.weights for layer in layers) / totals.parameters)

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """The first layer of a head that reads k×k positions of each channel of the last convolution."""
        head, options = context.architecture.head, context.options
        assert isinstance(options, GiantFlattenedLinearOptions)
        if head is None or head.side == 1:
            return
        layer, total = head.layers[0], context.architecture.parameters
        if layer.weights < max(options.min_params, options.min_share * total):
            return
        read = [head.channels, head.side, head.side]
        yield context.from_shapes(
            _message(f"{layer.op} reads", read, layer.weights, layer.weights / total),
            [layer.name],
            severity=self.severity,
            evidence={"weights": layer.weights, "share": layer.weights / total, "map": read},
            suggestion=_SUGGESTION,
        )

    def _finding(self, context: Context, layers: list[FCLayer], share: float) -> Finding:
        layer, names = layers[0], [layer.call.layer for layer in layers]

        def pooled(size: int) -> Alternative:
            def rewrite(attempt: Rewrite) -> None:
                calls = [other for other in context.fc_layers if other.call.layer in names]
                for flatten in dict.fromkeys(flatten for call in calls for flatten in call.flattens):
                    attempt.pool(flatten, size)

            saving = context.prove(f"pool:{','.join(names)}:{size}", rewrite)
            return Alternative(f"pool to {'×'.join([str(size)] * len(layer.spatial))} before the Linear", saving)

        best, other = pooled(1), pooled(2)
        saves = best.saving is not None and best.saving.parameters[1] < best.saving.parameters[0]
        weights = sum(layer.weights for layer in layers)
        widths = " and ".join(f"{layer.in_features:,}→{layer.out_features:,}" for layer in layers[:3])
        widths += f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        return context.finding(
            _message(
                f"{layer.call.label} {widths} read{'s' * (len(layers) == 1)}", [layer.channels, *layer.spatial], weights, share
            ),
            names,
            severity=None if saves else "info",
            saving=best.saving if saves else None,
            alternatives=[other] if other.saving and min(layer.spatial) > 2 else [],
            evidence={"weights": weights, "share": share, "map": [layer.channels, *layer.spatial]},
            suggestion=_SUGGESTION
            + "; an embedding may keep position with a depthwise global conv" * (layer.is_head and layer.out_features >= 128),
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """A map made a vector by flatten, view, squeeze, a channels-last reshape; read by an RNN cell, by a product."""
        import torch
        from torch import nn

        class Head(nn.Module):
            def __init__(self, flatten: Callable[[torch.Tensor], torch.Tensor], head: nn.Module) -> None:
                super().__init__()
                self.conv, self.flatten, self.head = nn.Conv2d(3, 64, 3, 2, 1), flatten, head

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.head(self.flatten(self.conv(x)))
                return value

        class Product(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.empty(128, 64 * 256))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.normalize(x) @ nn.functional.normalize(self.weight).t()

        size, image = 64 * 256, ((1, 3, 32, 32),)
        return [
            Example(lambda: Head(lambda x: x.flatten(1), nn.Linear(size, 128)), image, "flatten"),
            Example(lambda: Head(lambda x: x.view(-1, size), nn.Linear(size, 128)), image, "view"),
            Example(lambda: Head(lambda x: x.permute(0, 2, 3, 1).reshape(1, -1), nn.Linear(size, 128)), image, "NHWC"),
            Example(
                lambda: Head(lambda x: x.flatten(2).flatten(1).relu(), nn.Linear(size, 128)), image, "in two steps"
            ),
            Example(
                lambda: Head(lambda x: x[:, :, :1].squeeze(2).reshape(1, -1), nn.Linear(1024, 1024)), image, "squeeze"
            ),
            Example(lambda: Head(lambda x: x.flatten(1), nn.GRUCell(size, 128)), image, "an RNN cell"),
            Example(lambda: Head(lambda x: x.flatten(1), Product()), image, "a product with a parameter"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.gate = nn.Conv2d(3, 64, 3, 2, 1), nn.Linear(64 * 256, 64)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv(x)
                gate: torch.Tensor = self.gate(x.flatten(1)).sigmoid()
                return x * gate[:, :, None, None]

        def behind(*layers: nn.Module) -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), *layers)

        tokens = [nn.Conv2d(3, 256, 8, 8), nn.Flatten(2), nn.Linear(16, 256), nn.Flatten(), nn.Linear(65536, 64)]
        wide = [nn.Conv2d(3, 1280, 1), nn.Conv2d(1280, 1280, 3, 20), nn.Flatten(), nn.Linear(5120, 200)]
        generator = [nn.Linear(100, 128 * 16 * 16), nn.Unflatten(1, (128, 16, 16)), nn.Conv2d(128, 3, 3, padding=1)]
        image = ((1, 3, 32, 32),)
        return [
            Example(
                lambda: behind(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 20000)), image, "a pooled head"
            ),
            Example(lambda: behind(nn.MaxPool2d(16), nn.Flatten(), nn.Linear(64, 20000)), image, "H·W is 1"),
            Example(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 1024)), image, "the raw image is CNV102's"),
            Example(lambda: nn.Sequential(*tokens), image, "tokens"),
            Example(lambda: behind(nn.Flatten(), nn.Linear(16384, 60)), image, "under min-params"),
            Example(lambda: nn.Sequential(*wide), image, "7% of the parameters"),
            Example(lambda: nn.Sequential(*generator), ((1, 100),), "a generator's projection"),
            Example(Gated, image, "a gate"),
        ]


_SUGGESTION = "pool the map globally before the Linear"


def _message(reads: str, read: list[int], weights: int, share: float) -> str:
    return f"{reads} a flattened {'×'.join(map(str, read))} map: {weights:,} weights, {share:.0%} of the model"
