"""Markdown for a pull request or a wiki, always short enough for a GitHub comment."""

from __future__ import annotations

import re
from dataclasses import dataclass

from convaudit.result import AuditResult, LayerRow
from convaudit_reports import _figures

NAME = "markdown"
SUFFIX = ".md"
LIMIT = 65_000
"""GitHub refuses a comment of more than 65,536 characters."""


@dataclass(frozen=True)
class Detail:
    """How much a report shows, for each target and in all."""

    targets: int
    sections: int
    findings: int
    layers: int
    text: int


LEVELS = (
    Detail(targets=500, sections=500, findings=200, layers=400, text=600),
    Detail(targets=300, sections=100, findings=60, layers=100, text=400),
    Detail(targets=200, sections=40, findings=20, layers=40, text=300),
    Detail(targets=100, sections=20, findings=10, layers=15, text=200),
    Detail(targets=60, sections=8, findings=5, layers=5, text=120),
    Detail(targets=40, sections=0, findings=0, layers=0, text=60),
)
"""Tried in turn until the report fits; the last always does."""
_LINKS = re.compile(r"[@#]|:(?=//)|\bwww(?=\.)|\bGH(?=-\d)|\b[0-9a-f]{6}(?=[0-9a-f])", re.IGNORECASE)
"""Where GitHub would begin a link: mentions, issues, addresses, commits."""


def render(result: AuditResult, **_options: object) -> str:
    """The report, with as much detail as fits."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("convaudit_reports", "templates"),
        autoescape=False,  # not HTML: every value goes through code, cell or prose below
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.md.j2")
    text = ""
    for detail in LEVELS:
        limit = detail.text
        text = template.render(
            result=result,
            f=_figures,
            detail=detail,
            heaviest=heaviest,
            code=lambda value, limit=limit: code(value, limit),
            cell=lambda value, limit=limit: code(value, limit).replace("|", "\\|"),
            prose=lambda value, limit=limit: prose(value, limit),
        )
        if len(text) < LIMIT:
            break
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def code(value: object, limit: int = 300) -> str:
    """A code span: its fence is longer than any run of backticks inside."""
    text = _figures.shorten(_figures.clean(str(value)), limit)
    if not text.strip():
        return ""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def prose(value: object, limit: int = 300) -> str:
    """A sentence whose characters mean only themselves; ``@name``, ``#1`` and addresses notify and link nobody."""
    text = _figures.shorten(_figures.one_line(str(value)), limit)
    escaped = re.sub(r"([\\`*_{}\[\]<>|~&])", r"\\\1", text)
    return _LINKS.sub(r"\g<0><!-- -->", escaped)


def heaviest(rows: list[LayerRow], limit: int) -> list[LayerRow]:
    """The ``limit`` rows that cost most, in order of execution."""
    if len(rows) <= limit:
        return rows
    macs, parameters = sum(r.macs or 0 for r in rows) or 1, sum(r.parameters for r in rows) or 1
    order = sorted(range(len(rows)), key=lambda i: -max((rows[i].macs or 0) / macs, rows[i].parameters / parameters))
    return [rows[i] for i in sorted(order[:limit])]
