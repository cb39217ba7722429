"""Report formats by name or suffix, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from convaudit import registry
from convaudit.errors import ConvauditError, ReportError, UsageError

if TYPE_CHECKING:
    from convaudit.result import AuditResult

MARKUP = (".html", ".htm", ".xhtml", ".svg")
"""Files for which a template's values are escaped."""


def report(name: str) -> Any:
    """The report format called ``name``. Raises :class:`UsageError` for an unknown one."""
    name = {"md": "markdown"}.get(name, name)
    if name.isidentifier() and importlib.util.find_spec(f"convaudit_reports.{name}") and not name.startswith("_"):
        built_in = importlib.import_module(f"convaudit_reports.{name}")  # the others need not be imported
        if hasattr(built_in, "render"):
            return built_in
    found = registry.reports()
    if name not in found:
        raise UsageError(f"unknown format {name!r}; one of {', '.join(sorted(found))}")
    return found[name]


def report_for(path: Path) -> Any:
    """The report format of a file's suffix. Raises :class:`UsageError` for an unknown one."""
    by_suffix = {found.SUFFIX: found for found in reversed(registry.reports().values()) if found.SUFFIX}  # built-in ones first
    if path.suffix not in by_suffix:
        raise UsageError(f"-o {path}: the format comes from the suffix: one of {', '.join(sorted(by_suffix))}")
    return by_suffix[path.suffix]


def chosen(outputs: Sequence[Path], format_name: str, template: Path | None) -> tuple[list[tuple[Path, Any]], Any]:
    """The format of each ``-o`` file, and of what is printed; a template takes the place of one that people read."""
    if template is None:
        return [(path, report_for(path)) for path in outputs], report(format_name)
    data = {found.SUFFIX for name, found in registry.reports().items() if name not in ("html", "markdown")}
    own = [path for path in outputs if path.suffix not in data]
    if len(own) > 1:
        raise UsageError(f"--template renders one file; -o names {own[0]} and {own[1]}: give one, and the other in a second run")
    if not own and format_name not in ("text", "markdown", "html"):
        raise UsageError(f"--template takes the place of what --format {format_name} prints: name its file with -o FILE.md or -o FILE.html")
    escape = own[0].suffix in MARKUP if own else format_name == "html"
    rendered = registry.report_part("_template").Template(template, escape=escape)
    writers = [(path, rendered if path in own else report_for(path)) for path in outputs]
    return writers, report(format_name) if own else rendered


def text_of(found: Any, result: AuditResult, **options: Any) -> str:
    """What a format makes of the result. Raises :class:`ReportError` where a third party's breaks."""
    try:
        text = found.render(result, **options)
        if isinstance(text, str):
            return text
        raise TypeError(f"render returned {type(text).__name__}, not str")
    except Exception as error:
        if isinstance(error, ConvauditError) or getattr(found, "__name__", "").startswith("convaudit_reports."):
            raise
        raise ReportError(f"report format {found.NAME!r} broke: {type(error).__name__}: {error}") from error


def append_job_summary(name: str, found: Any, result: AuditResult) -> None:
    """Append the format's summary to ``GITHUB_STEP_SUMMARY``, where the format has one and a job asks for it."""
    where = os.environ.get("GITHUB_STEP_SUMMARY")
    if name != "github" or not where:
        return
    try:
        with open(where, "a", encoding="utf-8") as file:
            file.write(found.job_summary(result))
    except OSError as error:
        raise ReportError(f"GITHUB_STEP_SUMMARY {where}: cannot be written: {error.strerror}") from error


def check_writable(path: Path) -> None:
    """Raise :class:`ReportError` where ``path`` could not be written, before the work is done."""
    if path.is_dir():
        raise ReportError(f"-o {path}: is a directory")
    if not path.parent.is_dir():
        raise ReportError(f"-o {path}: no such directory {path.parent}")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ReportError(f"-o {path}: is not writable")


def write(path: Path, text: str) -> None:
    """Write aside, then rename. Raises :class:`ReportError`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """As :func:`write`; a file that is replaced keeps its permissions."""
    with replaced(path) as file:
        file.write(data)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file to write aside, which takes the place of ``path`` at the end and is gone where anything is raised."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            yield file
        if path.exists():
            shutil.copymode(path, aside)
        os.replace(aside, path)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        aside.unlink(missing_ok=True)
