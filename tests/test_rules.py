"""Every rule's own examples, documentation, and what it must say about the article's networks and the classics."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from typing import Any

import pytest
import torch

from convaudit import audit, registry
from convaudit.networks import NETWORKS
from convaudit.rule import DOC_HEADINGS, Example

RULES = registry.rules()


def run(model: Any, shapes: Any, **settings: Any) -> Any:
    return audit(model, tuple(torch.empty(s, device="meta") for s in shapes), **settings).targets[0]


def cases(which: str) -> list[Any]:
    return [
        pytest.param(code, example, id=f"{code}-{i}-{example.note}")
        for code, rule in RULES.items()
        for i, example in enumerate(getattr(rule, which)())
    ]


@pytest.mark.parametrize(("code", "example"), cases("bad"))
def test_fires_on_bad(code: str, example: Example) -> None:
    result = run(example.build(), example.inputs, select=[code], **example.settings)

    assert [f.rule for f in result.findings] == [code]
    finding = result.findings[0]
    if finding.saving is not None:
        assert finding.saving.parameters[1] < finding.saving.parameters[0]
        assert finding.saving.parameters[0] == result.totals.parameters


@pytest.mark.parametrize(("code", "example"), cases("good"))
def test_silent_on_good(code: str, example: Example) -> None:
    assert run(example.build(), example.inputs, select=[code], **example.settings).findings == []


@pytest.mark.parametrize("code", RULES)
def test_documented_and_in_its_place(code: str) -> None:
    rule = RULES[code]
    places = [rule.documentation().find(f"## {heading}") for heading in DOC_HEADINGS]

    assert -1 not in places
    assert places == sorted(places)
    stem = importlib.import_module(rule.__module__).__name__.rpartition(".")[2]
    assert stem == rule.name.replace("-", "_")
    assert inspect.isclass(rule.options)


ARTICLE = {  # parameters, MACs, must be found, must not be found
    "FCNetwork": (101_770, 101_632, {"CNV102"}, {"CNV101", "CNV103"}),
    "ConvNetwork": (63_050, 288_512, {"CNV106"}, {"CNV101", "CNV103", "CNV201"}),
    "FCNet": (3_676_682, 3_675_136, {"CNV102"}, {"CNV101", "CNV103"}),
    "BasicCNN": (1_193_642, 30_249_984, {"CNV101", "CNV103"}, {"CNV106", "CNV201", "CNV301", "CNV401"}),
    "ShallowWideNet": (840_970, 228_985_344, {"CNV201", "CNV202", "CNV205"}, {"CNV101", "CNV103"}),
    "DeepNarrowNet": (1_174_826, 52_791_808, set(), {"CNV101", "CNV103", "CNV201", "CNV205", "CNV301", "CNV401"}),
    "EfficientConvNet": (274_250, 18_662_400, set(), {"CNV101", "CNV103", "CNV201", "CNV205", "CNV301", "CNV403"}),
    "LinearOnImage": (50_177_000, 50_176_000, {"CNV102"}, set()),
}


@pytest.mark.parametrize("name", ARTICLE)
def test_article_networks(name: str) -> None:
    parameters, macs, found, forbidden = ARTICLE[name]
    build, shape = NETWORKS[name]
    with torch.device("meta"):
        model = build()
    result = run(model, [shape])

    assert (result.totals.parameters, result.totals.macs) == (parameters, macs)
    codes = {f.rule for f in result.findings}
    assert found <= codes
    assert not codes & forbidden
    assert sum(row.parameters for row in result.layers) == parameters
    assert sum(row.macs for row in result.layers) == macs


def test_stem_of_shallow_wide_net_is_a_warning() -> None:
    result = run(NETWORKS["ShallowWideNet"][0](), [(1, 3, 32, 32)], select=["CNV202"])

    assert [(f.severity, f.layers) for f in result.findings] == [("warning", ["conv1"])]


@pytest.mark.parametrize(
    ("name", "warnings"),
    [
        ("alexnet", {"CNV101", "CNV103", "CNV104", "CNV201"}),
        ("vgg16", {"CNV101", "CNV103", "CNV104", "CNV401"}),
        ("resnet18", set()),
        ("densenet121", set()),
        ("mobilenet_v3_large", set()),
        ("mobilenet_v3_small", set()),
        ("efficientnet_b0", set()),
        ("convnext_tiny", set()),
        ("regnet_y_400mf", set()),
        ("swin_t", set()),
        ("vit_b_16", set()),
        ("shufflenet_v2_x0_5", set()),
    ],
)
def test_classics(name: str, warnings: set[str]) -> None:
    from torchvision.models import get_model

    with contextlib.nullcontext() if "regnet" in name else torch.device("meta"):  # its constructor reads values
        model = get_model(name)
    result = run(model, [(1, 3, 224, 224)])

    assert {f.rule for f in result.findings if f.severity != "info"} == warnings


def test_saving_of_pooling_equals_the_closed_formula() -> None:
    """BasicCNN: Linear(2048, 512) becomes Linear(128, 512)."""
    finding = run(NETWORKS["BasicCNN"][0](), [(1, 3, 32, 32)], select=["CNV101"]).findings[0]
    saved = (2048 - 128) * 512

    assert finding.saving.parameters == (1_193_642, 1_193_642 - saved)
    assert finding.saving.macs == (30_249_984, 30_249_984 - saved)
    assert finding.alternatives[0].saving.parameters == (1_193_642, 1_193_642 - (2048 - 512) * 512)


def test_saving_of_the_stack_equals_the_closed_formula() -> None:
    """128→256 5×5 (819,456) becomes 128→128→256 3×3 (442,752)."""
    finding = run(NETWORKS["ShallowWideNet"][0](), [(1, 3, 32, 32)], select=["CNV201"]).findings[0]

    assert finding.saving.parameters == (840_970, 840_970 - 819_456 + 442_752)


def test_saving_without_the_hidden_layer_equals_the_closed_formula() -> None:
    from torchvision.models import vgg16

    with torch.device("meta"):
        model = vgg16()
    finding = run(model, [(1, 3, 224, 224)], select=["CNV104"]).findings[0]

    assert finding.saving.parameters == (138_357_544, 138_357_544 - 4096 * 4097)


def test_an_imagenet_resnet_on_small_images() -> None:
    from torchvision.models import resnet18

    findings = {f.rule: f.severity for f in run(resnet18(), [(1, 3, 32, 32)]).findings}

    assert findings["CNV207"] == "warning"
    assert findings.get("CNV206", "info") == "info"


def test_pretrained_lowers_what_breaks_checkpoints() -> None:
    result = run(NETWORKS["BasicCNN"][0](), [(1, 3, 32, 32)], pretrained=True)

    assert {f.severity for f in result.findings} == {"info"}


def test_two_per_mac_convention() -> None:
    model = NETWORKS["BasicCNN"][0]()
    one, two = (run(model, [(1, 3, 32, 32)], flop_convention=c).totals for c in ("fvcore", "two-per-mac"))

    assert two.flops == one.flops + one.macs


def test_a_tower_called_twice_is_one_layer() -> None:
    from torch import nn

    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 64 * 64, 100))

        def forward(self, left: Any, right: Any) -> Any:
            return self.tower(left), self.tower(right)

    result = run(Siamese(), [(1, 1, 64, 64)] * 2, select=["CNV101", "CNV103"])

    assert [(f.rule, f.severity, f.layers) for f in result.findings] == [
        ("CNV101", "warning", ["tower.2"]),
        ("CNV103", "warning", ["tower.2"]),
    ]
    assert result.findings[0].saving.parameters == (80 + 3_276_900, 80 + 900)
