"""Bad input: one clear line, exit code 2, no traceback; JSON is printed all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.head = nn.Conv2d(width, 4, 1)
    def forward(self, x):
        return self.head(self.conv(x))
class Needs(nn.Module):
    def __init__(self, width):
        super().__init__(); self.conv = nn.Conv2d(3, width, 1)
class Raises(nn.Module):
    def __init__(self):
        raise KeyError("no such width")
class Loops(Net):
    def forward(self, x):
        while True:
            pass
class Dies(Net):
    def forward(self, x):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
class Plain:
    pass
class Mute(Exception):
    def __str__(self):
        raise KeyError
class Fails(Net):
    def forward(self, x):
        raise Mute
"""


def convaudit(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "convaudit", *args], cwd=cwd, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "broken.py").write_text("class Net(:\n")
    (tmp_path / "lost.py").write_text("import torch\nimport no_such_package\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "plain.py").write_text(NET.partition("class Needs")[0])
    (tmp_path / "bad.toml").write_text("selekt = ['CNV101']\n")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "numpy.py").write_text(NET)
    (tmp_path / "tensor.pt").write_bytes(b"\x80\x02}.")
    (tmp_path / "option.toml").write_text("[rules.CNV101]\nmin-parms = 5\n")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nothing.py:Net"], "no such file"),
        (["nothing.py"], "no such file"),
        (["nothing.pt"], "no such file"),
        (["ne.py:Net"], "no such file or folder; did you mean 'net.py'?"),
        (["nothere.pt"], "no such file or folder\n"),
        (["tensr.pt"], "did you mean 'tensor.pt'?"),
        (["tensor.pt", "--submodule", "neck"], "--submodule is for models, and every target is a checkpoint"),
        (["tensor.pt", "--input", "1,3,32,32"], "--input is for models, and every target is a checkpoint"),
        (["near/numpy.py:Net"], ": numpy.py: it would stand in front of the installed numpy: rename it"),
        (["/dev/null"], "no regular file"),
        (["broken.py:Net"], "broken.py:1: syntax error"),
        (["broken.py"], "broken.py:1: syntax error"),
        (["lost.py:Net"], "lost.py:2: import failed: ModuleNotFoundError"),
        (["leaves.py:Net"], "leaves.py:2: import failed: SystemExit"),
        (["net.py:Plain"], "not an nn.Module"),
        (["net.py:Nett"], "did you mean 'Net'?"),
        (["net.py:Needs"], "missing 1 required positional argument"),
        (["net.py:Raises"], "net.py:16: construct failed: KeyError"),
        (["net.py:Net(width=open('x'))"], "arguments must be literals"),
        (["timm:resnet5O"], "did you mean 'resnet50"),
        (["torchvision:vgg161"], "did you mean 'vgg16"),
        (["net.py:Net", "--input", "1x3x32"], "--input '1x3x32' is not"),
        (["net.py:Net", "--input", "0,3,32,32"], "--input '0,3,32,32' is not"),
        (
            ["net.py:Net", "--input", "1,4,32,32"],
            "layer conv (Conv2d 3→8, expected 3 channels) failed on input [1, 4, 32, 32]",
        ),
        (["net.py:Loops", "--input", "1,3,32,32", "--timeout", "2"], "no answer within 2 s"),
        (["net.py:Dies", "--input", "1,3,32,32"], "SIGKILL"),
        (["net.py:Net", "--select", "CNV999"], "unknown rule 'CNV999'; there are CNV0xx, CNV1xx"),
        (["net.py:Net", "--ignore", "CNV199"], "unknown rule 'CNV199'; there are CNV101, CNV102"),
        (["net.py:Net", "--ignore", "cnv101"], "unknown rule 'cnv101'; did you mean 'CNV101'?"),
        (["net.py:Net("], "arguments must be literals"),
        (["timm:resnet18("], "arguments must be literals"),
        ([""], "a target is empty"),
        (["net.py:Fails"], "failed on input [1, 3, 224, 224]: its message raises KeyError"),
        (["net.py:Quite_other"], "no 'Quite_other' in it\n"),
        (["net.py:Net", "--config", "bad.toml"], "unknown setting 'selekt'; did you mean 'select'?"),
        (["net.py:Net", "--config", "option.toml"], "did you mean 'min-params'?"),
        (["net.py:Net", "-o", "report.docx"], "the format comes from the suffix"),
        (["net.py:Net", "-o", "missing/report.html"], "no such directory missing"),
        (["net.py:Net", "--submodule", "neck"], "no submodule 'neck'"),
        (["plain.py", "--submodule", "neck"], "no submodule 'neck'"),
        (["net.py:Net", "--statistics", "--format", "json"], "leave out --format"),
        (["net.py:Net", "--no-such-option"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_line_and_exit_2(folder: Path, args: list[str], says: str) -> None:
    done = convaudit("check", *args, cwd=folder)

    assert (done.stdout + done.stderr).count(says) == 1
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["show", "tensor.pt", "--submodule", "neck"], "--submodule is for models, and every target is a checkpoint"),
        (["show", "a.npz"], "a.npz: a NumPy archive (.npz), no checkpoint"),
        (["convert", "shards", "b.safetensors"], "shards: a folder; name shards/model.safetensors.index.json"),
        (["convert", "near", "b.safetensors"], "near: a folder; name a checkpoint in it"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_commands_say_one_line_as_well(folder: Path, args: list[str], says: str) -> None:
    np.savez(folder / "a.npz", w=np.ones(3))
    (folder / "shards").mkdir()
    (folder / "shards" / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    done = convaudit(*args, cwd=folder)

    assert len(lines := (done.stdout + done.stderr).splitlines()) == 1
    assert lines[0].startswith(f"convaudit: {says}")
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("options", "out", "err"),
    [((), True, False), (("--quiet",), True, False), (("--statistics",), False, True), (("--format", "junit", "--quiet"), True, True)],
    ids=str,
)
def test_a_failed_target_is_said_where_it_is_read(folder: Path, options: tuple[str, ...], out: bool, err: bool) -> None:
    done = convaudit("check", "net.py:Raises", *options, cwd=folder)

    assert ("no such width" in done.stdout, "no such width" in done.stderr) == (out, err)


@pytest.mark.parametrize(
    ("target", "place", "says"),
    [
        ("net.py:Needs", "net.py:11", "give them, as in net.py:Needs(width=…)"),
        ("net.py:Plain", "net.py:25", "not an nn.Module"),
        ("net.py:Dies", "net.py:21", "SIGKILL"),
        ("other.py:Needs", "net.py:11", "give them, as in other.py:Needs(width=…)"),
        ("other.py:Late", "other.py:6", "give them, as in other.py:Late(depth=…)"),
        ("other.py:Reads", "other.py:11", "must be str"),
        ("other.py:Reads", "other.py:11", "it fails alike on all"),
        ("far.py:Late", "far.py:5", "give them, as in far.py:Late(depth=…)"),
        ("link.py:Net", None, "link.py: a link to gone.py, which is not there"),
    ],
)
def test_a_failure_has_the_line_of_the_users_own_code(folder: Path, target: str, place: str | None, says: str) -> None:
    (folder / "other.py").write_text(
        "import json\n\nfrom net import Needs, Net\n\n\nLate = type('Late', (Needs,), {'__init__': lambda self, depth: None})\n\n\n"
        "class Reads(Net):\n    def forward(self, x):\n        return json.loads(x)\n"
    )
    (folder / "far.py").write_text("import os\n\nfrom net import Net\nos.chdir('/')\nclass Late(Net):\n    def __init__(self, depth): ...\n")
    (folder / "link.py").symlink_to("gone.py")
    given = () if "alike" in says else ("--input", "1,3,32,32")
    done = convaudit("check", target, *given, "--format", "json", cwd=folder)
    error = json.loads(done.stdout)["targets"][0]["error"]

    assert says in error["message"]
    assert (f"{error['path']}:{error['line']}" if error["path"] else None) == place


def test_a_plain_file_is_audited_as_far_as_it_can_be(folder: Path) -> None:
    """What cannot be built by itself is a line and no failure; asked for by name it is one (above)."""
    (folder / "some.py").write_text(NET.partition("class Loops")[0])
    done = convaudit("check", "some.py", "lost.py", "--input", "1,3,32,32", "--select", "CNV101", cwd=folder)

    assert "some.py:Net: " in done.stdout
    assert "some.py:11: Needs needs width; audit it as some.py:Needs(width=…)" in done.stderr
    assert "some.py:Raises is not audited: some.py:16: construct failed: KeyError" in done.stderr
    assert done.returncode == 0


def test_a_failed_target_is_in_the_json_and_costs_only_itself(folder: Path) -> None:
    done = convaudit("check", "net.py:Dies", "net.py:Net", "--input", "1,3,32,32", "--format", "json", cwd=folder)
    result: dict[str, Any] = json.loads(done.stdout)

    assert [t["status"] for t in result["targets"]] == ["failed", "ok"]
    assert result["targets"][0]["totals"] is None
    assert [f["rule"] for f in result["targets"][0]["findings"]] == ["CNV001"]
    assert done.returncode == 2


def test_user_prints_do_not_spoil_the_json(folder: Path) -> None:
    (folder / "loud.py").write_text("print('import')\n" + NET)
    done = convaudit("check", "loud.py:Net", "--format", "json", cwd=folder)

    assert json.loads(done.stdout)["targets"][0]["inputs"][0]["source"] == "inferred"
    assert "import" in done.stderr


@pytest.mark.parametrize("made", ["def net():\n    return", "# when it is imported\nnet ="])
def test_findings_exit_1_and_name_the_constructing_line(folder: Path, made: str) -> None:
    (folder / "big.py").write_text(
        f"from torch import nn\n\n\n{made} nn.Sequential(\n        nn.Conv2d(3, 64, 3, 2, 1),\n"
        "        nn.Flatten(),\n        nn.Linear(64 * 16 * 16, 128),\n    )\n"
    )
    done = convaudit(
        "check", "big.py:net", "--input", "1,3,32,32", "-o", "r.html", "-o", "r.md", "-o", "r.json", cwd=folder
    )

    assert done.returncode == 1
    assert "big.py:8: CNV101 warning" in done.stdout
    assert all((folder / f"r.{suffix}").stat().st_size > 500 for suffix in ("html", "md", "json"))


@pytest.mark.parametrize(("given", "coloured"), [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)], ids=str)
def test_a_pipe_has_colours_where_they_are_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], coloured: bool) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    assert ("\x1b[" in convaudit("check", "plain.py", cwd=folder).stdout) == coloured


def test_commands_that_need_no_model_do_not_import_torch(folder: Path) -> None:
    code = (
        "import sys\nfrom convaudit.cli import cli\n"
        "for args in (['--help'], ['rule'], ['rule', 'CNV101']):\n    cli(args, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert done.returncode == 0
