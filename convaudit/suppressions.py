"""What a run leaves out of its verdict: comments, tables of the settings, the baseline, and which of them are unused.

Works on results, in the parent: a changed comment needs no new trace, and torch is never imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from convaudit import baseline as baselines
from convaudit import comments
from convaudit.paths import repository_root
from convaudit.result import AuditResult, Finding, Location, TargetResult, assemble
from convaudit.settings import AuditSettings, TargetSettings, at_least


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
            named = [code for code in comment.codes if finding.rule.startswith(code)]
            if named:
                self.used.update((location.path, comment.line, code) for code in named)
                finding.suppressed = "inline"
                if comment.reason:
                    finding.evidence["reason"] = comment.reason


Settings = Callable[[str], AuditSettings]
"""The settings that hold for a target."""


def apply(
    result: AuditResult, settings: Settings, baseline: Callable[[str], baselines.Baseline | None] = lambda _: None
) -> AuditResult:
    """Mark suppressed findings by each target's own settings and baseline, add CNV003 for what matched nothing, and
    count again."""
    seen = _Comments()
    for target in result.targets:
        target.findings = [f for f in target.findings if f.rule != "CNV003"]
    tables: dict[int, _Tables] = {}
    rule_ran = ran(settings)
    for target in result.targets:
        if target.status == "failed":
            continue
        for finding in target.findings:
            if finding.rule == "CNV001":
                continue
            if finding.suppressed in (None, "inline"):
                finding.suppressed = None
                seen.suppress(finding, finding.location)
            if finding.suppressed is None:
                seen.suppress(finding, target.location)  # a comment there speaks for the whole model
        own = settings(target.target)
        tables.setdefault(id(own), _Tables(own)).suppress(target)
        accepted = baseline(target.target)
        left = baselines.apply(accepted, target) if accepted else []
        unused = [
            f"the baseline entry {entry.rule} for {', '.join(entry.layers[:3]) or 'the model'} matches nothing any more"
            for entry in left
            if rule_ran(target, entry.rule)
        ]
        if unused and _runs("CNV003", own):
            target.findings += [_unused(target, said, target.location) for said in unused]
    for target, said in [unused for table in tables.values() for unused in table.unused()]:
        if _runs("CNV003", settings(target.target)):
            target.findings.append(_unused(target, said, target.location))
    _unused_comments(result, seen, settings)
    return assemble(result.targets)


class _Tables:
    """``ignore-layers`` and ``per-file-ignores``, and which of their entries matched something in this run."""

    def __init__(self, settings: AuditSettings) -> None:
        self.settings = settings
        self.used: set[tuple[str, str, str]] = set()
        self.asked: dict[tuple[str, str, str], TargetResult] = {}
        """(table, pattern, code) → the first target it was held against while the rule ran."""

    def suppress(self, target: TargetResult) -> None:
        """Mark what the tables name of one target."""
        for rule, globs in self.settings.for_target(target.target).here.ignore_layers.items():
            for glob in globs:
                self._ask("ignore-layers", glob, rule, target)
            for finding in (f for f in target.findings if f.rule == rule and f.layers):
                hits = {name: [g for g in globs if fnmatchcase(name, g)] for name in finding.layers}
                self.used |= {("ignore-layers", g, rule) for found in hits.values() for g in found}
                if all(hits.values()) and finding.suppressed is None:
                    finding.suppressed = "config"
        for pattern, codes in self.settings.per_file_ignores.items():
            whole = TargetSettings(match=pattern).fits(target.target, self.settings.root)
            if not whole and not any(self._in_file(row.location, pattern) for row in target.layers):
                continue
            for code in codes:
                self._ask("per-file-ignores", pattern, code, target)
                for finding in target.findings:
                    here = whole or self._in_file(finding.location, pattern)
                    if finding.rule.startswith(code) and here:
                        self.used.add(("per-file-ignores", pattern, code))
                        finding.suppressed = finding.suppressed or "config"

    def _in_file(self, location: Location | None, pattern: str) -> bool:
        """Whether a glob, relative to the settings file, fits the file of a location."""
        if location is None:
            return False
        root = self.settings.root
        path = os.path.join(repository_root(os.getcwd()), location.path)
        inside = root and path.startswith(root + os.sep)
        return fnmatchcase(os.path.relpath(path, root).replace(os.sep, "/") if inside else location.path, pattern)

    def _ask(self, table: str, pattern: str, code: str, target: TargetResult) -> None:
        if target.status == "ok":
            self.asked.setdefault((table, pattern, code), target)

    def unused(self) -> Iterator[tuple[TargetResult, str]]:
        """A target and a line for each entry that matched nothing in the whole run."""
        for (table, pattern, code), target in self.asked.items():
            if (table, pattern, code) not in self.used and _runs(code, self.settings):
                yield target, f"{table} {pattern!r}: {code} matches nothing"


def _unused_comments(result: AuditResult, seen: _Comments, settings: Settings) -> None:
    """CNV003 for comments that speak for a line some audited layer was built on, and matched no finding."""
    spoken: set[tuple[str, int]] = set()
    for target in result.targets:
        own = settings(target.target)
        lines = {row.location for row in target.layers} | {f.location for f in target.findings} | {target.location}
        for location in sorted((at for at in lines if at), key=lambda at: (at.path, at.line)):
            for comment in seen.source(location.path).comments_for(location.line):
                if (location.path, comment.line) in spoken:
                    continue
                spoken.add((location.path, comment.line))
                at = Location(location.path, comment.line)
                said = [f"{word!r} is no rule code" for word in comment.malformed]
                if not comment.codes and not comment.malformed:
                    said.append("ignore names no rule: write ignore[CODE, …]")
                for code in comment.codes:
                    if (location.path, comment.line, code) in seen.used:
                        continue
                    runs = _runs(code, own)
                    if runs and target.status != "ok":
                        continue  # a partial trace silences rules
                    if runs is None:
                        said.append(f"there is no rule {code}")
                    elif runs:
                        said.append(f"ignore[{code}] matches no finding")
                if said and _runs("CNV003", own):
                    target.findings += [_unused(target, text, at) for text in said]


def ran(settings: Settings) -> baselines.Ran:
    """Whether a rule could speak about a target: it is enabled, and nothing of the model was left out."""
    return lambda target, code: target.status == "ok" and bool(_runs(code, settings(target.target)))


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


def add_comments(result: AuditResult, settings: Settings) -> tuple[int, list[str]]:
    """Write an ignore comment for every live finding that fails its target (with ``fail-on = "never"``, errors and
    warnings); how many, and a line for each left out."""
    root = Path(repository_root(os.getcwd()))
    wanted: dict[str, dict[int, set[str]]] = {}
    left = []
    for target in result.targets:
        severities = at_least(settings(target.target).fail_on) or ("error", "warning")
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
