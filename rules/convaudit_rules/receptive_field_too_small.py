"""CNV205 receptive-field-too-small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.graph import main_input, shape_of
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.result import Finding


class ReceptiveFieldTooSmall(Rule):
    """the last map of a classifier sees too little of the image

    ## What it does
    Finds a globally pooled classifier of images or volumes whose last map has a theoretical receptive field under 75%
    of the input's side on a spatial axis, even along the path with the largest one.

    ## Why it matters
    Global pooling averages what each position has seen; what no position sees whole cannot be recognised as a whole.

    ## Example
        two convolutions (7×7, 5×5) with one pooling between on 32×32: 16 of 32 pixels

    ## Use instead
        another 3×3 stage behind a stride, or dilation

    ## Exceptions
    A flattened map (the Linear sees it all), attention, recurrence or windows before, outputs per pixel, single scores.
    The first axis of a clip or volume alone: time has no bound.

    ## References
    Araujo, Norris, Sim 2019, Computing Receptive Fields of Convolutional Neural Networks, Distill, section "Arbitrary
    computation graphs", https://distill.pub/2019/computing-receptive-fields/

    Luo, Li, Urtasun, Zemel 2016, Understanding the Effective Receptive Field in Deep Convolutional Neural Networks,
    arXiv:1701.04128, section 1.
    """

    code = "CNV205"
    name = "receptive-field-too-small"
    needs_input_size = True
    changes_state_dict = True
    needs_complete = True

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding."""
        image = context.image_size
        if not context.is_classifier or len(image) < 2:
            return
        if self._rearranges(context):
            return
        if all(shape[-1] == 1 for shape in context.output_shapes if shape):
            return
        pool = self._last_global_pool(context)
        source = main_input(pool) if pool is not None else None
        field = context.receptive_fields.get(source) if source is not None else None
        if pool is None or field is None or field.large is None or len(field.large) != len(image):
            return
        if not any(extent < 0.75 * side for extent, side in list(zip(field.large, image))[-2:]):
            return
        last = [conv for conv in context.backbone if context.leads_to(conv.node, pool)]
        if not last:
            return
        seen = "×".join(str(int(extent)) for extent in field.large)
        fields = ((conv, context.receptive_fields.get(conv.node)) for conv in reversed(last))
        largest = max(fields, key=lambda pair: (pair[1] and pair[1].large) or ())[0]
        yield context.finding(
            f"each position of the last map sees {seen} of {'×'.join(map(str, image))} pixels before it is pooled globally",
            [largest.call.layer],
            evidence={"receptive_field": [int(extent) for extent in field.large], "input": list(image)},
            suggestion="another stage behind a stride, or dilation, before the pooling",
        )

    def _rearranges(self, context: Context) -> bool:
        """Whether maps are cut into windows or patches and put together again: no receptive field describes that."""
        cut = any(call.op in ("unfold", "fold", "im2col", "col2im") for _, call in context.graph.calls)
        labels = (
            [label for axis in layout for label in axis if label[0] == "S"] for layout in context.layouts.values()
        )
        return cut or any(len(found) > len(set(found)) for found in labels)

    def _last_global_pool(self, context: Context) -> Node | None:
        """The pooling that makes a vector of the last map, off gates."""
        found = None
        for node, call in context.graph.calls:
            source = main_input(node)
            if source is None or source not in context.layouts or node in context.gates:
                continue
            if context.positions(source) <= 1 or len(shape_of(source)) < 4:
                continue
            if call.kind in ("pool", "reduce") and context.positions(node) == 1 and context.reaches_output(node):
                found = node
            elif call.conv is not None or call.op in ("flatten", "view", "reshape"):
                found = None
        return found

    @classmethod
    def bad(cls) -> list[Example]:
        """Pooled by a module and by a mean; too small on one axis; in 3-D."""
        import torch
        from torch import nn

        class Mean(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.head(self.conv(x).mean((2, 3)))
                return value

        return [
            Example(
                lambda: nn.Sequential(
                    nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
                ),
                ((1, 3, 64, 64),), "2-D",
            ),
            Example(
                lambda: nn.Sequential(nn.Conv3d(3, 8, 3), nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(8, 10)),
                ((1, 3, 16, 32, 32),), "3-D",
            ),
            Example(Mean, ((1, 3, 64, 64),), "a mean"),
            Example(Mean, ((1, 3, 3, 64),), "on one axis"),
        ]  # fmt: skip

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Mixed(nn.Module):
            def __init__(self, mixer: nn.Module) -> None:
                super().__init__()
                self.conv, self.mixer, self.head = nn.Conv2d(1, 8, 4, 4), mixer, nn.Linear(8, 10)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv(x)
                tokens = x.flatten(2).transpose(1, 2)
                mixed = self.mixer(*[tokens] * (3 if isinstance(self.mixer, nn.MultiheadAttention) else 1))
                value: torch.Tensor = self.head(mixed[0].transpose(1, 2).reshape(x.shape).mean((2, 3)))
                return value

        def net(*layers: nn.Module) -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 8, 3), *layers)

        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        image = ((1, 3, 64, 64),)
        deep = [nn.MaxPool2d(8), nn.Conv2d(8, 8, 7)]
        attention = [nn.Conv2d(8, 8, 1), nn.Flatten(2), nn.Linear(3844, 64), nn.Unflatten(2, (8, 8))]
        return [
            Example(lambda: net(*deep, *pooled, nn.Linear(8, 10)), image, "58 of 64"),
            Example(lambda: net(nn.Flatten(), nn.Linear(8 * 3844, 10)), image, "flattened"),
            Example(lambda: net(*attention, *pooled, nn.Linear(8, 10)), image, "mixed over all positions before"),
            Example(
                lambda: Mixed(nn.MultiheadAttention(8, 2, batch_first=True)), ((1, 1, 4, 512),), "attention before"
            ),
            Example(lambda: Mixed(nn.GRU(8, 8, batch_first=True)), ((1, 1, 4, 512),), "a recurrence over time"),
            Example(
                lambda: nn.Sequential(nn.Conv1d(1, 8, 80, 4), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 10)),
                ((1, 1, 16000),),
                "a waveform",
            ),
            Example(lambda: net(nn.Conv2d(8, 2, 1)), image, "an output per pixel"),
            Example(
                lambda: nn.Sequential(
                    nn.Conv3d(3, 8, (1, 7, 7)), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 10)
                ),
                ((1, 3, 16, 9, 9),),
                "a clip whose time alone is long",
            ),
            Example(lambda: net(*pooled, nn.Linear(8, 1)), image, "a single score"),
        ]
