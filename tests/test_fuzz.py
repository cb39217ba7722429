"""Settings, baselines and suppressions made of anything: an error that names them, or an answer; never a lost finding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convaudit import baseline as baselines
from convaudit import suppressions
from convaudit.errors import SettingsError
from convaudit.result import SCHEMA_VERSION, AuditResult, Finding, TargetResult, summarise
from convaudit.settings import AuditSettings, read_settings

KEYS = ["select", "ignore", "severity", "rules", "fail-on", "input", "baseline", "target", "per-file-ignores", "budget",
        "match", "args", "ignore-layers", "dataset-size", "pretrained", "rule-set", "CNV101", "min-params", "root", "here"]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**6) | st.floats(allow_nan=False) | st.text(max_size=8) | st.sampled_from(KEYS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
TABLES = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), VALUES, max_size=5)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "file.json"


def finding(rule: str, layers: list[str]) -> Finding:
    return Finding(
        rule=rule, name="n", severity="warning", message="m", layers=layers, location=None, saving=None, alternatives=[],
        evidence={}, changes_state_dict=None, suggestion="", fingerprint=f"{rule}:net.py:Net:{layers[0] if layers else '*'}",
    )  # fmt: skip


def result(findings: list[Finding]) -> AuditResult:
    target = TargetResult(
        target="net.py:Net", kind="model", status="ok", error=None, tracer="recorded", notes=[], inputs=[], totals=None,
        flop_convention="fvcore", rule_set="2026.11", layers=[], findings=findings,
    )  # fmt: skip
    return AuditResult(SCHEMA_VERSION, "0", [target], summarise([target]))


def refusal(attempt: Callable[[], object]) -> str | None:
    """What a SettingsError says; None where there is none."""
    try:
        attempt()
    except SettingsError as error:
        return str(error)
    return None


@given(TABLES)
def test_any_table_is_settings_or_an_error_that_names_it(file: Path, table: dict[str, Any]) -> None:
    said = refusal(lambda: AuditSettings.from_mapping(table, "convaudit.toml"))
    if said is None:
        settings = AuditSettings.from_mapping(table, "convaudit.toml")
        assert settings.for_target("models/net.py:Net(3)").target == []
        file.write_text("\n".join(settings.toml(lambda _: "here")), encoding="utf-8")
        assert "None" in repr(table) or AuditSettings.from_mapping(read_settings(file) or {}, "shown") == settings
    else:
        assert said.startswith("convaudit.toml")
        assert "\n" not in said


@given(st.binary(max_size=60) | st.text(alphabet="[]=\"'#.ab1\n{}", max_size=60).map(str.encode))
def test_any_file_is_settings_or_one_line(file: Path, data: bytes) -> None:
    path = file.with_suffix(".toml")
    path.write_bytes(data)
    said = refusal(lambda: read_settings(path))

    assert said is None or str(path) in said


@given(VALUES | TABLES)
def test_any_json_is_a_baseline_or_one_line(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))
    said = refusal(lambda: baselines.read(file))

    assert said is None or said.startswith(f"baseline {file}: ")


LAYERS = st.lists(st.sampled_from(["a", "b.0", "b.1", "[x"]), max_size=3, unique=True)
FOUND = st.lists(st.tuples(st.sampled_from(["CNV101", "CNV503", "CNV002", "ACME1"]), LAYERS), max_size=5, unique_by=repr)


@given(FOUND, FOUND, st.lists(st.sampled_from(["a", "b.*", "*", "["]), max_size=2))
def test_no_finding_is_lost_and_only_what_was_accepted_is_hidden(now: Any, before: Any, globs: list[str]) -> None:
    settings = AuditSettings.from_mapping({"target": [{"match": "*", "ignore-layers": {"CNV101": globs}}]}, "x")
    accepted = baselines.of(result([finding(*f) for f in before]).targets)
    audited = suppressions.apply(result([finding(*f) for f in now]), lambda _: settings, lambda _: accepted)
    kept = [f for f in audited.targets[0].findings if f.rule != "CNV003"]

    assert [(f.rule, f.layers) for f in kept] == now
    for f in kept:
        if f.suppressed == "baseline":
            assert f.rule not in baselines.NEVER_ACCEPTED
            assert any(rule == f.rule and set(f.layers) <= set(layers) for rule, layers in before if layers or not f.layers)
        assert f.suppressed in (None, "baseline", "config")
    assert audited.summary.suppressed == sum(f.suppressed is not None for f in audited.targets[0].findings)
