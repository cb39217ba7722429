"""Weights by numpy against torch: every dtype and layout, once, in bounded memory, and files that change meanwhile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convaudit.checkpoints import weights as module
from convaudit.checkpoints.architecture import architecture_of
from convaudit.checkpoints.audit import audit_file
from convaudit.checkpoints.formats import read_checkpoint
from convaudit.checkpoints.weights import Weights, WeightsError, decode, scan, values_of
from convaudit.settings import AuditSettings

NAN, INF = float("nan"), float("inf")
FLOATS = [name for name in ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "complex32", "complex64", "complex128"] if hasattr(torch, name)]  # fmt: skip
OTHERS = ["int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"]


def read(path: Path) -> Weights:
    file = read_checkpoint(str(path))
    assert not file.problems
    return scan(file, architecture_of(file))


def saved(tmp_path: Path, tensors: dict[str, Any], **options: Any) -> Path:
    path = tmp_path / "a.pt"
    torch.save(tensors, path, **options)
    return path


@pytest.mark.parametrize("dtype", FLOATS + OTHERS)
def test_decodes_as_torch(dtype: str) -> None:
    """Every code of 8 and 16 bits, random ones of more."""
    of = getattr(torch, dtype)
    bits = 1 if dtype == "bool" else of.itemsize * 8
    raw = np.arange(1 << bits, dtype=f"u{max(bits, 8) // 8}").view(np.uint8) if bits <= 16 else np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
    ours, theirs = decode(raw, dtype), torch.from_numpy(raw.copy()).view(of)
    if theirs.dtype not in (torch.uint16, torch.uint32, torch.uint64):
        theirs = theirs.to({"complex32": torch.complex64}.get(dtype, torch.float32) if ours.dtype.itemsize != of.itemsize else of)

    assert np.array_equal(ours.view(ours.dtype), theirs.numpy(), equal_nan=ours.dtype.kind in "fc")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_counts_what_is_not_finite(tmp_path: Path, dtype: str, zipped: bool) -> None:
    of = getattr(torch, dtype)
    bad = torch.tensor([1.0, NAN, 1.0, INF]).to(of)
    path = saved(tmp_path, {"a": torch.ones(50_000).to(of), "b": bad}, _use_new_zipfile_serialization=zipped or "float8" in dtype)
    found = read(path).nonfinite
    values = torch.view_as_real(bad.to(torch.complex64)) if of.is_complex else bad.float()

    assert [*found] == [1]
    assert found[1].nan + found[1].infinite == int((~values.isfinite()).any(-1).sum() if of.is_complex else (~values.isfinite()).sum())


def test_layouts(tmp_path: Path) -> None:
    """Only what a view sees is looked at; what is tied is looked at once; axes that repeat cost nothing."""
    base = torch.ones(6, 4)
    base[:, 1] = NAN
    huge = torch.ones(1).expand(10**6, 10**6)
    tied = torch.full((3,), INF)
    path = saved(tmp_path, {"gaps": base[:, 2::2], "sees": base.t(), "huge": huge, "one": tied, "two": tied, "none": torch.empty(0, 3), "scalar": torch.tensor(NAN)})
    found = read(path)
    names = [row.name for row in read_checkpoint(str(path)).tensors]

    assert {names[index]: (said.nan, said.infinite) for index, said in found.nonfinite.items()} == {"sees": (6, 0), "one": (0, 3), "scalar": (1, 0)}
    assert found.unread == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block", [64, 1 << 19])
def test_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, dtype: torch.dtype, block: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    weight = torch.randn(300, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[7], weight[200], weight[299], weight[130] = 0, -2.5 * weight[3], weight[3], weight[5] + 0.2 * weight[6]
    weight = weight.to(dtype).to(memory_format=layout)
    path = saved(tmp_path, {"conv.weight": weight, "conv.bias": torch.zeros(300)})
    filters = read(path).filters["conv"]

    assert np.allclose(filters.norms, weight.double().flatten(1).norm(dim=1), rtol=1e-3 if dtype is torch.float16 else 1e-5)
    assert filters.dead.nonzero()[0].tolist() == [7]
    assert filters.copies == {200: 3, 299: 3}
    assert np.array_equal(values_of(read_checkpoint(str(path)), 0, 64), weight[:64].float())


def test_filters_alike_are_those_of_the_gram_matrix() -> None:
    """All pairs of a layer with planted ones, against the plain product."""
    draw = np.random.default_rng(1)
    weight = draw.standard_normal((700, 72)).astype(np.float32)
    for one in range(400, 460):
        weight[one] = draw.uniform(-3, 3) * (weight[one - 300] + draw.uniform(0, 0.08) * draw.standard_normal(72))
    unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    alike = {int(i): int(j) for i, j in np.argwhere(np.tril(np.abs(unit @ unit.T), -1) > 0.999)}
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (12, 6))

    assert 20 < len(alike) < 60
    assert module._copies(np.einsum("ijk,jk->ij", weight.reshape(-1, 12, 6), signs), lambda row: weight[row].astype(np.float64)) == alike


def test_overlapping_tensors_are_not_read_without_end(tmp_path: Path) -> None:
    base = torch.ones(1 << 20)
    path = saved(tmp_path, {f"t{i}": base[i:] for i in range(2000)})
    result = audit_file(str(path), AuditSettings())

    assert any(re.fullmatch(r"weights of t\d+ and [\d,]+ more not read", note) for note in result.notes)


def test_a_file_that_shrinks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({f"t{i}": torch.ones(200_000) for i in range(8)}, path)
    file = read_checkpoint(str(path))
    os.truncate(path, path.stat().st_size // 2)

    with pytest.raises(WeightsError, match="bytes early"):
        scan(file, architecture_of(file))


def test_a_file_that_is_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, {"a": torch.ones(10)})
    plain = module._finite

    def meddle(raw: Any, dtype: str) -> bool:
        with open(path, "ab") as file:
            file.write(b"x")
        return plain(raw, dtype)

    monkeypatch.setattr(module, "_finite", meddle)
    result = audit_file(str(path), AuditSettings())

    assert [(f.rule, f.message) for f in result.findings] == [("CNV602", "it was changed while its weights were read")]
    assert result.checkpoint is not None
    assert not result.checkpoint.weights_read


def test_a_norm_of_one_value_repeated_without_end_is_not_read(tmp_path: Path) -> None:
    wide = torch.ones(1).expand(1 << 40)
    saved(tmp_path, {"bn.weight": wide, "bn.bias": wide, "bn.running_mean": wide, "bn.running_var": torch.ones(4)})
    result = audit_file(str(tmp_path / "a.pt"), AuditSettings())

    assert result.error is None
    assert "weights of bn.weight not read" in result.notes


@pytest.mark.parametrize(("setting", "size", "read_them", "said"), [
    ("auto", 0, True, ""), ("auto", 3_000_000_000, False, "weights not read (3 GB): --weights"), ("never", 0, False, ""),
])  # fmt: skip
def test_when_weights_are_read(tmp_path: Path, setting: Any, size: int, read_them: bool, said: str) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (max(size // 4, 1), max(size, 4))
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + max(size, 4))  # sparse
    result = audit_file(str(path), AuditSettings(weights=setting))

    assert result.checkpoint is not None
    assert (result.checkpoint.weights_read, " ".join(result.notes)) == (read_them, said)


def test_memory_does_not_grow_with_the_file_and_torch_is_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"c.weight":{"dtype":"BF16","shape":[2048,512,9,20],"data_offsets":[0,377487360]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 377_487_360)
    code = (
        "import sys; from convaudit.checkpoints.audit import audit_file; from convaudit.settings import AuditSettings\n"
        f"result = audit_file({str(path)!r}, AuditSettings(weights='always'))\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"  # maxrss would be pytest's own
        "print(result.checkpoint.weights_read, 'torch' in sys.modules, peak.split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    was_read, torch_there, kilobytes = done.stdout.split()

    assert (was_read, torch_there) == ("True", "False")
    assert int(kilobytes) < 300_000


def test_no_weights_on_the_command_line(tmp_path: Path) -> None:
    saved(tmp_path, {"conv.weight": torch.full((4, 3, 3, 3), NAN)})
    runs = [
        subprocess.run([sys.executable, "-m", "convaudit", "check", "a.pt", *given], cwd=tmp_path, capture_output=True, text=True, check=False)
        for given in ((), ("--no-weights",))
    ]

    assert [run.returncode for run in runs] == [1, 0]
    assert "CNV603 error parameter conv.weight has 108 NaN of 108 values" in runs[0].stdout
    assert ["weights not read" in run.stdout for run in runs] == [False, True]
