"""A folder of checkpoints: each once, those of an index with it, whatever the others are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file


def check(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "convaudit", "check", *arguments, "--format", "json"], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "CONVAUDIT_CACHE_DIR": str(folder.parent / "kept")},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "weights"
    (made / "sharded").mkdir(parents=True)
    for i in range(12):
        torch.save({"w": torch.rand(i + 1)}, made / f"{i:02}.pt")
    (made / "03.pt").write_bytes((made / "03.pt").read_bytes()[:-40])
    (made / "05.pt").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    for name in ("a", "b", "c"):
        save_file({name: torch.ones(3)}, made / "sharded" / f"{name}.safetensors")
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors", "w": "../00.pt"}}
    (made / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    (made / "broken.index.json").write_text("{}")
    return made


def test_each_checkpoint_once(folder: Path) -> None:
    code, one = check(folder, ".")
    again, two = check(folder, ".", "--jobs", "3")
    targets = {t["target"]: t for t in one["targets"]}

    assert (code, again, two) == (2, 2, one)
    assert {name for name in targets if name.startswith("sharded")} == {"sharded/c.safetensors", "sharded/model.safetensors.index.json"}
    assert len(targets) == 12 + 2 + 1
    said = {name: [f["rule"] for f in t["findings"]] for name, t in targets.items() if t["findings"]}
    assert said == {
        "03.pt": ["CNV602"], "05.pt": ["CNV601"], "sharded/model.safetensors.index.json": ["CNV602"], "broken.index.json": ["CNV001"],
    }  # fmt: skip
    assert not (folder / "ran").exists()
