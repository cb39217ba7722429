"""Finds rules and report formats: the built-in packages by name, third parties' by entry point."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any

from convaudit.rule import Rule

LOAD_PROBLEMS: list[str] = []
"""One line for each plugin that could not be loaded, filled by the two functions below."""


def load_problems() -> list[str]:
    """One line for each third party's rule or report that could not be loaded."""
    rules(), reports()
    return LOAD_PROBLEMS


@functools.cache
def rules() -> dict[str, type[Rule]]:
    """All rules by code, sorted. Third parties add theirs through the entry-point group ``convaudit.rules``
    (each entry a Rule subclass)."""
    found: dict[str, type[Rule]] = {}
    package = importlib.import_module("convaudit_rules")
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"convaudit_rules.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Rule) and value.__module__ == module.__name__:
                found[value.code] = value
    for value in _plugins("convaudit.rules"):
        if not (isinstance(value, type) and issubclass(value, Rule)):
            LOAD_PROBLEMS.append(f"plugin {value!r} in convaudit.rules is not a Rule class")
        elif value.code in found:
            LOAD_PROBLEMS.append(f"plugin rule {value.code} ({value.__module__}) takes the code of another rule")
        else:
            found[value.code] = value
    return dict(sorted(found.items()))


@functools.cache
def reports() -> dict[str, Any]:
    """All report formats by name: each a module or object with ``SUFFIX`` and ``render(result, **options) -> str``.

    Third parties add theirs through the entry-point group ``convaudit.reports``.
    """
    found: dict[str, Any] = {}
    package = importlib.import_module("convaudit_reports")
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):
            found[info.name] = importlib.import_module(f"convaudit_reports.{info.name}")
    for value in _plugins("convaudit.reports"):
        if not all(hasattr(value, name) for name in ("NAME", "SUFFIX", "render")):
            LOAD_PROBLEMS.append(f"plugin {value!r} in convaudit.reports lacks NAME, SUFFIX or render")
        elif found.setdefault(value.NAME, value) is not value:
            LOAD_PROBLEMS.append(f"plugin report {value.NAME!r} ({value!r}) takes the name of another format")
    return found


def report_part(name: str) -> Any:
    """A module of the built-in reports that others share: ``_figures``, ``_diff``, ``text``."""
    return importlib.import_module(f"convaudit_reports.{name}")


def _plugins(group: str) -> list[Any]:
    loaded = []
    for entry in entry_points(group=group):
        try:
            loaded.append(entry.load())
        except Exception as error:  # noqa: BLE001 - a stranger's import may raise anything; it is named, not hidden
            LOAD_PROBLEMS.append(f"plugin {entry.name!r} ({entry.value}) could not be loaded: {error!r}")
    return loaded
