"""The tracer on real models: its graph runs, its figures match torch's, the model comes back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from convaudit import trace
from convaudit.errors import TargetError
from convaudit.graph import VAL, tensors
from convaudit.tracer import record

REAL = [
    "resnet18",
    "vgg11",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "densenet121",
    "regnetx_002",
    "mixer_s32_224",
    "ghostnet_100",
    "inception_v3",
    "xcit_nano_12_p8_224",
    "levit_128s",
    "poolformer_s12",
    "repvgg_a0",
    "mobileone_s0",
    "tf_efficientnet_b0",
    "edgenext_xx_small",
    "nfnet_l0",
    "cait_xxs24_224",
    "deit_tiny_distilled_patch16_224",
    "skresnet18",
    "resnest14d",
    "dpn48b",
    "eva02_tiny_patch14_224",
]


@pytest.mark.parametrize("name", REAL)
def test_graph_module_gives_the_models_own_output(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    graph = trace(model, x)

    with torch.no_grad():
        torch.testing.assert_close(graph.graph_module(x), model(x))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert graph.status == "ok"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("googlenet", (1, 3, 224, 224)),
        ("shufflenet_v2_x0_5", (1, 3, 224, 224)),
        ("maxvit_t", (1, 3, 224, 224)),
        ("vit_b_32", (1, 3, 224, 224)),
        ("swin_v2_t", (1, 3, 224, 224)),
        ("lraspp_mobilenet_v3_large", (1, 3, 96, 96)),
        ("deeplabv3_mobilenet_v3_large", (1, 3, 96, 96)),
        ("r3d_18", (1, 3, 4, 32, 32)),
        ("s3d", (1, 3, 14, 224, 224)),
        ("raft_small", (1, 3, 128, 128)),
    ],
)
def test_graph_module_of_torchvision(name: str, shape: tuple[int, ...]) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(name, weights=None, **({"weights_backbone": None} if shape[-1] == 96 else {})).eval()
    x = (torch.randn(shape),) * (2 if "raft" in name else 1)
    graph = trace(model, x)

    with torch.no_grad():
        torch.testing.assert_close(graph.graph_module(*x), model(*x))


@pytest.mark.parametrize(
    "name", ["resnet18", "swin_tiny_patch4_window7_224", "efficientnet_b0", "inception_v3", "convnext_atto"]
)
def test_formulas_equal_torchs_own_shapes(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        x = torch.empty(1, *model.pretrained_cfg["input_size"])
    fast, slow = (record(model, (x,), {}, formulas=flag) for flag in (True, False))

    pairs = list(zip(fast.graph.nodes, slow.graph.nodes, strict=True))
    assert all(
        [(t.shape, t.dtype) for t in tensors(a.meta.get(VAL))] == [(t.shape, t.dtype) for t in tensors(b.meta.get(VAL))]
        for a, b in pairs
    )


class Odd(nn.Module):
    """Reused module, tied weights, bare parameter, keyword and nested inputs, functional calls, in-place ops."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.shared.weight
        self.scale = nn.Parameter(torch.ones(8))
        self.never = nn.Linear(3, 3)

    def forward(self, x: Any, more: dict[str, Any], *, shift: Any) -> Any:
        x = self.shared(self.shared(x)) * self.scale
        x = self.tied(nn.ReLU()(x)) + more["y"][0]
        x[:, 0] = 0
        x += torch.arange(8, dtype=x.dtype) + shift
        if x.shape[1] > 4:
            x = x.clone().mul_(2)
        return {"out": x}


def test_odd_model() -> None:
    model = Odd()
    args = {"x": torch.randn(2, 8), "more": {"y": [torch.randn(2, 8)]}, "shift": torch.ones(8)}
    graph = trace(model, args)

    torch.testing.assert_close(graph.graph_module(**args), model(**args))
    rows = {(r.name, r.call): r for r in graph.layers}
    assert rows["shared", 0].parameters == 72
    assert rows["shared", 1].parameters == 0
    assert rows["tied", 0].parameters == 8
    assert rows["never", None].parameters == 12
    assert any(r.kind == "parameter" and r.parameters == 8 for r in graph.layers)
    assert sum(r.parameters for r in graph.layers) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("module", "args"),
    [
        (nn.LSTM(8, 16, 2, bidirectional=True), (torch.randn(5, 2, 8),)),
        (nn.MultiheadAttention(16, 4, batch_first=True), (torch.randn(2, 5, 16),) * 3),
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2), (torch.randn(2, 5, 16),)),
        (nn.Conv2d(3, 4, 3).half(), (torch.randn(1, 3, 8, 8).half(),)),
    ],
    ids=["lstm", "attention", "encoder", "half"],
)
def test_library_modules(module: nn.Module, args: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *values: Any) -> Any:
            return self.inner(*values)

    model = Net().train()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    rng = torch.get_rng_state()
    graph = trace(model, args)

    assert model.training
    assert module.training
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert graph.totals is not None
    assert graph.totals.macs
    assert graph.totals.uncounted_ops == []


def test_lazy_model_stays_lazy() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    graph = trace(model, torch.randn(1, 3, 8, 8))

    assert isinstance(model[0].weight, nn.parameter.UninitializedParameter)
    assert graph.totals is not None
    assert graph.totals.parameters == 4 * 27 + 4 + 4 * 36 * 2 + 2


def test_a_lazy_norm_without_weights_takes_its_size_from_its_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyBatchNorm2d(affine=False))
    graph = trace(model, torch.randn(1, 3, 8, 8))

    assert graph.layers[1].output_shapes == [[1, 8, 6, 6]]
    assert isinstance(model[1].running_mean, nn.parameter.UninitializedBuffer)


def test_a_branch_on_data_is_partial() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.fc(x) if x.sum().item() > 0 else x

    graph = trace(Net(), torch.randn(1, 4))

    assert graph.status == "partial"
    assert graph.tracer == "recorded-cpu"


def test_a_rejected_shape_names_the_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(4, 8, 3))

    with pytest.raises(
        TargetError, match=r"layer 1 \(Conv2d 4→8, expected 4 channels\) failed on input \[1, 8, 6, 6\]"
    ):
        trace(model, torch.randn(1, 3, 8, 8))


def test_receptive_field_of_resnet18() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet18")
        graph = trace(model, torch.empty(1, 3, 224, 224))
    last = [r for r in graph.layers if r.kind == "conv"][-1]

    assert last.receptive_field_largest == [435, 435]  # Araujo et al. 2019, table 1 (ResNet family, v1 18 layers)


def test_without_an_input_layers_and_parameters_are_known_and_nothing_else() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)))

    assert (graph.tracer, graph.status) == ("symbolic", "partial")
    assert graph.totals is not None
    assert (graph.totals.parameters, graph.totals.macs) == (8 * 27 + 8 + 66, None)
    assert [(row.name, row.op, row.parameters, row.macs) for row in graph.layers] == [
        ("0", "Conv2d", 224, None),
        ("1", "ReLU", 0, None),
        ("2", "Flatten", 0, None),
        ("3", "Linear", 66, None),
    ]


def test_a_selection_by_value_runs_on_stand_in_values_and_says_so() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            y = self.fc(x)
            return y[y.sum(1) >= 0]

    graph = trace(Net(), torch.randn(3, 4))

    assert graph.tracer == "recorded-cpu"
    assert "nonzero" in graph.notes[0] or "nonzero" in (graph.problem or "")
    assert graph.totals is not None
    assert graph.totals.macs == 3 * 16


def test_modules_made_inside_the_forward_are_made_again() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)

        def forward(self, x: Any) -> Any:
            return nn.BatchNorm2d(4).eval()(nn.Conv2d(8, 4, 1)(self.first(x)))

    model, x = Net(), torch.randn(1, 3, 8, 8)
    graph = trace(model, x)
    outputs = []
    for run in (model, graph.graph_module):
        torch.manual_seed(0)
        outputs.append(run(x))

    torch.testing.assert_close(*outputs)
    assert graph.status == "ok"
    assert graph.totals is not None
    assert graph.totals.macs == 36 * (8 * 27 + 4 * 8)
    assert graph.totals.parameters == 8 * 27 + 8


@torch.jit.script
def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


def test_a_scripted_function_is_followed_and_a_scripted_module_is_not() -> None:
    class Net(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.first, self.inner = nn.Conv2d(3, 8, 3), inner

        def forward(self, x: Any) -> Any:
            return self.inner(self.first(x))

    x = torch.randn(1, 3, 8, 8)
    followed, opaque = trace(Net(swish), x), trace(Net(torch.jit.script(nn.Conv2d(8, 8, 1))), x)

    assert followed.status == "ok"
    assert [call.op for _, call in followed.calls] == ["conv2d", "sigmoid", "mul"]
    assert opaque.status == "partial"
    assert "ScriptModule" in str(opaque.problem)
    assert opaque.totals is not None
    assert opaque.totals.parameters == 224 + 72


@pytest.mark.parametrize("old", [True, False], ids=["hook", "parametrization"])
def test_normalised_weights(old: bool) -> None:
    norm = nn.utils.weight_norm if old else nn.utils.parametrizations.spectral_norm
    model, x = nn.Sequential(norm(nn.Conv2d(3, 8, 3)), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)
    graph = trace(model, x)

    torch.testing.assert_close(graph.graph_module(x), model(x))
    row = next(row for row in graph.layers if row.kind == "conv")
    assert row.name == "0"
    assert row.parameters == sum(p.numel() for p in model.parameters())


def test_no_keypoint_and_a_reciprocal() -> None:
    """What a detector samples where it found nothing has no positions; ``1 / x`` is a division."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            features = self.conv(x)
            return nn.functional.grid_sample(features, x.new_zeros(1, 0, 1, 2)), 1 / features

    graph = trace(Detector(), torch.empty(1, 3, 16, 16))

    assert graph.status == "ok"
    assert graph.totals is not None
    assert graph.totals.uncounted_ops == []


class _Joins(nn.Module):
    """A residual summed in place, a view, a scaled weight and a constant beside the layers that are rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.conv = nn.Conv2d(3, 3, 1)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        stem = self.stem(x)
        y = nn.functional.conv2d(stem, self.conv.weight * 2)
        y += stem
        y = torch.cat([torch.relu(y), other], 1)[:, :3]
        return self.fc(y.mean((2, 3)).view(-1, 3)) + torch.zeros(2)


def test_rows_say_what_they_read_through_views_and_sums_in_place() -> None:
    layers = trace(_Joins(), (torch.empty(1, 3, 8, 8), torch.empty(1, 3, 8, 8))).layers
    names = {"input": "input"} | {index: row.op for index, row in enumerate(layers)}
    read = {row.op: [names[source] for source in row.inputs_from or ()] for row in layers if row.inputs_from is not None}

    assert read["Conv2d"] == ["input"]
    assert read["conv2d"] == ["Conv2d", "mul"]
    assert read["mul"] == read["zeros"] == []
    assert read["relu"] == ["conv2d", "Conv2d"]
    assert read["cat"] == ["relu", "input"]
    assert read["mean"] == ["cat"]
    assert read["Linear"] == ["mean"]
