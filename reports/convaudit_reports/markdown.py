"""Markdown for a pull request or a job's summary, always short enough for a GitHub comment.

What to change comes first; all else is folded. GitHub and GitLab make links of what they find in text: addresses,
``@names``, ``#1``, commits, ``user/repo#1``, and more. They leave code alone, so every name is a code span, and so is
every word of a message that is not plainly a word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

from convaudit.result import AuditResult, Finding, LayerRow, TargetResult, TensorRow, note_lines
from convaudit_reports import _figures
from convaudit_reports._environment import fitted
from convaudit_reports._source import public

NAME = "markdown"
SUFFIX = ".md"
FIRST = 3
"""How many findings are shown unfolded."""


@dataclass(frozen=True)
class Detail:
    """How much a report shows, for each target and in all."""

    targets: int
    sections: int
    findings: int
    rows: int
    text: int


LEVELS = (
    Detail(targets=500, sections=500, findings=200, rows=400, text=600),
    Detail(targets=300, sections=100, findings=60, rows=100, text=400),
    Detail(targets=200, sections=40, findings=20, rows=40, text=300),
    Detail(targets=100, sections=20, findings=10, rows=15, text=200),
    Detail(targets=60, sections=8, findings=5, rows=5, text=120),
    Detail(targets=40, sections=0, findings=0, rows=0, text=60),
)
"""Tried in turn until the report fits; the last always does."""
_WORDS = re.compile(r"\[\d[\d, ]*\]\S*|[\w.]+\(\[.*?\]\)\S*|[\w.]+\((['\"]).*?\1\)\S*|\S+")
"""Words of a sentence: a shape is one, and so is a call with a list or a text."""
_WORD = re.compile(r"([(\"']*)(.*?)([.,;:!?)\"']*)")
_PLAIN = re.compile(r"[^\W_]([\w.,;()%/'\"=+×→−–·≤≥-]*\w[()%'\"]*)?|[×→−–·≤≥=+/-]|[+−±<≥≤]{0,2}\d[\d.,]*[%kMGTPB]?")
_LINKED = re.compile(r"_|\bwww\.|\b[0-9a-f]{7,}\b|\b[A-Z]\w*-\d", re.IGNORECASE)
"""Made a link by a host, or an emphasis: addresses, commits, issues of other trackers."""


def render(result: AuditResult, **_options: object) -> str:
    """The report, with as much detail as fits; paths are relative, or shortened to their end."""
    result = public(result)
    first = worth_changing(result)
    return fitted(
        "report.md.j2",
        (
            {
                "result": result, "first": first, "f": _figures, "detail": detail, "heaviest": heaviest, "largest": largest,
                "note_lines": note_lines, "steps": _figures.steps,
                "code": lambda value, limit=detail.text: code(value, limit),
                "cell": lambda value, limit=detail.text: cell(value, limit),
                "prose": lambda value, limit=detail.text: prose(value, limit),
                "tag": lambda value, limit=detail.text: tag(value, limit),
            }
            for detail in LEVELS
        ),
    )  # fmt: skip


def code(value: object, limit: int = 300) -> str:
    """A code span: its fence is longer than any run of backticks inside."""
    text = _figures.shorten(_figures.clean(str(value)), limit)
    if not text.strip():
        return ""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def cell(value: object, limit: int = 300) -> str:
    """A code span in a table, where a pipe would end the cell even inside of code."""
    return code(value, limit).replace("|", "\\|")


def tag(value: object, limit: int = 300) -> str:
    """Code as an HTML element, for a ``<summary>``, in which Markdown means nothing."""
    return f"<code>{escape(_figures.shorten(_figures.clean(str(value)), limit))}</code>"


def prose(value: object, limit: int = 300) -> str:
    """A sentence that stays a sentence: each word that a host could take for more is a code span. Fit for a table."""
    words = (word[0] for word in _WORDS.finditer(_figures.shorten(_figures.one_line(str(value)), limit)))
    return " ".join(_word(word, not number) for number, word in enumerate(words))


def _word(word: str, first: bool) -> str:
    head, core, tail = _WORD.fullmatch(word).groups()  # type: ignore[union-attr]  # matches everything
    while tail and (core.count("(") > core.count(")") if tail[0] == ")" else tail[0] in "'\"" and core.count(tail[0]) % 2):
        core, tail = core + tail[0], tail[1:]  # a call and a quotation keep their ends
    begins_a_list = first and (not core or re.fullmatch(r"[-+=]|\d+[.)]", word))
    if not begins_a_list and (not core or (_PLAIN.fullmatch(core) and not _LINKED.search(core))):
        return word
    if not core:
        return code(word)
    return head + "&#124;".join(code(part) for part in core.split("|")) + tail


def worth_changing(result: AuditResult, limit: int = FIRST) -> list[tuple[TargetResult, Finding, list[Finding]]]:
    """The errors and warnings to read first, each with those that speak of the same layer; a line is named once."""
    found = [
        (target, leader, others)
        for target in result.targets
        for leader, others in _figures.grouped(_figures.live(target, "error", "warning"))
    ]
    found.sort(key=lambda item: (item[1].severity != "error", -_figures.saved_parameters(item[1])))
    by_line: dict[object, tuple[TargetResult, Finding, list[Finding]]] = {}
    for item in found:
        where = item[1].location
        by_line.setdefault((item[1].rule, where.path, where.line) if where else id(item), item)
    return list(by_line.values())[:limit]


def heaviest(rows: list[LayerRow], limit: int) -> list[LayerRow]:
    """The ``limit`` rows that cost most, in order of execution."""
    if len(rows) <= limit:
        return rows
    macs, parameters = sum(r.macs or 0 for r in rows) or 1, sum(r.parameters for r in rows) or 1
    order = sorted(range(len(rows)), key=lambda i: -max((rows[i].macs or 0) / macs, rows[i].parameters / parameters))
    return [rows[i] for i in sorted(order[:limit])]


def largest(tensors: list[TensorRow], limit: int) -> list[TensorRow]:
    """The ``limit`` tensors of most bytes, in the file's order."""
    order = sorted(range(len(tensors)), key=lambda i: -(tensors[i].bytes or 0))
    return [tensors[i] for i in sorted(order[:limit])]
