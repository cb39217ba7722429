"""Severities where a rule's row in the catalogue names more than one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from convaudit import audit, registry
from convaudit.engine import audit_model
from convaudit.result import InputInfo
from convaudit.settings import AuditSettings


def severities(code: str, model: nn.Module, *shapes: tuple[int, ...], **settings: Any) -> list[str]:
    images = tuple(torch.empty(shape, device="meta") for shape in shapes)
    return [f.severity for f in audit(model, images, select=[code], **settings).targets[0].findings]


def head(width: int, classes: int = 10) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


@pytest.mark.parametrize(
    ("layers", "severity"),
    [
        ([nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(7200, 64)], "warning"),
        ([nn.Conv2d(3, 64, 3), *head(64, 2000)], "info"),
        ([nn.Conv2d(3, 8, 32), nn.Flatten(), nn.Linear(8, 20000)], "info"),
    ],
    ids=["a map", "a pool", "a 1×1 map"],
)
def test_low_conv_share_is_info_where_all_fc_layers_read_vectors(layers: list[nn.Module], severity: str) -> None:
    assert severities("CNV103", nn.Sequential(*layers), (1, 3, 32, 32)) == [severity]


@pytest.mark.parametrize(
    ("layers", "severity"),
    [
        ([nn.Conv2d(3, 64, 7), *head(64)], "warning"),
        ([nn.Conv2d(3, 64, 7, 2), *head(64)], "info"),
        ([nn.Conv2d(3, 64, 7, (1, 2)), *head(64)], "info"),
        ([nn.Conv2d(3, 64, 7), nn.Conv2d(64, 10, 1)], "info"),
        ([nn.Conv2d(3, 8, 7), nn.Conv2d(8, 512, 3), nn.Conv2d(512, 64, 3), *head(64)], "info"),
    ],
    ids=["classifier", "stride 2", "stride on one axis", "an output per pixel", "under 5% of the MACs"],
)
def test_a_large_stem_is_a_warning_at_stride_1_in_a_classifier(layers: list[nn.Module], severity: str) -> None:
    assert severities("CNV202", nn.Sequential(*layers), (1, 3, 64, 64)) == [severity]


@pytest.mark.parametrize(("which", "severity"), [(0, "warning"), (1, "info"), (2, "info")])
def test_idle_layers_are_a_warning_from_half_of_the_parameters(which: int, severity: str) -> None:
    example = registry.rules()["CNV206"].bad()[which]

    assert severities("CNV206", example.build(), *example.inputs) == [severity]


def test_a_width_policy_makes_other_widths_a_warning() -> None:
    model = nn.Sequential(nn.Conv2d(3, 100, 3), nn.Conv2d(100, 10, 1))

    assert severities("CNV301", model, (1, 3, 32, 32)) == ["info"]
    policy = {"CNV301": {"width-multiple": 8}}
    assert severities("CNV301", model, (1, 3, 32, 32), rules=policy) == ["warning"]


@pytest.mark.parametrize(("width", "severity"), [(21, "warning"), (22, "info")])
def test_biases_before_a_norm_are_a_warning_from_half_a_percent(width: int, severity: str) -> None:
    """The share is 1 / (9 · width + 3)."""
    model = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width))
    share = width / sum(p.numel() for p in model.parameters())

    assert share == 1 / (9 * width + 3)
    assert severities("CNV403", model, (2, width, 8, 8)) == [severity]


class Chooses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor, how: str = "first") -> Any:
        return self.first(x) if how == "first" else self.second(x)


def test_parameters_another_argument_may_read_are_info() -> None:
    assert severities("CNV404", Chooses(), (1, 3, 8, 8)) == ["info"]


@pytest.mark.parametrize("code", ["CNV205", "CNV206", "CNV207", "CNV210", "CNV408"])
def test_what_depends_on_an_assumed_input_is_info(code: str) -> None:
    example = registry.rules()[code].bad()[0]
    images = tuple(torch.empty(shape, device="meta") for shape in example.inputs)
    found = {}
    for source in ("option", "inferred"):
        inputs = [InputInfo(list(shape), "float32", source) for shape in example.inputs]
        settings = AuditSettings(select=[code])
        result = audit_model(example.build(), images, {}, target="m", settings=settings, inputs=inputs)
        found[source] = [f.severity for f in result.findings]

    assert found == {"option": ["warning"], "inferred": ["info"]}


def test_a_map_einops_flattens() -> None:
    einops = pytest.importorskip("einops")

    class Rearranged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 64, 3, 2, 1), nn.Linear(64 * 256, 128)

        def forward(self, x: torch.Tensor) -> Any:
            return self.fc(einops.rearrange(self.conv(x), "n c h w -> n (h w c)"))

    assert severities("CNV101", Rearranged(), (1, 3, 32, 32)) == ["warning"]
