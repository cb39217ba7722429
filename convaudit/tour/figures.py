"""The tour's figures as plain data: what is counted here, and what another process measures with torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from math import hypot
from typing import Any

import msgspec

from convaudit.calc import conv_cost, linear_cost
from convaudit.child import command
from convaudit.classic_kernels import CLASSIC_KERNELS, ClassicKernel
from convaudit.errors import ConvauditError
from convaudit.result import TargetResult

Matrix = list[list[int]]
Image = list[list[float]]

PICTURE: Matrix = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
"""§1.2.2: the picture that flattening takes apart."""
IMAGE: Matrix = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 1, 2, 3], [4, 5, 6, 7]]
EDGES: Matrix = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
"""§3.1: image and kernel."""
SPOT: Matrix = [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]
"""§2.3: the kernel that is shown a square in two places."""
FACTORS: tuple[Matrix, Matrix, Matrix] = ([[1, 2], [3, 4]], [[0, 1], [1, 0]], [[1, -1], [2, 0]])
"""§3.2: its f and g, and an h that the article has no need of."""
SIDES = (28, 32, 64, 100, 128, 224)
SAMPLES = (1_000, 10_000, 50_000, 100_000)
UNITS = 1_000
EXACT = 1e-5
"""Largest relative difference that is rounding of 32-bit floats."""


@dataclass(frozen=True)
class Tour:
    """All figures; ``networks`` holds the audits by class name, ``separable`` BasicCNN's with CNV501 alone."""

    networks: dict[str, TargetResult]
    separable: TargetResult
    measured: Measured


# §1 and §2: what a Linear and a convolution hold


def linears() -> dict[int, dict[str, Any]]:
    """A Linear to :data:`UNITS` on a square grey image, by its side."""
    return {side: linear_cost((side, side), UNITS) for side in SIDES}


def densities() -> dict[int, dict[str, Any]]:
    """The Linear on the largest image, by the number of training samples."""
    return {samples: linear_cost((SIDES[-1],) * 2, UNITS, dataset_size=samples) for samples in SAMPLES}


def parameters(kernel: int, inward: int, outward: int) -> int:
    """Of a convolution with bias."""
    found: int = conv_cost((kernel, kernel), inward, outward, (kernel, kernel))["parameters"]
    return found


def square(at: int, side: int = 8, size: int = 2) -> Matrix:
    """§2.3: a square of ones on an image of zeros."""
    return [[int(at <= y < at + size and at <= x < at + size) for x in range(side)] for y in range(side)]


# §3: convolution in whole numbers


def correlate(image: Matrix, kernel: Matrix) -> Matrix:
    """Cross-correlation where the kernel fits: what the article computes, and ``conv2d``."""
    high, wide = len(kernel), len(kernel[0])
    return [
        [sum(image[y + i][x + j] * kernel[i][j] for i in range(high) for j in range(wide)) for x in range(len(image[0]) - wide + 1)]
        for y in range(len(image) - high + 1)
    ]  # fmt: skip


def flipped(kernel: Matrix) -> Matrix:
    """Turned by 180°: correlation with it is convolution."""
    return [row[::-1] for row in kernel[::-1]]


def padded(image: Matrix, by: int) -> Matrix:
    """Zeros around: ``by`` rows and columns."""
    width = len(image[0]) + 2 * by
    rows = [[0] * by + row + [0] * by for row in image]
    return [[0] * width for _ in range(by)] + rows + [[0] * width for _ in range(by)]


def convolve(first: Matrix, second: Matrix) -> Matrix:
    """Convolution with every overlap, (I * K)[i, j] = Σ I[m, n] K[i−m, j−n]."""
    found = [[0] * (len(first[0]) + len(second[0]) - 1) for _ in range(len(first) + len(second) - 1)]
    for y, row in enumerate(first):
        for x, value in enumerate(row):
            for i, other in enumerate(second):
                for j, weight in enumerate(other):
                    found[y + i][x + j] += value * weight
    return found


def correlate_fully(first: Matrix, second: Matrix) -> Matrix:
    """Cross-correlation with every overlap."""
    return convolve(first, flipped(second))


@dataclass(frozen=True)
class Law:
    """Both sides of an equation, for convolution and for cross-correlation, on :data:`FACTORS`."""

    name: str
    equation: str
    convolution: tuple[Matrix, Matrix]
    correlation: tuple[Matrix, Matrix]


def laws() -> list[Law]:
    """§3.2's four, in exact numbers."""
    f, g, h = FACTORS
    one = [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    total = [[a + b for a, b in zip(*rows)] for rows in zip(g, h)]

    def sides(by: Any) -> list[tuple[Matrix, Matrix]]:
        both = [[a + b for a, b in zip(*rows)] for rows in zip(by(f, g), by(f, h))]
        return [
            (by(f, g), by(g, f)),
            (by(by(f, g), h), by(f, by(g, h))),
            (by(f, total), both),
            (by(f, one), padded(f, 1)),
        ]

    names = ("commutative", "associative", "distributive", "identity")
    equations = ("f ∘ g = g ∘ f", "(f ∘ g) ∘ h = f ∘ (g ∘ h)", "f ∘ (g + h) = f ∘ g + f ∘ h", "f ∘ δ = f")
    return [Law(*row) for row in zip(names, equations, sides(convolve), sides(correlate_fully))]


def configurations() -> dict[str, dict[str, Any]]:
    """§3.3's four convolutions, 3 to 64 channels on 32×32, and two that really group (32 to 64 channels)."""
    made = {
        "standard": {"padding": 1}, "stride": {"padding": 1, "stride": 2}, "dilated": {"padding": 2, "dilation": 2},
        "grouped": {"padding": 1, "groups": 3 // 2},
    }  # fmt: skip
    found = {name: conv_cost((3, 3), 3, 64, (32, 32), **options) | {"groups": 1} | options for name, options in made.items()}
    for name, groups in (("dense-32", 1), ("grouped-32", 32 // 2), ("depthwise-32", 32)):
        found[name] = conv_cost((3, 3), 32, 64, (32, 32), padding=1, groups=groups) | {"groups": groups}
    return found


def algorithms() -> dict[tuple[int, int, int], dict[str, Any]]:
    """Direct, im2col, FFT and Winograd, by (kernel, channels in and out, side of the image)."""
    layers = ((3, 64, 32), (3, 256, 8), (7, 64, 32), (15, 64, 64))
    return {
        (kernel, width, side): conv_cost((kernel, kernel), width, width, (side, side), padding=kernel // 2)
        for kernel, width, side in layers
    }


# §4.2: the kernels at work


def drawing(side: int = 30) -> Image:
    """A made-up grey picture from 0 to 1: a sky that brightens, a house, a sun, a diagonal path."""
    picture = []
    for y in range(side):
        row = [0.2 + 0.35 * y / side] * side
        for x in range(side):
            if hypot(x - 22, y - 7) < 4.5:
                row[x] = 1.0
            if 4 <= x < 15 and 12 <= y < 23:
                row[x] = 0.85
            if 8 <= x < 11 and 16 <= y < 23:
                row[x] = 0.1
            if abs(x - y) < 1 and y >= 18:
                row[x] = 0.95
        picture.append(row)
    return picture


def gallery(image: Image) -> list[tuple[ClassicKernel, Image]]:
    """What each classic kernel makes of an image, its border repeated outwards."""
    return [(kernel, _filtered(image, kernel)) for kernel in CLASSIC_KERNELS]


def _filtered(image: Image, kernel: ClassicKernel) -> Image:
    last = len(image) - 1
    taps = [(i - 1, j - 1, float(value)) for i, row in enumerate(kernel.rows) for j, value in enumerate(row) if value]

    def at(y: int, x: int) -> float:
        return sum(value * image[min(max(y + i, 0), last)][min(max(x + j, 0), last)] for i, j, value in taps)

    return [[at(y, x) for x in range(len(image))] for y in range(len(image))]


# What is measured with torch, in another process


class Fit(msgspec.Struct):
    """Share of the variance that the best weights leave unexplained, with pixels in order and permuted."""

    images: int
    permuted_picture: Matrix
    linear: float
    linear_permuted: float
    conv: float
    conv_permuted: float


class Shift(msgspec.Struct):
    """An image moved by ``amount`` pixels along both axes: how far what comes out is from the same, moved as far.

    Differences are relative to the largest output. ``stride`` and ``extent`` (receptive field) are the graph's own;
    None where the outputs are vectors, which must not change at all.
    """

    case: str
    amount: int
    stride: int | None
    extent: int | None
    largest: float
    inside: float | None
    """Largest difference of positions that see neither the border nor what wrapped around it."""
    moved: float
    """Share of the outputs that differ by more than rounding."""


class Measured(msgspec.Struct):
    """What needs torch."""

    torch_version: str
    conv2d: Matrix
    fit: Fit
    shifts: list[Shift]
    algorithms: dict[str, float]


class Measuring:
    """A process that measures while this one goes on."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            command("convaudit.tour.measure"),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip

    def result(self) -> Measured:
        """What it found. Raises :class:`ConvauditError` where it failed."""
        out, said = self._process.communicate()
        if self._process.returncode:
            last = said.decode(errors="replace").strip().rpartition("\n")[2]
            raise ConvauditError(f"the tour's measurements failed: {last or f'exit code {self._process.returncode}'}")
        return msgspec.json.decode(out, type=Measured)
