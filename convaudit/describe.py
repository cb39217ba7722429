"""Says what a recorded node did: its op, kind, layer, shapes, parameters and geometry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from convaudit.graph import VAL, Call, ConvConfig, tensors
from convaudit.ops import ALIASING, KIND

if TYPE_CHECKING:
    from convaudit.tracer import _Recorder

LEAVES: dict[type[nn.Module], tuple[str, str]] = {
    getattr(nn, name): (op, kind)
    for kind, table in {
        "conv": {
            "Conv1d": "conv1d", "Conv2d": "conv2d", "Conv3d": "conv3d", "ConvTranspose1d": "conv_transpose1d",
            "ConvTranspose2d": "conv_transpose2d", "ConvTranspose3d": "conv_transpose3d",
        },
        "linear": {"Linear": "linear", "Bilinear": "bilinear"},
        "norm": {
            "BatchNorm1d": "batch_norm", "BatchNorm2d": "batch_norm", "BatchNorm3d": "batch_norm",
            "SyncBatchNorm": "batch_norm", "LayerNorm": "layer_norm", "GroupNorm": "group_norm",
            "InstanceNorm1d": "instance_norm", "InstanceNorm2d": "instance_norm", "InstanceNorm3d": "instance_norm",
            "LocalResponseNorm": "local_response_norm", "RMSNorm": "rms_norm",
        },
        "activation": {
            "ReLU": "relu", "ReLU6": "relu6", "LeakyReLU": "leaky_relu", "PReLU": "prelu", "ELU": "elu", "SELU": "selu",
            "GELU": "gelu", "SiLU": "silu", "Mish": "mish", "Hardswish": "hardswish", "Hardsigmoid": "hardsigmoid",
            "Hardtanh": "hardtanh", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softmax": "softmax", "Softmax2d": "softmax",
            "LogSoftmax": "log_softmax", "Softplus": "softplus", "CELU": "celu", "LogSigmoid": "logsigmoid",
            "Threshold": "threshold", "GLU": "glu",
        },
        "pool": {
            "MaxPool1d": "max_pool1d", "MaxPool2d": "max_pool2d", "MaxPool3d": "max_pool3d", "AvgPool1d": "avg_pool1d",
            "AvgPool2d": "avg_pool2d", "AvgPool3d": "avg_pool3d", "AdaptiveAvgPool1d": "adaptive_avg_pool1d",
            "AdaptiveAvgPool2d": "adaptive_avg_pool2d", "AdaptiveAvgPool3d": "adaptive_avg_pool3d",
            "AdaptiveMaxPool1d": "adaptive_max_pool1d", "AdaptiveMaxPool2d": "adaptive_max_pool2d",
            "AdaptiveMaxPool3d": "adaptive_max_pool3d",
        },
        "dropout": {
            "Dropout": "dropout", "Dropout1d": "dropout", "Dropout2d": "dropout", "Dropout3d": "dropout",
            "AlphaDropout": "dropout",
        },
        "attention": {"MultiheadAttention": "multi_head_attention_forward"},
        "recurrent": {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn", "LSTMCell": "lstmcell", "GRUCell": "grucell", "RNNCell": "rnncell"},
        "embedding": {"Embedding": "embedding", "EmbeddingBag": "embedding_bag"},
        "upsample": {"Upsample": "interpolate", "PixelShuffle": "pixel_shuffle", "PixelUnshuffle": "pixel_unshuffle"},
        "elementwise": {"Identity": "identity"},
        "reshape": {"Flatten": "flatten", "Unflatten": "unflatten", "ZeroPad2d": "pad", "ReflectionPad2d": "pad", "ReplicationPad2d": "pad", "ConstantPad2d": "pad"},
    }.items()
    for name, op in table.items()
    if hasattr(nn, name)
}  # fmt: skip
"""torch.nn layers recorded as one call_module node each: their insides are one operator, or (attention, recurrent)
C++ kernels and bookkeeping that would only hide the layer. Subclasses are followed inside instead."""

_KEPT = ("kernel_size", "stride", "padding", "dilation", "eps", "p", "output_size", "num_heads", "embed_dim", "hidden_size",
         "num_layers", "bidirectional", "batch_first", "proj_size", "num_groups", "negative_slope", "dim", "mode", "inplace",
         "ceil_mode", "return_indices", "start_dim", "end_dim", "scale_factor", "size", "upscale_factor", "output_padding", "divisor_override")  # fmt: skip
_POOLS_1 = ("kernel_size", "stride", "padding")
_POSITIONAL = {
    "max_pool2d": (*_POOLS_1, "dilation", "ceil_mode"), "max_pool1d": (*_POOLS_1, "dilation", "ceil_mode"),
    "max_pool3d": (*_POOLS_1, "dilation", "ceil_mode"), "avg_pool1d": _POOLS_1, "avg_pool2d": _POOLS_1, "avg_pool3d": _POOLS_1,
    "adaptive_avg_pool1d": ("output_size",), "adaptive_avg_pool2d": ("output_size",), "adaptive_avg_pool3d": ("output_size",),
    "adaptive_max_pool2d": ("output_size",), "mean": ("dim", "keepdim"), "sum": ("dim", "keepdim"), "amax": ("dim", "keepdim"),
    "amin": ("dim", "keepdim"), "var": ("dim",), "unbind": ("dim",), "stack": ("dim",), "logsumexp": ("dim", "keepdim"),
    "max": ("dim", "keepdim"), "cat": (), "softmax": ("dim",), "flatten": ("start_dim", "end_dim"), "dropout": ("p", "training"),
    "interpolate": ("size", "scale_factor", "mode"), "permute": ("dims",), "transpose": ("dim0", "dim1"), "squeeze": ("dim",),
    "layer_norm": ("normalized_shape", "weight", "bias", "eps"), "group_norm": ("num_groups", "weight", "bias", "eps"),
    "instance_norm": ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    "dropout1d": ("p", "training"), "dropout2d": ("p", "training"), "dropout3d": ("p", "training"),
    "alpha_dropout": ("p", "training"), "unsqueeze": ("dim",), "batch_norm": ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}  # fmt: skip
_CONV_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSE_NAMES = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_NAMES: dict[Any, str] = {}


def function_name(function: Any) -> str:
    """Lower-case functional name of a torch function, method or operator: ``conv2d``, ``add``, ``relu``."""
    name = _NAMES.get(function)
    if name is None:
        name = str(getattr(function, "__name__", function)).partition(".")[0]  # an overload: "mul.Tensor"
        if name.startswith("__") and name.endswith("__"):
            name = name[2:-2]
            if name[:1] in "ir" and name[1:] in ("add", "sub", "mul", "div", "truediv", "matmul", "pow", "floordiv", "mod"):
                name = name[1:]
        elif name.endswith("_") and not name.startswith("_"):
            name = name[:-1]
        name = name.lstrip("_") if name.startswith("_") else name
        name = {"truediv": "div", "concat": "cat", "concatenate": "cat"}.get(name, name)
        _NAMES[function] = name
    return name


def describe(
    recorder: _Recorder,
    node: Node,
    source: Any,
    result: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    op: str | None = None,
) -> Call:
    """The :class:`Call` of a node; ``source`` is the module or function that ran, ``args`` its values."""
    owner = recorder.stack[-1][0] if recorder.stack else ""
    values = tensors((args, kwargs)) if kwargs or len(args) != 1 or type(args[0]) is not Tensor else [args[0]]
    out = [result] if isinstance(result, Tensor) else tensors(result)
    dtype = str(out[0].dtype)[6:] if out else None
    outputs = [tuple(t.shape) for t in out]
    names: tuple[str, ...] | list[str] | None
    if isinstance(source, nn.Module):
        op, kind = LEAVES.get(type(source), (type(source).__name__.lower(), "module"))
        names = (
            tuple(recorder.attributes[id(p)][0] for p in source.parameters() if id(p) in recorder.attributes)
            if source._parameters or source._modules
            else ()
        )
        call = Call(
            op, kind, owner, type(source).__name__, 0, owner, [tuple(t.shape) for t in values], outputs, dtype, names,
            location=None, alias=_is_alias(op, kind, values, out) or (kind == "dropout"),
            scalars={k: source.__dict__[k] for k in _KEPT if k in source.__dict__},
            weights=[tuple(p.shape) for p in source.parameters()] if names else [],
            biased=getattr(source, "bias", None) is not None,
        )  # fmt: skip
        call.operands = call.inputs + call.weights
        if kind == "conv":
            call.conv = _module_conv(source, len(outputs[0]) - 2)
        elif op == "linear":
            call.linear = (int(source.in_features), int(source.out_features))  # type: ignore[arg-type]
        return call
    op = op or function_name(source)
    kind = KIND.get(op, "other")
    held: list[str] = []
    weights: list[tuple[int, ...]] = []
    activations: list[tuple[int, ...]] = []
    for value in values:
        names = recorder.parameters_behind(value)
        if names is None:
            activations.append(tuple(value.shape))
        elif names:
            weights.append(tuple(value.shape))
            held += names
    label = op
    layer = f"{owner}.{op}" if owner else op
    from_weights = bool(held) and not any(n in recorder.from_input for n in node.all_input_nodes)
    if (
        held
        and not from_weights
        and kind in ("conv", "linear", "norm", "embedding", "recurrent", "attention", "activation")
    ):
        layer = held[0].rpartition(".")[0].partition(".parametrizations.")[0] or owner
        if kind in ("conv", "linear") and recorder.weights_of(layer) > 1:
            layer = held[0]  # its owner holds the weights of other layers too
        module = next((m for n, m in recorder.stack[::-1] if n == layer), None)
        label = type(module).__name__ if module is not None and layer == owner else op
    if kind == "merge" and len(values) < 2 and op not in ("cat", "stack"):
        kind = "elementwise"
    elif kind == "reduce" and len(values) == 2:
        kind = "merge"  # max(x, y)
    scalars = {
        k: v for k, v in kwargs.items() if k in _KEPT or k in ("groups", "keepdim", "training", "dims", "dim0", "dim1")
    }
    if op in _POSITIONAL:
        scalars.update((name, value) for name, value in zip(_POSITIONAL[op], args[1:]) if not isinstance(value, Tensor))
    if op == "einsum":
        scalars["equation"] = args[0]
    call = Call(
        op, kind, layer, label, 0, owner, activations, outputs, dtype, tuple(held),
        alias=_is_alias(op, kind, values, out) or (kind == "dropout" and not scalars.get("training", True)), scalars=scalars,
        weights=weights, operands=[tuple(v.shape) for v in values], from_weights=from_weights,
    )  # fmt: skip
    if kind == "conv":
        call.conv = _functional_conv(op, args, kwargs)
        call.biased = call.conv is not None and call.conv.bias
    elif op == "linear" and len(values) > 1:
        call.linear = (values[1].shape[-1], values[1].shape[0])
        call.biased = len(values) > 2
    return call


def _is_alias(op: str, kind: str, values: list[Tensor], out: list[Tensor]) -> bool:
    if op in ALIASING:
        return True
    return bool(out and values and any(out[0] is v for v in values))


def _axes(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    return values * axes if len(values) == 1 else values


def _effective_padding(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel)]
        return tuple((t // 2, t - t // 2) for t in totals)
    return tuple((p, p) for p in _axes(padding, len(kernel)))


def _module_conv(module: Any, axes: int) -> ConvConfig:
    return ConvConfig(
        module.in_channels, module.out_channels, module.kernel_size, module.stride,
        _effective_padding(module.padding, module.kernel_size, module.dilation), module.dilation, module.groups,
        module.transposed, module.bias is not None, module.padding_mode,
    )  # fmt: skip


def _functional_conv(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ConvConfig | None:
    transposed = op.startswith("conv_transpose")
    given = {**dict(zip(_TRANSPOSE_NAMES if transposed else _CONV_NAMES, args)), **kwargs}
    weight = given.get("weight")
    if not isinstance(weight, torch.Tensor):
        return None
    kernel = tuple(weight.shape[2:])
    groups = given.get("groups", 1)
    dilation = _axes(given.get("dilation", 1), len(kernel))
    inward, outward = (
        (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, weight.shape[0])
    )
    return ConvConfig(
        inward, outward, kernel, _axes(given.get("stride", 1), len(kernel)),
        _effective_padding(given.get("padding", 0), kernel, dilation), dilation, groups, transposed,
        given.get("bias") is not None,
    )  # fmt: skip


__all__ = ["LEAVES", "VAL", "describe", "function_name"]
