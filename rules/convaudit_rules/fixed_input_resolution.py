"""CNV106 fixed-input-resolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.fc_layers import TRANSPARENT
from convaudit.graph import CALL, main_input, shape_of
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.result import Finding


class FixedInputResolution(Rule):
    """the model runs at one input size only

    ## What it does
    Runs the model's own forward at 1.5 and 2 times the input size (rounded up to the total downsampling at the
    flatten). Fires where it fails at or behind the flatten, or where another batch size comes back: a
    `view(-1, K)` that folds positions into the batch mixes samples without an error.

    ## Why it matters
    A fixed size rules out larger images, test-time resizing and most transfer.

    ## Example
        x.view(-1, 64 * 7 * 7)

    ## Use instead
        torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)

    ## Exceptions
    Nets that pass both runs; failures that have nothing to do with a flatten.

    ## References
    He, Zhang, Ren, Sun 2014, Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition,
    arXiv:1406.4729, section 1 (the fixed size comes from the fully connected layers).
    """

    code = "CNV106"
    name = "fixed-input-resolution"
    severity = "info"
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding."""
        ties = self._ties(context)
        image = next(
            (shape_of(n) for n in context.graph.graph.nodes if n.op == "placeholder" and len(shape_of(n)) >= 4), None
        )
        if not ties or image is None:
            return
        batches = {shape[0] for shape in context.output_shapes if shape}
        for factor in (1.5, 2.0):
            size = enlarged(image[2:], shape_of(main_input(ties[0]) or ties[0])[2:], factor)
            again = context.retrace(size)
            shown = "×".join(map(str, size))
            if again.error is not None:
                behind = [tie for tie in ties if again.failed_at and context.leads_to(tie, again.failed_at)]
                if behind:
                    yield context.finding(
                        f"runs at {'×'.join(map(str, image[2:]))} only: at {shown} {again.error}",
                        [self._reader(behind[-1])],
                        evidence={"input": list(size), "error": again.error},
                        suggestion="pool adaptively before the flatten",
                    )
                return
            found = {shape[0] for shape in again.output_shapes if shape}
            if found != batches:
                yield context.finding(
                    f"at {shown} a batch of {_listed(batches)} comes back as {_listed(found)}: a view folds positions into the batch",
                    [self._reader(ties[0])],
                    evidence={"input": list(size), "output_shapes": [list(s) for s in again.output_shapes]},
                    suggestion="flatten with torch.flatten(x, 1)",
                )
                return

    def _ties(self, context: Context) -> list[Node]:
        """Reshapes of a map to a vector that no adaptive pool or mean over positions stands before."""
        return [
            node
            for node, call in context.graph.calls
            if call.op in ("view", "reshape", "flatten", "squeeze", "ravel")
            and call.inputs
            and len(call.inputs[0]) > 2 >= len(call.outputs[0])
            and node in context.layouts
            and not self._pooled(node)
        ]

    def _pooled(self, node: Node) -> bool:
        at: Node | None = main_input(node)
        while at is not None:
            call = at.meta.get(CALL)
            if call is None or at.op == "placeholder":
                return False
            if "adaptive" in call.op or call.kind == "reduce":
                return True
            pointwise = call.conv is not None and set(call.conv.kernel) == {1}
            if not pointwise and call.kind not in (*TRANSPARENT, "reshape"):
                return False
            at = main_input(at)
        return False

    def _reader(self, node: Node) -> str:
        """The layer that reads the vector ``node`` makes, else the reshape's own."""
        at: Node | None = node
        while at is not None:
            call = at.meta.get(CALL)
            if call is not None and call.kind in ("linear", "recurrent"):
                return str(call.layer)
            at = next(iter(at.users), None)
        return str(node.meta[CALL].layer)

    @classmethod
    def bad(cls) -> list[Example]:
        """A Linear on a flattened map; a view that folds positions into the batch; a fixed pool; a hard-coded view."""
        import torch
        from torch import nn

        class Viewed(nn.Module):
            def __init__(self, *shape: int) -> None:
                super().__init__()
                self.conv, self.pool, self.shape = nn.Conv2d(1, 16, 3, 2, 1), nn.AvgPool2d(14), shape
                self.head = nn.Linear(16, 10)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.head(self.pool(self.conv(x)).view(self.shape))
                return value

        image = ((2, 1, 28, 28),)
        return [
            Example(
                lambda: nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.Flatten(), nn.Linear(784, 10)), image, "a Linear"
            ),
            Example(lambda: Viewed(-1, 16), image, "a view folds into the batch"),
            Example(lambda: Viewed(2, 16), image, "a hard-coded view"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.Flatten(), nn.LSTMCell(784, 8)), image, "an RNN cell"
            ),
            Example(
                lambda: nn.Sequential(nn.Conv2d(1, 8, 28), nn.Flatten(), nn.Linear(8, 10)),
                image,
                "a covering convolution",
            ),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Ceiled(nn.Module):
            """Its two branches differ by one pixel at other sizes: that is no flatten's fault."""

            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(4, 10)
                self.up, self.down = nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2)
                self.conv = nn.Conv2d(1, 2, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.conv(x)
                x = torch.cat([self.up(self.up(self.up(x))), self.down(self.down(self.down(x)))], 1)
                value: torch.Tensor = self.head(nn.functional.max_pool2d(x, x.shape[-1]).flatten(1))
                return value

        conv, head = nn.Conv2d(1, 4, 3), nn.Linear(16, 10)
        return [
            Example(lambda: nn.Sequential(conv, nn.AdaptiveAvgPool2d(2), nn.Flatten(), head), ((2, 1, 28, 28),), "pools adaptively"),
            Example(Ceiled, ((2, 1, 32, 32),), "a concat fails, not the flatten"),
            Example(lambda: nn.Sequential(nn.Linear(28, 8), nn.Flatten(2)), ((2, 1, 28, 28),), "nothing is flattened to a vector"),
        ]  # fmt: skip


def enlarged(image: tuple[int, ...], flattened: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """``image`` times ``factor``, each side rounded up to a multiple of the downsampling from it to ``flattened``."""
    steps = [max(1, full // max(1, small)) for full, small in zip(image, flattened, strict=False)]
    steps += [1] * (len(image) - len(steps))
    return tuple(-(-int(full * factor) // step) * step for full, step in zip(image, steps, strict=True))


def _listed(sizes: set[int]) -> str:
    return ", ".join(map(str, sorted(sizes)))
