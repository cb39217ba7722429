"""Which classes and functions of a project are models, and what is said about the rest. Nothing runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from convaudit.discovery import Project
from convaudit.selection import select
from convaudit.settings import AuditSettings

FILES = {
    "blocks.py": """
        import torch
        from torch import nn
        class Block(nn.Module):
            def __init__(self, width=8): ...
        class Base(nn.Module):
            def __init__(self, classes=10): ...
        class Swish(nn.Module):
            def forward(self, x): ...
        class FocalLoss(nn.Module): ...
        def helper(x): ...
    """,
    "nets.py": """
        from blocks import *
        import blocks
        from torch import nn
        class Net(blocks.Base):
            def build(self): return Block(), Swish()
        class ResNet(nn.Module):
            def __init__(self, block, layers): ...
        class Cell(nn.Module):
            def __init__(self, width=3): ...
        class Grown(nn.Module):
            def __init__(self, config): self.cell = Cell()
        def resnet18(pretrained=False, **kw):
            model = ResNet(Bottle, [2, 2], **kw)
            return model
        def resnet(layers): return ResNet(Bottle, layers)
        class Bottle(nn.Module):
            def __init__(self, width=4): ...
        class Needy(nn.Module):
            def __init__(self, classes, *, depth): ...
        def stem() -> nn.Module: return nn.Sequential()
        def test_net(): return Net()
        def _private(): return nn.Sequential()
    """,
    "lit.py": """
        import lightning.pytorch as pl
        from far.made import Wide
        class Lit(pl.LightningModule):
            def __init__(self, config):
                self.net = Wide()
        class Data(pl.LightningDataModule): ...
    """,
    "far/__init__.py": "",
    "far/made.py": """
        from torchvision.models import resnet18, ResNet
        from torch import nn
        class Wide(nn.Sequential): ...
        class Mine(ResNet):
            def __init__(self): ...
        def pretrained(): return resnet18(weights=None)
        tail = nn.Sequential(nn.Linear(3, 4))
    """,
    "elsewhere.py": "from nets import Needy\ndef needy(): return Needy(3, depth=4)\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import textwrap

    (tmp_path / ".git").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(project: Path, file: str) -> list[str]:
    return Project(project).models_in(project / file, file).targets


def test_building_blocks_losses_and_helpers_are_no_models(project: Path) -> None:
    assert names(project, "blocks.py") == []


def test_models_are_classes_else_the_functions_that_make_them(project: Path) -> None:
    assert names(project, "nets.py") == ["nets.py:Net", "nets.py:Cell", "nets.py:resnet18", "elsewhere.py:needy", "nets.py:stem"]


def test_a_wrapper_that_needs_arguments_gives_way_to_what_it_wraps(project: Path) -> None:
    assert names(project, "lit.py") == []
    assert names(project, "far/made.py") == [f"far/made.py:{n}" for n in ("Wide", "Mine", "pretrained", "tail")]


def test_what_needs_arguments_is_said_once_with_what_it_needs(project: Path) -> None:
    found = Project(project).models_in(project / "lit.py", "lit.py")

    assert found.left == ["lit.py:4: Lit needs config; audit it as lit.py:Lit(…)"]


def test_configured_arguments_make_a_model_of_it(project: Path) -> None:
    settings = AuditSettings.from_mapping({"target": [{"match": "nets.py:Needy", "args": {"classes": 3}}]}, "x")
    found = select(("nets.py",), settings)

    assert "nets.py:Needy" in found.targets


def test_importers_are_followed_through_files(project: Path) -> None:
    found = Project(project).importers([project / "blocks.py"])

    assert [path.relative_to(project).as_posix() for path in found] == ["elsewhere.py", "nets.py"]


def test_a_folder_is_its_models_and_says_what_it_leaves_out(project: Path) -> None:
    (project / "weights.pt").write_bytes(b"\x80\x02}.")
    (project / "pointer.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    (project / "test_toy.py").write_text("from torch import nn\nclass Toy(nn.Module): pass\n")
    (project / ".venv").mkdir()
    (project / ".venv" / "x.py").write_text("from torch import nn\nclass X(nn.Module): pass\n")
    found = select((".",), AuditSettings())

    assert found.targets == [
        "weights.pt", "elsewhere.py:needy", "nets.py:Net", "nets.py:Cell", "nets.py:resnet18", "nets.py:stem",
        "far/made.py:Wide", "far/made.py:Mine", "far/made.py:pretrained", "far/made.py:tail",
    ]  # fmt: skip
    assert found.lines == [
        ".: 1 of its files with a checkpoint's suffix are none by their first bytes",
        "lit.py:4: Lit needs config; audit it as lit.py:Lit(…)",
        "nets.py:11: Grown needs config; audit it as nets.py:Grown(…)",
    ]


def test_a_folder_outside_the_repository_is_not_executed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("downloaded")
    (other / "modeling.py").write_text("open('/tmp/executed', 'w')\nfrom torch import nn\nclass X(nn.Module): pass\n")
    (other / "convaudit.toml").write_text("fail-on = 'never'\n")
    done = subprocess.run(
        [sys.executable, "-m", "convaudit", "check", str(other), "--format", "json"], capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert json.loads(done.stdout)["targets"] == []
    assert "1 Python files are not executed" in done.stderr
    assert select((str(other),), AuditSettings(), allow_code=True).targets


def test_no_torch_is_imported(project: Path) -> None:
    code = "import sys\nfrom convaudit.selection import select\nfrom convaudit.settings import AuditSettings\nselect(('.',), AuditSettings())\nassert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True)
