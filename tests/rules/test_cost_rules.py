"""Rules about cost: figures equal to closed formulas, severities by their thresholds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from convaudit import audit
from convaudit.engine import audit_model
from convaudit.networks import NETWORKS
from convaudit.result import InputInfo
from convaudit.settings import AuditSettings


def findings(model: nn.Module, shape: tuple[int, ...], **settings: Any) -> list[Any]:
    return audit(model, torch.empty(shape, device="meta"), **settings).targets[0].findings


@pytest.mark.parametrize(
    ("samples", "severity"),
    [(1_000, "warning"), (100_000, "warning"), (5_017_700, "info"), (20_000_000, "info"), (50_177_000, None)],
)
def test_overfitting_risk_of_a_linear_on_an_image(samples: int, severity: str | None) -> None:
    build, shape = NETWORKS["LinearOnImage"]
    with torch.device("meta"):
        model = build()
    found = findings(model, shape, select=["CNV105"], dataset_size=samples)

    assert [f.severity for f in found] == ([severity] if severity else [])
    assert all(f.evidence["density"] == 50_177_000 / samples for f in found)


def test_frozen_parameters_do_not_count() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 100).requires_grad_(False), nn.Linear(100, 10))
    found = findings(model, (1, 1, 28, 28), select=["CNV105"], dataset_size=100)

    assert [f.evidence["trainable_parameters"] for f in found] == [1010]


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_linear_on_copies_saves_all_but_one_of_them(name: str) -> None:
    """ImageNet's classifiers at 64×64 (AlexNet: 1×1 to 6×6) and 32×32 (VGG: 1×1 to 7×7)."""
    from torchvision.models import get_model

    with torch.device("meta"):
        model = get_model(name)
    side, width, positions = (64, 256, 36) if name == "alexnet" else (32, 512, 49)
    (found,) = findings(model, (1, 3, side, side), select=["CNV210"])
    total = sum(p.numel() for p in model.parameters())

    assert (found.severity, found.layers) == ("warning", ["avgpool"])
    assert found.saving.parameters == (total, total - (positions - 1) * width * 4096)


def test_pooling_to_the_same_values_gives_the_same_output() -> None:
    """The smaller Linear's weights are the sums over the copies."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(8 * 64, 5))
    small = nn.Sequential(model[0], nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(8 * 16, 5))
    with torch.no_grad():
        small[3].bias.copy_(model[3].bias)
        small[3].weight.copy_(model[3].weight.view(5, 8, 4, 2, 4, 2).sum((3, 5)).flatten(1))
    x = torch.randn(2, 3, 8, 8)
    (found,) = findings(model, (2, 3, 8, 8), select=["CNV210"])

    torch.testing.assert_close(small(x), model(x))
    assert found.saving.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (model, small))


def test_an_assumed_input_is_info() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(8 * 64, 5))
    assumed = [InputInfo([1, 3, 8, 8], "float32", "inferred")]
    settings = AuditSettings(select=["CNV210"])
    image = torch.empty(1, 3, 8, 8, device="meta")
    (found,) = audit_model(model, (image,), {}, target="m", settings=settings, inputs=assumed).findings
    assert found.severity == "info"


def test_saving_of_separable_blocks_equals_the_closed_formula() -> None:
    """DeepNarrowNet's convolutions with 64 channels on both sides: 9·C·O + O becomes 9·C + 2·C + C·O + O."""
    build, shape = NETWORKS["DeepNarrowNet"]
    (found,) = findings(build(), shape, select=["CNV501"])
    pairs = [(64, 64), (64, 128), (128, 128), (128, 256), (256, 256)]

    assert found.severity == "info"
    assert list(found.evidence["layers"].values()) == [[c, o, 3, 3] for c, o in pairs]
    before, after = found.saving.parameters
    assert before - after == sum(9 * c * o - 11 * c - c * o for c, o in pairs)


def test_separable_blocks_keep_the_shape_and_run() -> None:
    from convaudit.tracer import record
    from convaudit_rules.separable_candidate import separable

    for conv in (nn.Conv2d(64, 96, 3, 2, 1), nn.Conv2d(64, 64, 4, padding="same"), nn.Conv2d(64, 64, 3, dilation=2)):
        graph = record(conv, (torch.empty(1, 64, 17, 17, device="meta"),), {})
        call = graph.calls[0][1]
        assert call.conv is not None
        block = nn.Sequential(*separable(call.conv, call))
        assert tuple(block(torch.empty(1, 64, 17, 17, device="meta")).shape) == call.outputs[0]


def test_hotspot_of_vgg16_is_its_first_linear() -> None:
    from torchvision.models import vgg16

    with torch.device("meta"):
        model = vgg16()
    (found,) = findings(model, (1, 3, 224, 224), select=["CNV502"])

    assert (found.severity, found.layers) == ("info", ["classifier.0"])
    assert found.evidence["shares"] == {"classifier.0": {"parameters": (25088 * 4096 + 4096) / 138_357_544}}
