"""Comments, tables and baselines: what they hide, what they must not, and what is unused. Through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convaudit import comments

NET = """\
from torch import nn


class Net(nn.Module):
    def __init__(self, width=512):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, 2, 1)
        self.fc = nn.Linear(
            64 * 16 * 16,
            width,
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.fc(self.stem(x).flatten(1)).relu())
"""
OPTIONS = ("--input", "1,3,32,32", "--select", "CNV101,CNV103,CNV003")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def check(folder: Path, *args: str) -> tuple[list[dict[str, Any]], subprocess.CompletedProcess[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "convaudit", "check", *args, "--format", "json"], cwd=folder, capture_output=True,
        text=True, check=False, env={**os.environ, "CONVAUDIT_CACHE_DIR": str(folder / "cache")},
    )  # fmt: skip
    found = json.loads(done.stdout or '{"targets": []}')["targets"]
    return [f for target in found for f in target["findings"]], done


def suppressed(findings: list[dict[str, Any]]) -> dict[str, str | None]:
    return {f["rule"]: f["suppressed"] for f in findings}


@pytest.mark.parametrize(
    ("line", "comment"),
    [(7, "nn.Linear("), (10, "        )"), (3, "class Net(nn.Module):"), (4, "    def __init__(self, width=512):")],
    ids=["constructing line", "last line of the call", "class", "constructor"],
)
def test_a_comment_hides_its_rule_alone(folder: Path, line: int, comment: str) -> None:
    lines = NET.splitlines()
    assert comment in lines[line]
    lines[line] += "  # convaudit: ignore[CNV101] weights of the 2019 paper"
    (folder / "net.py").write_text("\n".join(lines))
    findings, done = check(folder, "net.py", *OPTIONS)

    assert suppressed(findings) == {"CNV101": "inline", "CNV103": None}
    assert findings[0]["evidence"]["reason"] == "weights of the 2019 paper"
    assert done.returncode == 1


def test_comments_that_match_nothing_are_named(folder: Path) -> None:
    text = NET.replace("nn.Linear(width, 10)", "nn.Linear(width, 10)  # convaudit: ignore[CNV101, CNV999, giant]")
    text = text.replace("import nn\n", 'import nn\n\nTEXT = "# convaudit: ignore[CNV103]"\n')
    (folder / "net.py").write_text(text.replace("3, 2, 1)", "3, 2, 1)  # convaudit: ignore[CNV201]"))
    findings, _ = check(folder, "net.py", *OPTIONS)
    said = {f["message"]: f["location"]["line"] for f in findings if f["rule"] == "CNV003"}

    assert said == {
        "'giant' is no rule code": 14,
        "ignore[CNV101] matches no finding": 14,
        "there is no rule CNV999": 14,
    }  # CNV201 did not run; what stands in a string is no comment
    assert suppressed(findings)["CNV103"] is None


def test_tables_by_layer_and_by_path(folder: Path) -> None:
    (folder / "convaudit.toml").write_text(
        '[per-file-ignores]\n"net.py" = ["CNV103", "CNV201"]\n[[target]]\nmatch = "*"\n'
        'ignore-layers = {CNV101 = ["f*", "body.*"]}\n'
    )
    findings, done = check(folder, "net.py", "--input", "1,3,32,32")
    said = [f["message"] for f in findings if f["rule"] == "CNV003"]

    assert suppressed(findings)["CNV101"] == suppressed(findings)["CNV103"] == "config"
    assert said == [
        "ignore-layers 'body.*': CNV101 matches nothing", "per-file-ignores 'net.py': CNV201 matches nothing",
    ]  # fmt: skip
    assert done.returncode == 0


@pytest.mark.parametrize(("pattern", "hidden"), [("heads.py", "config"), ("sub/heads.py", None)])
def test_paths_are_relative_to_the_settings_file(folder: Path, pattern: str, hidden: str | None) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "heads.py").write_text("from torch import nn\n\n\ndef head(width):\n    return nn.Linear(64 * 16 * 16, width)\n")
    (folder / "sub" / "net.py").write_text("from heads import head\n" + NET.replace("nn.Linear(\n            64 * 16 * 16,\n            width,\n        )", "head(width)"))
    (folder / "sub" / "convaudit.toml").write_text(f'[per-file-ignores]\n"{pattern}" = ["CNV101"]\n')
    findings, _ = check(folder, "sub/net.py:Net", *OPTIONS)

    assert suppressed(findings)["CNV101"] == hidden


def test_a_baseline_survives_moved_lines_and_fails_on_what_is_new(folder: Path) -> None:
    _, done = check(folder, "net.py", *OPTIONS, "--write-baseline", "base.json")
    assert done.returncode == 0
    text = "# a line more\n" + NET.replace("nn.Linear(\n            64 * 16 * 16,\n            width,\n        )", "nn.Linear(64 * 16**2, width)")
    (folder / "net.py").write_text(text)
    (folder / "sub").mkdir()
    findings, done = check(folder, "net.py", *OPTIONS, "--baseline", "base.json")
    elsewhere, again = check(folder / "sub", "../net.py", *OPTIONS, "--baseline", "../base.json")

    assert suppressed(findings) == suppressed(elsewhere) == {"CNV101": "baseline", "CNV103": "baseline"}
    assert done.returncode == again.returncode == 0

    more = text.replace("self.head = ", "self.side = nn.Linear(64 * 16**2, 100)\n        self.head = ")
    more = more.replace("flatten(1)).relu())", "flatten(1)).relu()), self.side(self.stem(x).flatten(1))")
    (folder / "net.py").write_text(more)
    findings, done = check(folder, "net.py", *OPTIONS, "--baseline", "base.json")

    assert [(f["rule"], f["layers"]) for f in findings if not f["suppressed"]] == [("CNV101", ["side"])]
    assert done.returncode == 1


def test_an_accepted_finding_that_spreads_is_new(folder: Path) -> None:
    pair = "nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)"
    (folder / "net.py").write_text(f"from torch import nn\ndef net():\n    return nn.Sequential({pair})\n")
    options = ("net.py:net", "--input", "1,3,32,32", "--select", "CNV403")
    check(folder, *options, "--write-baseline", "base.json")
    (folder / "net.py").write_text(f"from torch import nn\ndef net():\n    return nn.Sequential({pair}, {pair})\n")
    findings, done = check(folder, *options, "--baseline", "base.json")

    assert [(f["suppressed"], f["evidence"]["new_layers"]) for f in findings] == [(None, ["2"])]
    assert done.returncode == 1


def test_models_that_are_gone_are_pruned(folder: Path) -> None:
    (folder / "two.py").write_text(f"{NET}\n\nclass Other(Net):\n    pass\n")
    (folder / "old.py").write_text(NET)
    check(folder, "two.py:Net", "two.py:Other", "old.py:Net", "net.py:Net", *OPTIONS, "--write-baseline", "base.json")
    (folder / "old.py").unlink()
    (folder / "two.py").write_text(NET)
    _, done = check(folder, "net.py:Net", *OPTIONS, "--baseline", "base.json", "--prune-baseline")
    left = json.loads((folder / "base.json").read_text())

    assert list(left["findings"]) == list(left["totals"]) == ["net.py:Net", "two.py:Net"]
    assert "base.json: 4 of 8 entries removed" in done.stderr


def test_mended_findings_are_said_and_pruned(folder: Path) -> None:
    check(folder, "net.py", *OPTIONS, "--write-baseline", "base.json")
    before = json.loads((folder / "base.json").read_text())
    (folder / "net.py").write_text(NET.replace(".flatten(1)", ".mean((2, 3))").replace("64 * 16 * 16", "64"))
    findings, done = check(folder, "net.py", *OPTIONS, "--baseline", "base.json")
    _, pruned = check(folder, "net.py", *OPTIONS, "--baseline", "base.json", "--prune-baseline")
    after = json.loads((folder / "base.json").read_text())

    assert {f["rule"] for f in findings} == {"CNV003"}
    assert all("matches nothing any more" in f["message"] for f in findings)
    assert done.returncode == pruned.returncode == 0
    assert [len(before["findings"]["net.py:Net"]), len(after["findings"]["net.py:Net"])] == [2, 0]


def test_a_baseline_keeps_what_was_not_audited(folder: Path) -> None:
    (folder / "other.py").write_text(NET)
    check(folder, "net.py", "other.py", *OPTIONS, "--write-baseline", "base.json")
    check(folder, "net.py", *OPTIONS, "--write-baseline", "base.json")

    assert set(json.loads((folder / "base.json").read_text())["findings"]) == {"net.py:Net", "other.py:Net"}


def test_a_saved_result_is_a_baseline_and_budgets_compare_with_it(folder: Path) -> None:
    (folder / "convaudit.toml").write_text(
        'baseline = "saved.json"\nselect = ["CNV101", "CNV503"]\ninput = "1,3,32,32"\n'
        '[[target]]\nmatch = "*"\nbudget = {params = "+5%", macs = "50M"}\n'
    )
    _, missing = check(folder, "net.py")
    assert missing.returncode == 2
    assert "--write-baseline makes one" in missing.stderr

    (folder / "none.toml").write_text('input = "1,3,32,32"\n')
    subprocess.run(
        [sys.executable, "-m", "convaudit", "check", "net.py", "-o", "saved.json", "--config", "none.toml"], cwd=folder,
        check=False, capture_output=True,
    )  # fmt: skip
    findings, done = check(folder, "net.py")
    assert (suppressed(findings), done.returncode) == ({"CNV101": "baseline"}, 0)

    (folder / "net.py").write_text(NET.replace("width=512", "width=640"))
    findings, done = check(folder, "net.py")
    by_rule = {f["rule"]: f for f in findings}
    assert by_rule["CNV503"]["evidence"]["params"]["baseline"] == 64 * 27 + 64 + 512 * 16384 + 512 + 5130
    assert by_rule["CNV503"]["severity"] == "error"
    assert done.returncode == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 9}', '{"findings": {"a": [1]}}', '{"targets": 1}'])
def test_a_wrong_baseline_is_one_line(folder: Path, text: str) -> None:
    (folder / "base.json").write_text(text)
    _, done = check(folder, "net.py", "--baseline", "base.json")

    assert done.returncode == 2
    assert done.stderr.startswith("convaudit: baseline base.json: ")
    assert len(done.stderr.splitlines()) == 1
    assert (folder / "base.json").read_text() == text


def test_ignore_comments_are_written_where_they_work(folder: Path) -> None:
    (folder / "net.py").write_bytes(
        b"\xef\xbb\xbf" + NET.replace("\n", "\r\n").replace("2, 1)", "2, 1)  # noqa").encode()
    )
    _, done = check(folder, "net.py", *OPTIONS, "--add-ignore")
    assert "2 findings ignored by comments that were written" in done.stderr
    assert done.returncode == 0
    data = (folder / "net.py").read_bytes()
    findings, done = check(folder, "net.py", *OPTIONS)

    assert data.startswith(b"\xef\xbb\xbffrom torch")
    assert data.count(b"\r\n") == data.count(b"\n") == NET.count("\n")
    assert b"nn.Linear(  # convaudit: ignore[CNV101, CNV103]\r\n" in data
    assert set(suppressed(findings).values()) == {"inline"}
    assert done.returncode == 0


@given(st.text(alphabet=st.sampled_from("# convaudit:ignore[]CNV1,0\"'\n\\()x=\t"), max_size=80))
def test_no_source_breaks_the_reader(text: str) -> None:
    try:
        found = comments.parse(text.encode())
    except (SyntaxError, ValueError, tokenize.TokenError):
        return
    assert all(0 < comment.line <= text.count("\n") + 1 for comment in found.comments)


@given(st.lists(st.sampled_from(["x = 1", "y = f(1,", "    2)", 'z = """', '"""', "a = 1 + \\", "    2", "# c", ""])), st.integers(1, 8))
def test_a_written_comment_is_read_back_and_changes_no_code(tmp_path_factory: Any, lines: list[str], row: int) -> None:
    import ast

    text = "\n".join(lines) + "\n"
    try:
        before = ast.dump(ast.parse(text))
    except SyntaxError:
        return
    path = tmp_path_factory.mktemp("source") / "a.py"
    path.write_text(text)
    failed = comments.add(path, {row: ["CNV101"]})

    assert ast.dump(ast.parse(path.read_text())) == before
    if not failed:
        assert any("CNV101" in comment.codes for comment in comments.read(path).comments_for(row))
    else:
        assert path.read_text() == text
