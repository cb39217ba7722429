"""Budgets: how a configured limit is written, and what it allows. Never imports torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

BUDGETS = ("params", "macs", "activation-bytes", "checkpoint-bytes")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_ABSOLUTE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]i?)?b?", re.IGNORECASE)
_RELATIVE = re.compile(r"([+-]\d+(?:\.\d+)?) ?%")


@dataclass(frozen=True)
class Budget:
    """A limit: a number, or a share of the baseline's figure."""

    value: Fraction
    relative: bool

    @classmethod
    def parse(cls, text: object) -> Budget:
        """``25_000_000``, ``"25M"`` (10⁶), ``"100MB"``, ``"1GiB"`` (2³⁰) or ``"+5%"``. Raises ValueError for else."""
        if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
            return cls(Fraction(text), relative=False)
        if isinstance(text, str):
            if match := _RELATIVE.fullmatch(text.strip()):
                return cls(1 + Fraction(match[1]) / 100, relative=True)
            if match := _ABSOLUTE.fullmatch(text.strip().replace("_", "")):
                return cls(Fraction(match[1]) * _UNITS[(match[2] or "").lower()], relative=False)
        raise ValueError(f'{text!r} is neither a number such as 25_000_000, "25M" or "100MB" nor a change such as "+5%"')

    def limit(self, baseline: int | None) -> int | None:
        """The largest figure allowed; None where the baseline's is needed and not known."""
        if not self.relative:
            return int(self.value)
        return None if baseline is None else int(self.value * baseline)
