"""CNV409 norm-eps-too-large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding


class NormEpsTooLarge(Rule):
    """a norm with an eps of 0.1 or more

    ## What it does
    Finds normalisation layers whose eps, added to the variance, is 0.1 or more.

    ## Why it matters
    eps keeps a division from failing (1e-5 as a rule). At 0.8 it shrinks every channel of small variance, and says that
    momentum was meant: `BatchNorm2d(c, 0.8)` sets eps.

    ## Example
        nn.BatchNorm2d(128, 0.8)

    ## Use instead
        nn.BatchNorm2d(128, momentum=0.8)

    ## Exceptions
    None.

    ## References
    PyTorch documentation, torch.nn.BatchNorm2d: BatchNorm2d(num_features, eps=1e-05, momentum=0.1, ...),
    https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html
    """

    code = "CNV409"
    name = "norm-eps-too-large"
    changes_state_dict = False

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all such layers."""
        large: dict[str, float] = {}
        for _, call in context.graph.calls:
            eps = call.scalars.get("eps")
            if call.kind == "norm" and isinstance(eps, (int, float)) and eps >= 0.1:
                large.setdefault(call.layer, eps)
        if large:
            yield context.finding(
                f"{len(large)} norm{'s' * (len(large) > 1)} with eps {', '.join(f'{e:g}' for e in sorted(set(large.values())))}; "
                "the second argument is eps, not momentum",
                list(large),
                evidence={"eps": large},
                suggestion="leave eps at 1e-5; pass momentum by name",
            )

    @classmethod
    def bad(cls) -> list[Example]:
        """BatchNorm2d(c, 0.8), an int, other norms, a functional one."""
        import torch
        from torch import nn

        class Functional(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.layer_norm(x, (8,), eps=0.5)

        image = ((1, 3, 8, 8),)
        return [
            Example(lambda: nn.Sequential(nn.BatchNorm2d(3, 0.8)), image, "0.8"),
            Example(lambda: nn.Sequential(nn.BatchNorm2d(3, 1)), image, "an int"),
            Example(lambda: nn.Sequential(nn.GroupNorm(1, 3, 0.1)), image, "GroupNorm"),
            Example(lambda: nn.Sequential(nn.InstanceNorm2d(3, 0.8)), image, "InstanceNorm"),
            Example(Functional, image, "functional"),
        ]

    @classmethod
    def good(cls) -> list[Example]:
        """Momentum by name; a usual eps."""
        from torch import nn

        return [
            Example(lambda: nn.Sequential(nn.BatchNorm2d(3, momentum=0.8)), ((1, 3, 8, 8),), "momentum"),
            Example(lambda: nn.Sequential(nn.LayerNorm(8, eps=1e-3)), ((1, 3, 8),), "a usual eps"),
        ]
