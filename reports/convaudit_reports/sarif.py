"""SARIF 2.1.0, for code scanning: one run, the rules that spoke, a result for each finding.

**Locations.** GitHub refuses a whole file for one result without an artifact location, so each result has one: the
finding's line; else the target's own file; else the target's name in place of a file (``timm%3Aresnet18``). URIs are
relative to ``%SRCROOT%``, the repository root; only a target outside of it has a ``file:`` URI. A line in a library is
in the message, never a URI. The layers are logical locations, at most 100.

**Fingerprints.** ``convauditFingerprint/v1`` comes of rule, target and layer. GitHub matches alerts by
``primaryLocationLineHash`` alone. Where a result has a line, that key is left to upload-sarif: it hashes the line's
text, which stands when lines move, and it warns once a result where a file brings another value. So one rule's
findings on one line can become one alert there, and a file sent by the API needs the key added first. A whole file (no
region) and a name in place of a file are what upload-sarif cannot hash: there the key is our own fingerprint.

**Suppressed findings** are results with ``suppressions``: ``inSource`` for a comment, ``external`` for the baseline
and the settings. GitHub opens alerts for them all the same; `docs/ci` filters them out before the upload.

**Limits** (GitHub's): 25,000 results for a run and 10 MB after gzip. Past them the least severe results are left out,
suppressed ones first, and a notification says how many. GitHub shows 5,000 of them and one location of each.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

import msgspec

from convaudit.result import RULE_SET, AuditResult, Finding, Severity, TargetResult
from convaudit.rule import Rule
from convaudit_reports import _ci
from convaudit_reports._figures import clean, one_line, plural, section, shorten

NAME = "sarif"
SUFFIX = ".sarif"
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
RESULTS = 25_000
GZIP_BYTES = 9_500_000
"""Under GitHub's 10 MB, whatever compressor uploads the file."""
LAYERS = 100
DESCRIPTION = 1_000
"""GitHub cuts a rule's descriptions at 1,024 characters."""

LEVELS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}
PROBLEMS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "recommendation"}
FAMILIES = {
    "CNV0": "audit", "CNV1": "fully-connected", "CNV2": "resolution", "CNV3": "width", "CNV4": "topology",
    "CNV5": "efficiency", "CNV6": "checkpoint",
}  # fmt: skip

Found = tuple[TargetResult, Finding]


def render(result: AuditResult, **_options: object) -> str:
    """The SARIF log, its results ordered from the most severe to the suppressed."""
    suppressed = [(t, f) for t in result.targets for f in t.findings if f.suppressed is not None]
    found = [*_ci.ranked(result), *suppressed]
    keep = min(len(found), RESULTS)
    while True:
        text = json.dumps(_log(result, found[:keep], len(found) - keep), indent=1, ensure_ascii=False) + "\n"
        packed = len(text) if len(text) < GZIP_BYTES // 4 else len(gzip.compress(text.encode("utf-8")))
        if packed <= GZIP_BYTES or not keep:
            return text
        keep = min(keep - 1, int(keep * GZIP_BYTES / packed * 0.95))


def _log(result: AuditResult, found: list[Found], left_out: int) -> dict[str, Any]:
    codes = {code: index for index, code in enumerate(sorted({finding.rule for _, finding in found}))}
    fingerprints = _ci.fingerprints(result)
    reviewed = any(finding.suppressed is not None for _, finding in found)
    driver = {
        "name": "convaudit",
        "version": result.convaudit_version,
        **_semantic(result.convaudit_version),
        **_information(),
        "rules": list(_rules(codes, found)),
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [
            {
                "executionSuccessful": not any(target.status == "failed" for target in result.targets),
                "toolExecutionNotifications": list(_notifications(result, codes, left_out)),
            }
        ],
        "originalUriBaseIds": {"%SRCROOT%": {"description": {"text": "The root of the repository."}}},
        "results": [
            _result(target, finding, codes[finding.rule], fingerprints[id(finding)], reviewed)
            for target, finding in found
        ],
        "columnKind": "utf16CodeUnits",
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(target: TargetResult, finding: Finding, index: int, fingerprint: str, reviewed: bool) -> dict[str, Any]:
    place = _ci.place_of(target, finding)
    partial = {"convauditFingerprint/v1": fingerprint}
    if place.line is None:
        partial["primaryLocationLineHash"] = fingerprint
    made: dict[str, Any] = {
        "ruleId": clean(finding.rule),
        "ruleIndex": index,
        "level": LEVELS[finding.severity],
        "message": {"text": _message(_ci.sentences(finding, place))},
        "locations": [_location(place, finding.layers)],
        "partialFingerprints": partial,
        "properties": {
            "target": clean(target.target),
            "layers": len(finding.layers),
            "changesStateDict": finding.changes_state_dict,
            "saving": msgspec.to_builtins(finding.saving),
        },
    }
    if reviewed:  # the standard wants the property on every result of a run or on none
        kind = "inSource" if finding.suppressed == "inline" else "external"
        reason = finding.evidence.get("reason")
        why = {"justification": one_line(str(reason))} if reason and kind == "inSource" else {}
        made["suppressions"] = [] if finding.suppressed is None else [{"kind": kind, "status": "accepted", **why}]
    return made


def _location(place: _ci.Place, layers: list[str]) -> dict[str, Any]:
    physical: dict[str, Any] = {"artifactLocation": _artifact(place)}
    if place.line is not None or not place.in_repository:
        physical["region"] = {"startLine": place.line or 1}
    made: dict[str, Any] = {"physicalLocation": physical}
    if layers:
        names = [clean(name) or "(model)" for name in layers[:LAYERS]]
        made["logicalLocations"] = [
            {"name": name.rpartition(".")[2] or name, "fullyQualifiedName": name, "kind": "member"} for name in names
        ]
    return made


def _artifact(place: _ci.Place) -> dict[str, str]:
    path = PurePath(place.path)
    if path.is_absolute() and not place.in_repository:
        return {"uri": f"file:///{quote(place.path.lstrip('/'), safe='/:')}"}
    return {"uri": quote(place.path, safe="/"), "uriBaseId": "%SRCROOT%"}


def _message(text: str) -> str:
    """``text`` without the ``[words](target)`` that viewers take for a link."""
    return text.replace("](", "] (")


def _rules(codes: dict[str, int], found: list[Found]) -> Iterator[dict[str, Any]]:
    from convaudit.registry import rules

    known = rules()
    spoke = {finding.rule: finding for _, finding in found}
    for code in codes:
        yield _rule(code, known.get(code), spoke[code])


def _rule(code: str, rule: type[Rule] | None, finding: Finding) -> dict[str, Any]:
    severity = rule.severity if rule else finding.severity
    name = rule.name if rule else clean(finding.name)
    title = _sentence(rule.title() if rule else name)
    text = (rule.documentation() if rule else "") or title
    described = section(text, "What it does") or title
    return {
        "id": clean(code),
        "name": name,
        "shortDescription": {"text": shorten(title, DESCRIPTION)},
        "fullDescription": {"text": shorten(_sentence(described), DESCRIPTION)},
        "help": {"text": text, "markdown": text},
        "defaultConfiguration": {"level": LEVELS[severity], "enabled": rule.on_by_default(RULE_SET) if rule else True},
        "properties": {
            "tags": ["architecture", "pytorch", FAMILIES.get(code[:4], "plugin")],
            "precision": "medium" if severity == "info" else "high",
            "problem.severity": PROBLEMS[severity],
        },
    }


def _sentence(text: str) -> str:
    text = one_line(text).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _notifications(result: AuditResult, codes: dict[str, int], left_out: int) -> Iterator[dict[str, Any]]:
    if left_out:
        text = f"{plural(left_out, 'finding')} left out, the least severe: a file holds at most {RESULTS:,} and 10 MB."
        yield {"level": "warning", "message": {"text": text}}
    for target in result.targets:
        if target.status != "failed":
            continue
        made: dict[str, Any] = {
            "level": "error",
            "message": {"text": _message(f"{clean(target.target)} could not be audited, {_ci.failure(target.error)}.")},
        }
        if "CNV001" in codes:
            made["associatedRule"] = {"id": "CNV001", "index": codes["CNV001"]}
        yield made


def _semantic(version: str) -> dict[str, str]:
    """The version as Semantic Versioning spells it, where it can."""
    found = re.fullmatch(r"(\d+\.\d+\.\d+)(?:\.?(a|b|rc|dev)(\d+))?(\+[0-9A-Za-z.-]+)?", version)
    if found is None:
        return {}
    number, stage, count, local = found.groups(default="")
    return {"semanticVersion": number + (f"-{stage}.{count}" if stage else "") + local}


def _information() -> dict[str, str]:
    """The project's page, where its metadata names one."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        found = metadata("convaudit")
    except PackageNotFoundError:
        return {}
    pages = [entry.partition(",") for entry in found.get_all("Project-URL") or []]
    return next(({"informationUri": url.strip()} for label, _, url in pages if label.lower() == "homepage"), {})
