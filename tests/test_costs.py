"""Costs against what others count: torch's flop counter over a tenth of the zoo, fvcore's totals on CPU models."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from support.zoo import examine, zoo_names
from torch import nn

from convaudit import trace

NOT_IN_FVCORE = ("avg_pool", "scaled_dot_product_attention", "local_response_norm")
"""Ops counted here for which fvcore has no handle (adaptive_avg_pool2d it has)."""


@pytest.mark.parametrize("target", zoo_names()[3::10])
def test_zoo_is_followed_and_counted_as_torch_counts(target: str) -> None:
    found = examine(target)

    assert found.status == ("partial" if "rcnn" in target or "ssd" in target or "retinanet" in target else "ok"), found
    assert "not counted" not in found.reason
    if found.status == "ok":
        assert found.counted is not None
        assert not found.differs, f"{found.macs:,} MACs, torch counts {found.counted:,}"


CPU_MODELS = (
    "resnet18", "resnet50d", "vgg11_bn", "mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_b0", "densenet121",
    "regnety_002", "convnext_atto", "mixer_s32_224", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "ghostnet_100",
    "inception_v3", "xception41", "dla34", "hrnet_w18_small", "repvgg_a0", "resnext50_32x4d", "nfnet_l0", "poolformer_s12",
)  # fmt: skip


@pytest.mark.parametrize("name", CPU_MODELS)
def test_flops_equal_fvcores_own_total(name: str) -> None:
    model = timm.create_model(name).eval()
    x = torch.zeros(1, *model.pretrained_cfg["input_size"])
    theirs = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    ours = sum(call.flops or 0 for _, call in trace(model, x).calls if not call.op.startswith(NOT_IN_FVCORE))

    assert ours == pytest.approx(theirs, rel=0.005)


@pytest.mark.parametrize(
    ("module", "shape", "macs", "flops"),
    [
        (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (2, 4, 8, 8), 2 * 16 * 6 * 2 * 9, None),
        (nn.ConvTranspose2d(4, 6, 4, 2, 1), (2, 4, 8, 8), 2 * 64 * 4 * 6 * 16, None),
        (nn.Linear(5, 7), (3, 11, 5), 3 * 11 * 35, None),
        (nn.BatchNorm2d(3), (2, 3, 4, 4), 0, 2 * 96),
        (nn.BatchNorm2d(3, affine=False), (2, 3, 4, 4), 0, 96),
        (nn.LayerNorm(8), (2, 3, 8), 0, 5 * 48),
        (nn.GroupNorm(2, 4, affine=False), (2, 4, 3, 3), 0, 4 * 72),
        (nn.AdaptiveAvgPool2d(1), (2, 4, 3, 3), 0, 72),
        (nn.AvgPool2d(2), (2, 4, 4, 4), 0, 32),
        (nn.MaxPool2d(2), (2, 4, 4, 4), 0, 0),
        (nn.Upsample(scale_factor=2), (1, 2, 4, 4), 0, 128),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 4, 4), 0, 512),
        (nn.LSTM(8, 16, batch_first=True), (2, 5, 8), 2 * 5 * 4 * 16 * (8 + 16), None),
        (nn.GRU(8, 16, bidirectional=True), (5, 2, 8), 2 * 2 * 5 * 3 * 16 * (8 + 16), None),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, nn.Module) else "",
)
def test_closed_forms(module: nn.Module, shape: tuple[int, ...], macs: int, flops: int | None) -> None:
    totals = trace(nn.Sequential(module), torch.empty(shape)).totals

    assert totals is not None
    assert totals.macs == macs
    assert totals.flops == (macs if flops is None else flops)


def test_functional_products() -> None:
    class Products(nn.Module):
        def forward(self, a: Any, b: Any) -> Any:
            c = a @ b  # (2, 3, 4) @ (4, 5), broadcast
            d = torch.einsum("bij,jk->bik", a, b)
            return torch.baddbmm(c + d, a, b.expand(2, 4, 5))

    totals = trace(Products(), (torch.empty(2, 3, 4), torch.empty(4, 5))).totals

    assert totals is not None
    assert totals.macs == 3 * 2 * 3 * 4 * 5
    assert totals.uncounted_ops == []


def test_an_op_without_a_formula_is_listed_not_zero() -> None:
    class Inverse(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.inv(x)

    graph = trace(Inverse(), torch.empty(2, 3, 3))

    assert graph.totals is not None
    assert graph.totals.uncounted_ops == ["linalg_inv"]
    assert [row.macs for row in graph.layers] == [None]


def test_standardised_weights_belong_to_their_convolution() -> None:
    with torch.device("meta"):
        model = timm.create_model("nfnet_l0")
    graph = trace(model, torch.empty(1, 3, 224, 224))
    conv = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))

    assert graph.totals is not None
    assert graph.totals.conv_parameters > conv
    assert next(row.parameters for row in graph.layers if row.name == "stem.conv1" and row.call == 0) == 16 * 3 * 9 + 32


def test_auditing_vgg16_needs_little_more_memory_than_a_small_net() -> None:
    """553 MB of weights are never allocated."""
    code = """if 1:
        import resource, torch, torchvision
        from convaudit import audit
        from convaudit.networks import NETWORKS
        from torchvision.models import vgg16
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        with torch.device("meta"):
            audit(NETWORKS["BasicCNN"][0](), torch.empty(1, 3, 32, 32))
            small = peak()
            audit(vgg16(), torch.empty(1, 3, 224, 224))
        print(peak() - small)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert int(done.stdout) < 60
