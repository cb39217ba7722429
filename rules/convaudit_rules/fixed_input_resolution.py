"""CNV106 fixed-input-resolution."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import TYPE_CHECKING

from convaudit.fc_layers import TRANSPARENT
from convaudit.graph import CALL, main_input, shape_of
from convaudit.layout import space
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
        ties, image = self._ties(context), context.image_size
        if not ties or not image:
            return
        source = main_input(ties[0])
        jumps = context.receptive_fields[source].small_jump if source in context.receptive_fields else ()
        known = len(jumps) == len(image) and all(1 <= jump <= side for jump, side in zip(jumps, image, strict=True))
        steps = [round(jump) for jump in jumps] if known else [1] * len(image)
        own = "×".join(map(str, image))
        samples = shape_of(context.image)[0] if context.image is not None else 0
        batches = {shape[0] for shape in context.output_shapes if shape}
        for factor in (1.5, 2.0):
            size = enlarged(image, steps, factor)
            again = context.retrace(size)
            shown = "×".join(map(str, size))
            if again.error is not None:
                behind = [tie for tie in ties if again.failed_at and self._is_next(tie, again.failed_at)]
                if behind:
                    yield context.finding(
                        f"runs at {own} only: at {shown} {again.error.rstrip('.')}",
                        [self._reader(behind[-1])],
                        evidence={"input": list(size), "error": again.error},
                        suggestion="pool adaptively before the flatten",
                    )
                    return
                continue
            found = {shape[0] for shape in again.output_shapes if shape}
            if found != batches == {samples}:
                yield context.finding(
                    f"at {shown} a batch of {_listed(batches)} comes back as {_listed(found)}: a view folds positions into the batch",
                    [self._reader(ties[0])],
                    evidence={"input": list(size), "output_shapes": [list(s) for s in again.output_shapes]},
                    suggestion="flatten with torch.flatten(x, 1)",
                )
                return

    def _ties(self, context: Context) -> list[Node]:
        """Reshapes that put the channels and positions of a map on one axis, with no adaptive pool or mean before."""
        return [
            node
            for node, call in context.graph.calls
            if call.op in ("view", "reshape", "flatten", "squeeze", "ravel")
            and call.inputs
            and len(call.inputs[0]) > 2
            and len(call.inputs[0]) > len(call.outputs[0])
            and self._folds(context, node)
            and not self._pooled(node)
        ]

    def _folds(self, context: Context, node: Node) -> bool:
        layout = context.layouts.get(node, ())
        if space(layout[:1]):
            return False  # positions are rows already at the model's own size
        return len(layout) == 2 or any("C" in axis and space((axis,)) for axis in layout)

    def _is_next(self, tie: Node, failed: Node) -> bool:
        """Whether a failure is the flatten's or that of the first layer behind it."""
        queue, seen = [tie], {tie}
        while queue:
            node = queue.pop()
            if node is failed:
                return True
            call = node.meta.get(CALL)
            if node is tie or call is None or call.kind in (*TRANSPARENT, "reshape"):
                queue += [user for user in node.users if user not in seen]
                seen.update(node.users)
        return False

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

        class Capsules(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(1, 16, 3, 2, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.conv(x).view(x.size(0), 49, 64).mean(1)
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
            Example(
                lambda: nn.Sequential(nn.Conv1d(2, 4, 3, 2, 1), nn.Flatten(), nn.Linear(64, 10)), ((2, 2, 32),),
                "a signal",
            ),
            Example(Capsules, image, "a view that keeps three axes"),
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

        class Rows(nn.Module):
            """Scores of each pixel as rows, the way some losses want them."""

            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(1, 4, 3, padding=1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.conv(x).permute(0, 2, 3, 1).reshape(-1, 4)
                return value

        conv, head = nn.Conv2d(1, 4, 3), nn.Linear(16, 10)
        return [
            Example(lambda: nn.Sequential(conv, nn.AdaptiveAvgPool2d(2), nn.Flatten(), head), ((2, 1, 28, 28),), "pools adaptively"),
            Example(Rows, ((2, 1, 28, 28),), "rows of a map"),
            Example(Ceiled, ((2, 1, 32, 32),), "a concat fails, not the flatten"),
            Example(lambda: nn.Sequential(nn.Linear(28, 8), nn.Flatten(2)), ((2, 1, 28, 28),), "nothing is flattened to a vector"),
        ]  # fmt: skip


def enlarged(image: tuple[int, ...], steps: list[int], factor: float) -> tuple[int, ...]:
    """``image`` times ``factor``, each side rounded up to a multiple of its downsampling; an axis of one stays."""
    return tuple(
        full if full == 1 else -(-ceil(full * factor) // step) * step for full, step in zip(image, steps, strict=True)
    )


def _listed(sizes: set[int]) -> str:
    return ", ".join(map(str, sorted(sizes)))
