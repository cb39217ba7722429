"""Settings files: what they change, and how a wrong one is named. Through the command line, as users meet them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from convaudit.errors import SettingsError
from convaudit.rule import Rule
from convaudit.settings import AuditSettings, Resolver, read_settings

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
        ({"target": [{"match": "*", "input": ["1x3"]}]}, "input '1x3' is not [NAME:]SHAPE[:DTYPE]"),
        ({"rule-set": "2025.01"}, "rule-set is one of 2026.11"),
        ({"target": [{"match": "*", "budget": {"params": "5 apples"}}]}, "budget params: '5 apples' is neither a number"),
        ({"per-file-ignores": {"a.py": "CNV101"}}, "per-file-ignores.a.py must be a list"),
        ({"dataset-size": True}, "dataset-size must be int"),
        ({"ignore": ["CNV999"]}, "unknown rule 'CNV999'"),
        ({"rules": {"CNV101": {"min-param": 1}}}, "no option 'min-param'; did you mean 'min-params'?"),
        ({"rules": {"CNV101": {"min-params": "many"}}}, "min-params must be int"),
        ({"severity": {"CNV101": "fatal"}}, "severity of CNV101 is one of"),
        ({"target": {"match": "x"}}, "target must be an array of tables"),
        ({"target": [{"mach": "x"}]}, "target 1: unknown setting 'mach'; did you mean 'match'?"),
        ({"target": [{"match": "*", "budget": {"parms": 1}}]}, "unknown budget 'parms'; did you mean 'params'?"),
        ({"target": [{"match": "*", "ignore-layers": {"CNV9": ["x"]}}]}, "unknown rule 'CNV9'"),
        ({"target": [{"match": "*"}, {"input": "1,8"}]}, "target 2 needs a match"),
        ({"target": [{"match": "*", "args": {"since": date(2026, 1, 1)}}]}, "target 1: args: Object of type date"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(table: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=r"^convaudit\.toml: ") as caught:
        AuditSettings.from_mapping(table, "convaudit.toml")

    assert says in str(caught.value)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A repository of two packages: b's settings accept CNV101 by a baseline and call CNV103 an error, a's ignore it."""
    net = MODELS.replace("self, num_classes", "self, num_classes=100").partition("class Other")[0]
    for name, text in (
        ("a", "ignore = ['CNV103']\nfail-on = 'error'\n"),
        ("b", "baseline = 'known.json'\n[severity]\nCNV103 = 'error'\n[[target]]\nmatch = 'net.py:*'\nbudget = {params = '1k'}\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(net)
        (tmp_path / name / "convaudit.toml").write_text(f"input = '1,3,32,32'\n{text}")
    (tmp_path / "b" / "known.json").write_text(
        '{"findings": {"b/net.py:ResNet": [{"fingerprint": "CNV101:b/net.py:ResNet:classifier", "rule": "CNV101"}]}}'
    )
    (tmp_path / "pyproject.toml").write_text("[tool.convaudit]\ninput = '1,4,8,8'\n")
    (tmp_path / "link").symlink_to("b")
    (tmp_path / ".git").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("a/net.py", "b/net.py"), "."), (("b/net.py:ResNet", "a/net.py:ResNet"), "."), ((".",), "."), (("b", "a"), "."),
        (("{root}/a/net.py", "link/net.py"), "."), (("../a", "net.py"), "b"), (("../b/net.py", "./net.py:ResNet"), "a"),
    ],
    ids=str,
)  # fmt: skip
def test_each_target_takes_the_settings_nearest_to_it(packages: Path, words: tuple[str, ...], where: str) -> None:
    result, done = check(packages / where, *(word.format(root=packages) for word in words))
    said = {
        target["findings"][0]["fingerprint"].split(":")[1]: {
            (f["rule"], f["severity"], f["suppressed"]) for f in target["findings"] if f["severity"] != "info"
        }
        for target in result["targets"]
    }

    assert said == {
        "a/net.py": {("CNV101", "warning", None)},
        "b/net.py": {("CNV101", "warning", "baseline"), ("CNV103", "error", None), ("CNV503", "error", None)},
    }
    assert done.returncode == 1


def test_a_finding_fails_by_its_own_targets_fail_on(packages: Path) -> None:
    (packages / "b" / "convaudit.toml").write_text("input = '1,3,32,32'\nfail-on = 'never'\n")

    assert check(packages, "a", "b")[1].returncode == 0
    (packages / "a" / "convaudit.toml").write_text("input = '1,3,32,32'\n")
    assert check(packages, "b", "a")[1].returncode == 1
    assert check(packages, "b", "a", "--fail-on", "error")[1].returncode == 0
    assert check(packages, "a", "--config", "b/convaudit.toml")[1].returncode == 0


def test_shown_settings_are_a_settings_file(packages: Path) -> None:
    (packages / "a" / "convaudit.toml").write_text(
        "fail-on = 'error'\ndataset-size = 9\ninput = {x = '1,8'}\n[rules.CNV101]\nmin-params = 5\n[per-file-ignores]\n"
        "'é \"x/*.py' = ['CNV4']\n[[target]]\nmatch = '*:N'\nargs = {n = [1.5, true, {'a b' = \"\\u007f\\n\\U0001F600\"}]}\n"
    )
    command = [sys.executable, "-m", "convaudit", "check", "--show-settings", "a/net.py", "b", "--ignore", "CNV3"]
    shown = subprocess.run(command, cwd=packages, capture_output=True, text=True, check=True).stdout
    (packages / "again.toml").write_text(shown)
    again = Resolver(packages / "again.toml").of("a/net.py")

    assert "# for a/net.py, from a/convaudit.toml\n# other targets take theirs from b/convaudit.toml\n" in shown
    assert 'fail-on = "error"  # a/convaudit.toml\n' in shown
    assert 'ignore = ["CNV3"]  # command line\n' in shown
    wanted = AuditSettings.from_mapping(read_settings(packages / "a" / "convaudit.toml") or {}, "here")
    assert dataclasses.replace(again, root="") == dataclasses.replace(wanted, ignore=["CNV3"])


def test_statistics_and_show(folder: Path) -> None:
    def run(*args: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "convaudit", *args], cwd=folder, capture_output=True, text=True, check=False
        ).stdout

    net = ("models/nets.py:ResNet(100)", "--input", "1,3,32,32")

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
