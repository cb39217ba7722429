"""What of the machine a report shows: the source lines a finding is about, and paths without anybody's home."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from convaudit.paths import LIBRARY, repository_root
from convaudit.result import AuditResult, Location
from convaudit_reports._figures import clean, shorten

AROUND = 2
"""Lines before and after the one a finding is about."""
WIDTH = 160
"""Longer source lines are shortened."""
_HOME = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\\s:'\"]+(?=[/\\])")
_ABSOLUTE = re.compile(r"(?<![\w./~…-])(?:/[^\s/:'\"<>|]+){2,}")


@dataclass(frozen=True)
class Quote:
    """Source lines around a location; ``library`` where the file lies in site-packages, nobody's to change."""

    lines: tuple[tuple[int, str], ...]
    library: bool


class Sources:
    """Source files read once. A file that is gone, is elsewhere, or is no Python source, has no lines."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[list[str], bool]] = {}

    def quote(self, location: Location | None) -> Quote | None:
        """The location's line and :data:`AROUND` on each side, without their common indentation."""
        if location is None:
            return None
        if location.path not in self._files:
            self._files[location.path] = _read(location.path)
        lines, library = self._files[location.path]
        if not 0 < location.line <= len(lines):
            return None
        first = max(1, location.line - AROUND)
        chosen = [line.expandtabs(4).rstrip() for line in lines[first - 1 : location.line + AROUND]]
        margin = min(len(line) - len(line.lstrip()) for line in chosen if line) if any(chosen) else 0
        numbered = [(first + i, shorten(clean(line[margin:]), WIDTH)) for i, line in enumerate(chosen)]
        return Quote(tuple(numbered), library)


def _read(path: str) -> tuple[list[str], bool]:
    """Lines of a file below the repository, the working directory or site-packages, and whether it is in the last."""
    own = [(folder, False) for folder in (repository_root(os.getcwd()), os.getcwd())]
    libraries = [(folder, True) for folder in sys.path if f"{folder}{os.sep}".endswith(LIBRARY)]
    for folder, library in own + libraries:
        file = Path(folder, path)
        if file.suffix == ".py" and file.is_file() and file.resolve().is_relative_to(Path(folder).resolve()):
            try:
                return file.read_text(encoding="utf-8", errors="replace").split("\n"), library
            except OSError:
                return [], library
    return [], False


def public(result: AuditResult) -> AuditResult:
    """The result with every absolute path made relative to the repository, or shortened to its end."""
    root = repository_root(os.getcwd())
    made: AuditResult = msgspec.convert(_public(msgspec.to_builtins(result, str_keys=True), root), AuditResult)
    return made


def _public(value: Any, root: str) -> Any:
    if isinstance(value, str):
        return public_text(value, root) if "/" in value or "\\" in value else value
    if isinstance(value, (list, tuple)):
        return [_public(item, root) for item in value]
    if isinstance(value, dict):
        if "globals" in (value.get("evidence") or ()):
            return value  # what a pickle would run is shown as it stands
        return {_public(k, root): item if k in ("pixels", "globals") else _public(item, root) for k, item in value.items()}
    return value


def public_text(text: str, root: str) -> str:
    """``text`` with the absolute paths in it made relative to ``root``, or shortened to their last two parts."""
    text = re.sub(rf"(?<![\w./~…-]){re.escape(root.rstrip(os.sep))}[/\\](?=[\w.])", "", text) if root != os.sep else text
    text = _HOME.sub("~", text)
    return _ABSOLUTE.sub(lambda found: "…/" + "/".join(found[0].split("/")[-2:]), text)
