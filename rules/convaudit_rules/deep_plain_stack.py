"""CNV401 deep-plain-stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.graph import CALL
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.result import Finding

WITHOUT_NORM, WITH_NORM = 10, 30


class DeepPlainStack(Rule):
    """many convolutions in a row without a skip connection

    ## What it does
    Measures the longest chain of convolutions that no skip, concat or gate bypasses: a finding above 10 without any
    normalisation on it, above 30 with it.

    ## Why it matters
    Plain stacks degrade with depth: the 56-layer plain net of He et al. trains worse than the 20-layer one, and
    without normalisation VGG had to be initialised from shallower nets.

    ## Example
        VGG16 without batch norm: 13 convolutions in a row

    ## Use instead
        residual blocks, or at least batch norm behind each convolution

    ## Exceptions
    Residual and dense nets, RepVGG's branches, each arm of a U-Net: a chain ends where a value is used again later.
    Convolutions that give a 1×1 map are fully connected layers and do not count.

    ## References
    He, Zhang, Ren, Sun 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385, section 1 and figure 1.

    Simonyan, Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv:1409.1556,
    section 3.1 (deep nets initialised from net A).
    """

    code = "CNV401"
    name = "deep-plain-stack"
    changes_state_dict = True
    needs_complete = True

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding, at the longest chain's first layer."""
        chains: dict[Node, tuple[tuple[str, ...], bool]] = {}
        best: tuple[tuple[str, ...], bool] = ((), False)
        for node in context.graph.graph.nodes:
            call = node.meta.get(CALL)
            sources = [n for n in node.all_input_nodes if n in context.layouts]
            if node not in context.layouts or not sources:
                continue
            layers, normed = chains.get(sources[0], ((), False))
            if len(sources) > 1 or context.bypassed(sources[0], node):
                layers, normed = (), False
            on_map = call is not None and call.conv is not None and context.positions(node) > 1
            if call is not None and on_map and node not in context.gates:
                layers = (*layers, call.layer)
            normed = normed or (call is not None and call.kind == "norm")
            chains[node] = layers, normed
            if _excess(layers, normed) > _excess(*best):
                best = layers, normed
        layers, normed = best
        if _excess(layers, normed) <= 0:
            return
        norm = "with" if normed else "without"
        yield context.finding(
            f"{len(layers)} convolutions in a row {norm} normalisation and without a skip, from {layers[0]} to {layers[-1]}",
            list(dict.fromkeys(layers)),
            evidence={"length": len(layers), "normalised": normed, "first": layers[0], "last": layers[-1]},
            suggestion="residual connections"
            if normed
            else "batch norm behind each convolution, or residual connections",
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """Eleven without a norm; thirty-one with one each."""
        from torch import nn

        def stack(depth: int, norm: bool) -> nn.Module:
            layers = [(nn.Conv2d(4, 4, 3, padding=1), *([nn.BatchNorm2d(4)] * norm), nn.ReLU()) for _ in range(depth)]
            return nn.Sequential(*(layer for block in layers for layer in block))

        image = ((1, 4, 8, 8),)
        return [
            Example(lambda: stack(11, False), image, "without norm"),
            Example(lambda: stack(31, True), image, "with norm"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Blocks(nn.Module):
            def __init__(self, join: str) -> None:
                super().__init__()
                self.join = join
                convs = [nn.Conv2d(8 if join == "cat" and i % 2 == 0 and i else 4, 4, 3, padding=1) for i in range(16)]
                self.convs = nn.ModuleList(convs)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                for first, second in zip(self.convs[::2], self.convs[1::2]):
                    y = second(first(x).relu())
                    if self.join == "cat":
                        x = torch.cat([y, x[:, :4]], 1)
                    else:
                        x = x * y.sigmoid() if self.join == "gate" else x + y
                return x

        class UNet(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.down = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(9)])
                self.up = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(9)])

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                kept = []
                for layer in self.down:
                    x = layer(x).relu()
                    kept.append(x)
                for layer in self.up:
                    x = layer(x + kept.pop()).relu()
                return x

        class RepVGG(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.wide = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(12)])
                self.narrow = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(12)])

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                for wide, narrow in zip(self.wide, self.narrow):
                    x = (wide(x) + narrow(x) + x).relu()
                return x

        def stack(depth: int, norm: bool) -> nn.Module:
            layers = [(nn.Conv2d(4, 4, 3, padding=1), *([nn.BatchNorm2d(4)] * norm), nn.ReLU()) for _ in range(depth)]
            return nn.Sequential(*(layer for block in layers for layer in block))

        image = ((1, 4, 8, 8),)
        disguised = [nn.Conv2d(4, 64, 8), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU()]
        return [
            Example(lambda: stack(10, False), image, "10 without norm"),
            Example(
                lambda: nn.Sequential(stack(10, False), *disguised), image, "Linear layers written as convolutions"
            ),
            Example(lambda: stack(30, True), image, "30 with norm"),
            Example(lambda: Blocks("add"), image, "residual"),
            Example(lambda: Blocks("cat"), image, "dense"),
            Example(lambda: Blocks("gate"), image, "gated"),
            Example(UNet, image, "arms of a U-Net"),
            Example(RepVGG, image, "RepVGG's branches"),
        ]


def _excess(layers: tuple[str, ...], normed: bool) -> int:
    return len(layers) - (WITH_NORM if normed else WITHOUT_NORM)
