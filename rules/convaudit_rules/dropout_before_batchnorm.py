"""CNV406 dropout-before-batchnorm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.graph import CALL
from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.result import Finding


class DropoutBeforeBatchnorm(Rule):
    """Dropout whose values a BatchNorm normalises

    ## What it does
    Finds Dropout (p > 0) whose value reaches a BatchNorm through at most one convolution or Linear; activations,
    pooling, padding, reshapes and concats between do not matter.

    ## Why it matters
    Dropout raises the variance while training and not while testing, so BatchNorm's running variance is wrong at test
    time (variance shift).

    ## Example
        nn.Conv2d(64, 128, 3), nn.LeakyReLU(0.2), nn.Dropout2d(0.25), nn.BatchNorm2d(128)

    ## Use instead
        Dropout behind the last BatchNorm

    ## Exceptions
    Dropout behind the last norm, p = 0, stochastic depth, an add between.

    ## References
    Li, Chen, Hu, Yang 2019, Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift,
    arXiv:1801.05134, section 3.
    """

    code = "CNV406"
    name = "dropout-before-batchnorm"
    changes_state_dict = False

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model: each Dropout and the norm it reaches."""
        reached: dict[str, str] = {}
        for node, call in context.graph.calls:
            if call.op == "batch_norm" and not call.from_weights:
                for layer in self._dropouts_before(node):
                    reached.setdefault(layer, call.layer)
        if reached:
            first, norm = next(iter(reached.items()))
            more = f" and {len(reached) - 1} more" if len(reached) > 1 else ""
            yield context.finding(
                f"{first}{more} drops values that {norm} normalises: its running variance will not hold at test time",
                list(reached),
                evidence={"norms": reached},
                suggestion="move Dropout behind the last BatchNorm, or leave it out",
            )

    def _dropouts_before(self, norm: Node) -> list[str]:
        found: list[str] = []
        queue: list[tuple[Node, int]] = [(source, 0) for source in norm.all_input_nodes]
        seen: set[tuple[Node, int]] = set()
        while queue:
            at, weighted = queue.pop()
            if (at, weighted) in seen:
                continue
            seen.add((at, weighted))
            call = at.meta.get(CALL)
            if call is None:
                queue += [(n, weighted) for n in at.all_input_nodes]
            elif call.kind == "dropout":
                if call.scalars.get("p", 0.5):
                    found.append(call.layer)
            elif call.kind in ("conv", "linear") and not weighted:
                queue += [(n, 1) for n in at.all_input_nodes if n.op != "get_attr"]
            elif call.kind in ("activation", "pool", "reshape", "elementwise") or call.op == "cat":
                queue += [(n, weighted) for n in at.all_input_nodes]
        return found[::-1]

    @classmethod
    def bad(cls) -> list[Example]:
        """Directly before; through one weighted layer and what is transparent; functional."""
        import torch
        from torch import nn

        class Functional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.norm(nn.functional.dropout(self.conv(x), 0.3, self.training))
                return value

        class Joined(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.drop, self.norm = nn.Dropout(0.3), nn.BatchNorm2d(6)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.norm(torch.cat([x, self.drop(x)], 1))
                return value

        image = ((2, 3, 8, 8),)
        viewed = [nn.Dropout(0.4), nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8)]
        through = [nn.Dropout2d(0.2), nn.ReLU(), nn.Conv2d(3, 8, 1), nn.MaxPool2d(2), nn.BatchNorm2d(8)]
        return [
            Example(
                lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout2d(0.25), nn.BatchNorm2d(8)), image, "directly"
            ),
            Example(lambda: nn.Sequential(*through), image, "through one convolution"),
            Example(Functional, image, "functional"),
            Example(lambda: nn.Sequential(*viewed), image, "through a flatten and a Linear"),
            Example(lambda: nn.Sequential(nn.Dropout(0.1), nn.ZeroPad2d(1), nn.BatchNorm2d(3)), image, "through a pad"),
            Example(Joined, image, "through a concat"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Added(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.drop, self.norm = nn.Dropout(0.2), nn.BatchNorm2d(3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.norm(x + self.drop(x))
                return value

        class Path(nn.Module):
            """Stochastic depth: it drops whole samples of a branch that is added."""

            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                branch = self.conv(x)
                if self.training:
                    branch = branch * torch.rand(len(x), 1, 1, 1).round()
                value: torch.Tensor = self.norm(x + branch)
                return value

        image = ((2, 3, 8, 8),)
        two = [nn.Dropout(0.2), nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)]
        return [
            Example(
                lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 8, 1)),
                image,
                "behind the last norm",
            ),
            Example(lambda: nn.Sequential(nn.Dropout(0.0), nn.BatchNorm2d(3)), image, "p = 0"),
            Example(lambda: nn.Sequential(nn.Dropout(0.5), nn.InstanceNorm2d(3)), image, "no BatchNorm"),
            Example(lambda: nn.Sequential(*two), image, "two convolutions between"),
            Example(Added, image, "an add between"),
            Example(Path, image, "stochastic depth"),
        ]
