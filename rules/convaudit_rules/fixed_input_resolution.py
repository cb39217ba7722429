"""CNV106 fixed-input-resolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.graph import CALL, VAL, main_input, tensors
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
    He, Zhang, Ren, Sun 2014, Spatial Pyramid Pooling, arXiv:1406.4729, section 1.
    """

    code = "CNV106"
    name = "fixed-input-resolution"
    severity = "info"
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding."""
        ties = self._ties(context)
        image = next(
            (
                t.shape
                for n in context.graph.graph.nodes
                if n.op == "placeholder"
                for t in tensors(n.meta[VAL])
                if t.dim() >= 4
            ),
            None,
        )
        if not ties or image is None:
            return
        tie, tied = ties[0]
        batch = {
            t.shape[0]
            for n in context.graph.graph.nodes
            if n.op == "output"
            for i in n.all_input_nodes
            for t in tensors(i.meta[VAL])
            if t.dim()
        }
        source = next(n for n in tie.all_input_nodes if n.op != "get_attr")
        before = tensors(source.meta[VAL])[0].shape[2:]
        for factor in (1.5, 2.0):
            size = []
            for axis, full in enumerate(image[2:]):
                step = max(1, full // max(1, before[axis] if axis < len(before) else 1))
                size.append(-(-int(full * factor) // step) * step)
            again = context.retrace(tuple(size))
            shown = "×".join(map(str, size))
            if again.error is not None:
                if (
                    "Linear" not in again.error
                    and "view" not in again.error
                    and "shape" not in again.error
                    and "size" not in again.error
                ):
                    return
                yield context.finding(
                    f"runs at {'×'.join(map(str, image[2:]))} only: at {shown} {again.error}",
                    [tied],
                    evidence={"input": size, "error": again.error},
                    suggestion="pool adaptively before the flatten",
                )
                return
            if {s[0] for s in again.output_shapes if s} != batch:
                yield context.finding(
                    f"at {shown} the batch of {sorted(batch)} comes back as {sorted({s[0] for s in again.output_shapes if s})}: "
                    "a view folds positions into the batch",
                    [tied],
                    evidence={"input": size, "output_shapes": [list(s) for s in again.output_shapes]},
                    suggestion="flatten with torch.flatten(x, 1)",
                )
                return

    def _ties(self, context: Context) -> list[tuple[Node, str]]:
        """Reshapes of a map to a vector that no adaptive pool or mean over positions stands before."""
        found = []
        for node, call in context.graph.calls:
            if call.kind != "reshape" or not call.inputs or not call.outputs or len(call.inputs[0]) < 4:
                continue
            if len(call.outputs[0]) >= len(call.inputs[0]) or len(call.outputs[0]) > 2 or self._pooled(node):
                continue
            found.append((node, self._reader(node) or call.layer))
        return found

    def _pooled(self, node: Node) -> bool:
        at: Node | None = main_input(node)
        while at is not None:
            call = at.meta.get(CALL)
            if call is None or at.op == "placeholder":
                return False
            if "adaptive" in call.op or call.op in ("mean", "sum", "amax"):
                return True
            if call.kind not in ("activation", "dropout", "norm", "reshape", "elementwise") and not (
                call.conv is not None and set(call.conv.kernel) == {1}
            ):
                return False
            at = main_input(at)
        return False

    def _reader(self, node: Node) -> str | None:
        at: Node | None = node
        while at is not None:
            call = at.meta.get(CALL)
            if call is not None and call.kind in ("linear", "recurrent"):
                return str(call.layer)
            at = next(iter(at.users), None)
        return None

    @classmethod
    def bad(cls) -> list[Example]:
        """A Linear on a flattened map."""
        from torch import nn

        return [
            Example(
                lambda: nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.Flatten(), nn.Linear(784, 10)), ((2, 1, 28, 28),)
            )
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """A pooled map."""
        from torch import nn

        return [
            Example(
                lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)),
                ((2, 1, 28, 28),), "pools adaptively",
            )
        ]  # fmt: skip
