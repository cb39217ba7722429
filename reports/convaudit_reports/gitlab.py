"""GitLab's Code Quality report: a JSON array, for ``artifacts:reports:codequality``.

Severities: error is ``critical``, since what to block on is for ``--fail-on`` to say, not for ``blocker``; warning,
which fails a run by default, is ``major``; info is ``info``.

GitLab drops the report from the first entry that lacks a path or a line, so every finding has both: its own location;
else the target's file at line 1; else the target's name (``timm:resnet18``) at line 1. Fingerprints are unique in the
report, and neither lines nor messages enter them.
"""

from __future__ import annotations

import json

from convaudit.result import AuditResult
from convaudit_reports import _ci
from convaudit_reports._figures import clean

NAME = "gitlab"
SUFFIX = None
SEVERITIES = {"error": "critical", "warning": "major", "info": "info"}


def render(result: AuditResult, **_options: object) -> str:
    """The live findings, errors first."""
    fingerprints = _ci.fingerprints(result)
    entries = []
    for target, finding in _ci.ranked(result):
        place = _ci.place_of(target, finding)
        entries.append(
            {
                "description": f"{clean(finding.rule)}: {_ci.sentences(finding, place)}",
                "check_name": clean(finding.name),
                "fingerprint": fingerprints[id(finding)],
                "severity": SEVERITIES[finding.severity],
                "location": {"path": clean(place.path), "lines": {"begin": place.line or 1}},
            }
        )
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
