"""CNV603-606, 608 and 609 on files as torch saves them: thresholds, guards, and nets that have only begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convaudit.checkpoints.audit import audit_file
from convaudit.result import Finding
from convaudit.settings import AuditSettings

CODES = ["CNV603", "CNV604", "CNV605", "CNV606", "CNV608", "CNV609"]
NAN, INF = float("nan"), float("inf")


def found(tmp_path: Path, value: Any, *, select: list[str] | None = None, **settings: Any) -> list[Finding]:
    path = tmp_path / "a.pt"
    torch.save(value, path)
    return audit_file(str(path), AuditSettings(select=select or CODES, **settings)).findings


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def holed(tensor: torch.Tensor, value: float, *places: int) -> torch.Tensor:
    changed = tensor.clone()
    changed[list(places)] = value
    return changed


NORM = {"bn.bias": torch.zeros(40), "bn.running_mean": torch.zeros(40), "bn.num_batches_tracked": torch.tensor(1)}


@pytest.mark.parametrize(("tensors", "severity", "words"), [
    ({"a.weight": holed(torch.ones(9), NAN, 1, 2)}, "error", "a.weight has 2 NaN of 9"),
    ({"module.a.weight": torch.full((9,), NAN)}, "error", "parameter a.weight has 9 NaN"),  # as the layer is named
    ({"a.weight": holed(torch.zeros(9), INF, 1)[None]}, "info", "a.weight has 1 infinite of 9"),  # a mask
    ({"a.weight": torch.full((9,), -INF)}, "error", "9 infinite"),
    ({"attn_mask": torch.triu(torch.full((4, 4), -INF), 1)}, "info", "6 infinite of 16"),
    ({"a.min_val": torch.tensor(INF), "a.max_val": torch.tensor(-INF)}, "info", "and 1 more such tensor"),
    ({"bn.running_mean": holed(torch.ones(4), NAN, 0)}, "info", "1 NaN"),
    ({"model": {"a.weight": torch.ones(3)}, "optimizer": {"state": {0: torch.full((3,), NAN)}}}, None, ""),
])  # fmt: skip
def test_non_finite_weights(tmp_path: Path, tensors: Any, severity: str | None, words: str) -> None:
    findings = found(tmp_path, tensors, select=["CNV603"])

    assert [f.severity for f in findings] == ([severity] if severity else [])
    assert all(words in f.message for f in findings)


@pytest.mark.parametrize(("dead", "ballast", "severity"), [
    ((3,), 0, "info"), ((3, 5), 0, "warning"), ((3, 5), 200_000, "info"), ((), 0, None), (tuple(range(40)), 0, None), (tuple(range(1, 40)), 0, "warning"),
])  # fmt: skip
def test_dead_filters_by_share(tmp_path: Path, dead: tuple[int, ...], ballast: int, severity: str | None) -> None:
    """5% of the layer's filters and 1% of the parameters; all of them is how a layer begins."""
    tensors = {"c.conv.weight": holed(normal(40, 8, 3, 3), 0, *dead), "fc.weight": normal(1, max(ballast, 1))}
    findings = found(tmp_path, tensors)

    assert [(f.rule, f.severity, f.layers) for f in findings] == ([("CNV604", severity, ["c.conv"])] if severity else [])
    assert [f.evidence["filters"]["c.conv"] for f in findings] == [list(dead)] * bool(severity)
    assert [f.fingerprint.rpartition(":")[2] for f in findings] == ["c.conv"] * bool(severity)


@pytest.mark.parametrize(("scale", "fires"), [(0.9e-6, True), (2e-6, False)])
def test_dead_filters_by_norm(tmp_path: Path, scale: float, fires: bool) -> None:
    weight = torch.nn.functional.normalize(normal(9, 8, 3, 3).flatten(1)).reshape(9, 8, 3, 3)
    weight[4] *= scale

    assert [f.rule for f in found(tmp_path, {"conv.weight": weight})] == ["CNV604"] * fires


@pytest.mark.parametrize(("angle", "fires"), [(0.04, True), (0.05, False)])  # arccos 0.999 is 0.0447
def test_duplicate_filters_by_angle(tmp_path: Path, angle: float, fires: bool) -> None:
    weight = normal(16, 8, 3, 3)
    one, other = weight[3].double(), weight[7].double()
    other = other - one * (one * other).sum() / one.square().sum()
    weight[11] = (-2 * (torch.cos(torch.tensor(angle)) * one / one.norm() + torch.sin(torch.tensor(angle)) * other / other.norm())).float()
    findings = found(tmp_path, {"conv.weight": weight})

    assert [(f.rule, f.severity, f.evidence["filters"]) for f in findings] == [("CNV605", "info", {"conv": [[11, 3]]})] * fires


def test_duplicate_filters_of_a_first_layer_that_reads_grey(tmp_path: Path) -> None:
    """[filters, 1, k, k] is depthwise anywhere else."""
    weight = normal(16, 1, 5, 5)
    weight[9] = weight[2]

    assert [f.layers for f in found(tmp_path, {"stem.weight": weight, "body.weight": normal(16, 16, 3, 3)}, select=["CNV605"])] == [["stem"]]
    assert found(tmp_path, {"stem.weight": normal(16, 3, 3, 3), "body.weight": weight}, select=["CNV605"]) == []


@pytest.mark.parametrize(("gamma", "variance", "words", "severity"), [
    (holed(torch.ones(40), 1e-7, 3), torch.ones(40), "constant channels of bn: 1 of 40; their gamma is zero", "info"),
    (holed(torch.ones(40), 0, 3, 4, 5), torch.ones(40), "bn: 3 of 40", "warning"),
    (holed(torch.ones(40), 0, 3), holed(torch.ones(40), 1e-11, 3, 4), "the gamma of 1 is zero, the input of 1 never varies", "warning"),
    (torch.ones(40), holed(torch.ones(40), 0, 4), "their input never varies", "info"),
    (torch.zeros(40), torch.ones(40), "", None),
    (torch.ones(40), torch.zeros(40), "", None),
    (holed(torch.ones(40), 1e-5, 3), holed(torch.ones(40), 1e-9, 3), "", None),
])  # fmt: skip
def test_dead_batchnorm_channels(tmp_path: Path, gamma: torch.Tensor, variance: torch.Tensor, words: str, severity: str | None) -> None:
    tensors = {"conv.weight": normal(40, 8, 3, 3), "bn.weight": gamma, **NORM, "bn.running_var": variance}
    findings = found(tmp_path, tensors)

    assert [(f.rule, f.severity, f.layers) for f in findings] == ([("CNV606", severity, ["bn"])] if severity else [])
    assert all(words in f.message for f in findings)


def test_a_channel_whose_filter_is_dead_is_said_once(tmp_path: Path) -> None:
    tensors = {"conv.weight": holed(normal(40, 8, 3, 3), 0, 4), "bn.weight": torch.ones(40), **NORM, "bn.running_var": holed(torch.ones(40), 0, 4)}

    assert [f.rule for f in found(tmp_path, tensors)] == ["CNV604"]


def trained() -> dict[str, Any]:
    net = nn.Linear(200, 200, bias=False)
    optimizer = torch.optim.Adam(net.parameters())
    net.weight.grad = torch.randn(200, 200)
    optimizer.step()
    return {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "ema": {"weight": net.weight.detach() + 1}}


def test_deployment_baggage(tmp_path: Path) -> None:
    """Bytes by what they are; without them the file weighs what the model's own weighs."""
    finding = found(tmp_path, trained())[0]
    torch.save(trained()["model"], tmp_path / "own.pt")

    assert (finding.rule, finding.severity) == ("CNV608", "info")
    assert finding.evidence["bytes"] == {"optimizer state": 2 * 160_000 + 4, "EMA copies": 160_000}
    assert abs(finding.evidence["without"] - (tmp_path / "own.pt").stat().st_size) < 4_000


@pytest.mark.parametrize(("tensors", "what"), [
    ({"a.weight": normal(200, 200)[:10]}, {"storages of no tensor": 190 * 200 * 4}),
    ({"a.weight": normal(200, 200).double()}, {"float64": 160_000}),
    ({"a.weight": normal(200, 200), "b.weight": normal(200, 200)}, {"storages held twice": 160_000}),
    ({"a.weight": torch.zeros(200, 200), "b.weight": torch.zeros(200, 200)}, None),
    ({"a.weight": normal(20, 20), "b.weight": normal(20, 20)}, None),
    ((lambda w: {"a.weight": w, "b.weight": w.t(), "c": w[3:9]})(normal(200, 200)), None),
    ({"optimizer": {"state": normal(200, 200)}}, None),
    ({"a.weight": normal(200, 200), "sparse": torch.eye(300).to_sparse()}, None),
])  # fmt: skip
def test_storages(tmp_path: Path, tensors: Any, what: dict[str, int] | None) -> None:
    findings = found(tmp_path, tensors, select=["CNV608"], weights="never")

    assert [f.evidence["bytes"] for f in findings] == ([what] if what else [])


def test_a_file_is_never_baggage_as_a_whole(tmp_path: Path) -> None:
    finding = found(tmp_path, {"a.weight": normal(2000, 2000)[:1]}, select=["CNV608"], weights="never")[0]

    assert finding.message.startswith(">99% of the file")


def test_a_storage_that_no_tensor_is_in(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "a.pt"
    torch.save({"a.weight": normal(100, 100)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data/77", bytes(30_000))
    findings = audit_file(str(path), AuditSettings(select=["CNV608"])).findings

    assert [f.evidence["bytes"] for f in findings] == [{"storages of no tensor": 30_000}]


def test_untrained_first_layer_needs_kernels_and_its_whole_code(tmp_path: Path) -> None:
    grating = torch.cos(torch.linspace(0, 3, 7)[:, None] * torch.rand(64, 3, 1, 1) * 3 + torch.linspace(0, 3, 7)[None, :])

    assert [f.rule for f in found(tmp_path, {"conv.weight": normal(64, 3, 7, 7)})] == ["CNV609"]
    assert found(tmp_path, {"conv.weight": normal(64, 3, 7, 7)}, select=["CNV6"]) == []
    assert found(tmp_path, {"conv.weight": grating}) == []
    assert found(tmp_path, {"conv.weight": normal(64, 3, 7, 7), "fc.weight": normal(2, 2)}, weights="never") == []


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "timm:convnextv2_atto", "timm:repghostnet_050", "timm:mobileone_s0", "timm:resnetv2_50"])
def test_nets_that_have_only_begun(tmp_path: Path, name: str) -> None:
    """Zero-initialised gammas, layer scales, shifted norms: nothing is dead, all first layers are untrained."""
    import timm
    from torchvision.models import get_model

    torch.manual_seed(0)
    net = timm.create_model(name[5:]) if name.startswith("timm:") else get_model(name)

    assert {f.rule for f in found(tmp_path, net.state_dict())} <= {"CNV609"}


def test_adapters_begin_at_zero(tmp_path: Path) -> None:
    zero, lora = nn.Conv2d(320, 320, 1), nn.Linear(64, 2048, bias=False)
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(lora.weight)
    net = nn.ModuleDict({"zero_convs_0": zero, "zero_convs_1": zero, "lora_B": lora, "other_B": nn.Linear(64, 2048, bias=False)})

    assert found(tmp_path, {**net.state_dict(), "copy": torch.zeros(2048, 64)}) == []
