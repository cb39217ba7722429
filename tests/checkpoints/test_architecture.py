"""A state_dict as an architecture: the layers that the tracer sees, and what rules say from names and shapes."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convaudit import inputs, targets
from convaudit.checkpoints.architecture import Architecture, Expected, architecture_of
from convaudit.checkpoints.audit import audit_file, run_rules
from convaudit.checkpoints.checkpoint import Checkpoint
from convaudit.checkpoints.formats import read_checkpoint
from convaudit.checkpoints.match import match
from convaudit.checkpoints.weights import scan
from convaudit.engine import audit_model
from convaudit.result import TargetResult, TensorRow
from convaudit.settings import AuditSettings

KINDS = {torch.float32: "F32", torch.int64: "I64"}
SPEAKING = ["CNV101", "CNV103", "CNV104", "CNV201", "CNV301"]


def hollow(path: Path, state: Mapping[str, Tensor]) -> None:
    """A safetensors file of the same names, shapes and dtypes in the same order, whose elements take no room on the disk."""
    header, at = {}, 0
    for name, tensor in state.items():
        header[name] = {"dtype": KINDS[tensor.dtype], "shape": tensor.shape, "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + at)


def check(path: Path, state: Mapping[str, Tensor], **settings: Any) -> TargetResult:
    hollow(path, state)
    return audit_file(str(path), AuditSettings(select=SPEAKING, weights="never", **settings))


def built(target: str) -> targets.BuiltTarget:
    with torch.no_grad():
        return targets.build(target)


@pytest.mark.parametrize(
    "target",
    [
        "torchvision:alexnet", "torchvision:resnet18", "torchvision:densenet121", "torchvision:mobilenet_v3_small",
        "torchvision:convnext_tiny", "torchvision:swin_t", "torchvision:vit_b_16", "torchvision:googlenet",
        "torchvision:fcn_resnet50", "timm:efficientnet_b0", "timm:mixer_s16_224", "timm:dm_nfnet_f0", "timm:deit_tiny_distilled_patch16_224",
    ],
)  # fmt: skip
def test_layers_are_those_of_the_tracer(tmp_path: Path, target: str) -> None:
    made = built(target)
    args = made.args or (inputs.model_inputs(made.model) or ((),))[0]
    traced = audit_model(made.model, args, {}, target=target, settings=AuditSettings(select=["CNV001"]))
    found = check(tmp_path / "a.pt", made.model.state_dict())
    assert found.totals
    assert traced.totals

    expected: dict[str, tuple[str, int]] = {}
    for row in traced.layers:
        if row.parameters:
            expected[row.name] = row.kind, row.parameters + expected.get(row.name, ("", 0))[1]
    uncalled = {row.name: expected[row.name] for row in traced.layers if row.call is None}
    assert {row.name: (row.kind, row.parameters) for row in found.layers if row.parameters} | uncalled == expected
    assert sum(row.parameters for row in found.layers) == found.totals.parameters == traced.totals.parameters
    assert found.totals.conv_parameters == traced.totals.conv_parameters or uncalled
    assert found.totals.fc_parameters in (None, traced.totals.fc_parameters)
    assert all(row.macs is row.flops is row.output_shapes is None for row in found.layers)


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("target", ["torchvision:alexnet", "torchvision:vgg16"])
def test_giant_heads_are_named(tmp_path: Path, target: str, by_name: bool) -> None:
    state = built(target).model.state_dict()
    found = check(tmp_path / "a.pt", {name: state[name] for name in sorted(state)} if by_name else state)
    said = {f.rule: f for f in found.findings}

    assert {code: f.severity for code, f in said.items() if code < "CNV2"} == {"CNV101": "warning", "CNV103": "info", "CNV104": "info"}
    assert all(f.message.endswith(", from names and shapes") and f.saving is None for f in found.findings)
    assert said["CNV101"].layers == said["CNV101"].fingerprint.split(":")[-1:]
    assert (said["CNV101"].layers, said["CNV104"].layers) == ([f"classifier.{'1' if 'alex' in target else '0'}"], [f"classifier.{'4' if 'alex' in target else '3'}"])


@pytest.mark.parametrize(
    "target",
    [
        "torchvision:resnet50", "torchvision:convnext_tiny", "torchvision:efficientnet_b0", "torchvision:densenet201", "torchvision:swin_t",
        "torchvision:vit_b_16", "torchvision:inception_v3", "torchvision:mvit_v2_s", "torchvision:fasterrcnn_resnet50_fpn",
        "timm:mixer_b16_224", "timm:maxvit_tiny_tf_224", "timm:legacy_senet154", "timm:vgg11_bn",
    ],
)  # fmt: skip
def test_no_word_about_fc_layers_of_others(tmp_path: Path, target: str) -> None:
    state = built(target).model.state_dict()
    codes = {f.rule for by in (False, True) for f in check(tmp_path / "a.pt", {n: state[n] for n in (sorted(state) if by else state)}).findings}

    assert codes <= {"CNV201", "CNV301"}


def linears(*pairs: tuple[int, int]) -> dict[str, Tensor]:
    return {f"fc{i}.weight": torch.zeros(()).expand(b, a) for i, (a, b) in enumerate(pairs)}


CONV = {"conv1.weight": torch.zeros(64, 3, 3, 3), "conv1.bias": torch.zeros(64)}


@pytest.mark.parametrize(
    ("state", "codes"),
    [
        ({**CONV, **linears((64 * 16, 2048), (2048, 10))}, ["CNV101", "CNV103"]),
        ({**CONV, **linears((64 * 15, 4096), (4096, 10))}, []),  # no square
        ({**CONV, **linears((64, 256), (256, 16384), (16384, 1024))}, ["CNV103", "CNV104"]),
        (linears((1024, 4096), (4096, 4096), (4096, 10)), []),  # no convolution
        ({**linears((1024, 2048)), **CONV}, []),  # a generator's projection
        ({**CONV, "bn.weight": torch.zeros(1024), "bn.running_mean": torch.zeros(1024), **linears((1024, 4096))}, []),  # concatenated
        ({**CONV, "lstm.weight_ih_l0": torch.zeros(()).expand(4096, 1024), "lstm.weight_hh_l0": torch.zeros(()).expand(4096, 1024)}, []),
        ({**CONV, "attn.in_proj_weight": torch.zeros(()).expand(192, 64), **linears((1024, 4096))}, []),
        ({**CONV, "aux.conv.weight": torch.zeros(64, 64, 1, 1), "aux.fc.weight": torch.zeros(()).expand(4096, 1024)}, []),
        ({**CONV, "word_embeddings.weight": torch.zeros(()).expand(30000, 1024), **linears((1024, 4096))}, []),
    ],
)
def test_heads(tmp_path: Path, state: dict[str, Tensor], codes: list[str]) -> None:
    assert [f.rule for f in check(tmp_path / "a.pt", state).findings] == codes


def test_options_and_settings_hold(tmp_path: Path) -> None:
    state = {**CONV, **linears((1024, 512), (512, 10))}

    assert not [f for f in check(tmp_path / "a.pt", state).findings if f.rule == "CNV101"]
    for settings, severity in (({}, "warning"), ({"pretrained": True}, "info"), ({"severity": {"CNV101": "error"}}, "error")):
        found = check(tmp_path / "a.pt", state, rule_options={"CNV101": {"min-params": 1000}}, **settings).findings
        assert [(f.rule, f.severity) for f in found if f.rule == "CNV101"] == [("CNV101", severity)]


def large(kernel: int, inward: int, outward: int, **more: Tensor) -> dict[str, Tensor]:
    return {
        "a.weight": torch.zeros(inward, 3, 3, 3), "b.weight": torch.zeros(outward, inward, kernel, kernel), "b.bias": torch.zeros(outward),
        "c.weight": torch.zeros(8, outward, 3, 3), **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("state", "spoken"),
    [
        (large(5, 32, 64), True),
        (large(5, 32, 32), True),
        (large(3, 32, 64), False),
        (large(4, 32, 64), False),
        (large(13, 32, 64), False),
        (large(5, 8, 64), False),
        ({**large(5, 32, 64), "b.bias": torch.zeros(32)}, False),  # transposed
        ({**large(5, 32, 64), "b.weight": torch.zeros(64, 1, 5, 5)}, False),  # depthwise
        ({**large(5, 32, 64), "c.weight": torch.zeros(8, 16, 3, 3)}, False),  # nobody reads its width
        ({**large(7, 32, 64), "c.weight": torch.zeros(64, 64, 1, 1)}, False),  # an FC layer written as a convolution
    ],
)
def test_large_kernels(tmp_path: Path, state: dict[str, Tensor], spoken: bool) -> None:
    assert ("CNV201" in {f.rule for f in check(tmp_path / "a.pt", state).findings}) is spoken


def test_widths(tmp_path: Path) -> None:
    state = {
        "a.weight": torch.zeros(48, 3, 3, 3), "b.weight": torch.zeros(48, 1, 3, 3), "c.weight": torch.zeros(20, 48, 1, 1),
        "d.weight": torch.zeros(40, 20, 3, 3), "e.weight": torch.zeros(100, 88, 3, 3),
    }  # fmt: skip
    found = {f.rule: f for f in check(tmp_path / "a.pt", state).findings}

    assert found["CNV301"].evidence["widths"] == {"a": 48}  # depthwise, a squeeze, joined to others, the output


def architecture(path: Path) -> Architecture:
    return architecture_of(read_checkpoint(str(path)))


def test_ops_and_transposed_convolutions(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, groups=16), nn.ConvTranspose2d(16, 8, 4, bias=False),
        nn.BatchNorm2d(8), nn.PReLU(), nn.LSTM(8, 4), nn.GRUCell(4, 4), nn.MultiheadAttention(8, 2), nn.LayerNorm(8), nn.Conv1d(8, 4, 3),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)),
    )  # fmt: skip
    torch.save(model.state_dict(), tmp_path / "a.pt")

    assert [layer.op for layer in architecture(tmp_path / "a.pt").layers] == [
        "Conv2d 3×3 3→16", "BatchNorm", "Conv2d 3×3 16, depthwise", "ConvTranspose2d 4×4 16→8", "BatchNorm", "PReLU", "LSTM", "GRUCell",
        "MultiheadAttention", "LayerNorm or GroupNorm", "Conv1d 3 8→4", "Linear 4→6",
    ]  # fmt: skip


def test_sorted_names_and_wrappers(tmp_path: Path) -> None:
    body = [layer for i in range(12) for layer in (nn.Conv2d(3 if not i else 8 * i, 8 * i + 8, 3), nn.ReLU())]
    model = nn.ModuleDict({"features": nn.Sequential(*body), "classifier": nn.Sequential(nn.Linear(96 * 49, 300), nn.Linear(300, 10))})
    state = {f"module._orig_mod.{name}": t for name, t in model.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    found = architecture(tmp_path / "a.safetensors")

    assert found.by_name
    assert [layer.name for layer in found.convs] == [f"features.{2 * i}" for i in range(12)]
    assert found.head is not None
    assert ([layer.name for layer in found.head.layers], found.head.channels, found.head.side) == (["classifier.0", "classifier.1"], 96, 7)


def test_tied_tensors_count_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    torch.save(model.state_dict(), tmp_path / "a.pt")
    found = audit_file(str(tmp_path / "a.pt"), AuditSettings())
    assert found.totals

    assert [row.parameters for row in found.layers] == [20, 4]
    assert found.totals.parameters == 24


@pytest.mark.parametrize("seed", range(40))
def test_any_shapes_under_any_names(seed: int) -> None:
    draw = random.Random(seed)
    leaves = ["weight", "bias", "running_mean", "running_var", "weight_hh_l0", "weight_ih_l0", "in_proj_weight", "gamma", "weight_v", "parametrizations.weight.original1"]
    file = Checkpoint("a.pt", "torch-zip", 0)
    for i in range(60):
        name = f"{draw.choice(['', 'module.', 'a.', 'aux.', '9' * 5000 + '.'])}{i // 3}.{draw.choice(leaves)}"
        shape = draw.choice([None, [], [0], [-3], [2**62] * 3, [draw.choice([-1, 0, 1, 3, 16, 64, 2**62]) for _ in range(draw.randrange(7))]])
        file.add(TensorRow(name, shape, "float32", None, None, draw.choice(["parameter", "buffer", "other"])), None, None)
    file.count()
    found = architecture_of(file)

    assert not [f for f in run_rules(file, "a.pt", AuditSettings(select=SPEAKING), found) if f.rule == "CNV001"]
    assert found.parameters == file.parameters
    assert match(file.tensors, Expected.of("b", {row.name: [1] for row in file.tensors[::2]}))


def parametrized(how: str) -> nn.Module:
    conv = nn.Conv2d(3, 8, 3)
    from torch.nn.utils import prune

    utils = nn.utils
    made = {
        "weight_norm": lambda: utils.weight_norm(conv), "spectral_norm": lambda: utils.spectral_norm(conv),
        "weight_norm, parametrized": lambda: utils.parametrizations.weight_norm(conv),
        "spectral_norm, parametrized": lambda: utils.parametrizations.spectral_norm(conv),
        "pruned": lambda: prune.ln_structured(conv, "weight", 0.5, n=2, dim=0),
        "bias pruned": lambda: prune.random_unstructured(conv, "bias", 0.5),
    }[how]()  # fmt: skip
    return nn.Sequential(made, nn.BatchNorm2d(8))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "weight_norm, parametrized", "spectral_norm, parametrized", "pruned", "bias pruned"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_parametrized_weight_is_one_layer(tmp_path: Path, how: str, alone: bool) -> None:
    """Of the shape the weight has; what the rules see of its filters is the weight that it makes."""
    model = parametrized(how)
    with torch.no_grad():
        model(torch.rand(1, 3, 8, 8))
    weight = model[0].weight.detach()
    torch.save((model[0] if alone else model).state_dict(), tmp_path / "a.pt")
    file = read_checkpoint(str(tmp_path / "a.pt"))
    found = architecture_of(file)
    seen = scan(file, found)
    filters = next(iter(seen.filters.values()))
    norms = weight.flatten(1).norm(dim=1).numpy()

    assert [layer.op for layer in found.layers] == ["Conv2d 3×3 3→8", "BatchNorm"][: 1 if alone else 2]
    assert filters.norms / filters.norms.max() == pytest.approx(norms / norms.max(), rel=1e-5)
    assert filters.dead.sum() == (4 if how == "pruned" else 0)
    assert seen.kernels is not None
    assert np.allclose(seen.kernels / abs(seen.kernels).max(), weight.numpy() / abs(weight.numpy()).max(), atol=1e-6)
    assert how != "pruned" or found.parameters == sum(p.numel() for p in (model[0] if alone else model).parameters())
