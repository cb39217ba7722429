"""CNV609 untrained-first-layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from convaudit.rule import FileExample, Rule, file_of

if TYPE_CHECKING:
    from convaudit.checkpoints.audit import CheckpointContext
    from convaudit.checkpoints.weights import Array
    from convaudit.result import Finding

PERMUTATIONS = 999
SPREAD = 0.04
"""Standard deviation over the permutations above which too few kernels are there to tell: the smoothest of 999 lies 3 of
them below 1, and trained first layers of 3×3 had 0.43 to 0.86 (seven of face detection, text and object recognition)."""
_VALUES = 1 << 15
"""Weights that are looked at."""


class UntrainedFirstLayer(Rule):
    """kernels of the first convolution that are spatially no smoother than a permutation of themselves

    ## What it does
    Takes Geary's C of the first convolution's kernels: the squared differences of neighbouring weights over those of
    any two. Then the weights of each kernel change places at random, 999 times.
    It speaks where one of these is as smooth as the kernels are: 999 of 1,000 layers of random weights.

    ## Why it matters
    What reads images learns edges and blobs, whose neighbouring weights are alike. A first layer without any such
    structure was never trained, or its weights were not loaded (a key that did not match, and strict=False).

    ## Example
        model.load_state_dict(torch.load("other_names.pt"), strict=False)   # and saved again

    ## Use instead
        missing, unexpected = model.load_state_dict(weights, strict=False)   # and look at both

    ## Exceptions
    Kernels below 3×3; layers of one channel in a file whose names were sorted, and layers that do not read 1 to 4
    channels; layers with too few kernels to tell (a spread above 0.04 over the permutations). No statistic of single
    kernels is used: the article's sums near 0 or 1 prove nothing, sharpen and identity sum to 1 as well.
    A trained layer of 3×3 kernels that are mostly sharpening is spoken of too: this rule is a preview.

    ## References
    Geary 1954, The Contiguity Ratio and Statistical Mapping.
    Phipson, Smyth 2010, Permutation P-values Should Never Be Zero.
    """

    code = "CNV609"
    name = "untrained-first-layer"
    severity = "info"
    subject = "checkpoint"
    since = None

    def check_checkpoint(self, context: CheckpointContext) -> Iterator[Finding]:
        """One finding about one layer."""
        weights = context.weights
        if weights is None or weights.first is None or weights.kernels is None:
            return
        layer, kernels = weights.first[0], weights.kernels
        channels = kernels.shape[1]
        if kernels.ndim != 4 or min(kernels.shape[2:]) < 3 or channels > 4 or (channels == 1 and context.architecture.by_name):
            return
        own, others = smoothness(kernels)
        if own is None or others.std() > SPREAD or own < others.min():
            return
        yield context.finding(
            f"the kernels of {layer.name} are spatially no smoother than random ones: Geary's C is {own:.2f}, {others.min():.2f} to {others.max():.2f} where their weights change places",
            [layer.name],
            suggestion="check that the weights were loaded: compare the keys with the model's",
            evidence={"geary": own, "permuted": [float(others.min()), float(others.max())], "kernels": len(kernels) * channels},
        )

    @classmethod
    def bad_files(cls) -> list[FileExample]:
        """Random kernels."""
        import numpy as np

        kernels = np.random.default_rng(0).standard_normal((64, 3, 7, 7), np.float32)
        return [FileExample(lambda: file_of({"conv1.weight": kernels}), "random", ".safetensors")]

    @classmethod
    def good_files(cls) -> list[FileExample]:
        """Gratings at all angles, few kernels, and a layer that reads no image."""
        import numpy as np

        draw = np.random.default_rng(0).standard_normal
        angle = np.linspace(0, np.pi, 64)[:, None, None, None]
        y, x = np.mgrid[-3:4, -3:4]
        gratings = np.cos(x * np.cos(angle) + y * np.sin(angle)) * np.exp(-(x**2 + y**2) / 8) * np.array([1, 0.8, 0.6])[:, None, None]
        return [
            FileExample(lambda: file_of({"conv1.weight": gratings.astype(np.float32)}), "gratings", ".safetensors"),
            FileExample(lambda: file_of({"conv1.weight": draw((4, 3, 3, 3), np.float32)}), "few kernels", ".safetensors"),
            FileExample(lambda: file_of({"conv1.weight": draw((64, 16, 3, 3), np.float32)}), "16 channels", ".safetensors"),
        ]


def smoothness(kernels: Array) -> tuple[float | None, Array]:
    """Geary's C of kernels [filters, channels, height, width], and of 999 of their permutations (always the same ones).

    1 is what random weights have, 0 constant kernels. None where no weight differs from its kernel's mean, or one
    is not finite.
    """
    import numpy as np

    planes = kernels.reshape(-1, *kernels.shape[2:])[: max(64, _VALUES // math.prod(kernels.shape[2:]))].astype(np.float64)
    largest = np.abs(planes).max()
    if not 0 < largest < math.inf:
        return None, np.ones(PERMUTATIONS)
    planes /= largest
    planes -= planes.mean(axis=(1, 2), keepdims=True)
    total = float(np.square(planes).sum())
    if not total:
        return None, np.ones(PERMUTATIONS)
    _, height, width = planes.shape
    scale = (height * width - 1) / (2 * total * (height * (width - 1) + width * (height - 1)))

    def geary(values: Array) -> float:
        pairs = np.diff(values, axis=1), np.diff(values, axis=2)
        return float(scale * sum(np.einsum("fij,fij->", pair, pair) for pair in pairs))

    draw, flat = np.random.default_rng(0), planes.reshape(len(planes), -1)
    others = [geary(draw.permuted(flat, axis=1).reshape(planes.shape)) for _ in range(PERMUTATIONS)]
    return geary(planes), np.array(others)
