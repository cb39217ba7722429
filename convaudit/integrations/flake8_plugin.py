"""flake8: shows the findings that ``convaudit check`` has kept, at their lines. Audits nothing, never imports torch.

A finding that lies in another file than its model is shown at the model's class.
"""

from __future__ import annotations

import ast
import functools
import os
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convaudit import __version__

if TYPE_CHECKING:
    from convaudit.result import AuditResult, Finding
    from convaudit.settings import Resolver

Problem = tuple[int, int, str, type[Any]]


class Plugin:
    """One file that flake8 looks at."""

    name = "convaudit"
    version = __version__
    severities: tuple[str, ...] = ("error", "warning")

    def __init__(self, tree: ast.AST, filename: str, lines: list[str]) -> None:
        self.path = Path(filename)
        self.lines = lines

    @staticmethod
    def add_options(parser: Any) -> None:
        """``--convaudit-info``, on the command line and in flake8's settings."""
        parser.add_option(
            "--convaudit-info", action="store_true", default=False, parse_from_config=True,
            help="Show convaudit's findings of severity info too.",
        )  # fmt: skip

    @classmethod
    def parse_options(cls, options: Any) -> None:
        """Take over the options."""
        cls.severities = ("error", "warning", "info") if options.convaudit_info else ("error", "warning")

    def run(self) -> Iterator[Problem]:
        """The file's kept findings: line, column, text; none where they are not known or do not hold any more."""
        from convaudit import cache
        from convaudit.errors import ConvauditError
        from convaudit.paths import relative_path

        if not cache.folder().is_dir() or not self._is_saved():
            return
        try:
            result, lines = _known(self.path)
        except (ConvauditError, OSError, SyntaxError, ValueError, RecursionError):  # for convaudit or flake8 to say
            return
        here = relative_path(str(self.path))
        seen = set()
        for target in result.targets:
            for finding in target.findings:
                if finding.suppressed or finding.severity not in self.severities or finding.rule == "CNV003":
                    continue  # CNV003 takes all targets to know
                problem = _problem(finding, here, lines[target.target])
                if problem not in seen:
                    seen.add(problem)
                    line, text = problem
                    source = self.lines[line - 1] if 0 < line <= len(self.lines) else ""
                    yield line, len(source) - len(source.lstrip()), text, type(self)

    def _is_saved(self) -> bool:
        """Whether what flake8 was given is what the file holds; an editor may hand over more."""
        try:
            with tokenize.open(self.path) as file:
                return file.read().lstrip("\ufeff") == "".join(self.lines)
        except (OSError, SyntaxError, ValueError):
            return False


def _problem(finding: Finding, here: str, line: int) -> tuple[int, str]:
    """A finding's line in the file and what is said there; ``line`` is where its model is defined."""
    from convaudit.registry import report_part

    figures = report_part("_figures")
    text = figures.one_line(finding.message)
    layer = figures.clean(finding.layers[0]) if finding.layers else ""
    if layer and layer not in text:
        text = f"{layer}: {text}"
    text = f"{finding.rule} {text}" + "".join(f"; {step}" for step in figures.steps(finding.saving)[:1])
    at = finding.location
    if at is not None and at.path == here:
        return at.line, text
    return line, text + (f" ({figures.place(at)})" if at else "")


def _known(path: Path) -> tuple[AuditResult, dict[str, int]]:
    """The kept results of whatever a file defines, as ``convaudit check`` without options gives them, and its lines.

    What the file defines is read from it alone: to tell models from their parts takes the whole project, and what was
    never audited has no result to show.
    """
    from convaudit.discovery import Project
    from convaudit.integrations import default_options
    from convaudit.paths import repository_root
    from convaudit.result import assemble
    from convaudit.session import Run

    if not path.resolve().is_relative_to(repository_root(os.getcwd())):
        return assemble([]), {}
    shown = os.path.relpath(path)
    defined = Project(path.parent).parse(path).definitions.values()
    lines = {f"{shown}:{it.name}": it.line for it in defined if it.kind == "class" or not it.required}
    run = Run(list(lines), _settings(), default_options())
    return run.judged(assemble([run.known[i] for i in sorted(run.known)])), lines


@functools.cache
def _settings() -> Resolver:
    """The settings files, read once in a process."""
    from convaudit.session import settings_of

    return settings_of({})
