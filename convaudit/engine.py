"""Runs the rules over one traced model and gathers its result. Knows no rule and no report by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from convaudit import registry, suppressions
from convaudit.accounting import location_of
from convaudit.context import Context
from convaudit.graph import LayerGraph
from convaudit.result import (
    SEVERITIES,
    AuditResult,
    Finding,
    InputInfo,
    Location,
    TargetResult,
    assemble,
)
from convaudit.settings import AuditSettings
from convaudit.tracer import arguments, record
from convaudit.versions import versions_of


def audit(model: Any, example_input: Any, **settings: Any) -> AuditResult:
    """Audit one model in this process.

    ``model`` and ``example_input`` (a tensor, a tuple of positional or a dict of keyword arguments) may each be real
    or on meta. ``settings`` are those of ``[tool.convaudit]``, with underscores for dashes. Raises
    :class:`TargetError` where the model's forward fails, :class:`SettingsError` for an unknown setting.
    """
    args, kwargs = arguments(example_input)
    made = AuditSettings.from_mapping({k.replace("_", "-"): v for k, v in settings.items()}, "audit()")
    name = type(model).__name__
    target = audit_model(model, args, kwargs, target=name, settings=made.for_target(name))
    return suppressions.apply(assemble([target]), lambda _: made)


def audit_model(
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    target: str,
    settings: AuditSettings,
    inputs: list[InputInfo] | None = None,
    locations: dict[str, Location] | None = None,
) -> TargetResult:
    """Trace ``model``, run the enabled rules, and return its result."""
    graph = record(model, args, kwargs, inputs=inputs, locations=locations)
    return audit_graph(graph, (args, kwargs), target=target, settings=settings)


def audit_graph(graph: LayerGraph, example: Any, *, target: str, settings: AuditSettings) -> TargetResult:
    """Run the enabled rules over a traced model; ``example`` is its (args, kwargs)."""
    findings = run_rules(graph, example, target, settings)
    totals = graph.totals
    assert totals is not None
    if settings.flop_convention == "two-per-mac":
        for row in graph.layers:
            if row.flops is not None and row.macs is not None:
                row.flops += row.macs
        if totals.flops is not None and totals.macs is not None:
            totals.flops += totals.macs
    notes = list(graph.notes)
    if graph.problem:
        known = "; totals are lower bounds" if totals.macs is not None else ""
        notes.insert(0, f"partial: {graph.problem}{known}")
    if totals.uncounted_ops:
        notes.append(f"not counted: {', '.join(totals.uncounted_ops)}")
    return TargetResult(
        target=target,
        kind="model",
        status="partial" if graph.status == "partial" else "ok",
        error=None,
        tracer=graph.tracer,
        notes=notes,
        inputs=graph.inputs,
        totals=totals,
        flop_convention=settings.flop_convention,
        rule_set=settings.rule_set,
        layers=graph.layers,
        findings=findings,
        location=location_of(graph, ""),
        modules={name: type(held).__name__ for name, held in graph.model.named_modules() if held._modules},
        versions=versions_of(graph.model),
    )


def run_rules(graph: LayerGraph, example: Any, target: str, settings: AuditSettings) -> list[Finding]:
    """Findings of the enabled rules, most severe first, then by the parameters they save."""
    findings: list[Finding] = []
    for code, rule_class in registry.rules().items():
        if not settings.enabled(code, rule_class.on_by_default(settings.rule_set)):
            continue
        if rule_class.subject != "model":
            continue
        if graph.tracer == "symbolic" and rule_class.needs_shapes:
            continue
        if graph.status == "partial" and rule_class.needs_complete:
            continue
        rule = rule_class()
        given = {k.replace("-", "_"): v for k, v in settings.rule_options.get(code, {}).items()}
        context = Context(graph, rule, dataclasses.replace(rule.options(), **given), settings, target, example)
        try:
            found = list(rule.check(context))
        except Exception as error:  # noqa: BLE001 - a rule, perhaps a stranger's, may raise anything; it is named
            found = [_broken(code, rule, context, error)]
        assumed = _assumed(graph) if rule_class.needs_input_size else None
        for finding in found:
            if assumed:
                finding.severity = "info"
                finding.message += f" (at the assumed {assumed}; give --input)"
            override = settings.severity.get(code)
            if override:
                finding.severity = override
            elif settings.pretrained and finding.changes_state_dict:
                finding.severity = "info"
        findings += found
    return sorted(findings, key=lambda f: (-SEVERITIES.index(f.severity), -_saved(f), f.rule))


def _assumed(graph: LayerGraph) -> str | None:
    """The input's size, where nobody gave it."""
    guessed = next((info for info in graph.inputs if info.source == "inferred"), None)
    return "×".join(map(str, guessed.shape[2:] or guessed.shape)) if guessed else None


def _broken(code: str, rule: Any, context: Context, error: Exception) -> Finding:
    finding = context.finding(
        f"rule {code} ({type(rule).__module__}) failed: {type(error).__name__}: {error}", [], severity="error",
        evidence={"step": "rule", "type": type(error).__name__, "rule": code},
    )  # fmt: skip
    finding.rule, finding.name = "CNV001", "target-not-audited"
    return finding


def _saved(finding: Finding) -> int:
    return finding.saving.parameters[0] - finding.saving.parameters[1] if finding.saving else 0
