"""The audit of one checkpoint: read, ask the rules about checkpoints, and make its result. Never imports torch."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from convaudit import registry
from convaudit.checkpoints.architecture import Architecture, Expected, architecture_of
from convaudit.checkpoints.checkpoint import Checkpoint
from convaudit.checkpoints.formats import read_checkpoint
from convaudit.checkpoints.pickle_reader import uncollected
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
from convaudit.versions import python_version

if TYPE_CHECKING:
    from convaudit.checkpoints.weights import Weights

Heard = Callable[[int, int], None]
"""What is called while a file is read: with the bytes that are, and with all that will be."""
MAX_WEIGHTS = 2 * 1000**3
"""Bytes of a file whose weights are read unless asked otherwise."""


@dataclasses.dataclass
class CheckpointContext:
    """What a rule about checkpoints may read."""

    file: Checkpoint
    rule: Rule
    options: Options
    settings: AuditSettings
    target: str
    architecture: Architecture
    model: Expected | None = None
    """The model that the file is to fit (``--model``)."""
    weights: Weights | None = None
    """None where they were not read."""

    def of_tier(self, tier: str) -> list[GlobalRow]:
        """The globals of one tier, in the file's order."""
        return [row for row in self.file.globals if row.tier == tier]

    def allowed(self, name: str) -> bool:
        """Whether the ``allow-globals`` setting names a global."""
        return any(fnmatchcase(name, glob) for glob in self.settings.allow_globals)

    def finding(
        self, message: str, layers: Sequence[str] = (), *, severity: Severity | None = None, suggestion: str = "",
        evidence: dict[str, Any] | None = None, changes_state_dict: bool | None = None,
    ) -> Finding:  # fmt: skip
        """A finding about the whole file, or about some of its layers."""
        return Finding(
            rule=self.rule.code, name=self.rule.name, severity=severity or self.rule.severity, message=message, layers=list(layers),
            location=None, saving=None, alternatives=[], evidence=evidence or {}, changes_state_dict=changes_state_dict,
            suggestion=suggestion, fingerprint=f"{self.rule.code}:{target_key(self.target)}:{layers[0] if layers else '*'}",
        )  # fmt: skip

    def from_shapes(
        self, message: str, layers: Sequence[str], *, severity: Severity = "info", suggestion: str, evidence: dict[str, Any]
    ) -> Finding:
        """What a rule about models says of the file's architecture, which nothing but names and shapes tell."""
        return self.finding(
            f"{message}, from names and shapes", layers, severity=severity, suggestion=suggestion, evidence=evidence,
            changes_state_dict=self.rule.changes_state_dict,
        )  # fmt: skip


def audit_or_say(
    target: str, settings: AuditSettings, *, sha256: bool = False, model: Expected | None = None, heard: Heard = lambda read, size: None
) -> TargetResult:
    """As :func:`audit_file`; where convaudit itself breaks, that is the failed result."""
    try:
        return audit_file(target, settings, sha256=sha256, model=model, heard=heard)
    except Exception as error:
        if os.environ.get("CONVAUDIT_DEBUG"):
            raise
        failure = TargetFailure("read", type(error).__name__, f"convaudit broke on {target}: {error!r}", None, None)
        return failed_checkpoint(target, failure, settings)


@uncollected()
def audit_file(
    target: str, settings: AuditSettings, *, sha256: bool = False, model: Expected | None = None, heard: Heard = lambda read, size: None
) -> TargetResult:
    """The result for a checkpoint; a failed one where the file is none, or cannot be read."""
    try:
        file = read_checkpoint(target, max_pickle=settings.max_pickle * 1000**2)
        digest = _digest(target, heard) if sha256 else None
        architecture = architecture_of(file)
        weights = _weights(file, settings, architecture, heard)
    except TargetError as error:
        failure = TargetFailure(error.step, error.kind, str(error), None, None)
        return failed_checkpoint(target, failure, settings)
    except (OSError, MemoryError) as error:
        failure = TargetFailure("read", type(error).__name__, f"{target}: cannot be read: {error}", None, None)
        return failed_checkpoint(target, failure, settings)
    notes = list(file.notes)
    if file.unknown:
        notes.insert(0, f"partial: shape or dtype of {_named(file.unknown)} is unknown")
    if not settings.enabled("CNV601", True) and any(used.tier == "code" for used in file.globals):
        notes.insert(0, "it names code that loading would run, and CNV601 is switched off: --globals lists it")
    if not file.complete and file.tensors:
        notes.insert(0, "not all of its tensors could be listed: totals are lower bounds")
    return TargetResult(
        target=target, kind="checkpoint", status="ok" if file.complete and not file.unknown else "partial", error=None, tracer=None, notes=notes,
        inputs=[], totals=_totals(file, architecture), flop_convention=settings.flop_convention, rule_set=settings.rule_set,
        layers=[layer.row() for layer in architecture.layers],
        findings=run_rules(file, target, settings, architecture, model, weights),
        checkpoint=CheckpointInfo(
            file.format, digest, weights is not None, file.tensors, file.globals, weights.gallery(file) if weights else None
        ),
        versions=python_version(),
    )  # fmt: skip


def _weights(file: Checkpoint, settings: AuditSettings, architecture: Architecture, heard: Heard) -> Weights | None:
    """What the weights tell, where they are to be read; a file that is changed meanwhile gets a problem more."""
    if settings.weights == "never" or not file.tensors:
        return None
    if file.problems or not any(file.places):
        file.notes.append(f"weights not read: {'the file contradicts itself' if file.problems else file.away[0]}")
        return None
    if settings.weights == "auto" and file.file_bytes > MAX_WEIGHTS:
        file.notes.append(f"weights not read ({file.file_bytes / 1e9:.3g} GB): --weights")
        return None
    from convaudit.checkpoints.weights import WeightsError, scan

    try:
        weights = scan(file, architecture, heard)
    except WeightsError as error:
        file.problems.append(str(error))
        return None
    if weights.unread:
        file.notes.append(f"weights of {_named(weights.unread)} not read")
    return weights


def _named(names: list[str]) -> str:
    """The first of some tensors, and how many more."""
    return names[0][:80] + (f" and {len(names) - 1:,} more" if names[1:] else "")


def failed_checkpoint(target: str, failure: TargetFailure, settings: AuditSettings) -> TargetResult:
    """The result of a checkpoint that could not be read."""
    result = failed_target(target, failure, flop_convention=settings.flop_convention)
    result.kind = "checkpoint"
    return result


def _totals(file: Checkpoint, architecture: Architecture) -> Totals | None:
    """The sums; None where none of its tensors could be listed or counted."""
    own = {row.name for row in file.tensors if row.role in ("parameter", "buffer")}
    if (not file.complete and not file.tensors) or (not any(file.counted) and not own.isdisjoint(file.unknown)):
        return None
    return Totals(
        parameters=file.parameters, trainable_parameters=None, macs=None, flops=None, activation_bytes=None,
        peak_activation_bytes=None, parameter_bytes=file.parameter_bytes,
        conv_parameters=architecture.conv_parameters, fc_parameters=architecture.fc_parameters,
        uncounted_ops=[], bytes_by_dtype=file.bytes_by_dtype, buffers=file.buffers, file_bytes=file.file_bytes,
    )  # fmt: skip


def run_rules(
    file: Checkpoint, target: str, settings: AuditSettings, architecture: Architecture, model: Expected | None = None,
    weights: Weights | None = None,
) -> list[Finding]:
    """Findings of the enabled rules about checkpoints, most severe first. Rules about models speak from names and shapes
    unless a model is audited beside that the file fits."""
    alone = model is None
    if model is not None:
        from convaudit.checkpoints.match import match

        alone = not match(file.tensors, model).fits
    findings: list[Finding] = []
    for code, rule_class in registry.rules().items():
        speaks = rule_class.check_checkpoint is not Rule.check_checkpoint and (rule_class.subject == "checkpoint" or alone)
        if not speaks or not settings.enabled(code, rule_class.on_by_default(settings.rule_set)):
            continue
        rule = rule_class()
        given = {k.replace("-", "_"): v for k, v in settings.rule_options.get(code, {}).items()}
        options = dataclasses.replace(rule.options(), **given)
        context = CheckpointContext(file, rule, options, settings, target, architecture, model, weights)
        try:
            found = list(rule.check_checkpoint(context))
        except Exception as error:  # noqa: BLE001 - a stranger's rule may raise anything; it is named
            broken = context.finding(f"rule {code} failed: {type(error).__name__}: {error}", severity="error")
            broken.rule, broken.name = "CNV001", "target-not-audited"
            found = [broken]
        for finding in found:
            lowered = "info" if settings.pretrained and finding.changes_state_dict else finding.severity
            finding.severity = settings.severity.get(code, lowered)
        findings += found
    return sorted(findings, key=lambda f: (-SEVERITIES.index(f.severity), f.rule))


def _digest(path: str, heard: Heard) -> str:
    with open(path, "rb") as file:
        digest, size = hashlib.sha256(), os.fstat(file.fileno()).st_size
        while block := file.read(1 << 20):
            digest.update(block)
            heard(file.tell(), size)
    return digest.hexdigest()
