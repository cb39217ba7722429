"""A notebook's view of a result: an HTML fragment without a script that takes its colours from the page around it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convaudit.result import AuditResult

FINDINGS = 20
"""At most so many findings of one target are shown; the others are counted."""


def fragment(result: AuditResult) -> str:
    """Totals and findings of every target."""
    return str(_template().render(result=result, limit=FINDINGS))


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from convaudit.registry import report_part

    _figures = report_part("_figures")

    environment = Environment(
        loader=PackageLoader("convaudit_reports", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["f"] = _figures
    return environment.get_template("notebook.html.j2")
