"""flake8 shows what ``convaudit check`` has kept, as long as it holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flake8")

NET = """\
from torch import nn


class Net(nn.Module):
    def __init__(self, width=512):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, 2, 1)
        self.fc = nn.Linear(64 * 16 * 16, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.fc(self.stem(x).flatten(1)).relu())
"""
MADE_ELSEWHERE = """\
from net import Net
from torch import nn


class Twice(nn.Sequential):
    def __init__(self):
        super().__init__(Net(256))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    (tmp_path / "convaudit.toml").write_text('input = "1,3,32,32"\n')
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def run(folder: Path, *command: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=folder, input=given, capture_output=True, text=True, check=False,
        env={**os.environ, "CONVAUDIT_CACHE_DIR": str(folder / "cache")},
    )  # fmt: skip


def check(folder: Path, *targets: str) -> None:
    done = run(folder, "-m", "convaudit", "check", *targets)
    assert done.returncode == 1, done.stderr


def flake8(folder: Path, *args: str, given: str | None = None) -> list[str]:
    """Where and what, without the words behind the code."""
    done = run(folder, "-m", "flake8", "--isolated", "--select", "CNV", *args, given=given)
    assert done.stderr == ""
    return [" ".join(line.split(" ")[:2]) for line in done.stdout.splitlines()]


def test_kept_findings_are_shown_while_they_hold(folder: Path) -> None:
    assert flake8(folder, "net.py") == []
    check(folder, "net.py")
    here = ["net.py:8:9: CNV101", "net.py:8:9: CNV103"]

    assert flake8(folder, "net.py") == here
    assert flake8(folder, ".") == [f"./{line}" for line in here]
    assert flake8(folder, "--convaudit-info", "net.py") == [*here, "net.py:8:9: CNV106"]
    assert flake8(folder, "--stdin-display-name", "net.py", "-", given=NET) == here
    assert flake8(folder, "--stdin-display-name", "net.py", "-", given="\n" + NET) == []  # not saved yet

    (folder / "net.py").write_text("\n" + NET)
    assert flake8(folder, "net.py") == []
    (folder / "net.py").write_text(NET)
    assert flake8(folder, "net.py") == here
    (folder / "convaudit.toml").write_text('input = "1,3,48,48"\n')
    assert flake8(folder, "net.py") == []


def test_the_words_say_what_is_saved(folder: Path) -> None:
    check(folder, ".")
    line = run(folder, "-m", "flake8", "--isolated", "--select", "CNV101", "net.py").stdout

    assert line.startswith("net.py:8:9: CNV101 fc: Linear 16,384→512 reads a flattened 64×16×16 map: ")
    assert line.endswith("; parameters 8,396,042 → 40,202 (−99.5%)\n")


def test_both_ways_of_suppressing_work(folder: Path) -> None:
    text = NET.replace("nn.Linear(64 * 16 * 16, width)", "nn.Linear(64 * 16 * 16, width)  # noqa: CNV101")
    (folder / "net.py").write_text(text)
    check(folder, "net.py")
    assert flake8(folder, "net.py") == ["net.py:8:9: CNV103"]

    (folder / "net.py").write_text(text.replace("# noqa: CNV101", "# convaudit: ignore[CNV103, CNV404] old weights"))
    check(folder, "net.py")
    assert flake8(folder, "net.py", "--convaudit-info") == ["net.py:8:9: CNV101", "net.py:8:9: CNV106"]  # no CNV003


def test_a_finding_in_another_file_stands_at_the_model(folder: Path) -> None:
    (folder / "twice.py").write_text(MADE_ELSEWHERE)
    check(folder, ".")
    done = run(folder, "-m", "flake8", "--isolated", "--select", "CNV101", "twice.py", "net.py")

    assert [line.partition(" ")[0] for line in done.stdout.splitlines()] == ["twice.py:5:1:"]
    assert done.stdout.endswith(" (net.py:8)\n")


@pytest.mark.parametrize("text", ["class Net(:\n", "\x00", "x = 1\n", "", "def f(a): return a\n"], ids=ascii)
def test_other_files_are_left_alone(folder: Path, text: str) -> None:
    (folder / "cache").mkdir()
    (folder / "a.py").write_text(text)
    assert flake8(folder, "a.py") == []
    (folder / "convaudit.toml").write_text("input = [")  # convaudit's own to say
    assert flake8(folder, "net.py") == []


def test_neither_torch_nor_a_worker_is_needed(folder: Path) -> None:
    check(folder, "net.py")
    code = (
        "import sys\nfrom flake8.main.cli import main\nstate = main(['--isolated', '-j1', '--select=CNV', 'net.py'])\n"
        "print(state, 'torch' in sys.modules, 'convaudit_rules' in sys.modules, 'jinja2' in sys.modules)"
    )
    done = run(folder, "-c", code)

    assert "CNV101" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 False False False"
