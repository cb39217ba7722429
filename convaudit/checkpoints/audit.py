"""The audit of one checkpoint: read, ask the rules about checkpoints, and make its result. Never imports torch."""

from __future__ import annotations

import dataclasses
import hashlib
from fnmatch import fnmatchcase
from typing import Any

from convaudit import registry
from convaudit.checkpoints.formats import Checkpoint, read_checkpoint
from convaudit.errors import TargetError
from convaudit.paths import target_key
from convaudit.result import (
    SEVERITIES,
    CheckpointInfo,
    Finding,
    GlobalRow,
    Severity,
    TargetFailure,
    TargetResult,
    Totals,
    failed_target,
)
from convaudit.rule import Options, Rule
from convaudit.settings import AuditSettings


@dataclasses.dataclass
class CheckpointContext:
    """What a rule about checkpoints may read."""

    file: Checkpoint
    rule: Rule
    options: Options
    settings: AuditSettings
    target: str

    def of_tier(self, tier: str) -> list[GlobalRow]:
        """The globals of one tier, in the file's order."""
        return [row for row in self.file.globals if row.tier == tier]

    def allowed(self, name: str) -> bool:
        """Whether the ``allow-globals`` setting names a global."""
        return any(fnmatchcase(name, glob) for glob in self.settings.allow_globals)

    def finding(
        self, message: str, *, severity: Severity | None = None, suggestion: str = "", evidence: dict[str, Any] | None = None
    ) -> Finding:
        """A finding about the whole file."""
        return Finding(
            rule=self.rule.code, name=self.rule.name, severity=severity or self.rule.severity, message=message, layers=[],
            location=None, saving=None, alternatives=[], evidence=evidence or {}, changes_state_dict=None,
            suggestion=suggestion, fingerprint=f"{self.rule.code}:{target_key(self.target)}:*",
        )  # fmt: skip


def audit_file(target: str, settings: AuditSettings, *, sha256: bool = False) -> TargetResult:
    """The result for a checkpoint; a failed one where the file is none, or cannot be read."""
    try:
        file = read_checkpoint(target, max_pickle=settings.max_pickle * 1000**2)
        digest = _digest(target) if sha256 else None
    except TargetError as error:
        failure = TargetFailure(error.step, error.kind, str(error), None, None)
        return _failed(target, failure, settings)
    except (OSError, MemoryError) as error:
        failure = TargetFailure("read", type(error).__name__, f"{target}: cannot be read: {error}", None, None)
        return _failed(target, failure, settings)
    notes = list(file.notes)
    if file.unknown:
        notes.insert(0, f"partial: shape or dtype of {len(file.unknown):,} tensors is unknown, {file.unknown[0][:80]} the first")
    return TargetResult(
        target=target, kind="checkpoint", status="partial" if file.unknown else "ok", error=None, tracer=None, notes=notes,
        inputs=[], totals=_totals(file), flop_convention=settings.flop_convention, rule_set=settings.rule_set, layers=[],
        findings=run_rules(file, target, settings),
        checkpoint=CheckpointInfo(file.format, digest, False, file.tensors, file.globals),
    )  # fmt: skip


def _failed(target: str, failure: TargetFailure, settings: AuditSettings) -> TargetResult:
    result = failed_target(target, failure, flop_convention=settings.flop_convention)
    result.kind = "checkpoint"
    return result


def _totals(file: Checkpoint) -> Totals:
    return Totals(
        parameters=file.parameters, trainable_parameters=None, macs=None, flops=None, activation_bytes=None,
        peak_activation_bytes=None, parameter_bytes=file.parameter_bytes, conv_parameters=None, fc_parameters=None,
        uncounted_ops=[], bytes_by_dtype=file.bytes_by_dtype, buffers=file.buffers, file_bytes=file.file_bytes,
    )  # fmt: skip


def run_rules(file: Checkpoint, target: str, settings: AuditSettings) -> list[Finding]:
    """Findings of the enabled rules about checkpoints, most severe first."""
    findings: list[Finding] = []
    for code, rule_class in registry.rules().items():
        if rule_class.subject != "checkpoint" or not settings.enabled(code, rule_class.on_by_default(settings.rule_set)):
            continue
        rule = rule_class()
        given = {k.replace("-", "_"): v for k, v in settings.rule_options.get(code, {}).items()}
        context = CheckpointContext(file, rule, dataclasses.replace(rule.options(), **given), settings, target)
        try:
            found = list(rule.check_checkpoint(context))
        except Exception as error:  # noqa: BLE001 - a stranger's rule may raise anything; it is named
            broken = context.finding(f"rule {code} failed: {type(error).__name__}: {error}", severity="error")
            broken.rule, broken.name = "CNV001", "target-not-audited"
            found = [broken]
        for finding in found:
            finding.severity = settings.severity.get(code, finding.severity)
        findings += found
    return sorted(findings, key=lambda f: (-SEVERITIES.index(f.severity), f.rule))


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
