"""Report formats by name or suffix, and files that are written whole or not at all."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convaudit import registry
from convaudit.errors import ReportError, UsageError

if TYPE_CHECKING:
    from convaudit.result import AuditResult


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
    by_suffix = {found.SUFFIX: found for found in registry.reports().values() if found.SUFFIX}
    if path.suffix not in by_suffix:
        raise UsageError(f"-o {path}: the format comes from the suffix: one of {', '.join(sorted(by_suffix))}")
    return by_suffix[path.suffix]


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
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(data)
        if path.exists():
            shutil.copymode(path, aside)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ReportError(f"{path}: cannot be written: {error.strerror}") from error
