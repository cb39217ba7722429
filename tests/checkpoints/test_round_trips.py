"""The tensor table of real models' files is what torch reads of them, in every format."""

from __future__ import annotations

import collections
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from convaudit.checkpoints.audit import audit_file
from convaudit.checkpoints.formats import read_checkpoint
from convaudit.result import TargetResult
from convaudit.settings import AuditSettings

TIMM = (
    "test_convnext test_efficientnet test_efficientnet_gn test_efficientnet_ln test_efficientnet_evos test_vit test_nfnet "
    "test_mambaout test_vit2 test_byobnet test_convnext3 test_resnet test_convnext2 starnet_s050 test_coatnet test_vit_relpos "
    "test_vit3 test_vit4 test_maxvit mobilevit_xxs edgenext_xx_small mobilevitv2_050 mobilenetv3_small_050 lcnet_035 lcnet_050 "
    "mobilenetv4_conv_small_035 mobilenetv3_small_075 tinynet_e semnasnet_050 convnext_zepto_rms mnasnet_050 repghostnet_050 "
    "tinynet_d lcnet_075 ghostnet_050 regnetx_002"
).split()
TORCHVISION = "squeezenet1_1 shufflenet_v2_x0_5 mobilenet_v3_small mnasnet0_5".split()


def check(path: Path) -> TargetResult:
    return audit_file(str(path), AuditSettings())


def ties(pairs: list[tuple[str, Any]]) -> set[frozenset[str]]:
    """Names that share a storage."""
    groups = collections.defaultdict(set)
    for name, storage in pairs:
        groups[storage].add(name)
    return {frozenset(group) for group in groups.values()}


@pytest.mark.parametrize("name", [*TIMM, *TORCHVISION])
def test_the_table_is_what_torch_reads(tmp_path: Path, name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name) if name in TIMM else torchvision.models.get_model(name, weights=None)
    held: dict[int, torch.Tensor] = {}
    state = {k: held.setdefault(id(t), torch.zeros(t.shape, dtype=t.dtype)) for k, t in model.state_dict(keep_vars=True).items()}
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 1, "hyper_parameters": {"lr": 0.1}, "state_dict": {f"model.{k}": t for k, t in state.items()}}, tmp_path / "l.ckpt")
    save_file({k: t.clone() for k, t in state.items()}, tmp_path / "s.safetensors")
    for path in sorted(tmp_path.iterdir()):
        result = check(path)
        assert result.checkpoint
        assert not {f.rule for f in result.findings} & {"CNV001", "CNV601", "CNV602"}, [f.message for f in result.findings]
        read = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        read = read.get("state_dict", read)
        rows = [row for row in result.checkpoint.tensors if row.role in ("parameter", "buffer")]
        assert [(row.name, row.shape, row.dtype, row.bytes) for row in sorted(rows, key=lambda row: row.name)] == [
            (k, list(t.shape), str(t.dtype).removeprefix("torch."), t.nbytes) for k, t in sorted(read.items())
        ]
        full = [(row.name, row.storage) for row in rows if row.bytes]
        assert ties(full) == ties([(k, t.untyped_storage().data_ptr()) for k, t in read.items() if t.nbytes])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_the_table_of_an_exported_program(tmp_path: Path, name: str) -> None:
    model = timm.create_model(name).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 160, 160),), strict=False), tmp_path / "a.pt2")
    result = check(tmp_path / "a.pt2")
    assert result.checkpoint

    assert not {f.rule for f in result.findings} & {"CNV001", "CNV601", "CNV602"}
    assert {row.name: (row.shape, row.dtype, row.role == "parameter") for row in result.checkpoint.tensors} == {
        k: (list(t.shape), str(t.dtype)[6:], isinstance(t, nn.Parameter)) for k, t in model.state_dict(keep_vars=True).items()
    }


def saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def test_an_older_exported_program(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict()
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:  # as torch.export.save of torch 2.7 and earlier
        for name, data in (
            ("serialized_exported_program.json", b"{}"), ("serialized_state_dict.pt", saved(state)), ("version", b"8.2"),
            ("serialized_constants.pt", saved({})), ("serialized_example_inputs.pt", saved(((torch.zeros(1),), {}))),
        ):  # fmt: skip
            archive.writestr(name, data)
    result, read = check(tmp_path / "a.pt2"), read_checkpoint(str(tmp_path / "a.pt2"))
    assert result.checkpoint

    assert (result.status, result.checkpoint.format, result.notes) == ("ok", "pt2", [])
    assert not {f.rule for f in result.findings} & {"CNV001", "CNV601", "CNV602", "CNV610", "CNV611"}
    assert {row.name: (row.shape, row.dtype) for row in read.tensors} == {k: (list(t.shape), str(t.dtype)[6:]) for k, t in state.items()}
    for row, place in zip(read.tensors, read.places, strict=True):
        assert place is not None
        with open(place.path, "rb") as file:
            file.seek(place.start)
            assert file.read(place.size) == state[row.name].numpy().tobytes()
