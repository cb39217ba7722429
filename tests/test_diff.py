"""What changed between two targets, revisions or results. Through the command line, with real repositories."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from convaudit.comparison import Diff, Limit, Side, compare, compare_targets, exceeded
from convaudit.result import AuditResult, Finding, InputInfo, LayerRow, TargetResult, Totals, assemble
from convaudit.revisions import _python_path, split, strays
from convaudit_reports import _diff

OLD = """\
from torch import nn


class Net(nn.Module):
    def __init__(self, width=512):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, 2, 1)
        self.norm = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64 * 16 * 16, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.fc(self.norm(self.stem(x)).flatten(1)).relu())


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x)


class Gone(Fixed):
    pass
"""
NEW = (
    OLD.replace("3, 2, 1)", "3, 2, 1, bias=False)")
    .replace("width=512", "width=1024")
    .replace("        self.head", "        self.extra = nn.Linear(width, width)\n        self.head")
    .replace(".relu())", ".relu()).relu())")
    .replace("self.head(self.fc(", "self.head(self.extra(self.fc(")
    .replace("class Gone", "class Fresh")
)
OPTIONS = ("--input", "1,3,32,32")
PARAMETERS = 64 * 27 + 64 + 128 + 512 * 16384 + 512 + 5130, 64 * 27 + 128 + 1024 * 16384 + 1024 + 1024 * 1025 + 10250


def run(folder: Path, *args: str, command: str = "diff", **environment: str) -> subprocess.CompletedProcess[str]:
    cache = folder.parent / "cache"
    return subprocess.run(
        [sys.executable, "-m", "convaudit", command, *args], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "CONVAUDIT_CACHE_DIR": str(cache), **environment},
    )  # fmt: skip


def difference(folder: Path, *args: str, **environment: str) -> dict[str, Any]:
    done = run(folder, *args, "--format", "json", **environment)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    msgspec.json.decode(done.stdout, type=Diff)
    return found


def git(folder: Path, *args: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    return subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "a commit")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commits: the second widens a layer, adds one and mends a finding. The working tree has a file of its own."""
    folder = tmp_path_factory.mktemp("project") / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    commit(folder, {"net.py": OLD, "models/sub.py": OLD, ".gitignore": "__pycache__\n"})
    commit(folder, {"net.py": NEW})
    (folder / "untracked.py").write_text(OLD)
    return folder


def laid_out(folder: Path) -> list[Path]:
    return list((folder.parent / "cache").glob("revisions*"))


def test_a_revision_against_the_working_tree(repository: Path) -> None:
    index, status = (repository / ".git/index").read_bytes(), git(repository, "status", "--porcelain")
    found = difference(repository, "net.py:Net@HEAD~1", *OPTIONS)
    [target] = found["targets"]
    figures = {f["name"]: f for f in target["figures"]}
    layers = target["layers"]
    changed = {layer["name"]: {c["field"]: (c["before"], c["after"]) for c in layer["changes"]} for layer in layers["changed"]}
    findings = {(f["rule"], f["status"]) for f in target["findings"]}

    assert found["old"]["commit"] == git(repository, "rev-parse", "HEAD~1")
    assert found["new"]["commit"] is None
    assert (figures["parameters"]["before"], figures["parameters"]["after"]) == PARAMETERS
    assert figures["parameters"]["difference"] == PARAMETERS[1] - PARAMETERS[0]
    assert figures["macs"]["percent"] == pytest.approx(100 * figures["macs"]["difference"] / figures["macs"]["before"], abs=1e-3)
    assert [row["name"] for row in layers["added"]] == ["extra", "relu"]
    assert layers["added"][1]["call"] == 1
    assert changed["stem"] == {"parameters": (1792, 1728)}
    assert changed["fc"]["output_shapes"] == ([[1, 512]], [[1, 1024]])
    assert changed["fc"]["macs"] == (512 * 16384, 1024 * 16384)
    assert ("CNV403", "fixed") in findings
    assert ("CNV101", "still") in findings
    assert target["state_dict"] == {"added": ["extra"], "removed": [], "resized": ["stem", "fc", "head"]}
    assert (repository / ".git/index").read_bytes() == index
    assert git(repository, "status", "--porcelain") == status
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert laid_out(repository) == []


def test_two_revisions_come_from_the_cache(repository: Path) -> None:
    words = ("net.py:Net@HEAD~1", "net.py:Net@HEAD", *OPTIONS)
    first = run(repository, *words)
    kept = set((repository.parent / "cache").glob("*.json"))
    second = run(repository, *words, "--timeout", "0.001")  # no target is traced so fast

    assert second.stdout == first.stdout
    assert set((repository.parent / "cache").glob("*.json")) == kept
    assert first.returncode == second.returncode == 0

    without = run(repository, *words, "--no-cache", "--timeout", "0.001")
    assert without.returncode == 2
    assert "no answer within" in without.stderr


def test_text_is_short_and_all_is_all(repository: Path) -> None:
    done = run(repository, "net.py:Net@HEAD~1", *OPTIONS)
    whole = run(repository, "net.py:Net@HEAD~1", *OPTIONS, "--all")
    lines = done.stdout.splitlines()

    assert lines[0].startswith("net.py:Net@HEAD~1 (")
    assert len(lines) <= 25
    assert any(re.search(f"parameters +8,396,170 → {PARAMETERS[1]:,} +▲ .{PARAMETERS[1] - PARAMETERS[0]:,} .*%", line) for line in lines)
    assert "− CNV403" in done.stdout
    assert "CNV101" not in done.stdout  # still there
    assert "= CNV101" in whole.stdout
    assert run(repository, "net.py:Fixed@HEAD~1", "--input", "1,8").stdout.splitlines()[1:] == ["no difference"]


def test_limits_of_the_increase(repository: Path) -> None:
    def code(*limits: str) -> tuple[int, list[str]]:
        given = [word for limit in limits for word in ("--fail-on-increase", limit)]
        done = run(repository, "net.py:Net@HEAD~1", *OPTIONS, *given)
        return done.returncode, done.stderr.splitlines()

    rise = PARAMETERS[1] - PARAMETERS[0]
    assert code(f"params={rise}", "macs=900%", "parameter-bytes=1GiB")[0] == 0
    assert code("peak-activation-bytes=0", "params=113%")[0] == 0
    exit_code, lines = code(f"params={rise - 1}", "macs=5%", "flops=1T")
    assert exit_code == 1
    assert [line.split(": ")[1] for line in lines] == ["net.py:Net", "net.py:Net"]
    assert f"is more than params={rise - 1} allows" in lines[0]
    assert "MACs" in lines[1]
    for wrong in ("macs", "mac=5%", "macs=much", "macs=5%%"):
        exit_code, lines = code(wrong)
        assert exit_code == 2
        assert len(lines) == 1
        assert repr(wrong) in lines[0]


def test_new_findings_fail_where_asked(repository: Path) -> None:
    words = ("net.py:Net@HEAD", "net.py:Net@HEAD~1", *OPTIONS)  # backwards: CNV403 is new, an info
    assert run(repository, *words).returncode == 0
    assert run(repository, *words, "--fail-on", "warning").returncode == 0
    done = run(repository, *words, "--fail-on", "info")
    assert done.returncode == 1
    assert "net.py:Net: new CNV403 info stem" in done.stderr


def test_a_new_target_fails_by_its_findings_and_not_by_limits(repository: Path, tmp_path: Path) -> None:
    words = str(tmp_path / "old.json"), str(tmp_path / "new.json")
    run(repository, "net.py:Net", *OPTIONS, "-o", words[0], command="check")
    run(repository, "net.py:Net", "models/sub.py:Net", *OPTIONS, "-o", words[1], command="check")
    failing = run(repository, *words, "--fail-on", "warning")

    assert failing.returncode == 1
    assert "convaudit: models/sub.py:Net: new CNV101 warning fc: Linear 16,384→512" in failing.stderr
    assert all(line.startswith("convaudit: models/sub.py:Net: new") for line in failing.stderr.splitlines())
    assert run(repository, *words, "--fail-on-increase", "params=0").returncode == 0


def test_files_and_folders_are_matched_by_name(repository: Path) -> None:
    found = difference(repository, "net.py@HEAD~1", "--input", "1,3,32,32")
    assert {t["new"]["target"] for t in found["targets"]} == {"net.py:Net"}  # 1,3,32,32 does not fit the others
    found = difference(repository, "net.py@HEAD~1", "net.py@HEAD", "--input", "1,8")
    assert (found["only_old"], found["only_new"]) == (["net.py:Gone"], ["net.py:Fresh"])

    found = difference(repository / "models", "sub.py:Net@HEAD~1", "../net.py:Net@HEAD", *OPTIONS)
    assert [(t["old"]["target"], t["new"]["target"]) for t in found["targets"]] == [("sub.py:Net", "../net.py:Net")]


def test_what_cannot_be_compared_is_one_line(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OLD)
    (tmp_path / "wrong.json").write_text('{"targets": 1}')
    (tmp_path / "later.json").write_text(json.dumps(msgspec.to_builtins(assemble([])) | {"schema_version": 9}))
    for words, said in {
        ("net.py:Net@nowhere",): "no revision 'nowhere'",
        ("net.py:Net@-x",): "no revision '-x'",
        ("absent.py:Net@HEAD", "net.py:Net"): "there is no absent.py at HEAD (",
        ("untracked.py:Net@HEAD",): "there is no untracked.py at HEAD (",
        ("nothing.here:Net@HEAD",): "there is no module nothing at HEAD (",
        ("timm:resnet18@HEAD",): "timm is a library",
        ("net.py:Net",): "name a second target",
        ("absent.json", "net.py:Net"): "absent.json: cannot be read",
        (str(tmp_path / "wrong.json"), "net.py:Net"): "not a JSON result",
        (str(tmp_path / "later.json"), "net.py:Net"): "schema_version 9",
        (str(tmp_path / "net.py") + ":Net@HEAD",): "not a git repository",
        ("net.py:Net@HEAD", "-o", "x.html"): "one of .json, .md, .txt",
    }.items():
        done = run(repository, *words)
        assert done.returncode == 2, words
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert said in done.stderr

    done = run(repository, "net.py:Gone@HEAD~1", "--input", "1,8")  # the class is not in the working tree
    assert done.returncode == 2
    assert "convaudit: net.py:Gone: no 'Gone' in it" in done.stderr
    assert laid_out(repository) == []


def test_a_shallow_clone_says_so(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", "clone")
    done = run(tmp_path / "clone", "net.py:Net@HEAD~1", *OPTIONS)

    assert done.returncode == 2
    assert "shallow clone" in done.stderr
    assert "fetch-depth: 0" in done.stderr


def test_a_remote_branch_is_suggested(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", str(repository), "clone")
    git(tmp_path / "clone", "checkout", "-q", "--detach")
    git(tmp_path / "clone", "branch", "-q", "-D", "main")
    assert "did you mean 'origin/main'?" in run(tmp_path / "clone", "net.py:Net@main").stderr
    assert run(tmp_path / "clone", "net.py:Net@origin/main", *OPTIONS).returncode == 0


def test_saved_results(repository: Path, tmp_path: Path) -> None:
    def save(name: str, *args: str) -> str:
        run(repository, *args, "-o", str(tmp_path / name), "--exit-zero", "--format", "json", command="check")
        return str(tmp_path / name)

    one = save("one.json", "net.py:Net", "models/sub.py:Net", *OPTIONS)
    two = save("two.json", "net.py:Net", "net.py:Fixed", "--input", "1,3,64,8")
    found = difference(repository, one, two)
    assert (found["only_old"], found["only_new"]) == (["models/sub.py:Net"], ["net.py:Fixed"])
    assert [f["target"] for f in found["failed"]] == ["net.py:Net"]  # a flattened 32×4 map does not fit fc

    two = save("two.json", "net.py:Net", "--input", "2,3,32,32", "--flop-convention", "two-per-mac")
    data = json.loads(Path(two).read_text())
    data["convaudit_version"] = "0.0.1"
    data["targets"][0]["versions"]["torch"] = "2.4.0"
    data["targets"][0]["totals"]["activation_bytes"] = None
    Path(two).write_text(json.dumps(data))
    found = difference(repository, "net.py:Net", two, *OPTIONS)
    [target] = found["targets"]
    reasons = {i["what"]: i for i in target["incomparable"]}
    figures = {f["name"]: f for f in target["figures"]}

    assert set(reasons) == {"input", "flop_convention", "convaudit_version", "torch_version"}
    assert reasons["torch_version"]["after"] == "2.4.0"
    assert reasons["input"]["figures"] == ["macs", "flops", "activation_bytes", "peak_activation_bytes"]
    assert figures["macs"]["after"] == 2 * figures["macs"]["before"]
    assert figures["activation_bytes"]["after"] is figures["activation_bytes"]["difference"] is None
    assert found["new"]["torch_version"] == "2.4.0"
    done = run(repository, "net.py:Net", two, *OPTIONS, "--fail-on-increase", "macs=500%", "--fail-on-increase", "params=0")
    assert done.returncode == 2
    assert "macs=500% cannot be judged: MACs: the input differs" in done.stderr
    assert "are not comparable" in done.stdout
    assert "activations not known" not in done.stdout
    assert re.search(r"activations +\d+ kB → not known", done.stdout)


def test_inputs_inferred_differently_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    commit(folder, {"net.py": OLD})
    (folder / "net.py").write_text(OLD.replace("16 * 16", "8 * 8"))
    done = run(folder, "net.py:Net@HEAD")

    assert "the inputs were inferred differently (give --input): 1×3×32×32 float32 (inferred) → 1×3×16×16" in done.stdout


def test_settings_and_comments_hold_on_both_sides(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    table = '[[target]]\nmatch = "models/net.py:Net"\ninput = "1,3,32,32"\nargs = {width = 256}\n'
    commit(folder, {"models/net.py": OLD})
    (folder / "convaudit.toml").write_text('baseline = "absent.json"\n' + table)  # not yet committed
    comment = "self.fc = nn.Linear(64 * 16 * 16, width)  # convaudit: ignore[CNV101] the paper's"
    (folder / "models/net.py").write_text(OLD.replace("self.fc = nn.Linear(64 * 16 * 16, width)", comment))
    [target] = difference(folder / "models", "net.py:Net@HEAD")["targets"]

    assert [i["source"] for i in target["old"]["inputs"] + target["new"]["inputs"]] == ["config", "config"]
    assert next(f for f in target["figures"] if f["name"] == "parameters")["difference"] == 0
    assert [(f["rule"], f["status"]) for f in target["findings"] if f["status"] != "still"] == [("CNV101", "suppressed")]


def test_a_package_comes_from_its_revision(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    net = "from torch import nn\nfrom mine.size import WIDTH\n\ndef net():\n    return nn.Linear(8, WIDTH)\n"
    commit(folder, {"src/mine/__init__.py": "", "src/mine/size.py": "WIDTH = 4\n", "src/mine/net.py": net, "net.py": net})
    (folder / "src/mine/size.py").write_text("WIDTH = 6\n")
    path = {"PYTHONPATH": str(folder / "src")}
    for word in ("mine.net:net@HEAD", "net.py:net@HEAD"):
        [target] = difference(folder, word, "--input", "1,8", **path)["targets"]
        assert [(f["before"], f["after"]) for f in target["figures"] if f["name"] == "parameters"] == [(36, 54)]

    stray = net.replace("from torch", f"import sys\nsys.path.insert(0, {str(folder / 'src')!r})\nfrom torch")
    commit(folder, {"net.py": stray})
    done = run(folder, "net.py:net@HEAD", "--input", "1,8")
    assert done.returncode == 2
    assert "it imports src/mine/__init__.py and 1 more of the working tree, not of that revision" in done.stderr


def test_an_editable_install_gives_way_to_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, folder = tmp_path / "repository", tmp_path / "laid-out"
    for root in (repository, folder):
        (root / "src/mine").mkdir(parents=True)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path, str(repository / "src"), str(tmp_path / "elsewhere")])  # as a .pth file does

    assert _python_path(repository, folder) == [str(folder / "src")]
    (folder / "src/json.py").touch()  # it would stand before the standard library's
    assert _python_path(repository, folder) == []
    assert strays([str(repository / "src/mine/a.py"), str(folder / "b.py")], repository, folder) == ["src/mine/a.py"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: int, code: int) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    commit(folder, {"net.py": "import time\ntime.sleep(60)\n"})
    process = subprocess.Popen(
        [sys.executable, "-m", "convaudit", "diff", "net.py:Net@HEAD"], cwd=folder, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "CONVAUDIT_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("revisions/*/net.py")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(number)
    process.communicate(timeout=30)

    assert process.returncode == code
    assert laid_out(folder) == []
    assert git(folder, "status", "--porcelain") == ""


def test_a_folder_that_another_run_uses_is_left_alone(repository: Path) -> None:
    run(repository, "net.py:Net@HEAD~1", *OPTIONS)
    sha = git(repository, "rev-parse", "HEAD~1")
    name = hashlib.sha256(os.fsencode(repository.resolve())).hexdigest()[:12]
    busy, left = (repository.parent / "cache/revisions" / n for n in (f"{name}-{sha}", f"{'0' * 12}-{'1' * 40}"))
    for folder in (busy, left):
        folder.mkdir(parents=True)
    os.utime(left, (0, 0))
    done = run(repository, "net.py:Net@HEAD~1", *OPTIONS)

    assert done.returncode == 0
    assert busy.is_dir()
    assert not left.exists()
    busy.rmdir()
    busy.parent.rmdir()


# Forms


HOSTILE = ["@octocat", "a`@octocat`b", "a|@octocat", "\\|@octocat", "http://evil.example", "www.evil.example", "#1",
           "[x](http://evil.example)", "<img src=x>", "a\n# b\n@octocat", "GH-12", "", " ", "![x](y)", "</details>"]  # fmt: skip


def hostile(name: str, parameters: int) -> TargetResult:
    row = LayerRow(name, 0, name, "conv", [[1]], [[1]], parameters, parameters, None, 1, "float32", None, None, None)
    finding = Finding("CNV101", "x", "warning", f"{name} is large", [name, name + "."], None, None, [], {}, None, name, "")
    other = msgspec.structs.replace(row, name=name + ".other", op=name)
    totals = Totals(parameters, parameters, parameters, None, 1, 1, 4, 0, 0, [name], {})
    return TargetResult(
        name, "model", "partial", None, None, [name], [InputInfo([1], name, "inferred")], totals, "fvcore", name,
        [row, *[other] * (parameters > 5)], [finding] * (parameters > 5),
    )  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_becomes_a_link_a_mention_or_markup(name: str) -> None:
    few, many = ([hostile(name, n), msgspec.structs.replace(hostile(name, n), target=f"{name}2")] for n in (1, 9))
    for old, new in ((few[:1], many[:1]), (few, many), (many, few), (many[:1], [hostile("x", 1)] * 2)):
        found = compare(Side(name, None, None), assemble(old), Side(name, None, None), assemble(new))
        found.exceeded = [e for t in found.targets for e in exceeded(t, [Limit.parse("params=1"), Limit.parse("flops=1")])]
        out = _diff.markdown(found)
        tokens = MarkdownIt("commonmark", {"linkify": False}).enable("table").parse(out)
        inline = [child for token in tokens for child in token.children or []]
        told = "".join(c.content if c.type == "text" else "\0" for c in inline)

        assert not {"link_open", "image"} & {c.type for c in inline}
        assert not re.search(r"@\w|#\d|://|www\.|GH-\d", told)
        html = {token.content.strip() for token in [*tokens, *inline] if "html" in token.type}
        assert all(re.fullmatch(r"<!-- .*-->|<details><summary>[\w ,:]+</summary>|</details>", text) for text in html), html
        lines = _diff.text(found, show_all=True).split("\n")
        assert all(line.isprintable() and not line.startswith("# b") for line in lines)


def test_markdown_always_fits_a_comment() -> None:
    def wide(number: int, parameters: int) -> TargetResult:
        made = hostile("n" * 900, parameters)
        made.target = f"{'t' * 900}{number}"
        made.layers = [msgspec.structs.replace(made.layers[0], name=f"{'x' * 400}.{i}") for i in range(300 * (parameters > 5))]
        return made

    for many in (1, 80):
        old, new = ([wide(n, p) for n in range(many)] for p in (1, 9))
        found = compare(Side("o" * 900, None, None), assemble(old), Side("n" * 900, None, None), assemble(new))
        found.only_old = [t.target for t in old]
        assert 2000 < len(_diff.markdown(found)) < 65_000
        assert len(_diff.text(found).splitlines()) <= 25


def test_reports_are_written_by_suffix(repository: Path, tmp_path: Path) -> None:
    names = ("d.md", "d.json", "d.txt")
    given = [word for name in names for word in ("-o", str(tmp_path / name))]
    done = run(repository, "net.py:Net@HEAD~1", *OPTIONS, "--format", "markdown", "--fail-on-increase", "macs=0", *given)
    out = (tmp_path / "d.md").read_text()

    assert done.stdout == out
    assert out.startswith("<!-- convaudit diff -->")
    assert f"| parameters | 8,396,170 | {PARAMETERS[1]:,} | ▲ +{PARAMETERS[1] - PARAMETERS[0]:,} (+112.5%) |" in out
    assert "❌ `net.py:Net`: MACs" in out
    assert len(json.loads((tmp_path / "d.json").read_text())["exceeded"]) == 1
    assert "= CNV101" in (tmp_path / "d.txt").read_text()


# The comparison itself


def layer(name: str, op: str = "Conv2d", parameters: int = 9, call: int | None = 0, width: int = 1) -> LayerRow:
    return LayerRow(name, call, op, "conv", [[1, width]], [[1, 1]], parameters, 1, 1, 1, "float32", None, None, None)


def target(layers: list[LayerRow], findings: list[Finding] | None = None, **fields: Any) -> TargetResult:
    number = sum(row.parameters for row in layers)
    totals = Totals(number, number, None, 5, 5, 5, 4 * number, 0, 0, [], {})
    made = TargetResult(
        "a.py:A", "model", "ok", None, "recorded", [], [InputInfo([1, 3], "float32", "option")], totals, "fvcore", "2026.11",
        layers, findings or [],
    )  # fmt: skip
    return msgspec.structs.replace(made, **fields)


def finding(rule: str, layers: list[str], severity: Any = "warning", suppressed: Any = None) -> Finding:
    return Finding(rule, rule, severity, "text", layers, None, None, [], {}, None, "", "", suppressed)


NAMES = st.sampled_from(["a", "b", "c.d", "c.e", ""])
ROWS = st.lists(
    st.builds(layer, NAMES, st.sampled_from(["Conv2d", "Linear"]), st.integers(0, 2), st.sampled_from([0, 1, None])), max_size=7
)
FINDINGS = st.lists(
    st.builds(
        finding, st.sampled_from(["CNV101", "CNV403"]), st.lists(NAMES, max_size=3, unique=True),
        st.sampled_from(["info", "warning"]), st.sampled_from([None, "inline"]),
    ),
    max_size=5,
)  # fmt: skip
TARGETS = st.builds(target, ROWS, FINDINGS)


@given(TARGETS)
def test_nothing_differs_from_itself(one: TargetResult) -> None:
    for other in (one, copy.deepcopy(one)):
        found = compare_targets(one, other)
        assert not found.changed
        assert found.layers.same == len(one.layers)
        assert not exceeded(found, [Limit.parse("params=0")])
        assert exceeded(found, [Limit.parse("macs=0")])[0].reason == "not known before and after"


@given(TARGETS, TARGETS)
def test_backwards_is_the_same_the_other_way_round(one: TargetResult, two: TargetResult) -> None:
    there, back = compare_targets(one, two), compare_targets(two, one)

    assert [f.difference for f in there.figures] == [None if f.difference is None else -f.difference for f in back.figures]
    assert there.layers.added == back.layers.removed
    assert there.layers.removed == back.layers.added
    assert {(r.before, r.after) for r in there.layers.renamed} == {(r.after, r.before) for r in back.layers.renamed}
    assert sorted((c.name, str(c.call)) for c in there.layers.changed) == sorted((c.name, str(c.call)) for c in back.layers.changed)
    assert there.state_dict.added == back.state_dict.removed
    assert len(there.layers.added) + len(there.layers.changed) + there.layers.same + sum(
        row.name in {r.after for r in there.layers.renamed} for row in two.layers
    ) == len(two.layers)


@given(FINDINGS, FINDINGS)
def test_every_live_finding_is_said_once(before: list[Finding], after: list[Finding]) -> None:
    found = compare_targets(target([], before), target([], after)).findings
    live = [f for f in after if f.suppressed is None]

    assert sum(f.status in ("new", "still", "spread", "unsuppressed") for f in found) == len(live)
    assert sum(f.status in ("fixed", "still", "spread", "suppressed") for f in found) == sum(f.suppressed is None for f in before)


def test_a_rename_must_be_certain() -> None:
    def names(old: list[LayerRow], new: list[LayerRow]) -> dict[str, str]:
        return {r.before: r.after for r in compare_targets(target(old), target(new)).layers.renamed}

    first, last = layer("first"), layer("last")
    pair = [layer("a", "Linear"), layer("b", parameters=2)]
    moved = [layer("x.a", "Linear"), layer("x.b", parameters=2)]
    assert names([first, *pair, last], [first, *moved, last]) == {"a": "x.a", "b": "x.b"}
    assert names([first, *pair, last], [first, last, *moved]) == {}  # elsewhere
    assert names([first, *pair, last], [first, *reversed(moved), last]) == {}
    assert names([first, *pair], [first, *moved, layer("more")]) == {}
    assert names([layer("a"), layer("a", call=1)], [layer("x"), layer("x", call=1)]) == {"a": "x"}
    assert names([layer("a"), layer("a", call=1)], [layer("x"), layer("y", call=1)]) == {}  # no longer shared

    renamed = compare_targets(
        target([first, *pair, last], [finding("CNV101", ["a"])]), target([first, *moved, last], [finding("CNV101", ["x.a"])])
    )
    assert [f.status for f in renamed.findings] == ["still"]
    assert renamed.state_dict.added == ["x.a", "x.b"]
    assert renamed.layers.added == renamed.layers.removed == []


def test_findings_that_spread_or_grow_worse() -> None:
    from convaudit.comparison import failing

    old = [finding("CNV403", ["a"]), finding("CNV101", ["b"], "info"), finding("CNV102", ["c"]), finding("CNV103", ["c", "d"])]
    new = [finding("CNV403", ["a", "b"]), finding("CNV101", ["b"]), finding("CNV102", ["d"]), finding("CNV103", ["c"])]
    found = compare_targets(target([], old), target([], new))

    assert {(f.rule, f.status) for f in found.findings} == {
        ("CNV403", "spread"), ("CNV101", "still"), ("CNV102", "new"), ("CNV102", "fixed"), ("CNV103", "still"),
    }  # fmt: skip
    assert next(f for f in found.findings if f.status == "spread").new_layers == ["b"]
    assert [f.rule for f in failing(found.findings, "warning")] == ["CNV403", "CNV101", "CNV102"]
    assert [f.rule for f in failing(found.findings, "info")] == ["CNV403", "CNV102"]
    assert failing(found.findings, "never") == []


def test_bounds_and_conventions() -> None:
    whole, part = target([layer("a")]), target([layer("a", width=2)], status="partial")
    found = compare_targets(whole, part)
    assert [i.what for i in found.incomparable] == ["lower_bound"]
    assert exceeded(found, [Limit.parse("flops=10")])[0].reason == "the lower bound differs"
    assert "FLOPs (fvcore)" in _diff.text(compare(Side("a", None, "1"), assemble([whole]), Side("b", None, "1"), assemble([part])))

    other = target([msgspec.structs.replace(layer("a"), flops=2)], flop_convention="two-per-mac")
    assert compare_targets(whole, other).layers.changed == []  # the same layer in another unit
    assert [i.figures for i in compare_targets(whole, other).incomparable] == [["flops"]]


@pytest.mark.parametrize(
    ("word", "parts"),
    {
        "model.py:Net": ("model.py:Net", None),
        "model.py:Net@main": ("model.py:Net", "main"),
        "models/net.py:Net(num_classes=10)@HEAD~3": ("models/net.py:Net(num_classes=10)", "HEAD~3"),
        'net.py:Net(name="a@b")': ('net.py:Net(name="a@b")', None),
        'net.py:Net(name="a@b")@HEAD@{1}': ('net.py:Net(name="a@b")', "HEAD@{1}"),
        "me@home/net.py:Net": ("me@home/net.py:Net", None),
        "me@home/net.py:Net@v1": ("me@home/net.py:Net", "v1"),
        "package.module:make@origin/main": ("package.module:make", "origin/main"),
        "models@main": ("models", "main"),
        "net.py@feature/net.py": ("net.py", "feature/net.py"),
    }.items(),
)
def test_where_a_revision_begins(word: str, parts: tuple[str, str | None]) -> None:
    assert split(word) == parts


def test_a_result_is_read_without_torch(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(msgspec.json.encode(AuditResult(1, "0.1", [target([layer("a")])], assemble([]).summary)))
    code = (
        "import sys; from click.testing import CliRunner; from convaudit.cli import cli\n"
        "done = CliRunner().invoke(cli, ['diff', 'a.json', 'a.json']); print(done.output); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "no difference" in done.stdout
