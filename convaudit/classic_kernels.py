"""The five classic 3×3 kernels of article §4.2, and its reading of a kernel's sum. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import sqrt
from typing import Literal

Row = tuple[Fraction, Fraction, Fraction]


@dataclass(frozen=True)
class ClassicKernel:
    """A kernel by name, its values row by row."""

    name: str
    rows: tuple[Row, Row, Row]

    @property
    def values(self) -> list[Fraction]:
        """The nine values, row by row."""
        return [value for row in self.rows for value in row]

    @property
    def sum(self) -> Fraction:
        """What it makes of a constant area of ones."""
        return sum(self.values, Fraction())

    @property
    def deviation(self) -> float:
        """Standard deviation of the nine values (divisor 9, as numpy's)."""
        mean = self.sum / 9
        return sqrt(sum((value - mean) ** 2 for value in self.values) / 9)

    @property
    def reading(self) -> Literal["edges", "smoothing"]:
        """The article's reading: a sum near 0 finds edges, one near 1 smooths.

        It proves little: sharpening and identity sum to 1 as well.
        """
        return "edges" if abs(self.sum) < Fraction(1, 2) else "smoothing"


def _kernel(name: str, values: str, divisor: int = 1) -> ClassicKernel:
    first, second, third = (
        tuple(Fraction(int(value), divisor) for value in row.split()) for row in values.split("|")
    )
    return ClassicKernel(name, (first, second, third))  # type: ignore[arg-type]


CLASSIC_KERNELS = (
    _kernel("vertical edges", "-1 0 1 | -2 0 2 | -1 0 1"),
    _kernel("horizontal edges", "-1 -2 -1 | 0 0 0 | 1 2 1"),
    _kernel("sharpen", "0 -1 0 | -1 5 -1 | 0 -1 0"),
    _kernel("Gaussian blur", "1 2 1 | 2 4 2 | 1 2 1", 16),
    _kernel("identity", "0 0 0 | 0 1 0 | 0 0 0"),
)
