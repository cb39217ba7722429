"""CNV604 dead-filters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import FileExample, Rule, file_of

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.result import Finding


class DeadFilters(Rule):
    """filters of a convolution that are zero, or as good as zero beside the others of their layer

    ## What it does
    Compares the norm of each filter with its layer's median: at 1e-6 of it or less, or at zero, the filter's output does
    not depend on the image. A warning where 5% of a layer's filters or more hold 1% of the parameters, else an info.

    ## Why it matters
    A dead filter costs its MACs and its memory like any other. Pruning by masks, weight decay on units that a ReLU
    switched off, and a regularised batch norm leave them behind.

    ## Example
        prune.ln_structured(conv, "weight", amount=0.5, n=2, dim=0)   # half of the filters are zero and still computed

    ## Use instead
        conv = nn.Conv2d(64, 32, 3)   # the filters that are left, and the next layer without the channels that are gone

    ## Exceptions
    A layer that is zero throughout is how it begins (ControlNet's convolutions, the last of a residual branch), and no
    finding. Linear layers and transposed convolutions are not looked at.

    ## References
    Li et al. 2017, Pruning Filters for Efficient ConvNets, arXiv:1608.08710.
    Mehta et al. 2019, On Implicit Filter Level Sparsity in Convolutional Neural Networks, arXiv:1811.12495.
    """

    code = "CNV604"
    name = "dead-filters"
    severity = "warning"
    subject = "checkpoint"
    changes_state_dict = True

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding for all layers."""
        if context.weights is None:
            return
        from convaudit.checkpoints.weights import Part, ranked, severity_of

        parts = {
            name: Part([int(i) for i in filters.dead.nonzero()[0]], len(filters.norms), int(filters.dead.sum()) * filters.fan_in)
            for name, filters in context.weights.filters.items() if filters.dead.any()
        }  # fmt: skip
        if not parts:
            return
        layers, more = ranked(parts)
        most, held = parts[layers[0]], sum(part.parameters for part in parts.values())
        pruned = [name for name in layers if context.weights.filters[name].pruned]
        masked = "; pruned by masks" if len(pruned) == len(layers) else f"; pruned by masks in {len(pruned)} of the layers" if pruned else ""
        yield context.finding(
            f"dead filters of {layers[0]}: {len(most.numbers):,} of {most.of:,}{more}; {held / max(context.file.parameters, 1):.1%} of the parameters{masked}",
            layers,
            severity=severity_of(parts.values(), context.file.parameters),
            suggestion="take them out, with the channels they make in the layers behind" + "; a mask alone saves nothing" * bool(pruned),
            evidence={"filters": {name: part.numbers[:100] for name, part in parts.items()}, "parameters": held} | ({"pruned": pruned} if pruned else {}),
            changes_state_dict=True,
        )

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """Half of a layer at zero, under a mask or not, one filter far below the others, one of norm zero."""
        import numpy as np

        weight = np.random.default_rng(0).standard_normal((8, 4, 3, 3), np.float32)
        zero, small = weight.copy(), weight.copy()
        zero[4:], small[3] = 0, weight[3] * 1e-7
        mask, norms = (zero != 0).astype(np.float32), np.array([1, 1, 0, 1, 1, 1, 1, 1], np.float32).reshape(-1, 1, 1, 1)
        return [
            FileExample(lambda: file_of({"conv.weight_orig": weight, "conv.weight_mask": mask}), "pruned", ".safetensors"),
            FileExample(lambda: file_of({"conv.weight_g": norms, "conv.weight_v": weight}), "weight norm", ".safetensors"),
            FileExample(lambda: file_of({"conv.weight": zero}), "zero", ".safetensors"),
            FileExample(lambda: file_of({"conv.weight": small}), "small", ".safetensors"),
        ]

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """A layer that begins at zero, a small filter, and a dead column of a transposed convolution."""
        import numpy as np

        weight = np.random.default_rng(0).standard_normal((8, 4, 3, 3), np.float32)
        small, transposed = weight.copy(), weight.copy()
        small[3], transposed[3] = weight[3] * 1e-4, 0
        tiny, norms = weight.copy(), np.ones((8, 1, 1, 1), np.float32)
        tiny[3] *= 1e-8
        return [
            FileExample(lambda: file_of({"conv.weight_g": norms, "conv.weight_v": tiny}), "weight norm gives it its length", ".safetensors"),
            FileExample(lambda: file_of({"conv.parametrizations.weight.original": tiny}), "an unknown parametrization", ".safetensors"),
            FileExample(lambda: file_of({"conv.weight": 0 * weight}), "zero throughout", ".safetensors"),
            FileExample(lambda: file_of({"conv.weight": small}), "small, not dead", ".safetensors"),
            FileExample(lambda: file_of({"up.weight": transposed, "up.bias": [0] * 4}), "transposed", ".safetensors"),
        ]
