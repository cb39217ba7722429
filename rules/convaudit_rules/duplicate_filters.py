"""CNV605 duplicate-filters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import FileExample, Rule, file_of

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.result import Finding


class DuplicateFilters(Rule):
    """filters of a convolution that are another one of its layer up to sign and scale

    ## What it does
    Looks in each layer for filters whose absolute cosine with an earlier one is above 0.999.

    ## Why it matters
    Such a filter finds nothing that the other does not: the layer behind could read one map in place of two. A layer
    with many of them is wider than what it learnt, or its filters began alike.

    ## Example
        wide.weight.data[64:] = narrow.weight.data   # widened by copying, and never trained apart

    ## Use instead
        conv = nn.Conv2d(3, 64, 3)   # one of each, the weights of the layer behind added up

    ## Exceptions
    Depthwise convolutions: each of their filters reads another map. Filters of fewer than 9 weights, which are alike by
    chance. Dead filters (CNV604). A layer in which every filter has a double is fixed or has just begun (constants,
    ICNR, interpolation).

    ## References
    RoyChowdhury et al. 2017, Reducing Duplicate Filters in Deep Neural Networks.
    Chen, Goodfellow, Shlens 2016, Net2Net: Accelerating Learning via Knowledge Transfer, arXiv:1511.05641.
    """

    code = "CNV605"
    name = "duplicate-filters"
    severity = "info"
    subject = "checkpoint"
    changes_state_dict = True

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding for all layers."""
        if context.weights is None:
            return
        found = {}
        for name, filters in context.weights.filters.items():
            copies = filters.copies or {}
            doubled = {*copies, *copies.values()}
            if copies and len(doubled) < len(filters.norms) - int(filters.dead.sum()):
                found[name] = copies
        if not found:
            return
        most = max(found, key=lambda name: len(found[name]))
        number = sum(map(len, found.values()))
        later, earlier = next(iter(found[most].items()))
        more = f", {number:,} in {len(found)} layers" if len(found) > 1 else ""
        times = f"{len(found[most]):,} filters of {most} are an earlier one" if len(found[most]) > 1 else f"filter {later} of {most} is filter {earlier}"
        yield context.finding(
            f"{times} up to sign and scale{more}",
            sorted(found, key=lambda name: -len(found[name])),
            suggestion="keep one of each and add up what the layer behind makes of them",
            evidence={"filters": {name: [[later, earlier] for later, earlier in [*copies.items()][:100]] for name, copies in found.items()}},
            changes_state_dict=True,
        )

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """A filter and its negative at another scale."""
        import numpy as np

        weight = np.random.default_rng(0).standard_normal((8, 4, 3, 3), np.float32)
        weight[5] = -3 * weight[2]
        return [FileExample(lambda: file_of({"conv.weight": weight}), "sign and scale", ".safetensors")]

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """Depthwise, 1×1 on few channels, dead, constant, and merely similar."""
        import numpy as np

        draw = np.random.default_rng(0).standard_normal
        weight, narrow, similar, dead = draw((8, 4, 3, 3), np.float32), draw((64, 2, 1, 1), np.float32), draw((8, 4, 3, 3), np.float32), draw((8, 4, 3, 3), np.float32)
        deep = np.repeat(draw((1, 1, 3, 3), np.float32), 8, axis=0)
        similar[5] = similar[2] + 0.1 * weight[2]
        dead[[2, 5]] = 0
        return [
            FileExample(lambda: file_of({"deep.weight": deep}), "depthwise", ".safetensors"),
            FileExample(lambda: file_of({"conv.weight": narrow}), "few weights", ".safetensors"),
            FileExample(lambda: file_of({"conv.weight": similar}), "similar", ".safetensors"),
            FileExample(lambda: file_of({"conv.weight": dead}), "dead", ".safetensors"),
            FileExample(lambda: file_of({"conv.weight": np.ones((8, 4, 3, 3), np.float32)}), "constant", ".safetensors"),
        ]
