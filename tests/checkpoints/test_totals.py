"""What a checkpoint's totals count: each element once, packed weights with the others, and nothing where nothing is known."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from convaudit.checkpoints import regions
from convaudit.checkpoints.audit import audit_file
from convaudit.checkpoints.regions import Region, elements_of
from convaudit.checkpoints.tensors import taken_for
from convaudit.cli import cli
from convaudit.result import TargetResult
from convaudit.settings import AuditSettings

W = torch.arange(2048.0).reshape(64, 32)


def check(path: Path) -> TargetResult:
    return audit_file(str(path), AuditSettings())


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ([W, W.t()], 2048), ([W, W[:2]], 2048), ([W[:2], W], 2048), ([W[:40], W[30:]], 2048), ([W[:, :16], W[:, 16:]], 2048),
        ([W[:, ::2], W[:, ::4]], 1024), ([torch.ones(1).expand(64)], 1), ([torch.ones(3, 1).expand(3, 9)], 3),
        ([torch.ones(8).unfold(0, 3, 1)], 8), ([W, W.clone()], 4096), ([W, torch.zeros(0, 3), torch.ones(())], 2049),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_what_several_tensors_see_counts_once(tmp_path: Path, views: list[torch.Tensor], expected: int, zipped: bool) -> None:
    torch.save({f"l{i}.weight": view for i, view in enumerate(views)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    result = check(tmp_path / "a.pt")
    assert result.totals

    assert (result.totals.parameters, result.totals.parameter_bytes, result.totals.bytes_by_dtype) == (expected, 4 * expected, {"float32": 4 * expected})
    assert sum(row.parameters for row in result.layers) == expected


D = torch.zeros(6, 8)
D[0, 1], D[3, 4], D[5, 7] = 1, 2, 3
ROWS = [torch.ones(2, 3), torch.ones(4, 3)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("make", "values", "indices"),
    [
        (D.to_sparse, 3, 6), (D.to_sparse_csr, 3, 10), (D.to_sparse_csc, 3, 12), (lambda: D.to_sparse_bsr((2, 2)), 12, 7),
        (lambda: D.to_sparse_bsc((3, 4)), 24, 5), (lambda: D.to_sparse(1), 24, 3),
        (lambda: torch.nested.nested_tensor(ROWS, layout=torch.jagged), 18, 3), (lambda: torch.nested.nested_tensor(ROWS), 18, 10),
    ],
)  # fmt: skip
def test_sparse_and_nested_tensors(tmp_path: Path, make: Callable[[], torch.Tensor], values: int, indices: int, zipped: bool) -> None:
    made = make()
    state = {"a.weight": made, "again.weight": made, "b.weight": nn.Parameter(torch.ones(2, 2)), "p": nn.Parameter(made)}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    result = check(tmp_path / "a.pt")
    assert result.totals
    assert result.checkpoint

    assert result.totals.bytes_by_dtype == {"float32": 4 * (values + 4), "int64": 8 * indices}
    assert (result.status, result.totals.parameters, result.totals.parameter_bytes) == ("ok", made.numel() + 4, 4 * (values + 4) + 8 * indices)
    assert sum(row.parameters for row in result.layers) == result.totals.parameters
    assert (result.checkpoint.tensors[0].shape, result.checkpoint.tensors[0].bytes) == (None if made.is_nested else [6, 8], 4 * values + 8 * indices)
    assert not {f.rule for f in result.findings} & {"CNV001", "CNV601", "CNV602"}
    assert any(note.startswith(f"{'nested' if made.is_nested else 'sparse'} (a.weight and 2 more): ") for note in result.notes)


@pytest.mark.parametrize("more", [0, 5])
def test_elements_that_are_not_known_are_none(tmp_path: Path, more: int) -> None:
    gaps = torch.nested.nested_tensor_from_jagged(torch.ones(8, 3), torch.tensor([0, 3, 8]), lengths=torch.tensor([2, 4]))
    torch.save({"a.weight": gaps, **({"b.weight": torch.ones(more)} if more else {})}, tmp_path / "a.pt")
    result = check(tmp_path / "a.pt")

    assert (result.status, result.totals and result.totals.parameters) == ("partial", more or None)
    assert "partial: shape or dtype of a.weight is unknown" in result.notes


NET = {"conv.weight": torch.ones(4, 3), "conv.bias": torch.ones(4), "norm.running_mean": torch.ones(4)}  # 16 parameters
HEAD = {"weight": torch.ones(5), "bias": torch.ones(1)}  # 6
SHADOW = {"decay": 0.9, "shadow_params": [torch.ones(4, 3), torch.ones(4)], "temp_stored_params": None}


def optimizer() -> torch.optim.Optimizer:
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    made = torch.optim.Adam(model.parameters())
    made.step()
    return made


OPTIMIZER = optimizer()
STATES = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state(), "cuda": torch.zeros(16, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("value", "parameters", "said"),
    [
        ({"state_dict_ema": NET, "state_dict": NET}, 16, None), ({"params_ema": NET, "params": NET}, 16, None),
        ({"net_ema": NET, "net_raw": NET}, 16, None), ({"nets": {"g_ema": NET, "g": NET}}, 16, None), ({"model": NET, "net": NET}, 16, None),
        ({"state_dict_ema": dict(NET), "state_dict": {**NET, "more.weight": torch.ones(9)}}, 25, None),
        ({"a": {"b": NET}, "epoch": 3}, 16, None), ({"a": {"b": {"c": {"d": {"e": NET}}}}}, 16, None),
        ({"networks": {"G": {"params": NET}, "D": {"params": HEAD, "params_ema": {"weight": torch.ones(5)}}}}, 22, None),
        ({"agent": {"alpha": torch.ones(1), "actor": NET, "critic": HEAD, "optim": OPTIMIZER.state_dict()}}, 22, None),
        ({"model": [NET, HEAD]}, 22, None), ({"model": [NET], "ema": SHADOW}, 16, None), ([NET, OPTIMIZER.state_dict()], 16, None),
        (SHADOW, 16, None), ({"ema": SHADOW, "optimizer": OPTIMIZER.state_dict()}, 16, None), ({"model": HEAD, "ema": SHADOW}, 6, None),
        ({"model": {"enc": {"kernel": torch.ones(3)}}, "old": {"b": NET}}, 3, None), ({"running_mean": torch.ones(3)}, 0, None), ({}, 0, None),
        ({"data": [{"edge_weight": torch.ones(3), "x": torch.ones(2)}]}, 0, "in no state_dict (2)"),
        ({"ema": {"kernel": torch.ones(2)}}, 0, "of EMA copies (1)"),
        (OPTIMIZER.state_dict(), 0, "optimizer state (6)"), ({"opt": OPTIMIZER.state_dict()}, 0, "optimizer state (6)"),
        (OPTIMIZER, 0, "optimizer state (6), in no state_dict (2)"),
        (STATES, 0, "in no state_dict (3)"), ({"all": STATES}, 0, "in no state_dict (3)"), (torch.get_rng_state(), 0, "in no state_dict (1)"),
    ],
)  # fmt: skip
def test_the_state_dicts_count_wherever_they_stand(tmp_path: Path, value: Any, parameters: int, said: str | None) -> None:
    torch.save(value, tmp_path / "a.pt")
    result = check(tmp_path / "a.pt")
    assert result.totals
    assert result.checkpoint

    assert result.totals.parameters == parameters
    assert taken_for(result.checkpoint.tensors) == (said and f"no parameters: its tensors are {said}")


def test_a_dict_that_numpy_saved(tmp_path: Path) -> None:
    state = {name: tensor.numpy() for name, tensor in NET.items()}
    np.save(tmp_path / "a.npy", state)  # type: ignore[arg-type]
    np.save(tmp_path / "b.npy", np.array([state, 3], dtype=object))
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(state))

    assert [(totals := check(tmp_path / name).totals) and totals.parameters for name in ("a.npy", "b.npy", "c.pkl")] == [16, 16, 16]


def covered(region: Region) -> set[int]:
    """Its bits, one by one."""
    elements = {region.offset}
    for size, step in zip(region.shape, region.stride or ()):
        elements = {element + i * step for element in elements for i in range(size)}
    return {element * region.bits + bit for element in elements for bit in range(region.bits)}


def drawn(draw: random.Random) -> Region:
    axes = draw.randrange(4)
    shape, stride = (tuple(draw.choice(of) for _ in range(axes)) for of in ((1, 2, 3, 4), (0, 1, 1, 2, 3, 4, 7, 12)))
    return Region(draw.choice("ab"), draw.randrange(20), shape, stride, draw.choice([8, 16]))


@pytest.mark.parametrize("seed", range(100))
def test_any_regions_are_counted_exactly_or_not_too_low(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    drawn_regions = [drawn(draw) for _ in range(5)]
    seen: dict[Any, set[int]] = {"a": set(), "b": set()}
    expected = []
    for region in drawn_regions:
        expected.append(len(covered(region) - seen[region.storage]) // region.bits)
        seen[region.storage] |= covered(region)

    assert elements_of(drawn_regions) == expected
    monkeypatch.setattr(regions, "MAX_MARKED", 0)
    assert sum(elements_of(drawn_regions)) >= sum(expected)


def test_elements_that_are_seen_a_trillion_times_are_counted_once() -> None:
    assert elements_of([Region("a", 0, (2,) * 40, (1,) * 40, 32)]) == [41]


def quantized() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")  # type: ignore[assignment]
    prepared = torch.ao.quantization.prepare(model)
    prepared(torch.randn(1, 3, 8, 8))
    made: nn.Module = torch.ao.quantization.convert(prepared)
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("whole", [True, False])
def test_packed_weights_are_parameters(tmp_path: Path, whole: bool) -> None:
    model = quantized()
    torch.save(model if whole else model.state_dict(), tmp_path / "a.pt")
    result = check(tmp_path / "a.pt")
    assert result.totals

    scales = 0 if whole else 2
    assert result.totals.bytes_by_dtype == {"qint8": 8 * 3 * 9 + 10 * 288, "float32": 4 * (8 + 10 + scales)}
    assert result.totals.parameters == 8 * 3 * 9 + 10 * 288 + 8 + 10 + scales
    assert {row.name: row.op for row in result.layers} == {"0": "Conv2d 3×3 3→8", "2": "Linear 288→10"}


@pytest.mark.parametrize(
    ("name", "data"), [("a.safetensors", (1 << 20).to_bytes(8, "little") + b"{}"), ("a.pt", b"\x80\x02}q\x00"), ("b.pt", b"PK\3\4" + bytes(100))]
)
def test_totals_are_null_where_no_tensor_could_be_listed(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    result = check(tmp_path / name)

    assert (result.totals, result.status) == (None, "partial")
    assert [f.rule for f in result.findings] == ["CNV602"]


def test_no_report_has_a_figure_where_none_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((1 << 20).to_bytes(8, "little") + b"{}")
    (tmp_path / "b.pt").write_bytes(b"\x80\x02}q\x00")
    torch.save({"w": torch.ones(1), "num_batches_tracked": torch.tensor(1)}, tmp_path / "c.pt")

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, [*arguments], env={"CONVAUDIT_CACHE_DIR": str(tmp_path / "kept")})
        assert done.exit_code in (0, 1), done.output
        return done.output

    one, several = [str(tmp_path / "a.safetensors")], [str(tmp_path / name) for name in ("a.safetensors", "b.pt", "c.pt")]
    for targets in (one, several):
        written = [str(tmp_path / f"out.{suffix}") for suffix in ("html", "md", "csv", "json", "xml", "sarif")]
        text = run("check", *targets, *(part for path in written for part in ("-o", path)))
        assert text.count("parameters not known") == (1 if targets is one else 2)
        assert "None of its tensors could be listed" in Path(written[1]).read_text()
        assert "CNV602" in run("check", *targets, "--statistics")
    assert "1 parameter and 1 element of buffers" in text
    assert "None of its tensors could be listed" not in run("check", str(tmp_path / "c.pt"), "--format", "md")
    assert "?" in run("show", *one)
    for form in ("text", "markdown"):
        assert "values not compared: a file contradicts itself" in run("diff", *several[:2], "--format", form)


def test_members_that_nothing_refers_to_are_named(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    assert check(tmp_path / "a.pt").notes == []
    with zipfile.ZipFile(tmp_path / "a.pt", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/7", bytes(1_000_000))
        archive.writestr("a/extra.bin", bytes(100_000))
    notes = check(tmp_path / "a.pt").notes

    assert "member 'a/data/7' (1,000,000 bytes) is no tensor's storage" in notes
    assert "member 'a/extra.bin' (100,000 bytes) is none of a checkpoint's" in notes


def test_a_number_of_thousands_of_digits(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))

    assert [f.message for f in check(tmp_path / "a.safetensors").findings] == ["its header has a number of thousands of digits, or text that is not UTF-8"]
