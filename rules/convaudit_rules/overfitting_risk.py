"""CNV105 overfitting-risk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import Example, Rule

if TYPE_CHECKING:
    from convaudit.context import Context
    from convaudit.result import Finding


class OverfittingRisk(Rule):
    """many more trainable parameters than training samples

    ## What it does
    Divides the trainable parameters by `dataset-size`, the number of training samples: more than 10 a sample is a
    high risk (warning), more than 1 a medium one (info).

    ## Why it matters
    A network with more parameters than samples can learn the samples by heart. It need not: the figure says how much
    regularisation, augmentation or pre-training has to make up for.

    ## Example
        dataset-size = 50000      # for a model of 25 million parameters: 500 a sample

    ## Use instead
        fewer FC parameters, a frozen pre-trained backbone, more data

    ## Exceptions
    Silent without `dataset-size`. Frozen parameters do not count.

    ## References
    Zhang et al. 2017, Understanding deep learning requires rethinking generalization, arXiv:1611.03530, section 2.
    """

    code = "CNV105"
    name = "overfitting-risk"
    changes_state_dict = False
    needs_shapes = False

    def check(self, context: Context) -> Iterator[Finding]:
        """At most one finding, about the whole model."""
        samples, totals = context.settings.dataset_size, context.graph.totals
        if not samples or totals is None:
            return
        density = totals.trainable_parameters / samples
        if density <= 1:
            return
        risk = "high" if density > 10 else "medium"
        yield context.finding(
            f"{totals.trainable_parameters:,} trainable parameters for {samples:,} samples: {density:,.1f} each, "
            f"a {risk} risk of over-fitting",
            [],
            severity="warning" if risk == "high" else "info",
            evidence={
                "density": density, "risk": risk, "trainable_parameters": totals.trainable_parameters, "samples": samples,
            },
            suggestion="fewer parameters (FC layers first), a frozen pre-trained backbone, or more data",
        )  # fmt: skip

    @classmethod
    def bad(cls) -> list[Example]:
        """Both thresholds."""
        from torch import nn

        return [
            Example(
                lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 100)), ((1, 1, 28, 28),), f"{risk} risk",
                {"dataset_size": samples},
            )
            for risk, samples in (("high", 1_000), ("medium", 50_000))
        ]  # fmt: skip

    @classmethod
    def good(cls) -> list[Example]:
        """No dataset size configured; as many samples as parameters; frozen parameters."""
        from torch import nn

        def net() -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(784, 100))

        image = ((1, 1, 28, 28),)
        return [
            Example(net, image, "no dataset size"),
            Example(net, image, "a sample for each parameter", {"dataset_size": 78_500}),
            Example(lambda: net().requires_grad_(False), image, "frozen", {"dataset_size": 1_000}),
        ]
