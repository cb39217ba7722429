"""A checkpoint beside a model: CNV607, ``--model`` and ``--model auto``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convaudit import targets
from convaudit.accounting import state_dict_rows
from convaudit.checkpoints import match
from convaudit.checkpoints.architecture import Expected
from convaudit.checkpoints.audit import audit_file
from convaudit.result import Finding
from convaudit.settings import AuditSettings

State = dict[str, Tensor]


class Net(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, classes)
        self.aux_head = nn.Linear(8, classes)
        self.tied = nn.Linear(3, 8)
        self.again = nn.Linear(3, 8)
        self.again.weight = self.tied.weight
        self.last = nn.Linear(8, classes)
        self.register_buffer("grid", torch.zeros(2), persistent=False)


def against(path: Path, saved: Any, model: nn.Module) -> list[Finding]:
    torch.save(saved, path)
    return audit_file(str(path), AuditSettings(select=["CNV607"]), model=Expected("net.py:Net", state_dict_rows(model))).findings


def without(state: State, *names: str) -> State:
    return {name: t for name, t in state.items() if name not in names}


FITTING: dict[str, Callable[[State], Any]] = {
    "the same": lambda s: s,
    "parallel and compiled": lambda s: {f"module._orig_mod.{name}": t for name, t in s.items()},
    "a training state": lambda s: {"epoch": 1, "model_state_dict": s, "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
    "lightning": lambda s: {"state_dict": {f"model.{name}": t for name, t in s.items()}},
    "ema alone": lambda s: {"model_ema": s, "epoch": 1},
    "nested": lambda s: {"checkpoint": {"generator": s}, "step": 1},
    "a tie written once": lambda s: without(s, "again.weight"),
}


@pytest.mark.parametrize("name", FITTING)
def test_it_fits(tmp_path: Path, name: str) -> None:
    assert against(tmp_path / "a.pt", FITTING[name](Net().state_dict()), Net()) == []


WRONG: dict[str, tuple[Callable[[State], State], str, str]] = {
    "another kernel": (
        lambda s: {**s, "conv.weight": torch.zeros(8, 3, 5, 5)}, "error",
        "does not fit net.py:Net: shapes differ: conv.weight: file 8×3×5×5, model 8×3×3×3",
    ),
    "a layer more": (lambda s: {**s, "extra.block.weight": torch.zeros(2)}, "error", "1 key (extra.block) unexpected"),
    "a layer less": (lambda s: without(s, "fc.weight", "fc.bias"), "error", "2 keys (fc 2) missing"),
    "a head and more": (
        lambda s: {**without(s, "fc.bias"), "last.weight": torch.zeros(5, 8), "last.bias": torch.zeros(5)}, "error",
        "1 key (fc) missing; shapes differ: last.weight: file 5×8, model 10×8",
    ),
    "nothing in common": (lambda s: {f"{name}x": t for name, t in s.items()}, "error", "none of its names is one of net.py:Net's"),
    "the head's width": (
        lambda s: Net(5).state_dict(), "warning",
        "fits net.py:Net but for the width of its last layer: fc.weight: file 5×8, model 10×8; fc.bias: file 5, model 10; and 4 more",
    ),
    "a hidden width": (lambda s: {**s, "fc.weight": torch.zeros(5, 8), "fc.bias": torch.zeros(5)}, "error", "fc.weight: file 5×8, model 10×8"),
    "counters": (lambda s: without(s, "bn.num_batches_tracked"), "info", "1 key (bn) without weight"),
    "a buffer that is not saved": (lambda s: {**s, "grid": torch.zeros(2)}, "info", "1 key (grid) without weight"),
    "an auxiliary head": (lambda s: without(s, "aux_head.weight", "aux_head.bias"), "info", "2 keys (aux_head 2) without weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_it_does_not(tmp_path: Path, name: str) -> None:
    change, severity, said = WRONG[name]
    found = against(tmp_path / "a.pt", change(Net().state_dict()), Net())

    assert [f.severity for f in found] == [severity]
    assert said in found[0].message


def test_what_is_said_is_bounded(tmp_path: Path) -> None:
    saved = {f"layer{i}.{j}.weight": torch.zeros(1) for i in range(40) for j in range(10)}
    (found,) = against(tmp_path / "a.pt", {**Net().state_dict(), **saved}, Net())

    assert "400 keys (" in found.message
    assert len(found.message) < 300
    assert len(found.evidence["unexpected"]) == 100


ASIDE = "its names and shapes, widths of heads and num_batches_tracked aside,"
KNOWN: dict[str, tuple[str, Callable[[State], State], str, str | None]] = {
    "buffers tell them apart": (
        "timm:resnet50", dict,
        "its names and shapes are those of timm:resnet50, timm:resnetaa50, timm:resnetblur50, torchvision:resnet50; audited as timm:resnet50",
        "timm:resnet50",
    ),
    "without buffers": ("timm:resnet50_gn", dict, "its names and shapes are those of timm:resnet50_gn", "timm:resnet50_gn"),
    "with auxiliary heads": (
        "torchvision:inception_v3", dict, "its names and shapes are those of torchvision:inception_v3", "torchvision:inception_v3",
    ),
    "with them, another head": (
        "torchvision:inception_v3(num_classes=7)", dict, f"{ASIDE} are those of torchvision:inception_v3", "torchvision:inception_v3",
    ),
    "without them": ("timm:inception_v3", dict, "its names and shapes are those of timm:inception_v3", "timm:inception_v3"),
    "auxiliary heads left out": (
        "torchvision:googlenet(aux_logits=False)", dict,
        "its names and shapes, auxiliary heads, widths of heads and num_batches_tracked aside, are those of torchvision:googlenet",
        "torchvision:googlenet",
    ),
    "a segmentation net": (
        "torchvision:deeplabv3_resnet50(aux_loss=True)", dict,
        "its names and shapes, auxiliary heads, widths of heads and num_batches_tracked aside, are those of torchvision:deeplabv3_resnet50",
        "torchvision:deeplabv3_resnet50",
    ),
    "several fully connected layers": ("torchvision:vgg11(num_classes=7)", dict, f"{ASIDE} are those of torchvision:vgg11", "torchvision:vgg11"),
    "any prefix": (
        "timm:mobilenetv3_small_050", lambda s: {f"net.{name}": t for name, t in s.items()},
        "its names and shapes behind 'net.' are those of timm:mobilenetv3_small_050", "timm:mobilenetv3_small_050",
    ),
    "averaged, another head": (
        "timm:mobilenetv3_small_050(num_classes=4)",
        lambda s: {"n_averaged": torch.tensor(1), **{f"a.module.{name}": t for name, t in s.items()}},
        "its names and shapes behind 'a.module.', widths of heads and num_batches_tracked aside, are those of timm:mobilenetv3_small_050",
        "timm:mobilenetv3_small_050",
    ),
    "no counters": (
        "timm:mobilenetv3_small_050", lambda s: {name: t for name, t in s.items() if "batches" not in name},
        f"{ASIDE} are those of timm:mobilenetv3_small_050", "timm:mobilenetv3_small_050",
    ),
    "a trunk": (
        "timm:resnet50", lambda s: without(s, "fc.bias", "bn1.running_var"),
        "no well-known net has these names and shapes; parameters outside heads have those of timm:resnet50, timm:resnet50_gn, "
        "timm:resnetaa50, timm:resnetblur50, torchvision:resnet50; --model timm:resnet50 says what differs", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_well_known_nets_are_known(tmp_path: Path, name: str) -> None:
    target, change, said, chosen = KNOWN[name]
    with torch.no_grad():
        state = {name: torch.zeros((), dtype=t.dtype).expand(t.shape) for name, t in targets.build(target).model.state_dict().items()}
    torch.save(change(dict(reversed(state.items()))), tmp_path / "a.pt")

    assert match.model_of(str(tmp_path / "a.pt"), 64) == (chosen, f"--model auto: {said}")


def test_the_table_is_small_and_strangers_are_not_in_it(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "a.pt")

    assert Path(match.__file__).with_name("fingerprints.json.gz").stat().st_size < 100_000
    assert match.model_of(str(tmp_path / "a.pt"), 64) == (None, "--model auto: no well-known net has these names and shapes")


def check(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    done = subprocess.run(
        [sys.executable, "-m", "convaudit", "check", *arguments, "--format", "json"], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "CONVAUDIT_CACHE_DIR": str(folder / "kept")},
    )  # fmt: skip
    return done, json.loads(done.stdout) if done.stdout else None


def test_the_full_audit_beside_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, width=512):\n"
        "        super().__init__(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 900, width), nn.ReLU(), nn.Linear(width, 10))\n"
    )
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 900, 512), nn.ReLU(), nn.Linear(512, 10))
    torch.save({"state_dict": {f"module.{k}": torch.zeros(()).expand(t.shape) for k, t in model.half().state_dict().items()}}, tmp_path / "a.pt")
    done, result = check(tmp_path, "a.pt", "--model", "net.py:Net", "--input", "1,3,32,32")
    (target,) = result["targets"]

    assert done.returncode == 1
    assert (target["target"], target["kind"], target["status"], target["totals"]["macs"] > 0) == ("a.pt", "checkpoint", "ok", True)
    assert sum(row["parameters"] for row in target["layers"]) == target["totals"]["parameters"] == sum(t.numel() for t in model.parameters())
    assert (target["totals"]["file_bytes"], len(target["checkpoint"]["tensors"])) == ((tmp_path / "a.pt").stat().st_size, 6)
    found = {f["rule"]: f for f in target["findings"]}
    assert "from names" not in found["CNV101"]["message"]
    assert (found["CNV101"]["saving"] is not None, found["CNV101"]["fingerprint"]) == (True, "CNV101:a.pt:3")
    assert "CNV607" not in found

    done, result = check(tmp_path, "a.pt", "--model", "net.py:Net(width=256)", "--input", "1,3,32,32")
    (target,) = result["targets"]
    found = {f["rule"]: f for f in target["findings"]}
    assert (found["CNV607"]["severity"], "from names and shapes" in found["CNV101"]["message"]) == ("error", True)
    assert (target["totals"]["parameters"], target["totals"]["macs"], target["inputs"]) == (6, None, [])  # each is one element, repeated
    assert (sum(row["parameters"] for row in target["layers"]), target["totals"]["parameter_bytes"]) == (6, 24)
    assert any(note.startswith("all of this is the file's alone: it does not fit net.py:Net") for note in target["notes"])


def test_auto_and_models_that_are_not_there(tmp_path: Path) -> None:
    with torch.no_grad():
        state = targets.build("timm:resnet18(num_classes=3)").model.state_dict()
    torch.save({k: torch.zeros((), dtype=t.dtype).expand(t.shape) for k, t in state.items()}, tmp_path / "a.pt")
    done, result = check(tmp_path, "a.pt", "--model", "auto", "--no-weights")
    assert f"{ASIDE} are those of timm:resnet18, " in done.stderr
    (found,) = [f for f in result["targets"][0]["findings"] if f["rule"] == "CNV607"]
    assert (found["severity"], found["suggestion"]) == ("warning", "--model 'timm:resnet18(num_classes=3)'")

    done, result = check(tmp_path, "a.pt", "--model", "timm:nonsense")
    assert (done.returncode, [t["status"] for t in result["targets"]]) == (2, ["ok", "failed"])
    (tmp_path / "b.py").write_text("")
    done, _ = check(tmp_path, "b.py", "--model", "auto")
    assert (done.returncode, "--model is for checkpoints" in done.stderr) == (2, True)
