"""Results built by hand: a small convolutional net, and one whose every name is hostile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from convaudit.result import (
    SCHEMA_VERSION,
    Alternative,
    AuditResult,
    Finding,
    InputInfo,
    LayerRow,
    Location,
    Saving,
    TargetFailure,
    TargetResult,
    Totals,
    failed_target,
    summarise,
)

HOSTILE = "<script>alert(1)</script>{{7*7}}``a`|b|\n\x1b[31mred\u202e'\"&@someone #1"


def row(name: str, op: str, kind: str, output: list[int], parameters: int, macs: int | None, **more: Any) -> LayerRow:
    values: dict[str, Any] = {
        "call": 0, "flops": macs, "activation_bytes": 4 * _product(output), "dtype": "float32",
        "input_shapes": [output], "receptive_field": [3, 3], "receptive_field_largest": [3, 3],
        "location": Location("models/basic.py", 12),
    } | more  # fmt: skip
    return LayerRow(name=name, op=op, kind=kind, output_shapes=[output], parameters=parameters, macs=macs, **values)


def finding(rule: str, severity: Any, layers: list[str], saving: Saving | None = None, **more: Any) -> Finding:
    values: dict[str, Any] = {
        "name": "giant-flattened-linear", "message": "a Linear reads a flattened 128×4×4 map",
        "location": Location("models/basic.py", 14), "alternatives": [], "evidence": {"share": 0.88},
        "changes_state_dict": True, "suggestion": "global average pooling, then Linear(128, 512)",
        "fingerprint": f"{rule}:basic:*",
    } | more  # fmt: skip
    return Finding(rule=rule, severity=severity, layers=layers, saving=saving, **values)


def target(name: str = "models/basic.py:BasicCNN", **more: Any) -> TargetResult:
    layers = more.pop("layers", None) or [
        row("features.0", "Conv2d", "conv", [1, 32, 32, 32], 896, 884_736),
        row("features.1", "ReLU", "activation", [1, 32, 32, 32], 0, 0),
        row("features.2", "MaxPool2d", "pool", [1, 32, 16, 16], 0, 0),
        row("features.3", "Conv2d", "conv", [1, 64, 16, 16], 18_496, 4_718_592),
        row("features.4", "AdaptiveAvgPool2d", "pool", [1, 128, 4, 4], 0, 0),
        row("classifier.0", "Linear", "linear", [1, 512], 1_049_088, 1_048_576),
        row("classifier.2", "Linear", "linear", [1, 10], 5_130, 5_120),
        row("scale", "parameter", "parameter", [1], 1, 0),
    ]
    saving = Saving((1_193_642, 274_250), (30_249_984, 18_662_400), (400_000, 300_000))
    findings = more.pop("findings", None)
    if findings is None:
        findings = [
            finding("CNV301", "info", ["features.0"], message="widths are no powers of two"),
            finding(
                "CNV103", "warning", ["classifier.0", "classifier.2"], message="convs hold 11.7% of the parameters"
            ),
            finding("CNV101", "warning", ["classifier.0"], saving, alternatives=[Alternative("pool to 2×2", saving)]),
            finding("CNV201", "warning", ["features.3"], suppressed="inline"),
        ]
    totals = Totals(
        parameters=sum(r.parameters for r in layers), trainable_parameters=sum(r.parameters for r in layers),
        macs=sum(r.macs or 0 for r in layers), flops=sum(r.flops or 0 for r in layers),
        activation_bytes=sum(r.activation_bytes or 0 for r in layers), peak_activation_bytes=262_144,
        parameter_bytes=4 * sum(r.parameters for r in layers), conv_parameters=19_392, fc_parameters=1_054_218,
        uncounted_ops=[], bytes_by_dtype={"float32": 4},
    )  # fmt: skip
    values: dict[str, Any] = {
        "kind": "model", "status": "ok", "error": None, "tracer": "recorded", "notes": [], "totals": totals,
        "inputs": [InputInfo([1, 3, 32, 32], "float32", "inferred")], "flop_convention": "fvcore",
        "rule_set": "2026.11",
    } | more  # fmt: skip
    return TargetResult(target=name, layers=layers, findings=findings, **values)


def hostile() -> TargetResult:
    made = target(HOSTILE, notes=[HOSTILE], status="partial", findings=[
        finding("CNV101", "warning", [HOSTILE], Saving((10, 5), None, None), message=HOSTILE, suggestion=HOSTILE,
                evidence={HOSTILE: HOSTILE}, location=Location(HOSTILE, 3)),
        finding("CNV301", "info", [HOSTILE], message=HOSTILE)])  # fmt: skip
    for layer in made.layers:
        layer.name, layer.op = f"{HOSTILE}.{layer.name}", HOSTILE
    assert made.totals
    made.totals.uncounted_ops = [HOSTILE]
    return made


def failed(name: str = "broken.py:Net") -> TargetResult:
    return failed_target(name, TargetFailure("construct", "ValueError", "no\nway", "broken.py", 7))


def result(*targets: TargetResult) -> AuditResult:
    return AuditResult(SCHEMA_VERSION, "0.1.0", list(targets), summarise(list(targets)))


def _product(numbers: list[int]) -> int:
    value = 1
    for number in numbers:
        value *= number
    return value


@pytest.fixture
def make() -> SimpleNamespace:
    """The builders above, by name."""
    return SimpleNamespace(
        row=row, finding=finding, target=target, hostile=hostile, failed=failed, result=result, HOSTILE=HOSTILE
    )
