"""CNV407 redundant-op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from convaudit.graph import CALL, main_input
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.graph import Call
    from convaudit.result import Finding
    from convaudit.rewrite import Rewrite

_IDEMPOTENT = frozenset({"relu", "relu6", "abs", "log_softmax"})
"""Activations that change nothing the second time."""


class RedundantOp(Rule):
    """ops that ran and did nothing

    ## What it does
    Lists ops whose value equals their input: an idempotent activation (ReLU, ReLU6, abs, log_softmax) of its own
    result, also past reshapes, pools and dropout for ReLU; pools with kernel 1 and stride 1; the flatten of a vector.
    The graph without them is traced again.

    ## Why it matters
    They cost a pass over memory each, and often mean that another op was intended there.

    ## Example
        x = F.relu(self.block(x))      # the block ends with a ReLU

    ## Use instead
        x = self.block(x)

    ## Exceptions
    nn.Identity and p = 0 placeholders; activations whose second pass changes values (Sigmoid, LeakyReLU); pools that
    cover a 1×1 map by measuring it; a flatten of the model's own vector input.

    ## References
    PyTorch documentation, torch.nn.ReLU: max(0, x), https://docs.pytorch.org/docs/stable/generated/torch.nn.ReLU.html
    """

    code = "CNV407"
    name = "redundant-op"
    severity = "info"
    changes_state_dict = False

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such ops."""
        found = [(node, call, why) for node, call in context.graph.calls if (why := _why(node, call))]
        if not found:
            return

        def rewrite(attempt: Rewrite) -> None:
            for node, _, _ in found:
                attempt.replace(node, [])

        saving = context.prove("without:" + ",".join(node.name for node, _, _ in found), rewrite)
        if saving is None:
            return
        reasons = {call.layer: why for _, call, why in found}
        yield context.finding(
            f"{len(found)} op{'s' * (len(found) > 1)} that change{'s' * (len(found) == 1)} nothing: "
            f"{', '.join(dict.fromkeys(reasons.values()))}",
            list(reasons),
            saving=saving if _saves(saving.peak_activation_bytes) else None,
            evidence={"ops": reasons},
            suggestion="leave them out",
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """Each kind, as a module and as a function."""
        from torch import nn

        functional = nn.functional
        conv, image, vector = nn.Conv2d(3, 8, 3), ((2, 3, 8, 8),), ((2, 8),)
        fc, wide = nn.Linear(8, 8), nn.Conv2d(8, 64, 1)
        return [
            Example(lambda: nn.Sequential(conv, nn.ReLU(), nn.ReLU(inplace=True)), image, "ReLU twice"),
            Example(lambda: _then(nn.Sequential(conv, nn.ReLU()), functional.relu), image, "F.relu of a ReLU"),
            Example(lambda: nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.ReLU()), image, "past a pool"),
            Example(lambda: nn.Sequential(conv, nn.ReLU6(), nn.ReLU6()), image, "ReLU6 twice"),
            Example(lambda: nn.Sequential(fc, nn.LogSoftmax(1), nn.LogSoftmax(1)), vector, "log_softmax twice"),
            Example(lambda: nn.Sequential(conv, nn.AvgPool2d(1, 1), wide), image, "a kernel-1 pool"),
            Example(
                lambda: _then(conv, lambda x: wide(functional.max_pool2d(x, 1))), image, "a functional kernel-1 pool"
            ),
            Example(lambda: nn.Sequential(fc, nn.Flatten(), nn.Linear(8, 2)), vector, "flatten of a vector"),
            Example(lambda: _then(fc, lambda x: x.view(x.size(0), -1)), vector, "view of a vector"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        from torch import nn

        functional = nn.functional
        conv, image, vector = nn.Conv2d(3, 8, 3), ((2, 3, 8, 8),), ((2, 8),)
        fc = nn.Linear(8, 8)

        def unused() -> nn.Module:
            model = nn.Sequential(conv, nn.ReLU())
            model[1].register_module("again", nn.ReLU())
            return model

        return [
            Example(lambda: nn.Sequential(conv, nn.Identity(), nn.Dropout(0.0), nn.ReLU()), image, "placeholders"),
            Example(unused, image, "never called"),
            Example(lambda: nn.Sequential(conv, nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU()), image, "a norm between"),
            Example(lambda: nn.Sequential(conv, nn.LeakyReLU(), nn.LeakyReLU()), image, "LeakyReLU twice"),
            Example(lambda: nn.Sequential(fc, nn.LogSoftmax(0), nn.LogSoftmax(1)), vector, "over other axes"),
            Example(lambda: nn.Sequential(conv, nn.MaxPool2d(1, 2)), image, "kernel 1, stride 2"),
            Example(
                lambda: _then(nn.Conv2d(3, 8, 8), lambda x: functional.avg_pool2d(x, x.shape[-1])), image, "a 1×1 map"
            ),
            Example(lambda: nn.Sequential(conv, nn.AvgPool2d(1, divisor_override=2)), image, "a pool that halves"),
            Example(lambda: nn.Sequential(conv, nn.AdaptiveAvgPool2d(6), nn.Flatten()), image, "flatten of a map"),
            Example(lambda: nn.Sequential(nn.Flatten(), fc), vector, "flatten of the input"),
            Example(lambda: _then(fc, lambda x: x.view(-1, 8)), vector, "a view that may fold"),
        ]


def _why(node: Node, call: Call) -> str:
    """Why an op does nothing, "" where it does something."""
    source = main_input(node)
    if source is None or len(call.outputs) != 1 or call.inputs != call.outputs or call.from_weights:
        return ""
    if call.op in _IDEMPOTENT and _same_before(node, call):
        return f"{call.op} of a {call.op}"
    if call.op.startswith(("max_pool", "avg_pool")) and _kernel_1(node, call):
        return "a pool with kernel 1"
    if _flatten_of_vector(node, call, source):
        return "flatten of a vector"
    return ""


def _same_before(node: Node, call: Call) -> bool:
    """Whether the value is the same activation's own result."""
    at = main_input(node)
    while at is not None:
        before: Call | None = at.meta.get(CALL)
        if before is None or before.from_weights:
            return False
        if before.op == call.op:
            return before.scalars.get("dim") == call.scalars.get("dim") and call.scalars.get("dim", 0) is not None
        keeps_sign = before.kind in ("pool", "dropout") and not before.op.startswith("lp_pool")
        moves = before.alias or before.op in ("clone", "contiguous", "flatten", "reshape")
        if not (moves or (call.op == "relu" and keeps_sign)) or before.kind == "activation":
            return False
        at = main_input(at)
    return False


def _kernel_1(node: Node, call: Call) -> bool:
    def ones(value: Any) -> bool:
        return all(v == 1 for v in (value if isinstance(value, (tuple, list)) else [value]))

    kernel = call.scalars.get("kernel_size")
    if not ones(kernel) or not ones(call.scalars.get("stride") or kernel) or call.scalars.get("divisor_override"):
        return False
    axes = call.inputs[0][-int(call.op[8]) :]
    return node.op == "call_module" or any(n > 1 for n in axes)  # a function may have measured the map


def _flatten_of_vector(node: Node, call: Call, source: Node) -> bool:
    from convaudit.fc_layers import untouched

    if len(call.inputs[0]) != 2 or untouched(source):
        return False
    if call.op in ("view", "reshape"):
        sizes: Any = node.args[1:]
        sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
        return tuple(sizes) == (call.inputs[0][0], -1)
    return call.op == "flatten"


def _saves(figures: tuple[int, int] | None) -> bool:
    return figures is not None and figures[1] < figures[0]


def _then(module: Any, function: Any) -> Any:
    """``module``, and ``function`` of its value."""
    from torch import nn

    class Then(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Any) -> Any:
            return function(self.module(x))

    return Then()
