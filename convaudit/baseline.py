"""Baselines: findings that were accepted on a given day, so that new ones alone fail. Never imports torch.

The file is JSON: ``findings`` (fingerprint, rule, layers) and ``totals`` (the figures budgets compare with), both by
target. A saved JSON result (``-o result.json``) serves as well. Nothing in it depends on line numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from convaudit.errors import SettingsError
from convaudit.paths import FILES, repository_root
from convaudit.result import AuditResult, TargetResult

SCHEMA_VERSION = 1
Ran = Callable[[TargetResult, str], bool]
"""Whether a rule, by its code, could speak about a target."""
NEVER_ACCEPTED = frozenset({"CNV001", "CNV002", "CNV003", "CNV503"})
"""The audit's own words, and budgets: a budget that may be passed is raised, not accepted."""


class Entry(msgspec.Struct, frozen=True):
    """One accepted finding. A finding that has since spread to other layers is new."""

    fingerprint: str
    rule: str
    layers: tuple[str, ...] = ()


class Figures(msgspec.Struct, frozen=True):
    """What a target cost; None is not known. Bytes are bytes."""

    parameters: int | None = None
    macs: int | None = None
    activation_bytes: int | None = None
    state_dict_bytes: int | None = None


class Baseline(msgspec.Struct, forbid_unknown_fields=True):
    """Accepted findings and figures by target, as the target's fingerprint spells it."""

    schema_version: int = SCHEMA_VERSION
    findings: dict[str, list[Entry]] = msgspec.field(default_factory=dict)
    totals: dict[str, Figures] = msgspec.field(default_factory=dict)

    @property
    def entries(self) -> int:
        """How many findings are accepted."""
        return sum(map(len, self.findings.values()))

    def figures(self, key: str) -> dict[str, int]:
        """A target's known figures, by the name of the budget that compares with them."""
        found = self.totals.get(key, Figures())
        named = {
            "params": found.parameters, "macs": found.macs, "activation-bytes": found.activation_bytes,
            "checkpoint-bytes": found.state_dict_bytes,
        }  # fmt: skip
        return {name: figure for name, figure in named.items() if figure is not None}


def is_result(path: Path) -> bool:
    """Whether a file holds a saved JSON result, which is not to be written over with a baseline."""
    try:
        return "targets" in msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def read(path: Path) -> Baseline:
    """The baseline in a file. Raises :class:`SettingsError` where it is missing or neither a baseline nor a result."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"baseline {path}: cannot be read: {error.strerror}; --write-baseline makes one") from error
    try:
        return _of_version(msgspec.json.decode(data, type=Baseline), path)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        try:
            result = msgspec.json.decode(data, type=AuditResult)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise SettingsError(f"baseline {path}: neither a baseline nor a saved JSON result: {error}") from error
    return of(result.targets)


def _of_version(found: Baseline, path: Path) -> Baseline:
    if found.schema_version != SCHEMA_VERSION:
        raise SettingsError(
            f"baseline {path}: schema_version {found.schema_version} is not {SCHEMA_VERSION}; write it again with --write-baseline"
        )
    return found


def of(targets: list[TargetResult]) -> Baseline:
    """A baseline that accepts every finding of ``targets``, and keeps what they cost."""
    made = Baseline()
    for target in targets:
        if target.status == "failed":
            continue
        made.findings[target.key] = [
            Entry(f.fingerprint, f.rule, tuple(f.layers))
            for f in target.findings
            if f.rule not in NEVER_ACCEPTED and f.suppressed in (None, "baseline")
        ]
        if target.totals is not None:
            totals = target.totals
            made.totals[target.key] = Figures(
                totals.parameters, totals.macs, totals.activation_bytes, totals.state_dict_bytes
            )
    return made


def write(path: Path, baseline: Baseline) -> None:
    """Write whole or not at all, keys sorted, one finding a line as far as JSON allows."""
    from convaudit import output

    baseline.findings = {key: sorted(baseline.findings[key], key=lambda e: e.fingerprint) for key in sorted(baseline.findings)}
    baseline.totals = dict(sorted(baseline.totals.items()))
    output.write(path, msgspec.json.format(msgspec.json.encode(baseline), indent=2).decode() + "\n")


def updated(old: Baseline, targets: list[TargetResult], ran: Ran) -> Baseline:
    """``old`` with the targets of this run replaced; targets that were not audited, and the entries of rules that did
    not run, stay as they are."""
    new = of(targets)
    for target in targets:
        if target.status != "failed":
            kept = [entry for entry in old.findings.get(target.key, []) if not ran(target, entry.rule)]
            new.findings[target.key] += kept
    return Baseline(findings={**old.findings, **new.findings}, totals={**old.totals, **new.totals})


def pruned(old: Baseline, targets: list[TargetResult], ran: Ran) -> Baseline:
    """``old`` without the entries that the targets of this run no longer have, and without models that are gone; nothing
    new is accepted, and entries of rules that did not run stay."""
    findings = {key: entries for key, entries in old.findings.items() if not is_gone(key)}
    for target in targets:
        if target.status != "failed" and target.key in findings:
            matched = {f.fingerprint for f in target.findings}
            findings[target.key] = [
                e for e in findings[target.key] if e.fingerprint in matched or not ran(target, e.rule)
            ]
    return Baseline(findings=findings, totals={key: figures for key, figures in old.totals.items() if not is_gone(key)})


def is_gone(key: str) -> bool:
    """Whether a target's file is no longer there, or nothing in it has the target's name."""
    place, _, name = key.partition(":")
    if not place.endswith(FILES):
        return False  # of a library, or a module
    path = Path(repository_root(os.getcwd()), place)
    try:
        word = re.escape(re.split(r"[.(]", name)[0])
        return place.endswith(".py") and not re.search(rf"\b{word}\b|import +\*", path.read_text("utf-8", "replace"))
    except OSError:
        return not path.exists()


def apply(baseline: Baseline, target: TargetResult) -> list[Entry]:
    """Mark accepted findings of one target; the entries that match nothing any more.

    Entries of rules that did not run are for the caller to tell apart.
    """
    entries = {e.fingerprint: e for e in baseline.findings.get(target.key, [])}
    found: set[str] = set()
    for finding in target.findings:
        entry = entries.get(finding.fingerprint)
        if entry is None or finding.rule in NEVER_ACCEPTED:
            continue
        found.add(entry.fingerprint)
        spread = sorted(set(finding.layers) - set(entry.layers))
        if spread and entry.layers:
            finding.evidence["new_layers"] = spread
        elif finding.suppressed is None:
            finding.suppressed = "baseline"
    return [e for fingerprint, e in entries.items() if fingerprint not in found]
