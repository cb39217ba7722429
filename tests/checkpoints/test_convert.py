"""``convaudit convert``: the tensors that torch reads, to the bit, and everything ambiguous refused."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import Tensor, nn

from convaudit import targets
from convaudit.cli import cli

ZOO = [
    *(f"timm:test_{name}" for name in (
        "byobnet", "coatnet", "convnext", "convnext2", "convnext3", "efficientnet", "efficientnet_evos", "efficientnet_gn", "efficientnet_ln",
        "mambaout", "maxvit", "nfnet", "resnet", "vit", "vit2", "vit3", "vit4", "vit_relpos",
    )),
    *(f"timm:{name}" for name in (
        "crossvit_9_240", "edgenext_xx_small", "efficientvit_b0", "ghostnet_050", "lcnet_050", "mobilenetv3_small_050", "mobilevit_xxs",
        "repghostnet_050", "tinynet_e", "vit_tiny_patch16_224", "xcit_nano_12_p16_224",
    )),
    *(f"torchvision:{name}" for name in (
        "efficientnet_b0", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "shufflenet_v2_x0_5",
        "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1", "densenet121",
    )),
]  # fmt: skip


def convert(source: Path, target: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["convert", str(source), str(target), *options])


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    def raw(tensor: Tensor) -> Tensor:
        return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor.reshape(-1)

    return found.keys() == expected.keys() and all(
        found[k].shape == t.shape and found[k].dtype == t.dtype and torch.equal(raw(found[k]), raw(t)) for k, t in expected.items()
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("index", range(len(ZOO)))
def test_round_trip(tmp_path: Path, index: int, zipped: bool) -> None:
    with torch.no_grad():
        state = targets.build(ZOO[index]).model.state_dict()
    kind = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)[index % 3]
    made = {name: torch.rand(t.shape).to(kind) if t.dtype == torch.float32 else torch.zeros_like(t, device="cpu") for name, t in state.items()}
    wrapped = index % 2 == 1
    torch.save({"state_dict": made, "epoch": 1} if wrapped else made, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    done = convert(tmp_path / "a.pt", tmp_path / "a.safetensors")

    assert done.exit_code == 0, done.output
    assert ("stands under 'state_dict'" in done.output) is wrapped
    assert same(load_file(tmp_path / "a.safetensors"), made)


def strided() -> dict[str, Tensor]:
    grid = torch.arange(48.0).reshape(2, 4, 6)
    return {
        "transposed": grid.transpose(0, 2), "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(1.5), "none": torch.zeros(0, 3), "view": torch.arange(9)[2:7:2], "expanded": torch.ones(1, 3).expand(4, 3),
    }  # fmt: skip


def apart() -> dict[str, Tensor]:
    grid = torch.arange(24.0).reshape(4, 6)
    return {"left": grid[:, :2], "right": grid[:, 2:]}


def dtypes() -> dict[str, Tensor]:
    kinds = (
        "bfloat16", "float16", "float64", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
        "int8", "int16", "uint16", "uint32", "uint64", "bool", "complex64",
    )  # fmt: skip
    known = [getattr(torch, kind) for kind in kinds if hasattr(torch, kind)]
    return {str(kind): torch.randint(0, 2, (3, 5)).to(torch.float32).to(kind) for kind in known}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("make", [strided, apart, dtypes])
def test_strides_views_and_dtypes(tmp_path: Path, make: Callable[[], dict[str, Tensor]], zipped: bool) -> None:
    made = make()
    torch.save(made, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)

    assert convert(tmp_path / "a.pt", tmp_path / "a.safetensors").exit_code == 0
    assert same(load_file(tmp_path / "a.safetensors"), made)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.head.weight = self.embed.weight


def test_ties_are_kept(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    done = convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "head.weight": "embed.weight"}
    load_model(other, tmp_path / "a.safetensors")

    assert "'head.weight' is 'embed.weight': written once" in done.output
    assert same(dict(other.state_dict()), dict(model.state_dict()))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_nothing_is_run_or_kept_but_tensors(tmp_path: Path) -> None:
    weights = {"w": torch.rand(3, 4)}
    optimizer = {"state": {0: {"momentum_buffer": torch.rand(3, 4)}}}
    torch.save({"model": weights, "optimizer": optimizer, "model_ema": {"w": torch.rand(3, 4)}, "hook": Evil()}, tmp_path / "a.pt")
    code = "import sys; from convaudit.cli import cli; cli(sys.argv[1:], standalone_mode=False); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "convert", "a.pt", "a.safetensors"], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert "left out (tensors): optimizer (1), ema (1)" in done.stderr
    assert "left behind, and not run: " in done.stderr
    assert "wrote a.safetensors: 1 tensor, 48 bytes" in done.stdout
    assert same(load_file(tmp_path / "a.safetensors"), weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "a.safetensors"]


def test_whole_modules_and_wrappers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].register_buffer("grid", torch.ones(5), persistent=False)
    torch.save(model, tmp_path / "whole.pt")
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "parallel.pt")
    for name in ("whole", "parallel"):
        assert convert(tmp_path / f"{name}.pt", tmp_path / f"{name}.safetensors").exit_code == 0
        assert same(load_file(tmp_path / f"{name}.safetensors"), dict(model.state_dict()))


def two(key: str = "discriminator") -> dict[str, Any]:
    return {"generator": {"w": torch.ones(2)}, key: {"w": torch.zeros(3)}}


def quantized(layer: nn.Module) -> dict[str, Any]:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {type(layer)}, dtype=torch.qint8).state_dict()


class Wrapped(Tensor):
    """A tensor that is made of others, as a DTensor is."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made: Wrapped = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*(arg.inner if isinstance(arg, Wrapped) else arg for arg in args), **(kwargs or {}))


def stepped() -> torch.optim.Optimizer:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    made = torch.optim.Adam([weight])
    made.step()
    return made


@pytest.mark.parametrize(
    ("value", "options", "said"),
    [
        (two(), (), "--key takes one of these (tensors): generator (1), discriminator (1)"),
        (two(), ("--key", "encoder"), "no tensors under 'encoder'"),
        ({"model": {"w": torch.ones(2)}, "net": {"w": torch.ones(2)}}, (), "more than one state_dict: choose with --key: model, net"),
        ({"epoch": 3}, (), "it holds no tensors"),
        ({"s": torch.eye(4).to_sparse()}, (), "cannot be read in place"),
        ({"n": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged)}, (), "has no shape that is known: it is nested"),
        ({"c": torch.ones(3, dtype=torch.complex64).conj()}, (), "cannot be read in place"),
        ({"m": torch.empty(3, device="meta")}, (), "cannot be read in place"),
        ({"c": torch.ones(3, dtype=torch.complex128)}, (), "is of dtype complex128"),
        ({"a": (whole := torch.arange(6.0))[:4], "b": whole[2:]}, (), "share elements and are not the same tensor"),
        (quantized(nn.Linear(8, 4)), (), "holds a quantized layer's packed weights"),
        ({"e": torch.ones(1).expand(9_000_000)}, (), "would take 36,000,000 bytes"),
        ({"a": torch.ones(9).as_strided((1 << 40, 9), (0, 1)), "b": (nine := torch.ones(9)), "c": nine[:1].expand(1 << 40)}, (), "repeat what the file holds once"),
        ({"__metadata__": torch.ones(1)}, (), "keeps that name for itself"),
        ({"agent": {"actor": {"weight": torch.ones(2)}, "critic": {"weight": torch.ones(1)}}}, (), "choose with --key: agent.actor, agent.critic"),
        (stepped(), (), "no parameters: its tensors are optimizer state (3), in no state_dict (1)"),
        ({"cpu": torch.get_rng_state()}, (), "no parameters: its tensors are in no state_dict (1)"),
        ({"w": Wrapped(torch.ones(2))}, (), "'w' cannot be read in place: it is a wrapper of others"),
        (pickle.dumps({"w": torch.ones(2)}), (), "'w' is of no dtype that is known: it is in a file of torch within the pickle"),
    ],
)
def test_what_is_ambiguous_is_refused(tmp_path: Path, value: Any, options: tuple[str, ...], said: str) -> None:
    if isinstance(value, bytes):
        (tmp_path / "a.pt").write_bytes(value)
    else:
        torch.save(value, tmp_path / "a.pt")
    done = convert(tmp_path / "a.pt", tmp_path / "a.safetensors", *options)

    assert done.exit_code == 2
    assert said in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_key_chooses(tmp_path: Path) -> None:
    torch.save({**two(), "model": {"w": torch.ones(1)}, "net": {"w": torch.ones(4)}}, tmp_path / "a.pt")
    for key, size in (("generator", 2), ("discriminator", 3), ("net", 4)):
        assert convert(tmp_path / "a.pt", tmp_path / "a.safetensors", "--key", key, "--force").exit_code == 0
        assert {name: t.numel() for name, t in load_file(tmp_path / "a.safetensors").items()} == {"w": size}


def test_other_state_dicts_are_named(tmp_path: Path) -> None:
    torch.save({"generator": {"weight": torch.ones(2)}, "critic": {"weight": torch.ones(1)}, "optim": stepped().state_dict()}, tmp_path / "a.pt")

    assert "left out (tensors): critic (1), optimizer (3)" in convert(tmp_path / "a.pt", tmp_path / "a.safetensors", "--key", "generator").output


@pytest.mark.parametrize("path", [("state_dict",), ("nets", "G", "params"), ("model", 0)])
def test_the_one_state_dict_is_found(tmp_path: Path, path: tuple[str | int, ...]) -> None:
    weights = {"weight": torch.rand(3)}
    value: Any = weights
    for key in reversed(path):
        value = {key: value} if isinstance(key, str) else [value]
    torch.save({"state_dict_ema": weights, **value}, tmp_path / "a.pt")
    done = convert(tmp_path / "a.pt", tmp_path / "a.safetensors")

    assert f"the state_dict is what stands under '{'.'.join(map(str, path))}'" in done.output
    assert same(load_file(tmp_path / "a.safetensors"), weights)


def test_a_tensor_without_a_name_is_given_one(tmp_path: Path) -> None:
    torch.save(nn.Parameter(torch.arange(3.0)), tmp_path / "a.pt")
    done = convert(tmp_path / "a.pt", tmp_path / "a.safetensors")

    assert "a tensor without a name is written as 'tensor'" in done.output
    assert same(load_file(tmp_path / "a.safetensors"), {"tensor": torch.arange(3.0)})


def test_files_are_not_overwritten_nor_mistaken(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    (tmp_path / "b.safetensors").write_bytes(b"mine")
    cut = (tmp_path / "a.pt").read_bytes()[:-30]
    (tmp_path / "cut.pt").write_bytes(cut)
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "big.pt", "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, b"big" if item.filename.endswith("byteorder") else old.read(item))
    said = {
        ("a.pt", "b.safetensors"): "is there already; --force replaces it",
        ("a.pt", "b.pt"): "what is written is .safetensors",
        ("cut.pt", "c.safetensors"): "contradicts itself (CNV602)",
        ("big.pt", "c.safetensors"): "cannot be read in place",
        ("none.pt", "c.safetensors"): "none.pt",
    }
    for (source, target), message in said.items():
        done = convert(tmp_path / source, tmp_path / target)
        assert (done.exit_code, message in f"{done.output}{done.exception}") == (2, True), (done.output, done.exception)

    assert (tmp_path / "b.safetensors").read_bytes() == b"mine"
    assert convert(tmp_path / "a.pt", tmp_path / "b.safetensors", "--force").exit_code == 0
    assert convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors").exit_code == 2
