"""Checkpoints people really save: never CNV601 or CNV602, and the table that torch reads."""

from __future__ import annotations

import argparse
import array as arrays
import collections
import dataclasses
import datetime
import enum
import functools
import http
import io
import ipaddress
import json
import os
import pathlib
import pickle
import random
import re
import signal
import struct
import subprocess
import sys
import time
import types
import typing
import uuid
import zoneinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.malicious import in_zip
from torch import nn

from convaudit import registry
from convaudit.checkpoints import pickle_reader as reader
from convaudit.checkpoints.architecture import Expected
from convaudit.checkpoints.audit import audit_file
from convaudit.result import TargetResult
from convaudit.settings import AuditSettings


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 4))


def trained() -> dict[str, Any]:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"epoch": 3, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "lr": 0.1}


def tied() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model.state_dict()


def itself() -> dict[str, Any]:
    made: dict[str, Any] = {"w": torch.zeros(2)}
    made["self"] = made
    return made


def sparse() -> dict[str, Any]:
    return {"s": torch.eye(4).to_sparse(), "d": torch.ones(2)}


def quantized() -> dict[str, Any]:
    model = nn.Sequential(nn.EmbeddingBag(10, 12, mode="sum"))
    model.qconfig, model[0].qconfig = None, torch.ao.quantization.float_qparams_weight_only_qconfig_4bit
    return torch.ao.quantization.convert(torch.ao.quantization.prepare(model)).state_dict()


def packed_arrays() -> dict[str, Any]:
    out = io.BytesIO()
    np.savez(out, w=np.ones(3))
    return {"t": torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8), "w": torch.ones(1), "b": out.getvalue()}


class Norms(nn.Module):
    """As transformers are: the layer to use is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = functools.partial(nn.LayerNorm, eps=1e-6)
        self.norm = self.layer(4)


class Kept(nn.Module):
    """As people write them: functions and what is made for them are attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.act, self.out, self.pool = torch.relu, nn.functional.silu, nn.functional.adaptive_avg_pool2d
        self.gelu, self.soft = functools.partial(nn.functional.gelu, approximate="tanh"), functools.partial(torch.softmax, dim=-1)
        self.start = functools.partial(nn.init.trunc_normal_, std=0.02)


class Color(enum.Enum):
    RED = 1


class OldColor(enum.Enum):
    """Pickled as Python 3.11.0 to 3.11.4 do."""

    RED, BLUE = 1, 2

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (type(self), self.name)


@dataclasses.dataclass
class Options:
    lr: float = 0.1


class Detector(nn.Module):
    """As detectors are: a net, tensors that are attributes, and anchors that no state_dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.stride = net(), torch.tensor([8.0, 16.0])
        self.register_buffer("grid", torch.ones(5), persistent=False)


def lightning() -> dict[str, Any]:
    optimizer = torch.optim.SGD(net().parameters(), 0.1, momentum=0.9)
    return {
        "lr_schedulers": [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10).state_dict()],
        "scaler": torch.amp.GradScaler("cpu").state_dict(), "optimizer_states": [optimizer.state_dict()],
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "a.ckpt", "best_model_score": torch.tensor(0.5)}},
        "loops": {"fit_loop": {"state_dict": {}}}, "pytorch-lightning_version": "2.4.0", "state_dict": net().state_dict(),
    }  # fmt: skip


HONEST: dict[str, Any] = {
    "state_dict": lambda: net().state_dict(),
    "trained": trained,
    "tied": tied,
    "strided": lambda: {"t": torch.arange(12.0).reshape(3, 4).t(), "v": torch.arange(10.0)[2:6], "e": torch.ones(1).expand(5)},
    "dtypes": lambda: {
        str(d): torch.zeros(3, 2, dtype=d)
        for d in (torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64)
    },
    "float8": lambda: {"a": torch.zeros(4).to(torch.float8_e4m3fn), "b": torch.zeros(4).to(torch.float8_e5m2)},
    "uint16": lambda: {"a": torch.zeros(4, dtype=torch.uint16)},
    "quantized": lambda: {"q": torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 2, torch.qint8)},
    "quantized by channel": lambda: {"q": torch.quantize_per_channel(torch.ones(2, 3), torch.ones(2), torch.zeros(2), 0, torch.quint8), "b": torch.ones(3)},
    "quantized to 4 bits": quantized,
    "sparse": sparse,
    "meta": lambda: {"m": torch.empty(3, 4, device="meta")},
    "empty": dict,
    "scalars": lambda: {"a": torch.tensor(1.0), "b": torch.zeros(0, 3)},
    "itself": itself,
    "ema": lambda: {"model": net().state_dict(), "ema": net().state_dict()},
    "parallel": lambda: nn.DataParallel(net()).state_dict(),
    "namespace": lambda: {"args": argparse.Namespace(lr=0.1), "state_dict": net().state_dict()},
    "paths": lambda: {"p": pathlib.Path("a/b"), "w": torch.ones(1)},
    "dates": lambda: {"t": datetime.datetime(2020, 1, 1), "d": collections.defaultdict(list), "q": collections.deque([1])},
    "random": lambda: {"n": np.random.get_state(), "p": random.getstate(), "t": torch.get_rng_state()},
    "numpy": lambda: {"a": np.zeros((2, 3)), "s": np.float64(1.0), "g": np.random.default_rng(0)},
    "module": net,
    "parallel module": lambda: nn.DataParallel(net()),
    "partial": Norms,
    "weight norm": lambda: torch.nn.utils.weight_norm(nn.Linear(3, 2)),
    "stubs": lambda: nn.Sequential(torch.ao.quantization.QuantStub(), nn.Linear(2, 2), torch.ao.quantization.DeQuantStub()),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(net()).state_dict(),
    "lightning": lightning,
    "lazy": lambda: {"p": nn.parameter.UninitializedParameter(), "b": nn.parameter.UninitializedBuffer(), "w": torch.ones(1)},
    "keys": lambda: {("a", 1): torch.ones(2), ("a", 2): torch.ones(3), None: torch.ones(1), (1.5, ("a", "b")): torch.ones(1)},
    "an archive in bytes": packed_arrays,
    "pickled bytes": lambda: {"b": pickle.dumps({"a": 1}), "l": pickle.dumps({"a": "x" * 100_000}), "w": torch.ones(1)},
    "pickled code": lambda: {"b": pickle.dumps(print), "w": torch.ones(1)},
    "long texts": lambda: {"t": "x" * 200_000, "b": bytes(100_000), "w": torch.ones(1)},
    "many numbers": lambda: {"loss": [i / 7 for i in range(100_000)], "w": torch.ones(1)},
    "deep": lambda: functools.reduce(lambda inner, _: {"a": inner}, range(100), {"w": torch.ones(1)}),
    "odd names": lambda: {"a\nb": torch.ones(1), "\x1b[31m": torch.ones(1), "": torch.ones(1), "é" * 5000: torch.ones(1)},
    "parameter": lambda: {"p": nn.Parameter(torch.ones(2, 2))},
    "tensor": lambda: torch.ones(3),
    "list": lambda: [torch.ones(3), torch.zeros(2)],
    "counter": lambda: {"c": collections.Counter("aab"), "s": {1, 2}, "z": 1 + 2j, "b": b"x", "y": bytearray(b"z")},
    "numpy values": lambda: {
        "d": np.dtype("float32"), "s": [np.int64(3), np.bool_(True), np.str_("x"), np.datetime64("2020-01-01"), np.bytes_(b"d"), np.complex64(1)],
        "o": np.array([None, "x"]), "t": np.array(["a"]), "r": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]), "g": np.random.RandomState(1),
        "p": np.random.Generator(np.random.Philox(3)), "w": torch.ones(1),
    },
    "numpy kinds": lambda: {
        "d": [np.dtype(kind) for kind in "? b B h H i I l L q Q e f d g F D G S3 U3 V4 M8[s] m8[s] O".split()],
        "n": np.dtype([("a", "i1"), ("b", "f4", (2,))], align=True), "m": np.ma.array(["a"], mask=[1]),
        "v": np.zeros(1, [("a", "i4")])[0], "g": [np.random.Generator(make(1)) for make in (np.random.MT19937, np.random.PCG64DXSM, np.random.SFC64)],
        "c": [np.bool_, np.intc, np.longlong, np.str_, np.float64], "w": torch.ones(1),
        **({"s": np.array(["a"], np.dtypes.StringDType())} if hasattr(np.dtypes, "StringDType") else {}),
    },
    "empty containers": lambda: {
        "d": collections.defaultdict(list), "q": collections.deque(maxlen=3), "u": collections.UserDict(a=1), "l": collections.UserList([1]), "w": torch.ones(1),
    },
    "long number": lambda: {"n": 10**700, "w": torch.ones(1)},
    "containers": lambda: {
        "c": collections.ChainMap({"a": 1}), "f": frozenset([1]), "s": slice(1, 2), "r": range(3), "e": ..., "n": types.SimpleNamespace(a=1), "w": torch.ones(1),
    },
    "texts": lambda: {"r": re.compile("a+"), "u": uuid.UUID(int=1), "d": datetime.timezone.utc, "t": datetime.timedelta(1), "w": torch.ones(1)},
    "torch values": lambda: {
        "s": torch.Size([1, 2]), "d": torch.device("cuda:0"), "t": torch.float16, "l": torch.strided, "q": torch.per_tensor_affine,
        "b": torch.ones(4).untyped_storage(), "g": torch.Generator().get_state(), "w": torch.ones(1),
    },
    "enum": lambda: {"c": Color.RED, "o": [OldColor.RED, OldColor.BLUE], "w": torch.ones(1)},
    "dataclass": lambda: {"c": Options(), "w": torch.ones(1)},
    "functions": Kept,
    "zones": lambda: {"d": datetime.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Rome")), "z": zoneinfo.ZoneInfo.no_cache("UTC"), "w": torch.ones(1)},
    "type hints": lambda: {"n": [type(None), type(...)], "h": [typing.List[int], typing.Optional[str], list[int], typing.Any, typing.Dict], "w": torch.ones(1)},  # noqa: UP006, UP045
    "hints of values": lambda: {"h": [typing.Literal["a", 2], typing.Callable[[int], str], typing.Callable[..., str], typing.Callable[[], str], int | None, int | str], "w": torch.ones(1)},
    "values of the standard library": lambda: {
        "e": [re.IGNORECASE, http.HTTPStatus.OK, signal.SIGTERM], "i": [ipaddress.ip_address("1.2.3.4"), ipaddress.ip_network("1.2.3.0/24"), ipaddress.ip_interface("::1/64")],
        "a": arrays.array("i", [1, 2]), "t": time.gmtime(0), "w": torch.ones(1),
    },
    "abstract classes": lambda: {"m": [collections.abc.Mapping, collections.abc.Callable], "w": torch.ones(1)},
    "an enum of torch's": lambda: {"s": pytest.importorskip("torch.distributed.fsdp").ShardingStrategy.FULL_SHARD, "w": torch.ones(1)},
    "adapter": lambda: {f"base_model.model.layers.{i}.q_proj.lora_{w}.weight": torch.zeros(8, 8) for i in range(2) for w in "AB"},
}  # fmt: skip


def check(path: Path) -> TargetResult:
    return audit_file(str(path), AuditSettings())


def flat(value: Any, name: str = "", seen: frozenset[int] = frozenset()) -> dict[str, Any]:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        return {} if nn.parameter.is_lazy(value) else {name: value}
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    found: dict[str, Any] = {}
    if id(value) not in seen:
        for key, item in pairs:
            found.update(flat(item, f"{name}.{key}" if name else str(key), seen | {id(value)}))
    return found


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", HONEST)
def test_honest_files(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / "a.pt"
    if name in ("float8", "uint16", "torch values"):
        zipped = True
    try:
        value = HONEST[name]()
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
    except KeyError as error:  # torch before 2.5 and unsigned integers; a system without time zones
        pytest.skip(str(error))
    result = check(path)
    info = result.checkpoint
    assert info is not None
    assert result.totals is not None

    codes = {f.rule for f in result.findings}
    assert not codes & {"CNV001", "CNV601", "CNV602"}, [f.message for f in result.findings]
    assert info.format == ("torch-zip" if zipped else "torch-legacy")
    read = torch.load(path, weights_only=False)
    expected = flat(read.state_dict() if isinstance(read, nn.Module) else read)
    expected = {key.removeprefix("state_dict.").removeprefix("model."): tensor for key, tensor in expected.items()}
    rows = [row for row in info.tensors if row.role != "other"] if isinstance(value, nn.Module) else info.tensors
    assert {row.name: (row.shape, f"torch.{row.dtype}") for row in rows} == {
        key: (list(tensor.shape), str(tensor.dtype)) for key, tensor in expected.items()
    }
    assert not any("was not checked" in note for note in result.notes)
    if name not in ("sparse", "quantized", "quantized to 4 bits"):
        sizes = {key: tensor.numel() * tensor.element_size() for key, tensor in expected.items() if not tensor.is_meta}
        assert {row.name: row.bytes for row in rows if row.name in sizes} == sizes
    if isinstance(value, nn.Module):
        assert result.totals.parameters == sum(p.numel() for p in value.parameters())
    if "CNV610" not in codes and torch.__version__ >= "2.6":
        assert weights_only_reads(path, result) == told(result), (result.findings, result.notes)


def advice(result: TargetResult) -> str:
    return next((finding.suggestion for finding in result.findings if finding.rule == "CNV611"), "")


def told(result: TargetResult) -> bool:
    """Whether a result says that weights_only reads its file, if need be after the line of CNV611."""
    return advice(result).startswith("import ") or not (advice(result) or any("weights_only" in note for note in result.notes))


def weights_only_reads(path: Path, result: TargetResult) -> bool:
    before = torch.serialization.get_safe_globals()
    if advice(result).startswith("import "):
        exec(advice(result), {})  # noqa: S102 - what it says is what is tested
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        return False
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    return True


LINES = {
    "numpy 1": (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\2\0\0\0f4K\0K\1tR(K\3X\1\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
                b"c_codecs\nencode\n(X\4\0\0\0abcdX\6\0\0\0latin1tRtR", True),
    "a RandomState of numpy 1": (b"cnumpy.random._pickle\n__randomstate_ctor\n(X\7\0\0\0MT19937tR", True),
    "numpy 1.17's bit generator": (b"cnumpy.random._pickle\n__bit_generator_ctor\n(X\5\0\0\0PCG64tR" + pickle.dumps(np.random.PCG64(1).state, 2)[2:-1] + b"b", True),
    "numpy 1.17's generator": (b"cnumpy.random._pickle\n__generator_ctor\n(X\5\0\0\0PCG64tR" + pickle.dumps(np.random.PCG64(1).state, 2)[2:-1] + b"b", True),
    "Python 3.13's path": (b"cpathlib._local\nPosixPath\n(X\1\0\0\0atR", True),
    "another system's path": (b"cpathlib\n" + (b"PosixPath" if os.name == "nt" else b"WindowsPath") + b"\n(X\1\0\0\0atR", True),
    "a deque with an item": (b"ccollections\ndeque\n)R(K\1e", False),
    "a default dict with an item": (b"ccollections\ndefaultdict\n(c__builtin__\nlist\ntRK\1K\2s", False),
    "TorchScript's lists": (b"ctorch.jit._pickle\nrestore_type_tag\n(](K\1eX\x09\0\0\0List[int]tR", True),
    "an empty default dict": (b"ccollections\ndefaultdict\n(c__builtin__\nlist\ntR", True),
    "protocol 4": (b"\x8c\1a0cpathlib\nPath\n)R", False),
    "an opcode without plain data": (b"K\x0120", False),
}  # fmt: skip


@pytest.mark.skipif(torch.__version__ < "2.6", reason="add_safe_globals takes no names")
@pytest.mark.parametrize("name", LINES)
def test_what_weights_only_reads_is_told(tmp_path: Path, name: str) -> None:
    pickled, expected = LINES[name]
    (tmp_path / "a.pt").write_bytes(in_zip(b"\x80\2}X\1\0\0\0v" + pickled + b"s.", ("a/byteorder", b"little")))
    result = check(tmp_path / "a.pt")

    assert told(result) == weights_only_reads(tmp_path / "a.pt", result) == expected, result


@pytest.mark.parametrize(("whole", "advice"), [(False, "it is a state_dict already"), (True, "save state_dict()")])
def test_a_quantized_lstm_is_no_unsafe_pickle(tmp_path: Path, whole: bool, advice: str) -> None:
    made = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(4, 4)), {nn.LSTM}, dtype=torch.qint8)
    torch.save(made if whole else made.state_dict(), tmp_path / "a.pt")
    result = check(tmp_path / "a.pt")

    assert [(f.rule, f.suggestion[: len(advice)]) for f in result.findings] == [("CNV610", advice)]
    assert result.totals
    assert result.totals.parameters == sum(p.numel() for p in nn.LSTM(4, 4).parameters())


def test_integers_of_every_width_are_buffers(tmp_path: Path) -> None:
    kinds = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "bool")
    torch.save({"w": torch.ones(2), **{kind: torch.zeros(3, dtype=getattr(torch, kind)) for kind in kinds}}, tmp_path / "a.pt")
    totals = check(tmp_path / "a.pt").totals

    assert totals
    assert (totals.parameters, totals.buffers) == (2, 3 * len(kinds))


def test_a_size_that_is_not_known_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(net().state_dict()))
    totals = check(tmp_path / "a.pkl").totals

    assert totals
    assert (totals.parameters > 0, totals.parameter_bytes, totals.bytes_by_dtype) == (True, None, {})


def test_a_colon_in_a_name_is_no_drive(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a:b.pt")

    assert check(tmp_path / "a:b.pt").findings == []


def wrapped() -> dict[str, Any]:
    state, optimizer = net().state_dict(), {"state": {0: {"exp_avg": torch.zeros(9)}}, "param_groups": [{"params": [0]}]}
    arguments = argparse.Namespace(data_path=pathlib.Path("/data"), lr=0.1)
    return {
        "DeepSpeed": {"module": state, "buffer_names": ["1.running_mean"], "param_shapes": [{"0.weight": torch.Size([8, 3, 3, 3])}], "optimizer": None},
        "MMDetection": {"meta": {"CLASSES": ("a",), "epoch": 1}, "state_dict": state, "message_hub": {"log_scalars": {"loss": np.zeros(3)}}},
        "timm": {"arch": "resnet18", "state_dict": state, "optimizer": optimizer, "args": arguments, "state_dict_ema": net().state_dict(), "metric": 71.2},
        "torchvision": {"model": state, "optimizer": optimizer, "lr_scheduler": {"last_epoch": 1}, "args": arguments, "scaler": {},
                        "model_ema": {"n_averaged": torch.tensor(3), **{f"module.{name}": t for name, t in net().state_dict().items()}}},
        "YOLO": {"epoch": -1, "model": Detector().half(), "ema": None, "best_fitness": np.float64(0.1), "train_args": {"lr0": 0.01}},
        "YOLO in training": {"epoch": 4, "model": None, "ema": Detector(), "optimizer": optimizer},
        "defaultdict": collections.defaultdict(dict, {"state_dict": state}),
        "EMA alone": {"params_ema": state}, "a part": {"encoder": state, "epoch": 3, "opt_e": optimizer},
    }  # fmt: skip


@pytest.mark.parametrize("kind", wrapped())
def test_the_state_dict_of_a_wrapper_is_what_counts(tmp_path: Path, kind: str) -> None:
    torch.save(wrapped()[kind], tmp_path / "a.pt")
    result = check(tmp_path / "a.pt")
    assert result.totals

    assert not {f.rule for f in result.findings} & {"CNV001", "CNV601", "CNV602", "CNV603"}
    assert (result.status, result.totals.parameters, result.totals.buffers) == ("ok", sum(p.numel() for p in net().parameters()), 8 + 8 + 1)


@pytest.mark.parametrize("whole", [True, False])
def test_both_nets_of_a_pair_count(tmp_path: Path, whole: bool) -> None:
    nets = {name: net() if whole else net().state_dict() for name in ("generator", "discriminator")}
    torch.save({**nets, "stats": {"mean": torch.ones(3)}, "epoch": 1}, tmp_path / "a.pt")
    result = check(tmp_path / "a.pt")
    assert result.checkpoint
    assert result.totals

    assert result.totals.parameters == 2 * sum(p.numel() for p in net().parameters())
    assert {row.name.partition(".")[0] for row in result.checkpoint.tensors if row.role != "other"} == {*nets}


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("size", [255, 65_535, 65_536, 65_537, 200_000])
def test_picklers_keep_to_their_frames(protocol: int, size: int) -> None:
    value = [b"a" * size, "b" * size, 1.5, bytearray(size), list(range(40_000)), "c" * (size - 9), 1 << 4 * size, np.zeros(size, "u1")]
    out, plain = io.BytesIO(), io.BytesIO()
    pickle.Pickler(out, protocol).dump(value)
    pickle._Pickler(plain, protocol).dump(value)  # type: ignore[attr-defined]
    for data in (pickle.dumps(value, protocol), out.getvalue(), plain.getvalue()):
        assert reader.read(data).problem is None


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("key", ["model", "blobs"])
def test_numpy_arrays_are_tensors(tmp_path: Path, protocol: int, key: str) -> None:
    arrays = {
        "conv.weight": np.zeros((8, 3, 3, 3), np.float32), "conv.bias": np.asfortranarray(np.zeros((4, 2), np.float16)), "bn.running_mean": np.zeros(8, ">f4"),
        "large.weight": np.zeros((200, 100), np.float32), "names": np.array(["a"]), "any": np.array([None]),
    }  # fmt: skip
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({key: arrays, "__author__": "zoo"}, protocol))
    result = check(tmp_path / "a.pkl")
    assert result.checkpoint
    assert result.totals

    assert {row.name: (row.shape, row.dtype, row.role) for row in result.checkpoint.tensors} == {
        "conv.weight": ([8, 3, 3, 3], "float32", "parameter"), "conv.bias": ([4, 2], "float16", "parameter"),
        "bn.running_mean": ([8], "float32", "buffer"), "large.weight": ([200, 100], "float32", "parameter"),
    }  # fmt: skip
    assert (result.totals.parameters, result.totals.parameter_bytes) == (216 + 8 + 20_000, 864 + 16 + 80_000)
    assert result.notes == ["weights not read: it is a numpy array in the pickle"]
    assert [f.rule for f in result.findings] == ["CNV611"]


def test_nested_and_distributed_tensors_and_generators_are_data(tmp_path: Path) -> None:
    distributed = pytest.importorskip("torch.distributed.tensor")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        shards = [distributed.distribute_tensor(torch.ones(4, 2), mesh, [place]) for place in (distributed.Shard(0), distributed.Replicate())]
        torch.save({"a.weight": shards[0], "b.weight": shards[1]}, tmp_path / "a.pt")
    finally:
        torch.distributed.destroy_process_group()
    for name, layout in (("b.pt", torch.strided), ("c.pt", torch.jagged)):
        torch.save({"n": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout), "w": torch.ones(1)}, tmp_path / name)
    torch.save({"g": torch.Generator()}, tmp_path / "d.pt")
    results = [check(path) for path in sorted(tmp_path.iterdir())]
    assert results[0].checkpoint

    assert [[f.rule for f in result.findings] for result in results] == [["CNV611"], [], ["CNV611"], ["CNV611"]]
    assert [(row.name, row.shape) for row in results[0].checkpoint.tensors] == [("a.weight", [4, 2]), ("b.weight", [4, 2])]
    assert [result.status for result in results] == ["ok"] * 4


def test_a_sharded_tensor_is_no_code(tmp_path: Path) -> None:
    sharded = pytest.importorskip("torch.distributed._shard.sharded_tensor")
    spec = pytest.importorskip("torch.distributed._shard.sharding_spec")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        made = sharded.zeros(spec.ChunkShardingSpec(dim=0, placements=["rank:0/cpu"]), 4, 2)
        torch.save({"a.weight": made}, tmp_path / "a.pt")
    finally:
        torch.distributed.destroy_process_group()

    assert {f.rule for f in check(tmp_path / "a.pt").findings} == {"CNV610"}


def test_roles_and_ties(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "a.pt")
    torch.save(tied(), tmp_path / "b.pt")
    first, second = check(tmp_path / "a.pt"), check(tmp_path / "b.pt")
    assert first.checkpoint
    assert first.totals
    assert second.checkpoint
    assert second.totals

    assert {row.role for row in first.checkpoint.tensors} == {"parameter", "buffer", "optimizer"}
    assert first.totals.parameters == sum(p.numel() for p in net().parameters())
    assert first.totals.buffers == 8 + 8 + 1
    assert second.totals.parameters == 16 + 4 + 4
    assert first.totals.macs is None


def test_a_tensor_beside_the_state_dict_is_no_weight(tmp_path: Path) -> None:
    state = {"model": net().state_dict(), "best": torch.tensor(1.0), "rng": torch.get_rng_state()}
    torch.save(state, tmp_path / "a.pt")
    totals = check(tmp_path / "a.pt").totals

    assert totals
    assert totals.parameters == sum(p.numel() for p in net().parameters())


def test_python_2_and_plain_pickles(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02ccopy_reg\n_reconstructor\nq\x00c__builtin__\ndict\nc__builtin__\ndict\n}\x87R.")
    for protocol in range(6):
        (tmp_path / f"{protocol}.pkl").write_bytes(pickle.dumps({"a": [1, 2.5, "x", None, True, 10**30, b"b"]}, protocol))
    codes = {path.name: {f.rule for f in check(path).findings} for path in tmp_path.iterdir()}

    assert not set.union(*codes.values()) & {"CNV001", "CNV601", "CNV602"}


def test_torchscript_is_a_program(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 4, 3).eval(), torch.zeros(1, 3, 8, 8)), str(tmp_path / "a.pt"))
    result = check(tmp_path / "a.pt")
    assert result.checkpoint
    assert result.totals

    assert (result.checkpoint.format, result.totals.parameters) == ("torchscript", 3 * 4 * 9 + 4)
    assert [(f.rule, f.severity) for f in result.findings] == [("CNV610", "info")]


def test_a_header_that_begins_as_a_pickle_does(tmp_path: Path) -> None:
    entry = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    for length in (0x80, 0x180, 0x280, 0x480):
        (tmp_path / "a.bin").write_bytes(length.to_bytes(8, "little") + entry.ljust(length) + b"x")
        result = check(tmp_path / "a.bin")
        assert result.checkpoint
        assert (result.checkpoint.format, result.findings) == ("safetensors", [])


def test_a_pickle_in_bytes_is_a_note(tmp_path: Path) -> None:
    torch.save(HONEST["pickled code"](), tmp_path / "a.pt")
    result = check(tmp_path / "a.pt")

    assert result.findings == []
    assert "is itself a pickle that names builtins.print; loading does not read it" in result.notes[0]


def test_a_partial_of_a_class_is_no_more_than_the_class(tmp_path: Path) -> None:
    torch.save(Norms(), tmp_path / "a.pt")
    found = {f.rule: f for f in check(tmp_path / "a.pt").findings}

    assert "CNV601" not in found
    assert "functools.partial" in found["CNV610"].evidence["globals"]


def test_an_exported_program(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(net()[:2].eval(), (torch.zeros(1, 3, 8, 8),)), tmp_path / "a.pt2")
    result = check(tmp_path / "a.pt2")
    assert result.checkpoint
    assert result.totals

    assert {row.name: row.shape for row in result.checkpoint.tensors} == {k: list(t.shape) for k, t in net()[:2].state_dict().items()}
    assert (result.totals.parameters, result.totals.buffers, result.findings) == (3 * 8 * 9 + 8 + 16, 17, [])
    assert result.checkpoint.globals[0].member.endswith(".pt!archive/data.pkl")
    assert result.notes == []


def test_safetensors_and_shards(tmp_path: Path) -> None:
    header = json.dumps({
        "__metadata__": {"format": "pt"}, "w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        "n": {"dtype": "I64", "shape": [], "data_offsets": [12, 20]},
    }).encode()  # fmt: skip
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(20))
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "x.safetensors", "n": "x.safetensors"}}))
    for name, form in (("x.safetensors", "safetensors"), ("m.safetensors.index.json", "sharded")):
        result = check(tmp_path / name)
        assert result.checkpoint
        assert result.totals
        assert (result.findings, result.checkpoint.format) == ([], form)
        assert (result.totals.parameters, result.totals.buffers, result.totals.parameter_bytes) == (6, 1, 12)


def array(*values: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(*values))
    return out.getvalue()


def old_tar(name: str) -> bytes:
    """A tar without its magic, as those before POSIX are."""
    raw = bytearray(b"\x80" * (name[0] == "\x02") + name.encode()).ljust(512, b"\0")
    raw[148:156] = b"%06o\0 " % (sum(raw) + 8 * 32)
    return bytes(raw)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "HTML page"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"0" * 257 + b"ustar" + bytes(300), "tar file"), (old_tar("x.pkl"), "unpack it, and audit what is in it"),
        (old_tar("\x02}."), "tar file"),
        *(
            (array(*values), "a NumPy array, no checkpoint")
            for values in ([["a", "bcd"]], [["2020-01-01"], "M8[s]"], [[b"N0."]], [[(1, 2)], [("x y", "f4"), ("y", "i4")]], [[b"N."], "V4"], [[1], "m8[25s]"],
                           [[((1, 2), "b")], [("a", [("O", ">f4"), ("c", "?", (2,))]), ("b", "U3")]])
        ),
        (b"/usr/lib/python/extra\n", "no checkpoint that convaudit knows"),
    ],
)
def test_what_is_no_checkpoint_says_what_it_is(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    result = check(tmp_path / "a.pt")

    assert (result.status, result.kind) == ("failed", "checkpoint")
    assert result.error is not None
    assert said in result.error.message


@pytest.mark.parametrize("code", [c for c, r in registry.rules().items() if r.subject == "checkpoint"])
def test_own_examples(tmp_path: Path, code: str) -> None:
    rule = registry.rules()[code]
    assert rule.bad_files()
    assert rule.good_files()
    for expected, examples in (([code], rule.bad_files()), ([], rule.good_files())):
        for example in examples:
            path = tmp_path / f"a{example.suffix}"
            path.write_bytes(example.build())
            model = Expected.of("a model", example.model) if example.model else None
            assert [f.rule for f in audit_file(str(path), AuditSettings(select=[code]), model=model).findings] == expected


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "convaudit", "check", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "CONVAUDIT_CACHE_DIR": str(folder / "kept")},
    )  # fmt: skip


def test_command_line(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "good.pt")
    torch.save(net(), tmp_path / "module.pt")
    (tmp_path / "evil.pt").write_bytes(b"cos\nsystem\n(S'id\x1b[31m'\ntR.")
    (tmp_path / "pointer.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    good, whole, evil, pointer = (cli(tmp_path, f"{name}.pt") for name in ("good", "module", "evil", "pointer"))
    assert [done.returncode for done in (good, whole, evil, pointer)] == [0, 1, 1, 2]
    assert "0 elements" not in good.stdout
    assert "Traceback" not in good.stderr + pointer.stderr
    assert "CNV601 error loading it would call os.system" in evil.stdout

    table = cli(tmp_path, "evil.pt", "--globals").stdout
    assert "code        os.system  pickle at byte 0  called with" in table
    assert "\x1b" not in table + evil.stdout

    folder = cli(tmp_path, ".", "--format", "json")
    result = json.loads(folder.stdout)
    assert {t["target"] for t in result["targets"]} == {"good.pt", "module.pt", "evil.pt"}
    assert "pointer.pt: a Git LFS pointer" in folder.stderr
    jsonschema = pytest.importorskip("jsonschema")
    schema = Path(registry.__file__).parent / "schema" / "audit-result-1.schema.json"
    jsonschema.validate(result, json.loads(schema.read_text()))

    hook = cli(tmp_path, "--changed", "--fail-on", "error", "module.pt", "pointer.pt")
    assert hook.returncode == 0
    assert "pointer.pt is not audited: a Git LFS pointer" in hook.stderr
    assert cli(tmp_path, "module.pt", "--strict-pickle", "--fail-on", "error").returncode == 1
    (tmp_path / "convaudit.toml").write_text('allow-globals = ["torch.nn.*"]\n')
    assert cli(tmp_path, "module.pt").returncode == 0
