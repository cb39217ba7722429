"""Files as people commit them: each is answered in a line that helps, and costs the good models beside it nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAD = "import torch\nfrom torch import nn\n\n\n"
NET = """\
class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, x):
        return self.conv(x)


"""
GOOD = HEAD + NET
SCRIPT = "belongs under if __name__ == '__main__'"
TRAINS = """\
data = torch.ones(8, 3, 8, 8).cuda()
net = nn.DataParallel(Net()).cuda()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    net(data).mean().backward()
    optimizer.step()
    print("loss", torch.cuda.is_available())
"""
CLASSES = "".join(
    f"class Net{i}(nn.Module):\n    def __init__(self, width):\n        super().__init__()\n        self.net = nn.Linear(width, 8)\n\n\n" for i in range(300)
)

REGISTRY = "class Registry(dict):\n    def add(self, made):\n        assert made.__name__ not in self\n        return self.setdefault(made.__name__, made)\n\n\n"
OWN_CONV = """\
class Kernel(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.in_channels = in_channels
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight, self.bias)


"""

AUDITED: dict[str, str | bytes] = {
    "good.py": GOOD,
    "trains.py": HEAD + NET + TRAINS,
    "crlf_bom.py": b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode(),
    "latin.py": b"# -*- coding: latin-1 -*-\n# mod\xe8le\n" + GOOD.encode(),
    "meta.py": "import abc\nimport torch\nfrom torch import nn\n\n\nclass Base(nn.Module, metaclass=abc.ABCMeta):\n"
    "    @abc.abstractmethod\n    def size(self): ...\n\n\n"
    + NET.replace("(nn.Module)", "(Base)")
    + "    def size(self): ...\n",
    "lazy_pooled.py": HEAD
    + NET.replace(
        "nn.Conv2d(3, width, 3)",
        "nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(4))",
    ),
    "deep/__init__.py": "",
    "deep/parts/__init__.py": "from .layers import conv\n",
    "deep/parts/layers.py": "from torch import nn\n\n\ndef conv(width):\n    return nn.Conv2d(3, width, 3)\n",
    "deep/nets/relative.py": HEAD.replace("nn\n", "nn\nfrom ..parts.layers import conv\n", 1)
    + NET.replace("nn.Conv2d(3, width, 3)", "conv(width)"),
    "deep/absolute.py": HEAD.replace("nn\n", "nn\nfrom deep.parts import conv\n", 1)
    + NET.replace("nn.Conv2d(3, width, 3)", "conv(width)"),
    "training.py": HEAD
    + NET
    + "class PixelLoss(nn.Module):\n    def forward(self, x, y):\n        return (x - y).abs().mean()\n\n\n"
    "class Trainer:\n    def __init__(self, model):\n        self.model = model.cuda()\n\n\n"
    "class Scale(torch.autograd.Function):\n"
    "    @staticmethod\n    def forward(ctx, x):\n        return x\n",
    "registered.py": HEAD + REGISTRY + "nets = Registry()\n\n\n" + NET.replace("class Net", "@nets.add\nclass Net"),
    "compiled.py": HEAD
    + "@torch.jit.script\ndef twice(x: torch.Tensor) -> torch.Tensor:\n    return x + x\n\n\n"
    + NET.replace("self.conv(x)", "twice(self.conv(x))"),
    "own_conv.py": HEAD + OWN_CONV + NET.replace("nn.Conv2d(3, width, 3)", "Kernel(3, width)"),
    "weights.py": "from torchvision.models import WeightsEnum\n" + GOOD + "class Trained(WeightsEnum):\n    FIRST = 1\n",
    "spaced/__init__.py": "from .models.one import Net\n",
    "spaced/models/layers.py": "from torch import nn\n\n\ndef conv(width):\n    return nn.Conv2d(3, width, 3)\n",
    **{
        f"spaced/models/{name}.py": HEAD.replace("nn\n", "nn\nfrom .layers import conv\n", 1)
        + NET.replace("nn.Conv2d(3, width, 3)", "conv(width)")
        for name in ("one", "two")
    },
    "joined/__init__.py": "from joined.registered import Net\n",
    "joined/registry.py": REGISTRY + "nets = Registry()\n",
    "joined/registered.py": HEAD.replace("nn\n", "nn\nfrom joined.registry import nets\n", 1) + NET.replace("class Net", "@nets.add\nclass Net"),
    "joined/joined.py": HEAD.replace("nn\n", "nn\nfrom joined.registered import Net as Base\n", 1) + NET.replace("nn.Module", "Base").replace("super().__init__()", "nn.Module.__init__(self)"),
    "lazy_norm.py": HEAD + NET.replace("nn.Conv2d(3, width, 3)", "nn.Sequential(nn.Conv2d(3, width, 3), nn.LazyBatchNorm2d())"),
    "clips.py": HEAD
    + NET.replace(
        "return self.conv(x)", "b, t, c, h, w = x.shape\n        return self.conv(x.view(b * t, c, h, w)).unflatten(0, (b, t))"
    ),
    "pooled_331.py": HEAD + NET.replace("self.conv(x)", "nn.functional.avg_pool2d(self.conv(x), 329)"),
    "factory.py": HEAD
    + NET.replace("width=8", "width")
    + "def built(builder, **kwargs):\n    return builder(**kwargs)\n\n\n"
    "def wide(pretrained=False) -> Net:\n    return built(Net, width=8)\n",
}
"""Files whose models are audited."""
HELPERS = ("layers.py", "registry.py", "__init__.py")
"""Ends of the names of those that only others need."""

LEFT: dict[str, tuple[str, str]] = {
    "argparsed.py": (
        HEAD.replace("import torch\n", "import argparse\nimport torch\n")
        + "parser = argparse.ArgumentParser()\nparser.add_argument('--data', required=True)\n"
        "args = parser.parse_args()\n\n\n" + NET,
        f"argparsed.py:8: import failed: SystemExit: it reads the command line as it is imported; "
        f"what a script does {SCRIPT}",
    ),
    "exits.py": (
        HEAD + NET + "import sys\nsys.exit('no GPU')\n",
        "exits.py:15: import failed: SystemExit: no GPU; what a script",
    ),
    "reads.py": (
        HEAD + NET + "torch.load('weights/best.pth')\n",
        f"reads.py:14: import failed: FileNotFoundError: [Errno 2] No such file or directory: 'weights/best.pth'; "
        f"what a script does {SCRIPT}",
    ),
    "asks.py": (HEAD + NET + "input('epochs? ')\n", "asks.py:14: import failed: EOFError"),
    "no_package.py": ("import wandb_that_is_not_there\n" + GOOD, "no_package.py:1: import failed: ModuleNotFoundError"),
    "orphan.py": (
        "from .nowhere import thing\n" + GOOD,
        "orphan.py:1: import failed: ImportError: attempted relative import",
    ),
    "notebook.py": (
        "# In[1]:\nfrom torch import nn\nget_ipython().system('pip install einops')\n" + GOOD,
        "notebook.py:3: import failed: NameError",
    ),
    "required.py": (
        HEAD + NET.replace("width=8", "classes, *, depth"),
        "required.py:5: Net needs classes, depth; audit it as required.py:Net(classes=…, depth=…)",
    ),
    "lazy.py": (
        HEAD + "net = nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(2))\n",
        "lazy.py:net is not audited: its lazy layers take their size from the input: give the real one with --input",
    ),
    "lazy_head.py": (
        HEAD + "net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(2))\n",
        "lazy_head.py:net is not audited: its lazy layers take their size",
    ),
    "scripted.py": (
        HEAD
        + NET.replace("nn.Module", "torch.jit.ScriptModule").replace(
            "    def f", "    @torch.jit.script_method\n    def f"
        ),
        "scripted.py:Net is not audited: it is a ScriptModule, which is not followed inside",
    ),
    "half_built.py": (
        HEAD + NET.replace("return self.conv(x)", "return self.head(self.conv(x))"),
        "layer (model) (Net) failed on input [1, 3, 224, 224]: 'Net' object has no attribute 'head'",
    ),
    "two_images.py": (
        HEAD + NET.replace("(self, x)", "(self, first, second)").replace("conv(x)", "conv(second - first) if len(second) else 0"),
        "give one for each of first, second: --input first:1,3,224,224 --input second:…",
    ),
    "nothing_learnt.py": (
        HEAD + "class Net(nn.Module):\n    def forward(self, x):\n        return x[int(x.sum())]\n",
        "nothing_learnt.py:Net is not audited: no input could be inferred; give one with --input 1,3,224,224; it has no parameters",
    ),
    "assembled.py": (
        HEAD + NET + "class Whole(nn.Module):\n    def __init__(self, classes):\n        super().__init__()\n"
        "        self.net, self.head = Net(), nn.Linear(8, classes)\n",
        "assembled.py:14: Whole needs classes; audit it as assembled.py:Whole(",  # its Net is audited by itself
    ),
    "weights_missing.py": (
        HEAD + NET.replace("        self.conv", "        state = torch.load('net.pt')\n        self.conv"),
        "weights_missing.py:8: construct failed: FileNotFoundError: [Errno 2] No such file or directory: 'net.pt'",
    ),
    "pretrained.py": (
        HEAD + NET.replace("width=8", "width=8, weights='net.pt'").replace("        self.conv", "        torch.load(weights)\n        self.conv"),
        "pretrained.py:8: construct failed: FileNotFoundError: [Errno 2] No such file or directory: 'net.pt'; "
        "without weights: pretrained.py:Net(weights=None)",
    ),
    "leaves.py": (
        HEAD + NET.replace("        self.conv", "        exit('no weights')\n        self.conv"),
        "leaves.py:8: construct failed: SystemExit: no weights",
    ),
    "formless.py": (
        HEAD + "class Net(nn.Module):\n    pass\n",
        "formless.py:Net is not audited: Net has no forward: it is no model by itself",
    ),
    "foreign.py": (
        "from torch import nn\nfrom hub_that_is_not_there import PreTrained\n\n\n"
        + NET.replace("(nn.Module)", "(PreTrained)"),
        "foreign.py:2: import failed: ModuleNotFoundError",
    ),
    "greedy.py": (HEAD + NET + "held = bytearray(5 * 10**9)\n", "greedy.py:14: import failed: MemoryError"),
    "loops.py": (
        HEAD + NET + "while True:\n    pass\n",
        "loops.py:Net is not audited: no answer within 12 s (--timeout)",
    ),
    "keras.py": (
        "import tensorflow as tf\n\n\nclass Net(tf.keras.Model):\n    def call(self, x):\n        return x\n",
        "keras.py: no model in it",
    ),
    "empty.py": ("", "empty.py: no model in it"),
    "many.py": (HEAD + CLASSES, "and 293 more such lines"),
}
"""Files of which nothing is audited, and what is said about each."""

DETECTS = """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        found = []
        for point in torch.nonzero(self.conv(x)[0, 0] >= 0):
            if point[0] > 0:
                found.append(point)
        return self.head(x), torch.stack(found)
"""

BROKEN: dict[str, tuple[str | bytes, str]] = {
    "python2.py": (
        "import torch\nprint 'epoch', 1\n",
        "python2.py:2: syntax error: Missing parentheses in call to 'print'",
    ),
    "magic.py": ("!pip install torchsummary\nimport torch\n", "magic.py:1: syntax error"),
    "tabs.py": ("def f():\n\tx = 1\n        y = 2\n", "tabs.py:3: syntax error: inconsistent use of tabs"),
    "nul.py": (b"import torch\n\0\n", "nul.py:1: syntax error"),
    "utf16.py": ("import torch\n".encode("utf-16"), "utf16.py:1: syntax error"),
}


def check(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "convaudit", "check", "--timeout", "12", "--memory-limit", "4", *args], cwd=folder,
        text=True, capture_output=True, check=False, timeout=300,
        env={**os.environ, "CONVAUDIT_CACHE_DIR": str(folder / "kept")},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("awkward")
    left = {name: text for name, (text, _) in LEFT.items()}
    broken = {name: text for name, (text, _) in BROKEN.items()}
    for name, text in {**AUDITED, **left, **broken}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "linked.py").symlink_to("good.py")
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> subprocess.CompletedProcess[str]:
    """One run over every file that can be parsed."""
    names = [name for name in (*AUDITED, "linked.py", *LEFT) if not name.endswith(HELPERS)]
    return check(folder, *names, "--jobs", "2", "--fail-on", "error", "--format", "json")


def test_awkward_files_block_nothing_and_the_rest_is_audited(done: subprocess.CompletedProcess[str]) -> None:
    targets: list[dict[str, Any]] = json.loads(done.stdout)["targets"]

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "convaudit broke" not in done.stderr
    assert {t["target"]: t["status"] for t in targets} == {
        **{
            f"{name}:Net": "ok"
            for name in AUDITED  # linked.py is good.py once more
            if not name.endswith((*HELPERS, "factory.py"))
        },
        "assembled.py:Net": "ok",
        "factory.py:wide": "ok",
    }
    assert {t["totals"]["parameters"] for t in targets} == {224, 240, 260}


@pytest.mark.parametrize("name", LEFT)
def test_says_why(done: subprocess.CompletedProcess[str], name: str) -> None:
    lines = [line for line in done.stderr.splitlines() if LEFT[name][1] in line]

    assert len(lines) == 1, done.stderr
    assert "convaudit: " in lines[0]  # behind what the file itself left on the line


def test_what_cannot_be_parsed_is_a_line_each_and_exit_2(folder: Path) -> None:
    run = check(folder, "--changed", *BROKEN, "empty.py", "notes.md")

    assert run.returncode == 2
    assert run.stdout == ""
    assert [said in line for (_, said), line in zip(BROKEN.values(), run.stderr.splitlines(), strict=True)] == [
        True
    ] * len(BROKEN)


def test_asked_for_by_name_it_is_a_failure(folder: Path) -> None:
    run = check(
        folder, "exits.py:Net", "lazy.py:net", "required.py:Net", "meta.py:Base", "linked.py:Net", "--format", "json"
    )
    targets = json.loads(run.stdout)["targets"]

    assert run.returncode == 2
    assert [t["status"] for t in targets] == ["failed"] * 4 + ["ok"]
    assert [t["error"]["step"] for t in targets[:4]] == ["import", "input", "construct", "construct"]
    assert (targets[3]["error"]["path"], targets[3]["error"]["line"]) == ("meta.py", 6)


def test_an_input_makes_lazy_models_auditable(folder: Path) -> None:
    run = check(
        folder, "lazy.py:net", "lazy_head.py:net", "--input", "1,3,8,8", "--format", "json", "--fail-on", "never"
    )

    assert [t["totals"]["parameters"] for t in json.loads(run.stdout)["targets"]] == [802, 802]


def test_a_flatten_tells_the_size_it_was_made_for(folder: Path) -> None:
    (folder / "cropped.py").write_text(
        HEAD + NET.replace("nn.Conv2d(3, width, 3)", "nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 22 * 22, 2))")
    )
    run = check(folder, "cropped.py:Net", "--format", "json", "--fail-on", "never")

    assert json.loads(run.stdout)["targets"][0]["inputs"][0]["shape"] == [1, 3, 24, 24]


def test_a_loop_over_what_was_found_in_the_image_is_followed_so_far(folder: Path) -> None:
    (folder / "detects.py").write_text(HEAD + DETECTS)
    run = check(folder, "detects.py:Net", "--format", "json", "--fail-on", "never")
    [target] = json.loads(run.stdout)["targets"]

    assert (target["status"], target["totals"]["parameters"]) == ("partial", 152)
    assert any("asks for the values of tensors more than 1,000 times" in note for note in target["notes"])


def test_a_constructor_of_another_name_can_be_named(folder: Path) -> None:
    made = "    @classmethod\n    def of_size(cls, size, *, deep=False):\n        return cls({'small': 4, 'large': 8}[size])\n"
    (folder / "sized.py").write_text(HEAD + NET.replace("width=8", "width") + made)
    run = check(folder, "sized.py:Net.of_size('large', deep=True)", "--format", "json")

    assert json.loads(run.stdout)["targets"][0]["totals"]["parameters"] == 224
