"""Errors a user can cause, each one clear line and exit code 2.

ConvauditError
├── UsageError         the command line or an API call is malformed
├── SettingsError      a settings file has an unknown key, a wrong type or an unreadable value
├── TargetError        a target could not be read, imported, constructed, fed or traced
└── ReportError        a report could not be written
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Literal

Step = Literal["read", "import", "construct", "input", "trace", "rule"]


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one it was meant to be, where one is that near."""
    match = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean {match[0]!r}?" if match else ""


def unknown_rule(word: str, codes: Iterable[str], names: Iterable[str] = ()) -> str:
    """The end of a message about an unknown rule: the one it was meant to be, or the codes there are."""
    codes = list(codes)
    if not re.fullmatch(r"[A-Z]+\d*", word):
        return nearest(word.upper(), codes) or nearest(word, names)
    family = [code for code in codes if code[:4] == word[:4]]
    if family:
        return f"; there are {', '.join(family)}"
    families = sorted({code[:4] + "xx" for code in codes})
    return f"; there are {', '.join(families)}: convaudit rule lists them"


def message_of(error: BaseException) -> str:
    """What an exception says; where its own ``__str__`` raises, that."""
    try:
        return str(error)
    except Exception as another:  # noqa: BLE001 - a stranger's code may raise anything
        return f"its message raises {type(another).__name__}"


MEMORY = "it takes more memory than --memory-limit allows"


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type's name; memory that was refused is named as such."""
    lines = message_of(error).strip().splitlines() or [type(error).__name__]
    return MEMORY if isinstance(error, MemoryError) or "can't allocate memory" in lines[0] else lines[0]


class ConvauditError(Exception):
    """Base of every error that is the user's to mend; the message is one line: what, where, what to do."""

    exit_code = 2


class UsageError(ConvauditError):
    """The command line, or the arguments of an API call, are malformed."""


class SettingsError(ConvauditError):
    """A settings file holds an unknown key, a value of the wrong type, or is unreadable."""


class ReportError(ConvauditError):
    """A report could not be rendered or its file not written."""


class TargetError(ConvauditError):
    """A target could not be audited; ``step`` says how far it came.

    ``kind`` is the name of the user's own exception type, ``path`` and ``line`` the user's own line, ``recorded`` the
    number of graph nodes recorded before a forward failed.
    """

    def __init__(
        self,
        step: Step,
        message: str,
        *,
        kind: str = "TargetError",
        path: str | None = None,
        line: int | None = None,
        recorded: int | None = None,
    ) -> None:
        super().__init__(message)
        self.step: Step = step
        self.kind = kind
        self.path = path
        self.line = line
        self.recorded = recorded
