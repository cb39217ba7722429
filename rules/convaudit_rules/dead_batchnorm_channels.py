"""CNV606 dead-batchnorm-channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import FileExample, Rule, file_of

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.checkpoints.weights import Array, Weights
    from convaudit.result import Finding

GAMMA = 1e-6
VARIANCE = 1e-10


class DeadBatchnormChannels(Rule):
    """channels that a batch norm switches off, or that never varied in training

    ## What it does
    Looks for channels whose gamma is at most 1e-6, and for used ones whose running variance is at most 1e-10. A warning
    where 5% of a layer's channels or more hold 1% of the parameters (the filters that make them counted in), else an info.

    ## Why it matters
    Both are constant whatever the image shows: beta is all that leaves the norm. The filters that make them are computed
    for nothing. L1 on gammas does it on purpose, and then the pruning is still to be done.

    ## Example
        loss = loss + 1e-4 * sum(bn.weight.abs().sum() for bn in norms)   # and the model saved as it is

    ## Use instead
        conv, bn = nn.Conv2d(64, 40, 3), nn.BatchNorm2d(40)   # the channels that are left

    ## Exceptions
    Gammas that are all zero, which is how the last norm of a residual branch begins; variances that are all zero, which
    were never estimated. Channels whose filter is dead are CNV604's.

    ## References
    Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming, arXiv:1708.06519.
    Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677, section 5.1 (gammas that begin at zero).
    """

    code = "CNV606"
    name = "dead-batchnorm-channels"
    severity = "warning"
    subject = "checkpoint"
    changes_state_dict = True

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding for all layers."""
        if context.weights is None:
            return
        from convaudit.checkpoints.weights import Part, ranked, severity_of

        parts: dict[str, Part] = {}
        still = {}
        before = None
        for layer in context.architecture.layers:
            held = context.weights.norms.get(layer.name)
            if held is not None and "running_var" in held:
                off, frozen = _dead(held)
                known = _dead_filters(context.weights, layer.name, len(off))
                dead = (off | frozen) & ~known
                made = before is not None and before.outward == len(off) and before.kind in ("conv", "linear")
                each = 2 + (before.weights // len(off) if before is not None and made else 0)
                if dead.any():
                    parts[layer.name] = Part([int(i) for i in dead.nonzero()[0]], len(off), int(dead.sum()) * each)
                    still[layer.name] = int((dead & frozen).sum())
            before = layer
        if not parts:
            return
        layers, more = ranked(parts)
        most = layers[0]
        here, constant = len(parts[most].numbers), still[most]
        why = "their gamma is zero" if not constant else "their input never varies" if constant == here else f"the gamma of {here - constant:,} is zero, the input of {constant:,} never varies"
        yield context.finding(
            f"constant channels of {most}: {here:,} of {parts[most].of:,}{more}; {why}",
            layers,
            severity=severity_of(parts.values(), context.file.parameters),
            suggestion="take them out with the filters that make them; what their beta gives moves into the layer behind",
            evidence={"channels": {name: part.numbers[:100] for name, part in parts.items()}, "parameters": sum(part.parameters for part in parts.values())},
            changes_state_dict=True,
        )

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """Gammas at zero, and a channel that never varied."""
        return [
            FileExample(lambda: file_of(_norm([1, 0, 1e-7, 1], [1, 1, 1, 1])), "gamma", ".safetensors"),
            FileExample(lambda: file_of(_norm([1, 1, 1, 1], [1, 0, 1, 1])), "variance", ".safetensors"),
        ]

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """All gammas at zero, variances never estimated, small ones, and a dead filter before the norm."""
        import numpy as np

        weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3), np.float32)
        weight[1] = 0
        return [
            FileExample(lambda: file_of(_norm([0, 0, 0, 0], [1, 1, 1, 1])), "the last of a residual branch", ".safetensors"),
            FileExample(lambda: file_of(_norm([1, 1, 1, 1], [0, 0, 0, 0])), "never estimated", ".safetensors"),
            FileExample(lambda: file_of(_norm([1, 1e-4, 1, 1], [1, 1, 1e-6, 1])), "small", ".safetensors"),
            FileExample(lambda: file_of({"1.weight": weight} | _norm([1, 1, 1, 1], [1, 0, 1, 1])), "a dead filter", ".safetensors"),
        ]


def _dead(held: dict[str, Array]) -> tuple[Array, Array]:
    """Channels whose gamma is zero, and those with a gamma whose variance is."""
    import numpy as np

    variance = held["running_var"]
    gamma = held.get("weight")
    if gamma is None or gamma.shape != variance.shape:
        gamma = np.ones_like(variance)
    off = (abs(gamma) <= GAMMA) & bool(gamma.any())
    frozen = (variance <= VARIANCE) & bool(variance.any()) & (abs(gamma) > GAMMA)
    return off, frozen


def _dead_filters(weights: Weights, norm: str, width: int) -> Array:
    """Channels that a convolution beside the norm, of the same width, makes by a dead filter."""
    import numpy as np

    beside = norm.rpartition(".")[0]
    dead = [filters.dead for name, filters in weights.filters.items() if name.rpartition(".")[0] == beside and len(filters.norms) == width]
    return np.any(dead, axis=0) if dead else np.zeros(width, bool)


def _norm(gamma: list[float], variance: list[float]) -> dict[str, list[float]]:
    return {"2.weight": gamma, "2.bias": [0.5] * 4, "2.running_mean": [0] * 4, "2.running_var": variance}
