"""Rewrites that must not change the function: equal outputs on real weights, and savings equal to closed formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convaudit import audit
from convaudit.graph import CALL
from convaudit.rewrite import Rewrite
from convaudit.tracer import record


def finding(model: nn.Module, x: torch.Tensor, code: str):
    (found,) = audit(model, x, select=[code]).targets[0].findings
    return found


def norms(*layers: nn.Module) -> nn.Module:
    """The layers, batch norms with statistics of their own."""
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def test_dropping_a_bias_before_a_norm() -> None:
    """In train mode the norm subtracts it; in eval mode its running mean takes it over."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), torch.randn(4, 3, 8, 8)
    bare = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if k != "0.bias"})

    torch.testing.assert_close(bare(x), model(x))
    assert finding(model, x, "CNV403").saving.parameters == (3 * 8 * 9 + 8 + 16, 3 * 8 * 9 + 16)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)),
        lambda: (nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 6, 3, 2, 1)),
        lambda: (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)),
    ],
    ids=["3x3-1x1", "1x1-3x3", "batch-norm"],
)
def test_a_collapsed_pair_computes_the_same(layers) -> None:
    """The merged layer's weights are the pair's response to unit images, its bias the response to none."""
    torch.manual_seed(0)
    pair = norms(*layers())
    first, last = pair[0], pair[-1]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    kernel = first if first.kernel_size != (1, 1) else last
    one = nn.Conv2d(first.in_channels, last.out_channels, kernel.kernel_size, kernel.stride, kernel.padding)
    scale, shift = torch.ones(first.out_channels), torch.zeros(first.out_channels)
    if len(pair) == 3:
        norm = pair[1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
    bias = shift + scale * (first.bias if first.bias is not None else 0)
    inner = scale[:, None, None, None] * first.weight
    with torch.no_grad():
        equation = "omab,mcde->ocde" if last.kernel_size == (1, 1) else "omde,mcab->ocde"
        one.weight.copy_(torch.einsum(equation, last.weight, inner))
        one.bias.copy_(last.bias + last.weight.sum((2, 3)) @ bias)
    x = torch.randn(2, 3, 8, 8)

    torch.testing.assert_close(one(x), pair(x), atol=1e-5, rtol=1e-4)
    found = finding(pair, x, "CNV402")
    assert found.saving.parameters == (
        sum(p.numel() for p in pair.parameters()), sum(p.numel() for p in one.parameters())
    )  # fmt: skip


def test_pooling_in_place_of_a_covering_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 128, 1), nn.Conv2d(128, 256, 7))
    found = finding(model, torch.zeros(1, 3, 7, 7), "CNV107")

    assert found.saving.parameters == (512 + 128 * 256 * 49 + 256, 512 + 128 * 256 + 256)
    assert found.saving.macs == (3 * 128 * 49 + 128 * 256 * 49, 3 * 128 * 49 + 128 * 256)
    assert found.alternatives[0].saving.parameters[1] == 512 + 128 * 256 * 4 + 256


def test_a_rewrite_leaves_the_graph_it_copies_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    graph = record(model, (torch.zeros(1, 3, 8, 8),), {})
    before = [(n.name, str(n.target), n.meta[CALL].macs) for n, _ in graph.calls]
    attempt = Rewrite(graph)
    attempt.drop_bias(graph.calls[0][0])
    attempt.measure()

    assert [(n.name, str(n.target), n.meta[CALL].macs) for n, _ in graph.calls] == before
