"""The wheel in a bare environment outside the checkout: what works without torch, and with it, and with plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "house-rules"
version = "1"
[project.entry-points."convaudit.rules"]
ACME001 = "house_rules:NoTanh"
ACME002 = "house_rules:Broken"
ACME003 = "house_rules:Missing"
[project.entry-points."convaudit.reports"]
lines = "house_rules.lines"
broken = "house_rules:BrokenFormat"
nameless = "house_rules:Nameless"
""",
    "house_rules/__init__.py": '''
from convaudit.rule import Rule

class NoTanh(Rule):
    """tanh is not used in this house"""
    code, name, severity = "ACME001", "no-tanh", "warning"
    def check(self, context):
        layers = [call.layer for _, call in context.graph.calls if call.op == "tanh"]
        if layers:
            yield context.finding(f"{len(layers)} tanh", layers, suggestion="use relu")

class Broken(Rule):
    """raises"""
    code, name, severity = "ACME002", "broken", "info"
    def check(self, context):
        raise KeyError("lost")

class BrokenFormat:
    NAME, SUFFIX = "broken", ".html"
    @staticmethod
    def render(result, **options):
        raise KeyError("lost")

class Nameless:
    pass
''',
    "house_rules/lines.py": '''
from jinja2 import Environment, PackageLoader

NAME, SUFFIX = "lines", ".lines"

def render(result, **options):
    environment = Environment(loader=PackageLoader("house_rules", "templates"), keep_trailing_newline=True)
    return environment.get_template("lines.j2").render(result=result)
''',
    "house_rules/templates/lines.j2": "{% for t in result.targets %}{{ t.target }} {{ t.findings|length }}\n{% endfor %}",
}
NET = "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh())\n"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and nothing else; torch is not in it."""
    folder = tmp_path_factory.mktemp("bare")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    wheel = next(folder.glob("convaudit-*.whl"))
    subprocess.run(
        [*pip, "--python", str(folder / "env/bin/python"), "install", str(wheel)], check=True, capture_output=True
    )
    (folder / "net.py").write_text(NET)
    return folder


def run(bare: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [str(bare / "env/bin/convaudit"), *args], cwd=bare, capture_output=True, text=True, env=environment, check=False
    )


def test_without_torch(bare: Path) -> None:
    assert "giant-flattened-linear" in run(bare, "rule").stdout
    assert "## What it does" in run(bare, "rule", "CNV101").stdout
    assert "50,177,000" in run(bare, "calc", "linear", "224x224", "1000").stdout
    done = run(bare, "check", "net.py:net")
    assert done.returncode == 2
    assert "pip install torch" in done.stdout
    assert "Traceback" not in done.stderr


def test_with_torch_and_plugins(bare: Path) -> None:
    site = next((bare / "env/lib").glob("python*/site-packages"))
    (site / "torch_of_the_tests.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # torch is a large download
    plugin = bare / "plugin"
    for name, text in PLUGIN.items():
        (plugin / name).parent.mkdir(parents=True, exist_ok=True)
        (plugin / name).write_text(text)
    subprocess.run(
        [sys.executable, "-m", "pip", "-q", "--python", str(bare / "env/bin/python"), "install", "--no-deps", str(plugin)],
        check=True, capture_output=True,
    )  # fmt: skip
    home = subprocess.run(
        [str(bare / "env/bin/python"), "-c", "import convaudit; print(convaudit.__file__)"], cwd=bare, capture_output=True,
        text=True, check=True,
    ).stdout  # fmt: skip
    net = ("check", "net.py:net", "--input", "1,3,8,8", "--format")
    done = run(bare, *net, "json", "-o", "out.lines", "-o", "out.html")
    findings = {f["rule"]: f for f in json.loads(done.stdout)["targets"][0]["findings"]}

    assert home.startswith(str(bare))
    assert findings["ACME001"]["layers"] == ["1"]
    assert "ACME002" in findings["CNV001"]["message"]
    assert "lost" in findings["CNV001"]["message"]
    assert (bare / "out.lines").read_text() == "net.py:net 2\n"
    assert run(bare, *net, "lines").stdout == "net.py:net 2\n"
    assert "<!doctype html>" in (bare / "out.html").read_text()  # the suffix stays the built-in format's
    broken = run(bare, *net, "broken")
    assert broken.returncode == 2
    assert broken.stderr.splitlines()[-1] == "convaudit: report format 'broken' broke: KeyError: 'lost'"
    assert "Nameless'> in convaudit.reports lacks NAME, SUFFIX or render" in done.stderr
    assert "plugin 'ACME003' (house_rules:Missing) could not be loaded" in done.stderr
    assert "ACME001" in run(bare, "rule").stdout
    assert done.returncode == 1
