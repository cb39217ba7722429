"""Distributed checkpoints: the table of ``.metadata``, and the pickles of the parts that it names."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoints.malicious import GLOBAL, in_zip
from torch import nn

from convaudit.checkpoints.audit import audit_file
from convaudit.checkpoints.formats import read_checkpoint, sniff_any
from convaudit.result import TargetResult
from convaudit.settings import AuditSettings

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
EVIL = b"\x80\x02" + GLOBAL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10).bfloat16())
    state = {"model": model.state_dict(), "optimizer": torch.optim.Adam(model.parameters()).state_dict(), "step": 3}
    state["optimizer"]["state"] = {"w": {"exp_avg": torch.ones(100)}}
    dcp.save(state, checkpoint_id=tmp_path / "saved")
    return tmp_path / "saved"


def check(folder: Path) -> TargetResult:
    return audit_file(str(folder / ".metadata"), AuditSettings())


def test_an_honest_one(folder: Path) -> None:
    result = check(folder)
    assert result.totals
    assert result.checkpoint

    expected = {
        name: (list(entry.size), str(entry.properties.dtype)[6:])
        for name, entry in dcp.FileSystemReader(folder).read_metadata().state_dict_metadata.items()
        if hasattr(entry, "size")
    }
    assert {row.name: (row.shape, row.dtype) for row in result.checkpoint.tensors} == expected
    assert (result.status, result.totals.parameters, result.totals.buffers) == ("ok", 8 * 27 + 8 + 16 + 90, 17)
    assert result.totals.bytes_by_dtype == {"float32": 4 * (8 * 27 + 8 + 16), "bfloat16": 180}
    assert result.totals.file_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert ({f.rule for f in result.findings}, result.notes[-1][:49]) == ({"CNV611"}, "weights not read: it lies in parts in other files")
    assert [row.role for row in result.checkpoint.tensors if "exp_avg" in row.name] == ["optimizer"]
    assert sniff_any(str(folder / ".metadata"))[0] == "pickle"
    assert ".metadata" in str(sniff_any(str(folder / "__0_0.distcp"))[1])


def changed(folder: Path, change: Callable[[Any], None]) -> None:
    metadata = dcp.FileSystemReader(folder).read_metadata()
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def put(folder: Path, **fields: Any) -> None:
    """Change where the step is said to lie."""

    def change(metadata: Any) -> None:
        key = next(key for key in metadata.storage_data if key.fqn == "step")
        metadata.storage_data[key] = dataclasses.replace(metadata.storage_data[key], **fields)

    changed(folder, change)


@pytest.mark.parametrize("item", [in_zip(EVIL), EVIL])
def test_code_in_a_part(folder: Path, item: bytes) -> None:
    part = folder / "__0_0.distcp"
    size = part.stat().st_size
    part.write_bytes(part.read_bytes() + item)
    put(folder, offset=size, length=len(item))

    assert "CNV601" in {f.rule for f in check(folder).findings}


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a part that is not there": (lambda folder: (folder / "__0_0.distcp").unlink(), "part '__0_0.distcp' is not there"),
    "outside": (lambda folder: put(folder, relative_path="../x"), "part '../x' lies outside its folder; it was not opened"),
    "no name": (lambda folder: put(folder, relative_path="a\0b"), "part 'a\\x00b' is no name of a file"),
    "a long name": (lambda folder: put(folder, relative_path="a" * 300), "' is no name of a file"),
    "no text": (lambda folder: put(folder, relative_path="\ud800"), "' is no name of a file"),
    "over another": (lambda folder: put(folder, offset=1), " of its ranges of bytes begin within another"),
    "beyond": (lambda folder: put(folder, offset=10**6), ", beyond what the file holds"),
    "negative": (lambda folder: put(folder, offset=-5), ", beyond what the file holds"),
    "transformed": (lambda folder: put(folder, transform_descriptors=["zstd"]), "what it names was not read"),
    "no range": (lambda folder: put(folder, length=1.5), "what it names was not read"),
    "no archive": (lambda folder: put(folder, length=3), "it is no archive"),
    "no dict": (lambda folder: changed(folder, lambda metadata: setattr(metadata, "storage_data", [])), "storage_data is no dict"),
    "another object": (lambda folder: (folder / ".metadata").write_bytes(pickle.dumps({})), "it is no Metadata of torch.distributed.checkpoint"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_read_is_said(folder: Path, name: str) -> None:
    change, said = WRONG[name]
    change(folder)
    result = check(folder)

    assert any(said in problem for problem in read_checkpoint(str(folder / ".metadata")).problems)
    assert "CNV602" in {f.rule for f in result.findings}


@pytest.mark.parametrize("name", ["a\0b", "a" * 300])
def test_a_shard_beside_one_that_is_no_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "evil.pkl").write_bytes(EVIL)
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": {"v": name, "w": "evil.pkl"}}))
    result = audit_file(str(tmp_path / "m.index.json"), AuditSettings())

    assert {"CNV601", "CNV602"} <= {f.rule for f in result.findings}
    assert any("is no name of a file" in f.message for f in result.findings)


def test_what_all_names_begin_with_is_said_once(tmp_path: Path) -> None:
    for index in range(2):
        torch.save({f"model.{index}": torch.ones(2)}, tmp_path / f"{index}.pt")
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": {"model.0": "0.pt", "model.1": "1.pt"}}))

    assert read_checkpoint(str(tmp_path / "m.index.json")).notes == ["every name begins with 'model.'"]
