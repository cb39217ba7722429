"""CNV502 cost-hotspot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convaudit.rule import Example, Options, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding

_WEIGHTED = ("conv", "linear", "matmul", "embedding", "recurrent", "attention", "module")


@dataclass(frozen=True)
class CostHotspotOptions(Options):
    """``min_share``: of the model's MACs, parameters or peak activation bytes; ``min_layers``: weighted layers."""

    min_share: float = 0.5
    min_layers: int = 8


class CostHotspot(Rule):
    """one layer holds half of the model's cost

    ## What it does
    Names the layers that hold `min-share` of all MACs or of all parameters, all their calls together, or whose output
    is more than that of the peak of live activations, in models of `min-layers` weighted layers (norms not counted).

    ## Why it matters
    A change to that layer changes the whole; a change to any other layer hardly does.

    ## Example
        nn.Linear(512 * 7 * 7, 4096)      # VGG16: 74% of the parameters

    ## Use instead
        Start there: pool before it, narrow it, or factorise it.

    ## Exceptions
    Small models, where one layer must be the largest. An output of exactly half the peak is no hotspot: a layer that
    maps a tensor to one of its size holds both.

    ## References
    Amdahl 1967, Validity of the single processor approach to achieving large scale computing capabilities, AFIPS Spring
    Joint Computer Conference, pages 483-485 (the share of a part bounds what changing it can save).
    """

    code = "CNV502"
    name = "cost-hotspot"
    severity = "info"
    changes_state_dict = True
    needs_complete = True
    options = CostHotspotOptions

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such layers."""
        options, totals = context.options, context.graph.totals
        assert isinstance(options, CostHotspotOptions)
        if totals is None:
            return
        rows = [row for row in context.graph.layers if row.call is not None]
        if len({row.name for row in rows if row.parameters and row.kind in _WEIGHTED}) < options.min_layers:
            return
        macs: dict[str, int] = {}
        parameters: dict[str, int] = {}
        outputs: dict[str, int] = {}
        for row in rows:
            macs[row.name] = macs.get(row.name, 0) + (row.macs or 0)
            parameters[row.name] = parameters.get(row.name, 0) + row.parameters
            if row.kind != "reshape":  # a pad is no layer to change
                outputs[row.name] = max(outputs.get(row.name, 0), row.activation_bytes or 0)
        shares: dict[str, dict[str, float]] = {}
        memory = "peak activation bytes"
        for what, held, total in (
            ("parameters", parameters, totals.parameters),
            ("MACs", macs, totals.macs),
            (memory, outputs, totals.peak_activation_bytes),
        ):
            for name, amount in held.items():
                share = amount / total if total else 0.0
                # a map to one of the same size is exactly half of what lives while it is made
                if share > options.min_share or (share == options.min_share and held is not outputs):
                    shares.setdefault(name, {})[what] = share
        if not shares:
            return
        # what is paid in weights and work first
        layers = sorted(shares, key=lambda name: (set(shares[name]) == {memory}, -max(shares[name].values())))
        (what, share), *others = shares[layers[0]].items()
        more = f" (and {len(layers) - 1} more such layer{'s' * (len(layers) > 2)})" if len(layers) > 1 else ""
        yield context.finding(
            _first(layers[0] or "one layer", what, share) + "".join(_next(what, share) for what, share in others) + more,
            layers,
            evidence={"shares": {name: shares[name] for name in layers}},
            suggestion="change this layer first",
        )

    @classmethod
    def bad(cls) -> list[Example]:
        """A layer with most of the parameters, of the MACs, of the peak; MACs of many calls."""
        import torch
        from torch import nn

        def chain(*layers: nn.Module, channels: int = 8) -> nn.Module:
            rest = [nn.Conv2d(channels, channels, 1) for _ in range(7)]
            return nn.Sequential(*layers, *rest)

        class Repeated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.rest = nn.Conv2d(8, 8, 1), chain()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                for _ in range(9):
                    x = self.conv(x)
                value: torch.Tensor = self.rest(x)
                return value

        image = ((1, 8, 16, 16),)
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1))
        return [
            Example(lambda: nn.Sequential(chain(), nn.Flatten(), nn.Linear(2048, 100)), image, "parameters"),
            Example(lambda: chain(nn.Conv2d(8, 8, 5, padding=2)), image, "MACs"),
            Example(lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 4), chain(nn.AdaptiveAvgPool2d(16)), pooled), image, "peak"),
            Example(Repeated, image, "MACs of many calls"),
        ]  # fmt: skip

    @classmethod
    def good(cls) -> list[Example]:
        """Few layers, one of them called often; even shares; an output of exactly half the peak."""
        import torch
        from torch import nn

        class Repeated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                for _ in range(9):
                    x = self.conv(x)
                value: torch.Tensor = self.last(x)
                return value

        image = ((1, 8, 16, 16),)
        return [
            Example(lambda: nn.Sequential(*[nn.Conv2d(8, 8, 1) for _ in range(8)]), image, "even, half of the peak"),
            Example(lambda: nn.Sequential(nn.Conv2d(8, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 1)), image, "few layers"),
            Example(Repeated, image, "one layer called often"),
        ]


def _first(layer: str, what: str, share: float) -> str:
    if what == "parameters":
        return f"{layer} holds {share:.0%} of the parameters"
    return f"{layer} holds {share:.0%} of the MACs" if what == "MACs" else f"{layer} holds {share:.0%} of the peak activation bytes"


def _next(what: str, share: float) -> str:
    return f" and {share:.0%} of the MACs" if what == "MACs" else f" and {share:.0%} of the peak activation bytes"
