"""CNV402 linear-collapse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convaudit.fc_layers import TRANSPARENT
from convaudit.graph import CALL, main_input
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.graph import Call
    from convaudit.result import Finding
    from convaudit.rewrite import Rewrite


@dataclass(frozen=True)
class _Pair:
    first: Node
    between: tuple[Node, ...]
    """A batch norm, further Linear layers, flattens of a vector, or nothing."""
    second: Node

    @property
    def layers(self) -> tuple[Node, ...]:
        """The layers that collapse, in order; a batch norm and a flatten are none."""
        return tuple(n for n in (self.first, *self.between, self.second) if n.meta[CALL].kind in ("conv", "linear"))


class LinearCollapse(Rule):
    """two linear layers with nothing nonlinear between them

    ## What it does
    Finds pairs of convolutions (one of them 1×1 with stride 1; a BatchNorm may stand between) or of Linear layers with
    no other reader between, whose middle is as wide as the narrower end or wider. The saving of one layer in their
    place is measured.

    ## Why it matters
    A product of matrices is a matrix: the pair computes what one layer of the outer widths can.

    ## Example
        nn.Linear(512, 4096), nn.Linear(4096, 10)

    ## Use instead
        nn.Linear(512, 10), or an activation between

    ## Exceptions
    A narrow middle (low rank), depthwise and grouped convolutions and MobileNetV2's linear bottlenecks behind them,
    pairs of which neither is 1×1, anything between but a BatchNorm, a second reader, tied and frozen weights, an
    attention's projections.

    ## References
    Ding, Zhang, Han, Ding 2021, Diverse Branch Block: Building a Convolution as an Inception-like Unit,
    arXiv:2103.13425, transforms I and III (a sequence of convolutions as one).
    """

    code = "CNV402"
    name = "linear-collapse"
    changes_state_dict = True

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all pairs."""
        pairs: list[_Pair] = []
        taken: set[Node] = set()
        calls: dict[str, int] = {}
        for _, call in context.graph.calls:
            calls[call.layer] = calls.get(call.layer, 0) + (call.kind in ("conv", "linear"))
        for node, call in context.graph.calls:
            own = call.layer == (call.parameters[0].rpartition(".")[0] if call.parameters else "")
            if not own or (context.attends and call.kind == "linear" and len(call.outputs[0]) > 2):
                continue  # tied weights, an attention's projections
            pair = self._pair(node, call) if node not in taken and calls[call.layer] == 1 else None
            once = pair is not None and all(calls[n.meta[CALL].layer] == 1 for n in pair.layers)
            if pair is not None and once and not any(self._frozen(context, n.meta[CALL]) for n in pair.layers):
                pairs.append(pair)
                taken.update(pair.layers)
        if not pairs:
            return

        def rewrite(attempt: Rewrite) -> None:
            for pair in pairs:
                attempt.replace(pair.first, [])
                for node in pair.between:
                    attempt.replace(node, [])
                attempt.replace(pair.second, [merged(pair.first.meta[CALL], pair.second.meta[CALL])])

        saving = context.prove("collapse", rewrite)
        saves = saving is not None and saving.parameters[1] < saving.parameters[0]
        first, second = pairs[0].first.meta[CALL], pairs[0].second.meta[CALL]
        more = f" (and {len(pairs) - 1} more such place{'s' * (len(pairs) > 2)})" if len(pairs) > 1 else ""
        count = len(pairs[0].layers)
        which = f"{first.layer} and {second.layer}" if count == 2 else f"{count} layers from {first.layer} to {second.layer}"
        yield context.finding(
            f"{which} have nothing nonlinear between them: together they are one layer{more}",
            [node.meta[CALL].layer for pair in pairs for node in pair.layers],
            severity=None if saves else "info",
            saving=saving if saves else None,
            evidence={"pairs": [[node.meta[CALL].layer for node in pair.layers] for pair in pairs]},
            suggestion="one layer in their place, or an activation between",
        )

    def _pair(self, node: Node, call: Call) -> _Pair | None:
        if call.kind not in ("conv", "linear") or len(node.users) != 1 or call.from_weights or node.op != "call_module":
            return None
        found = self._next(node)
        if not found:
            return None
        *between, reader = found
        after: Call | None = reader.meta.get(CALL)
        if call.conv is not None and after is not None and after.op == "batch_norm" and len(reader.users) == 1:
            between, reader = [*between, reader], next(iter(reader.users))
            after = reader.meta.get(CALL)
        if after is None or reader.op != "call_module" or main_input(reader) is not (between or [node])[-1]:
            return None
        if call.linear is not None and after.linear is not None:
            if call.linear[1] < min(call.linear[0], after.linear[1]):
                return None
            while (further := self._next(reader)) and further[-1].meta[CALL].linear is not None:
                middle, last = reader.meta[CALL].linear, further[-1].meta[CALL].linear
                if middle[1] < min(call.linear[0], last[1]) or further[-1].op != "call_module":
                    break
                between, reader = [*between, reader, *further[:-1]], further[-1]
            return _Pair(node, tuple(between), reader)
        a, b = call.conv, after.conv
        if a is None or b is None or a.groups > 1 or b.groups > 1 or len(a.kernel) != len(b.kernel):
            return None
        pointwise = [set(c.kernel) == set(c.stride) == {1} and not any(map(any, c.padding)) for c in (a, b)]
        if not any(pointwise) or a.out_channels < min(a.in_channels, b.out_channels) or self._behind_depthwise(node):
            return None
        return _Pair(node, tuple(between), reader)

    def _frozen(self, context: Context, call: Call) -> bool:
        known = context.graph.parameters
        return any(not known[name].requires_grad for name in call.parameters if name in known)

    def _next(self, node: Node) -> list[Node]:
        """The only reader of a value, behind flattens that change nothing of a vector; [] where there are several."""
        path: list[Node] = []
        while len(node.users) == 1:
            node = next(iter(node.users))
            call: Call | None = node.meta.get(CALL)
            if call is None:
                return []
            path.append(node)
            if call.kind != "reshape" or call.inputs != call.outputs:
                return path
        return []

    def _behind_depthwise(self, node: Node) -> bool:
        """Whether the layer projects a depthwise convolution's output: MobileNetV2's linear bottleneck."""
        queue = [node]
        while queue:
            for source in queue.pop().all_input_nodes:
                call: Call | None = source.meta.get(CALL)
                if call is not None and call.conv is not None and call.conv.depthwise:
                    return True
                if call is not None and call.kind in (*TRANSPARENT, "merge"):
                    queue.append(source)
        return False

    @classmethod
    def bad(cls) -> list[Example]:
        """Linear on Linear; 3×3 and 1×1; through a BatchNorm; 1×1 and transposed, and the reverse."""
        from torch import nn

        image = ((1, 8, 8, 8),)
        return [
            Example(lambda: nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 8)), ((1, 8),), "Linear"),
            Example(
                lambda: nn.Sequential(nn.Linear(8, 64), nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 8)), ((1, 8),),
                "three Linears, a flatten of a vector",
            ),
            Example(lambda: nn.Sequential(nn.Conv2d(8, 64, 3), nn.Conv2d(64, 8, 1)), image, "conv"),
            Example(lambda: nn.Sequential(nn.Conv2d(8, 64, 1), nn.BatchNorm2d(64), nn.Conv2d(64, 8, 3)), image, "through a BatchNorm"),
            Example(lambda: nn.Sequential(nn.Conv2d(8, 64, 1), nn.ConvTranspose2d(64, 8, 4, 2, 1)), image, "transposed"),
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(8, 64, 4, 2, 1), nn.Conv2d(64, 8, 1)), image, "transposed first"),
        ]  # fmt: skip

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Between(nn.Module):
            def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], width: int = 8) -> None:
                super().__init__()
                self.first, self.second, self.function = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(width, 8, 1), function

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.second(self.function(self.first(x), x))
                return value

        class SecondReader(Between):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.first(x)
                value: torch.Tensor = self.second(x) + x
                return value

        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed, self.query = nn.Linear(8, 16), nn.Linear(16, 8)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = (self.query(self.embed(x)) @ x.transpose(1, 2)).softmax(-1) @ x
                return value

        image = ((1, 8, 8, 8),)
        depthwise = nn.Conv2d(8, 8, 3, groups=8)
        return [
            Example(lambda: nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64)), ((1, 64),), "a narrow middle"),
            Example(lambda: nn.Sequential(depthwise, nn.Conv2d(8, 64, 1)), image, "depthwise and pointwise"),
            Example(lambda: nn.Sequential(depthwise, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 64, 1)), image, "a linear bottleneck"),
            Example(lambda: nn.Sequential(nn.Conv2d(8, 8, (3, 1)), nn.Conv2d(8, 8, (1, 3))), image, "k×1 and 1×k"),
            Example(lambda: nn.Sequential(nn.Conv2d(8, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 1)), image, "an activation"),
            Example(lambda: nn.Sequential(nn.Conv2d(8, 64, 3), nn.Upsample(scale_factor=2), nn.Conv2d(64, 8, 1)), image, "upsampling"),
            Example(lambda: nn.Sequential(nn.Linear(8, 64).requires_grad_(False), nn.Linear(64, 8)), ((1, 8),), "frozen"),
            Example(
                lambda: nn.Sequential(nn.Conv2d(8, 64, 3), nn.Conv2d(64, 8, 1).requires_grad_(False)), image, "then frozen"
            ),
            Example(lambda: nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 8)), ((1, 8),), "Dropout"),
            Example(lambda: Between(lambda y, x: y + x), image, "an add between"),
            Example(lambda: Between(lambda y, x: torch.cat([y, x], 1), 16), image, "a concat between"),
            Example(lambda: Between(lambda y, x: y.reshape(1, 32, 4, 4), 32), image, "a reshape between"),
            Example(lambda: SecondReader(lambda y, x: y), image, "a second reader"),
            Example(Attention, ((1, 4, 8),), "attention projections"),
        ]  # fmt: skip


def merged(first: Call, second: Call) -> nn.Module:
    """One layer on meta that computes what the two do, bias included where either has one."""
    from torch import nn

    bias = first.biased or second.biased
    if first.linear is not None and second.linear is not None:
        return nn.Linear(first.linear[0], second.linear[1], bias, device="meta")
    a, b = first.conv, second.conv
    assert a is not None
    assert b is not None
    shape = a if set(b.kernel) == set(b.stride) == {1} else b
    kinds = (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        if shape.transposed
        else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    )
    make: type[nn.Module] = kinds[len(shape.kernel) - 1]
    grown = (first if shape is a else second).scalars.get("output_padding", 0)
    more = {"output_padding": grown} if shape.transposed else {}
    return make(
        a.in_channels, b.out_channels, shape.kernel, stride=shape.stride, padding=tuple(low for low, _ in shape.padding),
        dilation=shape.dilation, bias=bias, device="meta", **more,
    )  # fmt: skip
