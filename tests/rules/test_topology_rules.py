"""Redundant ops, skipped pixels, empty outputs, dilations: held against real weights and plain counting."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from convaudit import audit
from convaudit.rewrite import Rewrite
from convaudit.tracer import record


def findings(model: nn.Module, x: torch.Tensor, code: str):
    return audit(model, x, select=[code]).targets[0].findings


class Redundant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.once, self.fc = nn.AvgPool2d(1, 1), nn.Linear(8 * 16, 4)

    def forward(self, x):
        x = self.once(self.relu(self.pool(self.relu(self.conv(x)))))
        return torch.flatten(torch.log_softmax(self.fc(x.flatten(1)), 1).log_softmax(1), 1)


def test_without_its_redundant_ops_a_model_computes_the_same() -> None:
    torch.manual_seed(0)
    model, x = Redundant().eval(), torch.randn(2, 3, 8, 8)
    (found,) = findings(model, x, "CNV407")
    graph = record(model, (x,), {})
    attempt = Rewrite(graph)
    dropped = [n for n, _ in graph.calls if n.name in ("relu_1", "once", "log_softmax_1", "flatten_1")]
    for node in dropped:
        attempt.replace(node, [])

    assert found.layers == ["relu", "once", "log_softmax", "flatten"]
    assert len(dropped) == int(found.message.split()[0])
    assert torch.equal(GraphModule(attempt.root, attempt.graph)(x), model(x))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "size"),
    [(1, 2, 0, 1, 16), (1, 2, 0, 1, 15), (2, 3, 0, 1, 16), (3, 2, 1, 2, 16), (3, 4, 1, 1, 32), (1, 3, 0, 1, 16)],
)
def test_unread_share_is_where_no_gradient_arrives(
    kernel: int, stride: int, padding: int, dilation: int, size: int
) -> None:
    layer = nn.Conv2d(1, 1, kernel, stride, padding, dilation)
    x = torch.ones(1, 1, size + stride * 4, size + stride * 4, requires_grad=True)  # windows go on past the border
    nn.init.ones_(layer.weight)
    layer(x).sum().backward()
    untouched = (x.grad[0, 0, :size, :size] == 0).float().mean().item()
    stem = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), layer)
    (found,) = findings(stem, torch.zeros(1, 3, size, size), "CNV204")

    assert found.evidence["unread"] == {"1": pytest.approx(untouched)}


@pytest.mark.parametrize("kwargs", [{"padding": 20}, {"padding": 9, "stride": 2}, {"padding": 9, "dilation": 3}])
def test_empty_outputs_are_those_no_input_reaches(kwargs: dict[str, int]) -> None:
    layer = nn.Conv2d(1, 1, 3, bias=False, **kwargs)
    nn.init.ones_(layer.weight)
    x = torch.ones(1, 1, 8, 8)
    empty = (layer(x) == 0).float().mean().item()
    (found,) = findings(nn.Sequential(layer), x, "CNV211")

    assert found.evidence["share"] == {"0": pytest.approx(empty)}
    assert found.evidence["macs"] == round(layer(x).numel() * 9 * empty)


def test_a_row_with_a_common_factor_reads_a_grid() -> None:
    """The pixels that 2, 2, 2 never reads, and that 1, 2, 3 of the same receptive field does."""

    def read(*rates: int) -> int:
        convs = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=r, dilation=r, bias=False) for r in rates))
        for conv in convs:
            nn.init.ones_(conv.weight)
        x = torch.zeros(1, 1, 31, 31, requires_grad=True)
        convs(x)[0, 0, 15, 15].backward()
        return int((x.grad[0, 0, 9:22, 9:22] != 0).sum())

    assert read(1, 2, 3) == 13 * 13
    assert read(2, 2, 2) == 7 * 7


def test_active_dropout_is_random_in_eval() -> None:
    class Attends(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5)

    torch.manual_seed(0)
    model, x = Attends().eval(), torch.randn(1, 2, 8, 8)

    assert not torch.equal(model(x), model(x))
    assert findings(model, x, "CNV411")[0].evidence == {"p": {"scaled_dot_product_attention": [0.5]}}


def test_dead_layers_are_named_with_their_macs() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.dead = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 16, 3)

        def forward(self, x):
            self.dead(x).relu_()
            return self.used(x)

    (found,) = findings(Dead(), torch.zeros(1, 3, 10, 10), "CNV412")

    assert found.layers == ["dead"]
    assert found.evidence == {"macs": 64 * 27 * 16, "share": pytest.approx(2 / 3)}


@pytest.mark.parametrize("looped", [False, True])
def test_frames_of_a_clip_are_images(looped: bool) -> None:
    """A clip of (batch, time, channels, height, width) whose frames a 2-D net reads one by one."""

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            convs = nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 64, 3, 2, 1), nn.ReLU()
            self.net = nn.Sequential(*convs, nn.Flatten(), nn.Linear(64 * 16 * 16, 64))
            self.time, self.head = nn.LSTM(64, 32, batch_first=True), nn.Linear(32, 4)

        def forward(self, x):
            if looped:
                seen = torch.stack([self.net(x[:, t]) for t in range(x.shape[1])], 1)
            else:
                seen = self.net(x.flatten(0, 1)).unflatten(0, (x.shape[0], x.shape[1]))
            return self.head(self.time(seen)[0][:, -1])

    clip = torch.empty(2, 3, 3, 64, 64, device="meta")
    [giant] = findings(Frames(), clip, "CNV101")
    [fixed] = findings(Frames(), clip, "CNV106")
    [width] = findings(Frames(), clip, "CNV301")

    assert giant.layers == ["net.5"]
    assert "64×16×16" in giant.message
    assert fixed.layers[0].startswith("net.")
    assert width.layers == ["net.0"]


def test_frames_of_a_clip_have_a_receptive_field() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

        def forward(self, x):
            return self.net(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 4)).mean(1)

    [found] = findings(Frames(), torch.empty(2, 3, 4, 64, 64, device="meta"), "CNV205")

    assert "3×3 of 64×64" in found.message


def test_the_layer_that_sees_the_most_is_named() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.short = nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(3, 8, 1)
            self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.pool((self.body(x) + self.short(x)).relu()).flatten(1))

    [found] = findings(Residual(), torch.empty(2, 3, 64, 64, device="meta"), "CNV205")
    assert (found.layers, found.evidence["receptive_field"]) == (["body"], [5, 5])
