"""CNV208 gridding-dilation."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import TYPE_CHECKING, Any

from convaudit.graph import CALL
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.graph import Call
    from convaudit.result import Finding


class GriddingDilation(Rule):
    """dilated convolutions in a row whose rates share a factor

    ## What it does
    Finds three or more dilated convolutions in a row whose rates have a common factor above 1. Norms, activations,
    dropout, 1×1 convolutions, adds and concats between do not matter; an undilated convolution ends the row.

    ## Why it matters
    Such a row reads only every second (fourth, …) pixel, so neighbouring outputs come from disjoint sets of pixels: a
    grid shows in the result.

    ## Example
        dilation 2, 2, 2

    ## Use instead
        dilation 1, 2, 3      # the same receptive field, without holes

    ## Exceptions
    Parallel branches (ASPP); rates that grow from 1 by at most the kernel's size, each once or twice (WaveNet, TCN).

    ## References
    Wang, Chen, Yuan, Liu, Huang, Hou, Cottrell 2018, Understanding Convolution for Semantic Segmentation,
    arXiv:1702.08502, section 3.2 (hybrid dilated convolution: no common factor).
    """

    code = "CNV208"
    name = "gridding-dilation"
    severity = "info"
    changes_state_dict = False

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model: the longest row, and the layers of all of them."""
        rows: dict[Node, list[Node]] = {}
        continued: set[Node] = set()
        for node, call in context.conv_calls:
            rate = _rate(call)
            if rate is None or rate < 2:
                continue
            before = [row for source in _before(node) if (row := rows.get(source)) and gcd(rate, _factor(row)) > 1]
            longest = max(before, key=len, default=[])
            rows[node] = [*longest, node]
            continued.update(longest[-1:])
        found = [r for end, r in rows.items() if end not in continued and len(_layers(r)) >= 3 and not _grows(r)]
        if not found:
            return
        longest = max(found, key=len)
        rates = [_rate(node.meta[CALL]) for node in longest]
        layers = list(dict.fromkeys(layer for row in found for layer in _layers(row)))
        yield context.finding(
            f"dilations {', '.join(map(str, rates[:8]))}{', …' * (len(rates) > 8)} in a row are multiples of "
            f"{_factor(longest)}: the pixels between are read by none of them",
            layers,
            evidence={"rates": [[_rate(node.meta[CALL]) for node in row] for row in found]},
            suggestion="rates without a common factor, such as 1, 2, 3",
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """Equal rates; multiples; behind 1×1 convolutions in residual blocks."""
        import torch
        from torch import nn

        class Bottleneck(nn.Module):
            def __init__(self, rate: int) -> None:
                super().__init__()
                self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
                self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=rate, dilation=rate), nn.BatchNorm2d(4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = x + self.up(self.norm(self.conv(self.down(x))).relu())
                return value

        image = ((1, 8, 32, 32),)
        return [
            Example(lambda: _row(2, 2, 2), image, "2, 2, 2"),
            Example(lambda: _row(2, 4, 6), image, "2, 4, 6"),
            Example(lambda: _row(1, 2, 2, 2), image, "behind an undilated one"),
            Example(lambda: nn.Sequential(*(Bottleneck(2) for _ in range(3))), image, "residual blocks"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Parallel(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.branches = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=r, dilation=r) for r in (6, 12, 18))
                self.mix = nn.Conv2d(24, 8, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.mix(torch.cat([branch(x) for branch in self.branches], 1))
                return value

        image = ((1, 8, 32, 32),)
        return [
            Example(Parallel, image, "parallel branches"),
            Example(lambda: _row(2, 2), image, "two of them"),
            Example(lambda: _row(2, 3, 4), image, "no common factor"),
            Example(lambda: _row(2, 2, 1, 2, 2), image, "an undilated one between"),
            Example(lambda: _row(1, 2, 4, 8), image, "rates that double from 1"),
            Example(lambda: _row(1, 1, 2, 2, 4, 4), image, "rates that double from 1, each twice"),
        ]


def _row(*rates: int) -> Any:
    """3×3 convolutions of these rates, a ReLU behind each."""
    from torch import nn

    convs = [nn.Conv2d(8, 8, 3, padding=rate, dilation=rate) for rate in rates]
    return nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())))


def _rate(call: Call) -> int | None:
    """The factor all rates of a convolution share; None where an axis has no kernel or the layer is transposed."""
    conv = call.conv
    if conv is None or conv.transposed or min(conv.kernel) == 1:
        return None
    return gcd(*conv.dilation)


def _factor(row: list[Node]) -> int:
    return gcd(*(_rate(node.meta[CALL]) or 1 for node in row))


def _layers(row: list[Node]) -> list[str]:
    return list(dict.fromkeys(node.meta[CALL].layer for node in row))


def _before(node: Node) -> list[Node]:
    """The convolutions with a kernel above 1 whose values the convolution ``node`` reads."""
    found: list[Node] = []
    queue, seen = list(node.all_input_nodes), {node}
    while queue:
        at = queue.pop()
        call: Call | None = at.meta.get(CALL)
        if at in seen or call is None:
            continue
        seen.add(at)
        conv = call.conv
        if conv is not None and set(conv.kernel) != {1}:
            found.append(at)
        elif call.kind in ("activation", "norm", "dropout", "elementwise", "merge") or (
            conv is not None and set(conv.stride) == {1}
        ):
            queue += at.all_input_nodes
    return found


def _grows(row: list[Node]) -> bool:
    """Whether the rates rise from an undilated convolution so slowly that no pixel is missed."""
    before = [_rate(node.meta[CALL]) for node in _before(row[0])]
    last, times = 1, 0
    for node in row:
        call: Call = node.meta[CALL]
        rate = _rate(call) or 1
        times = times + 1 if rate == last else 1
        if times > 2 or not last <= rate <= last * min(call.conv.kernel if call.conv else (1,)):
            return False
        last = rate
    return 1 in before
