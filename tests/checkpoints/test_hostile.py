"""Malicious and damaged checkpoints: the right code, nothing imported or run, never a traceback."""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints.malicious import cases

from convaudit.checkpoints.audit import audit_file
from convaudit.checkpoints.pickle_reader import read
from convaudit.settings import AuditSettings

MALICIOUS = list(cases())
WATCHED = Path(__file__).with_name("watched.py")


def watch(folder: Path) -> list[dict[str, object]]:
    done = subprocess.run([sys.executable, str(WATCHED), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_malicious_files_are_named_and_nothing_runs(tmp_path: Path) -> None:
    for index, (_, name, data, _) in enumerate(MALICIOUS):
        (tmp_path / f"{index:04}").mkdir()
        (tmp_path / f"{index:04}" / name).write_bytes(data)
    rows = watch(tmp_path)
    said = {MALICIOUS[int(str(row["name"]))][0]: row for row in rows if row["name"]}

    assert len(said) == len(MALICIOUS) > 120
    wrong = [(name, said[name]["codes"]) for name, _, _, code in MALICIOUS if code and code not in said[name]["codes"]]  # type: ignore[operator]
    assert wrong == []
    assert {name: row["events"] for name, row in said.items() if row["events"]} == {}
    assert not any(row["torch"] or row["status"] == "failed" for row in said.values())
    assert int(str(rows[-1]["kilobytes"])) < 400_000


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_every_truncation_and_300_flips(tmp_path: Path, kind: str) -> None:
    out = io.BytesIO()
    torch.save(torch.nn.Linear(3, 2).state_dict(), out, _use_new_zipfile_serialization=kind == "zip")
    whole = out.getvalue()
    settings, path = AuditSettings(), tmp_path / "a.pt"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        codes = {f.rule for f in audit_file(str(path), settings).findings}
        assert "CNV602" in codes, length
    chance = random.Random(0)
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        result = audit_file(str(path), settings)
        assert "CNV001" not in {f.rule for f in result.findings} or result.error is not None


def test_random_bytes_never_break_the_reader() -> None:
    chance = random.Random(1)
    opcodes = b"()]}.0012NabcdeghijlopqrstuGIJKLMSTUVXBC\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8f\x90\x91\x92\x93\x94\n\n"
    for _ in range(5000):
        reading = read(bytes(chance.choices(opcodes, k=chance.randrange(1, 60))))
        assert reading.problem is None or str(reading.problem)


def test_size_does_not_matter(tmp_path: Path) -> None:
    elements = 20 * 10**9 // 4
    header = json.dumps({"w": {"dtype": "F32", "shape": [elements], "data_offsets": [0, elements * 4]}}).encode()
    (tmp_path / "0000").mkdir()
    with open(tmp_path / "0000" / "big.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + elements * 4)
    rows = watch(tmp_path)

    assert (rows[0]["codes"], rows[0]["status"], rows[0]["torch"]) == ([], "ok", False)
    assert int(str(rows[1]["kilobytes"])) < 80_000
