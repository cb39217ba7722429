"""Shape formulas: answer the commonest operators on meta tensors without running torch's meta kernels.

torch's Python meta kernels cost most of a meta forward, and their first import alone about a second. A formula
gets the call's arguments and returns the result, or ``None`` where anything is unusual: then torch's own kernel runs
(and raises its own errors). ``tests/test_shape_formulas.py`` holds every formula against torch over real models.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Formula = Callable[..., "Tensor | None"]
FORMULAS: dict[Any, Formula] = {}


def formula(*functions: Any) -> Callable[[Formula], Formula]:
    """Register a formula for these torch functions."""

    def register(made: Formula) -> Formula:
        FORMULAS.update(dict.fromkeys(functions, made))
        return made

    return register


def _pair(value: Any, axes: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * axes
    values = tuple(int(v) for v in value)
    return values * axes if len(values) == 1 else values


def _conv(axes: int) -> Formula:
    def conv(
        x: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        shape, kernel = x.shape, weight.shape
        if len(shape) != axes + 2 or x.dtype != weight.dtype or shape[1] != kernel[1] * groups or kernel[0] % groups:
            return None
        steps, holes = _pair(stride, axes), _pair(dilation, axes)
        if isinstance(padding, str):
            pads = tuple(d * (k - 1) for d, k in zip(holes, kernel[2:])) if padding == "same" else (0,) * axes
            if padding == "same" and any(s != 1 for s in steps):
                return None
        else:
            pads = tuple(2 * p for p in _pair(padding, axes))
        out = [(n + p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(shape[2:], pads, holes, kernel[2:], steps)]
        if min(out) < 1:
            return None
        return x.new_empty((shape[0], kernel[0], *out))

    return conv


for _axes, _function in ((1, torch.conv1d), (2, torch.conv2d), (3, torch.conv3d)):
    FORMULAS[_function] = _conv(_axes)


@formula(F.linear)
def _linear(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor | None:
    if not x.dim() or weight.dim() != 2 or x.shape[-1] != weight.shape[1] or x.dtype != weight.dtype:
        return None
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@formula(F.batch_norm)
def _batch_norm(
    x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False, *_: Any, **__: Any
) -> Tensor | None:
    if x.dim() < 2 or (mean is not None and mean.shape[0] != x.shape[1]):
        return None
    answered = x.numel() > x.shape[1] if training else mean is not None  # torch refuses one value a channel in training
    return x.new_empty(x.shape) if answered else None


@formula(F.layer_norm)
def _layer_norm(x: Tensor, normalized_shape: Any, *_: Any, **__: Any) -> Tensor | None:
    size = tuple(normalized_shape)
    return x.new_empty(x.shape) if tuple(x.shape[-len(size) :]) == size else None


@formula(F.group_norm)
def _group_norm(x: Tensor, num_groups: int, weight: Any = None, *_: Any, **__: Any) -> Tensor | None:
    if x.dim() < 2 or x.shape[1] % num_groups or (weight is not None and weight.shape[0] != x.shape[1]):
        return None
    return x.new_empty(x.shape)


@formula(
    torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.tanh, Tensor.tanh, torch.exp, Tensor.exp, torch.sqrt, Tensor.sqrt
)  # fmt: skip
def _floating(x: Tensor) -> Tensor | None:
    return x.new_empty(x.shape) if x.is_floating_point() else None


@formula(torch.relu, Tensor.relu, F.gelu, F.softplus, F.mish, F.elu, F.celu, F.selu, F.logsigmoid)
def _same(x: Tensor, *_: Any, **__: Any) -> Tensor | None:
    return x.new_empty(x.shape) if x.is_floating_point() else None


@formula(torch.relu_, Tensor.relu_, Tensor.sigmoid_, Tensor.clamp_, Tensor.mul_, Tensor.add_)
def _in_place(x: Tensor, *others: Any, **__: Any) -> Tensor | None:
    if all(isinstance(o, (int, float)) or (isinstance(o, Tensor) and o.shape == x.shape) for o in others):
        return x if x.is_floating_point() else None
    return None


@formula(F.relu, F.relu6, F.leaky_relu, F.silu, F.hardswish, F.hardsigmoid, F.hardtanh)
def _activation(x: Tensor, *args: Any, inplace: bool = False, **__: Any) -> Tensor | None:
    if not x.is_floating_point() or any(a is True for a in args):
        return None
    return x if inplace else x.new_empty(x.shape)


@formula(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)
def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return x if inplace else x.new_empty(x.shape)


@formula(F.softmax, F.log_softmax, torch.softmax, Tensor.softmax)
def _softmax(x: Tensor, dim: int | None = None, *_: Any, dtype: Any = None, **__: Any) -> Tensor | None:
    if dtype is not None or dim is None or not x.is_floating_point() or (len(_) > 1 and _[1] is not None):
        return None
    return x.new_empty(x.shape) if -x.dim() <= dim < x.dim() else None


def _binary(x: Any, y: Any, **kwargs: Any) -> Tensor | None:
    if kwargs:
        return None
    if isinstance(x, Tensor) and x.is_floating_point():
        if isinstance(y, (int, float)) and not isinstance(y, bool):
            return x.new_empty(x.shape)
        if isinstance(y, Tensor) and y.dtype == x.dtype and y.device == x.device and x.dim() and y.dim():
            if x.shape == y.shape:
                return x.new_empty(x.shape)
            if x.dim() == y.dim():
                pairs = list(zip(x.shape, y.shape))
                if all(a == b or a == 1 or b == 1 for a, b in pairs):
                    return x.new_empty([b if a == 1 else a for a, b in pairs])
    return None


for _name in ("add", "sub", "mul", "div"):
    formula(getattr(torch, _name), getattr(Tensor, _name))(_binary)
for _name in ("add", "sub", "mul", "truediv", "radd", "rmul"):
    formula(getattr(Tensor, f"__{_name}__"))(_binary)
for _name in ("iadd", "imul", "isub"):
    formula(getattr(Tensor, f"__{_name}__"))(_in_place)


def _pool(axes: int, maximum: bool) -> Formula:
    def pool(
        x: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        *rest: Any,
        ceil_mode: bool = False,
        **named: Any,
    ) -> Tensor | None:
        if rest or x.dim() != axes + 2 or named.get("return_indices"):
            return None
        kernel = _pair(kernel_size, axes)
        steps = kernel if stride is None or stride == [] else _pair(stride, axes)
        pads, holes = _pair(padding, axes), _pair(named.get("dilation", 1), axes)
        out = []
        for n, k, s, p, d in zip(x.shape[2:], kernel, steps, pads, holes):
            if 2 * p > k:
                return None
            span = n + 2 * p - d * (k - 1) - 1
            size = (span + (s - 1 if ceil_mode else 0)) // s + 1
            if ceil_mode and (size - 1) * s >= n + p:  # the last window may not start in the padding
                size -= 1
            out.append(size)
        return x.new_empty((*x.shape[:2], *out)) if min(out) > 0 else None

    return pool


FORMULAS[torch.max_pool1d] = _pool(1, True)
FORMULAS[torch.max_pool2d] = _pool(2, True)
FORMULAS[torch.max_pool3d] = _pool(3, True)
FORMULAS[F.avg_pool2d] = _pool(2, False)
FORMULAS[F.avg_pool3d] = _pool(3, False)


def _adaptive(axes: int) -> Formula:
    def pool(x: Tensor, output_size: Any, *_: Any, **named: Any) -> Tensor | None:
        if x.dim() != axes + 2 or named.get("return_indices"):
            return None
        size = (output_size,) * axes if output_size is None or isinstance(output_size, int) else tuple(output_size)
        return x.new_empty((*x.shape[:2], *(n if s is None else s for n, s in zip(x.shape[2:], size))))

    return pool


formula(F.adaptive_avg_pool1d)(_adaptive(1))
formula(F.adaptive_avg_pool2d)(_adaptive(2))
formula(F.adaptive_avg_pool3d)(_adaptive(3))


@formula(F.scaled_dot_product_attention)
def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor | None:
    if q.dim() != v.dim() or q.shape[:-2] != v.shape[:-2] or k.shape[:-1] != v.shape[:-1] or k.shape[-1] != q.shape[-1]:
        return None
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


@formula(torch.mean, Tensor.mean)
def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor | None:
    if kwargs or dim is None or not x.is_floating_point():
        return None
    axes = {d % x.dim() for d in ((dim,) if isinstance(dim, int) else dim)}
    return x.new_empty([1 if i in axes else n for i, n in enumerate(x.shape) if keepdim or i not in axes])


@formula(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
def _matmul(x: Tensor, y: Tensor) -> Tensor | None:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or x.dim() != y.dim() or x.dim() < 2 or x.dtype != y.dtype:
        return None
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-2]:
        return None
    return x.new_empty((*x.shape[:-1], y.shape[-1]))


@formula(torch.cat)
def _cat(parts: Any, dim: int = 0, **kwargs: Any) -> Tensor | None:
    first = parts[0]
    if kwargs or not first.dim() or any(p.dim() != first.dim() or p.dtype != first.dtype for p in parts):
        return None
    axis = dim % first.dim()
    if any(p.shape[:axis] != first.shape[:axis] or p.shape[axis + 1 :] != first.shape[axis + 1 :] for p in parts):
        return None
    shape = list(first.shape)
    shape[axis] = sum(p.shape[axis] for p in parts)
    result: Tensor = first.new_empty(shape)
    return result


@formula(torch.roll, Tensor.roll)
def _roll(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(x.shape)


@formula(torch.reshape, Tensor.reshape)
def _reshape(x: Tensor, *shape: Any, **named: Any) -> Tensor | None:
    if named or x.is_contiguous():
        return None  # a view, which torch makes as fast
    sizes = list(shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)
    known = prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known and x.numel() % known == 0:
        sizes[sizes.index(-1)] = x.numel() // known
    return x.new_empty(sizes) if -1 not in sizes and prod(sizes) == x.numel() else None
