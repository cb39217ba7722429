"""``pytest --convaudit`` in projects of its own, by real runs of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

PLAIN = "from torch import nn\n\n\n"
HEAVY = """\
class Heavy(nn.Module):
    def __init__(self, width=512):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.fc = nn.Linear(8 * 16 * 16, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.fc(self.stem(x).flatten(1)).relu())
"""
FINE = """\
class Fine(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)

    def forward(self, x):
        return self.conv(x).relu().mean((2, 3))
"""
BROKEN = """\
class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise ValueError("no weights\\nhere")
"""
SETTINGS = 'input = "1,3,32,32"\nselect = ["CNV101", "CNV404"]\n[rules.CNV101]\nmin-params = 100_000\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:hypothesispytest -p no:anyio\n")
    (tmp_path / "convaudit.toml").write_text(SETTINGS)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/heavy.py").write_text(PLAIN + HEAVY)
    (tmp_path / "models/fine.py").write_text(PLAIN + FINE + "\n\n" + BROKEN)
    (tmp_path / "test_it.py").write_text("def test_it():\n    pass\n")
    return tmp_path


def run(folder: Path, *args: str) -> tuple[dict[str, str], subprocess.CompletedProcess[str]]:
    """Each test's outcome by its id, from ``-rA``."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "--strict-markers", *args], cwd=folder, capture_output=True, text=True,
        check=False, env={**environment, "CONVAUDIT_CACHE_DIR": str(folder / "cache"), "COLUMNS": "250"},
    )  # fmt: skip
    words = [line.split() for line in done.stdout.partition("short test summary info")[2].splitlines()]
    return {line[1]: line[0] for line in words if line and line[0] in ("PASSED", "FAILED", "ERROR")}, done


HEAVY_ID, FINE_ID = "models/heavy.py::convaudit:Heavy", "models/fine.py::convaudit:Fine"
EXPECTED = {"test_it.py::test_it": "PASSED", HEAVY_ID: "FAILED", FINE_ID: "PASSED"}


def test_every_model_is_a_test(project: Path) -> None:
    outcomes, done = run(project, "--convaudit", "--junitxml", "out.xml")
    out = done.stdout

    assert outcomes == EXPECTED
    assert done.returncode == 1
    assert "convaudit: 3 models" in out
    assert "collected 4 items" in out
    assert "models/heavy.py:8: CNV101 warning fc: Linear 2,048→512 reads a flattened 8×16×16 map" in out
    assert "parameters 1,054,442 → " in out
    assert "Traceback" not in out
    assert "runtest" not in out
    assert "SKIPPED [1] models/fine.py: not audited: models/fine.py:16: construct failed: ValueError: no weights" in out
    case = next(c for c in ElementTree.parse(project / "out.xml").iter("testcase") if c.find("failure") is not None)
    assert (case.get("classname"), case.get("name")) == ("models.heavy", "convaudit:Heavy")

    again, done = run(project, "--convaudit", "--lf")
    assert again == {HEAVY_ID: "FAILED"}
    assert "4 items / 3 deselected / 1 selected" in done.stdout
    (project / "models/heavy.py").write_text(PLAIN + HEAVY.replace("512", "8"))
    again, done = run(project, "--convaudit", "-m", "convaudit")
    assert again == {HEAVY_ID: "PASSED", FINE_ID: "PASSED"}
    assert done.returncode == 0


def test_the_place_of_a_failure_is_the_findings(project: Path) -> None:
    (project / "conftest.py").write_text(
        "def pytest_runtest_logstart(nodeid, location):\n    print('at', nodeid.split(':')[-1], location[:2])\n"
    )
    _, done = run(project, "--convaudit", "-s")

    assert "at Heavy ('models/heavy.py', 7)" in done.stdout  # counted from 0
    assert "at Broken ('models/fine.py', 15)" in done.stdout


def test_workers_of_xdist_share_one_audit(project: Path) -> None:
    pytest.importorskip("xdist")
    log = "open('log', 'a').write('imported\\n')\n"
    (project / "models/fine.py").write_text(f"{log}{PLAIN}{FINE}\n\n{BROKEN}")
    outcomes, done = run(project, "--convaudit", "-n", "2")

    assert outcomes == EXPECTED
    assert done.returncode == 1
    assert "CNV101 warning" in done.stdout
    assert (project / "log").read_text().count("imported") <= 2  # once for each of its two models


def test_named_targets_take_the_place_of_discovery(project: Path) -> None:
    (project / "pytest.ini").write_text(
        "[pytest]\nconvaudit_targets =\n    models/heavy.py:Heavy(width=16)\n    models/fine.py:Lost\n"
    )
    outcomes, done = run(project, "--convaudit", "--convaudit-target", "torchvision:alexnet", "-m", "convaudit")

    assert outcomes == {
        "models/heavy.py::convaudit:Heavy(width=16)": "PASSED",
        "models/fine.py::convaudit:Lost": "FAILED",
        "pytest.ini::convaudit:torchvision:alexnet": "FAILED",
    }
    assert "not audited: no 'Lost' in it" in done.stdout
    (project / "models/sub").mkdir()
    outcomes, done = run(project / "models/sub", "-c", "../../pytest.ini", "--convaudit", "-k", "Heavy")
    assert list(outcomes.values()) == ["PASSED"]


def test_tables_of_the_settings_name_targets_and_strictness(project: Path) -> None:
    table = '[[target]]\nmatch = "models/heavy.py:make"\nargs = {width = 16}\n'
    (project / "convaudit.toml").write_text("strict = true\n" + SETTINGS + table)
    (project / "models/heavy.py").write_text(PLAIN + HEAVY + "\n\ndef make(width):\n    return Heavy(width)\n")
    outcomes, _ = run(project, "--convaudit", "-m", "convaudit")

    assert outcomes["models/heavy.py::convaudit:make"] == "PASSED"
    assert outcomes["models/fine.py::convaudit:Broken"] == "FAILED"


def test_wrong_settings_are_one_line(project: Path) -> None:
    (project / "convaudit.toml").write_text('selekt = ["CNV101"]\n')
    _, done = run(project, "--convaudit")
    assert done.returncode == 4
    assert "convaudit.toml: unknown setting 'selekt'; did you mean 'select'?" in done.stderr
    assert "Traceback" not in done.stderr

    (project / "convaudit.toml").write_text('baseline = "none.json"\n')
    _, done = run(project, "--convaudit")
    assert done.returncode == 4
    assert "convaudit: baseline none.json" in done.stderr.replace(f"{project}/", "")


def test_nothing_is_loaded_until_it_is_asked_for(project: Path) -> None:
    code = (
        "import sys, pytest\nstate = pytest.main(['-q', 'test_it.py'])\n"
        "ours = [m for m in sys.modules if m.startswith('convaudit') and 'shim' not in m]\n"
        "print(int(state), sorted(ours), {'torch', 'msgspec', 'click', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)
    ours = ["convaudit", "convaudit.integrations", "convaudit.integrations.pytest_plugin"]
    assert done.stdout.splitlines()[-1] == f"0 {ours} set()"

    (project / "cache").mkdir()
    _, done = run(project, "--convaudit", "--collect-only")
    assert "convaudit:Heavy" in done.stdout
    assert not list((project / "cache").iterdir())


def test_kept_results_need_no_torch(project: Path) -> None:
    (project / "models/fine.py").write_text(PLAIN + FINE)
    first, _ = run(project, "--convaudit")
    (project / "conftest.py").write_text(
        "import convaudit.pool\n\n\ndef refuse(*_):\n    raise SystemExit('a worker was started')\n\n\n"
        "convaudit.pool.Worker = refuse\n"
    )
    again, done = run(project, "--convaudit")

    assert first == again == EXPECTED
    assert "a worker was started" not in done.stderr
