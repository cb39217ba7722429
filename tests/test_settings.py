"""Settings files: what they change, and how a wrong one is named. Through the command line, as users meet them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convaudit.errors import SettingsError
from convaudit.rule import Rule
from convaudit.settings import AuditSettings

MODELS = """
from torch import nn
class ResNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, 2, 1)
        self.classifier = nn.Linear(64 * 16 * 16, num_classes)
    def forward(self, x):
        return self.classifier(self.conv(x).flatten(1))
class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
    def forward(self, x):
        return self.fc(x)
def pair():
    import torch
    return (torch.zeros(2, 3, 32, 32),)
"""
TABLES = """
[tool.convaudit]
input = "4,8"
[[tool.convaudit.target]]
match = "models/*.py:ResNet*"
input = {x = "1,3,32,32"}
args = {num_classes = 100}
[[tool.convaudit.target]]
match = "*"
input = "2,8"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "nets.py").write_text(MODELS)
    (tmp_path / ".git").mkdir()
    return tmp_path


def check(folder: Path, *args: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "convaudit", "check", *args, "--format", "json"], cwd=folder, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return json.loads(done.stdout or "{}"), done


def test_the_first_table_that_fits_wins(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(TABLES)
    result, _ = check(folder, "models/nets.py")

    assert [t["target"] for t in result["targets"]] == ["models/nets.py:ResNet", "models/nets.py:Other"]
    inputs = [t["inputs"][0] for t in result["targets"]]
    assert inputs[0] == {"shape": [1, 3, 32, 32], "dtype": "float32", "source": "config"}
    assert inputs[1]["shape"] == [2, 8]
    assert result["targets"][0]["totals"]["parameters"] == 3 * 64 * 9 + 64 + 64 * 256 * 100 + 100
    assert [f["rule"] for f in result["targets"][0]["findings"] if f["severity"] == "warning"] == ["CNV101", "CNV103"]


def test_tables_suppress_by_layer_and_lower_for_pretrained(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(
        TABLES.replace("args =", 'ignore-layers = {CNV101 = ["class*"]}\npretrained = true\nargs =')
    )
    result, done = check(folder, "models/nets.py:ResNet")
    findings = {f["rule"]: f for f in result["targets"][0]["findings"]}

    assert findings["CNV101"]["suppressed"] == "config"
    assert findings["CNV103"]["severity"] == "info"
    assert result["summary"]["suppressed"] == 1
    assert done.returncode == 0


def test_options_of_rules_and_severity(folder: Path) -> None:
    (folder / "convaudit.toml").write_text("[rules.CNV101]\nmin-params = 5_000_000\n[severity]\nCNV103 = 'error'\n")
    result, done = check(folder, "models/nets.py:ResNet(100)", "--input", "1,3,32,32")

    assert [(f["rule"], f["severity"]) for f in result["targets"][0]["findings"] if f["severity"] != "info"] == [
        ("CNV103", "error")
    ]
    assert done.returncode == 1


def test_select_on_the_command_line_replaces_the_files(folder: Path) -> None:
    (folder / "convaudit.toml").write_text("select = ['CNV103']\n")
    result, _ = check(folder, "models/nets.py:ResNet(100)", "--input", "1,3,32,32", "--select", "CNV101")

    assert [f["rule"] for f in result["targets"][0]["findings"]] == ["CNV101"]


def test_input_from_a_file(folder: Path) -> None:
    result, _ = check(folder, "models/nets.py:ResNet(10)", "--input-from", "models/nets.py:pair")

    assert result["targets"][0]["inputs"][0]["shape"] == [2, 3, 32, 32]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"selct": []}, "unknown setting 'selct'; did you mean 'select'?"),
        ({"select": "CNV101"}, "select must be list, not str"),
        ({"fail-on": "warnings"}, "fail-on is one of"),
        ({"input": 3}, "input must be a string, a list of strings or a table of strings, not 3"),
        ({"target": [{"input": ["1x3"]}]}, "input '1x3' is not [NAME:]SHAPE[:DTYPE]"),
        ({"rule-set": "2025.01"}, "rule-set is one of 2026.11"),
        ({"target": [{"budget": {"params": "5 apples"}}]}, "budget params: '5 apples' is neither a number"),
        ({"per-file-ignores": {"a.py": "CNV101"}}, "per-file-ignores.a.py must be a list"),
        ({"dataset-size": True}, "dataset-size must be int"),
        ({"ignore": ["CNV999"]}, "unknown rule 'CNV999'"),
        ({"rules": {"CNV101": {"min-param": 1}}}, "no option 'min-param'; did you mean 'min-params'?"),
        ({"rules": {"CNV101": {"min-params": "many"}}}, "min-params must be int"),
        ({"severity": {"CNV101": "fatal"}}, "severity of CNV101 is one of"),
        ({"target": {"match": "x"}}, "target must be an array of tables"),
        ({"target": [{"mach": "x"}]}, "target 1: unknown setting 'mach'; did you mean 'match'?"),
        ({"target": [{"budget": {"parms": 1}}]}, "unknown budget 'parms'; did you mean 'params'?"),
        ({"target": [{"ignore-layers": {"CNV9": ["x"]}}]}, "unknown rule 'CNV9'"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(table: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=r"^convaudit\.toml: ") as caught:
        AuditSettings.from_mapping(table, "convaudit.toml")

    assert says in str(caught.value)


def test_show_settings_statistics_and_show(folder: Path) -> None:
    def run(*args: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "convaudit", *args], cwd=folder, capture_output=True, text=True, check=False
        ).stdout

    (folder / "convaudit.toml").write_text("fail-on = 'error'\n")
    net = ("models/nets.py:ResNet(100)", "--input", "1,3,32,32")

    assert 'fail-on = "error"' in run("check", "--show-settings")
    assert "    1  CNV101  warning  giant-flattened-linear" in run("check", *net, "--statistics")
    lines = run("show", *net, "--columns", "type,output,macs,line", "--sort", "macs", "--batch", "2").splitlines()
    assert lines[0].split() == ["layer", "type", "output", "MACs", "line"]
    assert lines[1].split() == ["classifier", "Linear", "2×100", "3,276,800", "models/nets.py:7"]
    assert lines[-2].split() == ["total", f"{3_276_800 + 2 * 256 * 64 * 27:,}"]


@pytest.mark.parametrize(("since", "on"), [("2026.11", True), ("2027.05", False), (None, False)])
def test_rules_of_later_sets_and_previews_are_off_until_selected(since: str | None, on: bool) -> None:
    rule = type("Later", (Rule,), {"code": "CNV199", "name": "later", "since": since})

    def enabled(**given: Any) -> bool:
        settings = AuditSettings(**given)
        return settings.enabled(rule.code, rule.on_by_default(settings.rule_set))

    assert enabled() is on
    assert enabled(select=["CNV1"]) is on
    assert enabled(extend_select=["CNV199"])
    assert not enabled(ignore=["CNV1"])


def test_the_list_of_rules_says_whether_each_is_on(folder: Path) -> None:
    (folder / "convaudit.toml").write_text("ignore = ['CNV301']\nextend-select = ['CNV501']\n")
    done = subprocess.run(
        [sys.executable, "-m", "convaudit", "rule"], cwd=folder, capture_output=True, text=True, check=True
    )
    lines = {line.split()[0]: line.split()[1:5] for line in done.stdout.splitlines()}

    assert lines["CNV301"] == ["non-power-of-two-width", "info", "2026.11", "off"]
    assert lines["CNV501"][3] == lines["CNV101"][3] == "on"
