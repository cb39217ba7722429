"""``convaudit diff`` of two checkpoints: keys, shapes, dtypes and values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convaudit.comparison import Diff


def net() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)).state_dict())


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "convaudit", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "CONVAUDIT_CACHE_DIR": str(folder / "kept")},
    )  # fmt: skip


def difference(folder: Path, *arguments: str) -> dict[str, Any]:
    done = run(folder, "diff", *arguments, "--format", "json")
    assert done.stdout, done.stderr
    (target,) = msgspec.to_builtins(msgspec.json.decode(done.stdout, type=Diff).targets)
    found: dict[str, Any] = target["tensors"]
    return found


def test_every_kind_of_change(tmp_path: Path) -> None:
    old, new = net(), net()
    old["0.bias"][0] = old["0.bias"][1] = float("nan")
    new["0.bias"][0] = float("nan")
    new["0.weight"][1, 2] += 0.5
    new["1.weight"] = new["1.weight"].bfloat16()
    new["1.bias"] = torch.zeros(9)
    new["extra"] = new.pop("2.bias")
    torch.save(old, tmp_path / "a.pt")
    torch.save({"state_dict": {f"module.{name}": t for name, t in new.items()}}, tmp_path / "b.pt")
    found = difference(tmp_path, "a.pt", "b.pt")
    changed = {c["name"]: (c["changes"], c["differing"], c["largest"]) for c in found["changed"]}

    assert (found["added"], found["removed"], found["same"], found["values"]) == (["extra"], ["2.bias"], 4, None)
    assert changed == {
        "0.weight": ([], 9, pytest.approx(0.5)),
        "0.bias": ([], 1, None),  # a NaN on one side; one on both is no difference
        "1.weight": ([{"field": "dtype", "before": "float32", "after": "bfloat16"}], None, None),
        "1.bias": ([{"field": "shape", "before": [8], "after": [9]}], None, None),
    }


def test_values_are_those_of_any_format_and_layout(tmp_path: Path) -> None:
    state = net()
    save_file(state, tmp_path / "a.safetensors")
    torch.save({**state, "0.weight": state["0.weight"].to(memory_format=torch.channels_last)}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    torch.save({name: t.bfloat16() if t.is_floating_point() else t for name, t in state.items()}, tmp_path / "c.pt")
    done = run(tmp_path, "diff", "a.safetensors", "b.pt")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "no difference")
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(state, "a.safetensors")}))
    assert run(tmp_path, "diff", "b.pt", "a.safetensors.index.json").stdout.splitlines()[-1] == "no difference"

    found = {c["name"]: c for c in difference(tmp_path, "b.pt", "c.pt")["changed"]}
    rounded = (state["0.weight"] - state["0.weight"].bfloat16().float()).abs()
    assert found["0.weight"]["differing"] == int((rounded > 0).sum())
    assert found["0.weight"]["largest"] == pytest.approx(float(rounded.max()))
    assert found["1.running_mean"]["differing"] is None


def test_what_was_not_compared_is_said(tmp_path: Path) -> None:
    torch.save({**net(), "s": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    torch.save({**net(), "s": torch.eye(3).to_sparse(), "0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "b.pt")
    assert difference(tmp_path, "a.pt", "b.pt")["values"] == "of 1 tensors not compared: they are not stored as such"
    assert difference(tmp_path, "a.pt", "b.pt", "--no-weights") == {"added": [], "removed": [], "changed": [], "same": 10, "values": "not compared"}

    assert run(tmp_path, "check", "a.pt", "-o", "a.json", "--exit-zero").returncode == 0
    assert difference(tmp_path, "a.json", "b.pt")["values"] == "not compared"


def test_text_and_markdown(tmp_path: Path) -> None:
    names = [f"block.{i}.`@x`\x1b[31m.weight" for i in range(60)]
    torch.save({name: torch.zeros(2) for name in names}, tmp_path / "a.pt")
    torch.save({name: torch.ones(2) for name in names[10:]} | {"fresh": torch.ones(2)}, tmp_path / "b.pt")
    done = run(tmp_path, "diff", "a.pt", "b.pt", "-o", "d.md")
    text, markdown = done.stdout, (tmp_path / "d.md").read_text()

    assert len(text.splitlines()) <= 25
    assert "tensors: 1 added, 10 removed, 50 changed" in text
    assert "MACs" not in text
    assert "**Tensors:** 1 added, 10 removed, 50 changed." in markdown
    assert "2 elements differ by up to 1" in markdown
    assert "\x1b" not in text + markdown
    assert json.loads(run(tmp_path, "diff", "a.pt", "b.pt", "--format", "json").stdout)["targets"][0]["tensors"]["removed"] == names[:10]
