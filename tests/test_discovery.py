"""Which classes and functions of a project are models, and what is said about the rest. Nothing runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from convaudit.discovery import Project
from convaudit.selection import select
from convaudit.settings import Resolver

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

    assert found.left == ["lit.py:4: Lit needs config; audit it as lit.py:Lit(config=…)"]


def test_configured_arguments_make_a_model_of_it(project: Path) -> None:
    (project / "convaudit.toml").write_text("target = [{match = 'nets.py:Needy', args = {classes = 3}}, {match = 'timm:vgg11'}]")
    found = select(("nets.py",), Resolver())

    assert "nets.py:Needy" in found.targets
    assert select((), Resolver()).targets == [*select((".",), Resolver()).targets, "timm:vgg11"]


def test_a_target_that_its_settings_name_in_full_is_asked_for_by_name(project: Path) -> None:
    (project / "convaudit.toml").write_text("target = [{match = 'nets.py:Needy'}, {match = 'nets.py:N*'}]")

    for words in ((), ("nets.py",)):
        found = select(words, Resolver())
        assert "nets.py:Needy" in found.targets
        assert "nets.py:Needy" not in found.discovered
    assert "nets.py:Net" in found.discovered
    assert "nets.py:Needy" in select(("nets.py",), Resolver(), changed=True).discovered  # a hook does not block for it


def test_targets_keep_their_order_and_are_audited_once(project: Path) -> None:
    words = ("timm:resnet18", "./nets.py:Net", "far/made.py", "nets.py:Net", str(project / "nets.py"), "nets.py:Cell", "far/../elsewhere.py:needy")
    found = select(words, Resolver())

    assert found.targets[:5] == ["timm:resnet18", "./nets.py:Net", "far/made.py:Wide", "far/made.py:Mine", "far/made.py:pretrained"]
    assert found.targets[6:] == [f"{project}/nets.py:Cell", f"{project}/nets.py:resnet18", "elsewhere.py:needy", f"{project}/nets.py:stem"]
    assert found.discovered == {*found.targets[2:6], f"{project}/nets.py:resnet18", f"{project}/nets.py:stem"}


def test_importers_are_followed_through_files(project: Path) -> None:
    found = Project(project).importers([project / "blocks.py"])

    assert [path.relative_to(project).as_posix() for path in found] == ["elsewhere.py", "nets.py"]


def test_a_folder_is_its_models_and_says_what_it_leaves_out(project: Path) -> None:
    (project / "weights.pt").write_bytes(b"\x80\x02}.")
    (project / "pointer.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    (project / "test_toy.py").write_text("from torch import nn\nclass Toy(nn.Module): pass\n")
    (project / ".venv").mkdir()
    (project / ".venv" / "x.py").write_text("from torch import nn\nclass X(nn.Module): pass\n")
    found = select((".",), Resolver())

    assert found.targets == [
        "weights.pt", "elsewhere.py:needy", "nets.py:Net", "nets.py:Cell", "nets.py:resnet18", "nets.py:stem",
        "far/made.py:Wide", "far/made.py:Mine", "far/made.py:pretrained", "far/made.py:tail",
    ]  # fmt: skip
    assert found.lines == [
        "lit.py:4: Lit needs config; audit it as lit.py:Lit(config=…)",
        "nets.py:11: Grown needs config; audit it as nets.py:Grown(config=…)",
    ]


def test_a_folder_without_a_model_says_so(project: Path) -> None:
    (project / "plain").mkdir()
    (project / "plain" / "sums.py").write_text("total = 1\n")

    assert select(("plain",), Resolver()).lines == ["plain: no model in its Python files"]


def test_a_folder_outside_the_repository_is_not_executed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("downloaded")
    (other / "modeling.py").write_text("open('/tmp/executed', 'w')\nfrom torch import nn\nclass X(nn.Module): pass\n")
    (other / "convaudit.toml").write_text("fail-on = 'never'\n")
    done = subprocess.run(
        [sys.executable, "-m", "convaudit", "check", str(other), "--format", "json"], capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert json.loads(done.stdout)["targets"] == []
    assert "modeling.py: a Python file, not run: it lies outside this repository" in done.stderr
    assert select((str(other),), Resolver(), allow_code=True).targets


def test_no_torch_is_imported(project: Path) -> None:
    code = "import sys\nfrom convaudit.selection import select\nfrom convaudit.settings import Resolver\nselect(('.',), Resolver())\nassert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_blocks_of_what_cannot_be_built_are_no_models(tmp_path: Path) -> None:
    """Through classes that take a block as an argument, too; a wrapper without layers of its own gives way."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom torchvision.models import WeightsEnum\n"
        "class Trained(WeightsEnum): ...\n"
        "class Block(nn.Module):\n    def __init__(self): ...\n"
        "class Twice(nn.Module):\n    def __init__(self, scale): self.block = Block\n"
        "class Net(nn.Module):\n    def __init__(self, classes): self.body, self.head = Twice(2), nn.Linear(8, classes)\n"
    )
    found = Project(tmp_path).models_in(tmp_path / "net.py", "net.py")

    assert (found.targets, found.left) == ([], ["net.py:8: Net needs classes; audit it as net.py:Net(classes=…)"])


FORWARD = "    def forward(self, x): return self.net(x)\n"


def made_of(*names: str) -> str:
    return f"    def __init__(self): self.net = {', '.join(names)}\n" + FORWARD


@pytest.mark.parametrize(
    ("others", "targets"),
    [
        ("class Wide(Net): ...\n", ["Net", "Wide"]),
        ("class Wide(Net): ...\nclass Wider(Wide): ...\n", ["Net", "Wide", "Wider"]),
        ("class Wide(Net): ...\nclass User(nn.Module):\n" + made_of("Wide()"), ["User"]),
        ("class Needs(nn.Module):\n    def __init__(self, width): self.body, self.head = Net(), nn.Linear(8, width)\n", ["Net"]),
        ("class Twice(nn.Module):\n    def __init__(self, n): self.net = [Net()] * n\nclass User(nn.Module):\n" + made_of("Twice(2)"), ["User"]),
    ],
    ids=["inherited", "twice", "an heir is a part", "of what needs arguments", "through what needs arguments"],
)
def test_a_whole_model_is_one_though_others_inherit_from_it_or_cannot_be_built(tmp_path: Path, others: str, targets: list[str]) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\nclass Net(nn.Module):\n" + made_of("nn.Conv2d(3, 8, 3)") + others)

    assert Project(tmp_path).models_in(tmp_path / "net.py", "net.py").targets == [f"net.py:{name}" for name in targets]


@pytest.mark.parametrize(
    "base",
    [
        "class BaseNet(nn.Module):\n" + made_of("nn.Conv2d(3, 8, 3)"),
        "class Frame(nn.Module):\n    def __init__(self): self.net = nn.Conv2d(3, 8, 3)\n    def forward(self, x): raise NotImplementedError\n",
        "class Frame(nn.Module):\n    def __init__(self): self.net = nn.Conv2d(3, 8, 3)\n",
        "class Frame(nn.Module):\n" + FORWARD,
    ],
    ids=["name", "raises", "no forward", "no layers"],
)
def test_a_base_that_is_no_whole_model_is_left_out(tmp_path: Path, base: str) -> None:
    name = base.removeprefix("class ").partition("(")[0]
    (tmp_path / "net.py").write_text(f"from torch import nn\n{base}class Net({name}):\n" + made_of("nn.Conv2d(3, 8, 3)"))

    assert Project(tmp_path).models_in(tmp_path / "net.py", "net.py").targets == ["net.py:Net"]


def test_functions_that_hand_a_class_to_a_builder_are_models(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom zoo import build\n"
        "class Net(nn.Module):\n    def __init__(self, depth=4): ...\n"
        "def _make(**given): return build(Net, **given)\n"
        "def small(**given) -> Net: return _make(depth=2, **given)\n"
    )

    assert Project(tmp_path).models_in(tmp_path / "net.py", "net.py").targets == ["net.py:small"]


def test_a_file_of_blocks_says_that_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "blocks.py").write_text("from torch import nn\nclass Block(nn.Module):\n    def __init__(self): ...\n")
    (tmp_path / "net.py").write_text("from torch import nn\nfrom blocks import Block\nclass Net(nn.Module):\n    net = Block\n")

    assert Project(tmp_path).models_in(tmp_path / "blocks.py", "blocks.py").problem == (
        "blocks.py: no model by itself in it, only parts of others; name one, as in blocks.py:Block"
    )


def test_a_model_is_left_to_another_only_where_that_one_is_audited(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\nclass Net(nn.Module):\n" + made_of("nn.Conv2d(3, 8, 3)"))
    for name in ("train.py", "test_net.py"):
        (tmp_path / name).write_text("from torch import nn\nfrom net import Net\nclass Lit(nn.Module):\n" + made_of("Net()"))
    subprocess.run(["git", "init", "-q", tmp_path], check=True)

    def selected(*words: str) -> str:
        code = "import sys\nfrom convaudit.selection import select\nfrom convaudit.settings import Resolver\nprint(*select(sys.argv[1:], Resolver()).targets)"
        return subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    assert (selected("net.py"), selected("."), selected("net.py", "train.py")) == ("net.py:Net", "train.py:Lit", "train.py:Lit")
    (tmp_path / "train.py").unlink()
    assert selected(".") == "net.py:Net"


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ("self.head, self.stem = nn.Conv2d(16, 8, 1), nn.Conv2d(3, 16, 3)", [1, 3, 224, 224]),
        ("self.head, self.stem = nn.ConvTranspose2d(16, 3, 4, 2), nn.ConvTranspose2d(100, 16, 4)", [1, 100, 1, 1]),
    ],
    ids=["declared last", "a code"],
)
def test_inferred_channels_are_those_that_no_layer_makes(tmp_path: Path, layers: str, shape: list[int]) -> None:
    (tmp_path / "net.py").write_text(
        f"from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {layers}\n"
        "    def forward(self, x): return self.head(self.stem(x))\n"
    )
    done = subprocess.run([sys.executable, "-m", "convaudit", "check", "net.py:Net", "--format", "json"], cwd=tmp_path, check=False, capture_output=True, text=True)

    assert json.loads(done.stdout)["targets"][0]["inputs"][0]["shape"] == shape
