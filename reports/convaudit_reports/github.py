"""Annotations for GitHub Actions: workflow commands, one a line, and the summary of the job.

GitHub shows 10 annotations of each type for a step and 50 for a job, and drops the rest in silence. At most 10 are
printed, errors first, then the largest saving; a notice says how many were left out. Findings of severity info are
for the job summary. The last line is for the log.
"""

from __future__ import annotations

from convaudit.result import AuditResult, Finding, TargetResult
from convaudit_reports import _ci, markdown
from convaudit_reports._figures import clean, plural, verdict

NAME = "github"
SUFFIX = None
LIMIT = 10


def render(result: AuditResult, **_options: object) -> str:
    """The annotations of errors and warnings, and the run in one sentence."""
    found = _ci.ranked(result, "error", "warning")
    lines = [_annotation(target, finding) for target, finding in found[:LIMIT]]
    if len(found) > LIMIT:
        left = plural(len(found) - LIMIT, "more finding")
        lines.append(_command("notice", {"title": "convaudit"}, f"{left} in the job summary and the report files"))
    return "\n".join([*lines, f"convaudit: {verdict(result)}"]) + "\n"


def job_summary(result: AuditResult) -> str:
    """The Markdown report, for the file that ``$GITHUB_STEP_SUMMARY`` names."""
    return markdown.render(result)


def _annotation(target: TargetResult, finding: Finding) -> str:
    place = _ci.place_of(target, finding)
    where = {"file": clean(place.path), "line": str(place.line or 1)} if place.in_repository else {}
    text = "\n".join([_ci.headline(finding), *_ci.details(finding, place)])
    return _command(finding.severity, {**where, "title": clean(f"{finding.rule} {finding.name}")}, text)


def _command(command: str, properties: dict[str, str], text: str) -> str:
    listed = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{command} {listed}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
