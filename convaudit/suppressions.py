"""What a run leaves out of its verdict: comments, tables of the settings, the baseline, and which of them are unused.

Works on results, in the parent: a changed comment needs no new trace, and torch is never imported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from convaudit import baseline as baselines
from convaudit import comments
from convaudit.paths import repository_root
from convaudit.result import AuditResult, Finding, Location, TargetResult, assemble
from convaudit.settings import AuditSettings, TargetSettings


@dataclass
class _Comments:
    """Source files read once, and which of their comments and codes were used."""

    files: dict[str, comments.Source] = field(default_factory=dict)
    used: set[tuple[str, int, str]] = field(default_factory=set)

    def source(self, path: str) -> comments.Source:
        """The comments of a file named as locations name it."""
        if path not in self.files:
            where = Path(repository_root(os.getcwd())) / path
            self.files[path] = comments.read(where) if where.is_file() else comments.Source()
        return self.files[path]

    def suppress(self, finding: Finding, location: Location | None) -> None:
        """Mark ``finding`` where a comment at ``location`` names its rule."""
        if location is None:
            return
        for comment in self.source(location.path).comments_for(location.line):
            if finding.rule in comment.codes:
                self.used.add((location.path, comment.line, finding.rule))
                finding.suppressed = "inline"
                if comment.reason:
                    finding.evidence["reason"] = comment.reason


def apply(result: AuditResult, settings: AuditSettings, baseline: baselines.Baseline | None) -> AuditResult:
    """Mark suppressed findings, add CNV003 for what matched nothing, and count again."""
    seen = _Comments()
    for target in result.targets:
        if target.status == "failed":
            continue
        for finding in target.findings:
            if finding.rule == "CNV001":
                continue
            if finding.suppressed is None:
                seen.suppress(finding, finding.location)
            if finding.suppressed is None:
                seen.suppress(finding, target.location)  # a comment there speaks for the whole model
        unused = _by_tables(target, settings)
        left = baselines.apply(baseline, target) if baseline else []
        unused += [
            f"the baseline entry {entry.rule} for {', '.join(entry.layers[:3]) or 'the model'} matches nothing any more"
            for entry in left
            if _runs(entry.rule, settings)
        ]
        if unused and _runs("CNV003", settings):
            target.findings += [_unused(target, said, target.location) for said in unused]
    _unused_comments(result, seen, settings)
    return assemble(result.targets)


def _by_tables(target: TargetResult, settings: AuditSettings) -> list[str]:
    """Mark what ``ignore-layers`` and ``per-file-ignores`` name; what of them matched nothing of this target."""
    unused = []
    for rule, globs in settings.for_target(target.target).here.ignore_layers.items():
        matched = set()
        for finding in (f for f in target.findings if f.rule == rule and f.layers):
            hits = {name: [g for g in globs if fnmatchcase(name, g)] for name in finding.layers}
            matched |= {g for found in hits.values() for g in found}
            if all(hits.values()) and finding.suppressed is None:
                finding.suppressed = "config"
        unused += [
            f"ignore-layers.{rule} {g!r} matches nothing" for g in globs if g not in matched and _runs(rule, settings)
        ]
    for pattern, codes in settings.per_file_ignores.items():
        whole = TargetSettings(match=pattern).fits(target.target, settings.root)
        paths = {row.location.path for row in target.layers if row.location}
        if not whole and not any(fnmatchcase(path, pattern) for path in paths):
            continue
        for code in codes:
            found = [
                f for f in target.findings
                if f.rule.startswith(code) and (whole or (f.location and fnmatchcase(f.location.path, pattern)))
            ]  # fmt: skip
            for finding in found:
                finding.suppressed = finding.suppressed or "config"
            if not found and _runs(code, settings):
                unused.append(f"per-file-ignores {pattern!r}: {code} matches nothing")
    return unused


def _unused_comments(result: AuditResult, seen: _Comments, settings: AuditSettings) -> None:
    """CNV003 for comments that speak for a line some audited layer was built on, and matched no finding."""
    spoken: set[tuple[str, int]] = set()
    for target in result.targets:
        lines = {row.location for row in target.layers} | {f.location for f in target.findings} | {target.location}
        for location in sorted((at for at in lines if at), key=lambda at: (at.path, at.line)):
            for comment in seen.source(location.path).comments_for(location.line):
                if (location.path, comment.line) in spoken:
                    continue
                spoken.add((location.path, comment.line))
                at = Location(location.path, comment.line)
                said = [f"{word!r} is no rule code" for word in comment.malformed]
                if not comment.codes and not comment.malformed:
                    said.append("ignore[] names no rule")
                for code in comment.codes:
                    if (location.path, comment.line, code) in seen.used:
                        continue
                    runs = _runs(code, settings)
                    if runs is None:
                        said.append(f"there is no rule {code}")
                    elif runs:
                        said.append(f"ignore[{code}] matches no finding")
                if said and _runs("CNV003", settings):
                    target.findings += [_unused(target, text, at) for text in said]


def _runs(code: str, settings: AuditSettings) -> bool | None:
    """Whether a rule, or one whose code begins so, is enabled; None where there is none. Asked only when it matters:
    the rules take a while to import."""
    from convaudit import registry

    known = {name: rule for name, rule in registry.rules().items() if name.startswith(code)}
    return any(settings.enabled(name, rule.on_by_default(settings.rule_set)) for name, rule in known.items()) if known else None


def _unused(target: TargetResult, message: str, location: Location | None) -> Finding:
    nothing: dict[str, Any] = {}
    return Finding(
        rule="CNV003", name="unused-suppression", severity="info", message=message, layers=[], location=location,
        saving=None, alternatives=[], evidence=nothing, changes_state_dict=None, suggestion="remove it",
        fingerprint=f"CNV003:{target.key}:*",
    )  # fmt: skip


def add_comments(result: AuditResult, severities: tuple[str, ...]) -> tuple[int, list[str]]:
    """Write an ignore comment for every live finding of ``severities``; how many, and a line for each left out."""
    root = Path(repository_root(os.getcwd()))
    wanted: dict[str, dict[int, set[str]]] = {}
    left = []
    for target in result.targets:
        for finding in target.findings:
            if finding.suppressed or finding.severity not in severities or finding.rule in baselines.NEVER_ACCEPTED:
                continue
            at = finding.location
            if at is None or not (root / at.path).is_file() or not _inside(root / at.path, root):
                place = f"{at.path}:{at.line}" if at else target.target
                left.append(f"{finding.rule} at {place}: not a file of this repository")
                continue
            wanted.setdefault(at.path, {}).setdefault(at.line, set()).add(finding.rule)
    written = 0
    for path, lines in wanted.items():
        failed = comments.add(root / path, lines)
        left += [f"{', '.join(sorted(lines[line]))} at {path}:{line}: the line can take no comment" for line in failed]
        written += sum(len(codes) for line, codes in lines.items() if line not in failed)
    return written, left


def _inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())
