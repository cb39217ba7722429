"""MACs and FLOPs of one operator call, from shapes alone.

Unit: one MAC is one multiply-accumulate. FLOPs follow fvcore's convention: one per multiply-accumulate, plus norm,
pooling and upsampling work. fvcore's own handles count the ops it knows, through an adapter that hands them shapes in
place of jit values; formulas are added where it has none. ``None`` means no formula: the op is uncounted.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

from convaudit.ops import KIND

if TYPE_CHECKING:
    from convaudit.graph import Call, Shape

Handle = Callable[["Call"], int]

MAC_HANDLES: dict[str, Handle] = {}
"""Ops made of multiply-accumulates: op -> MACs (FLOPs are the same number)."""
FLOP_HANDLES: dict[str, Handle] = {}
"""Ops without multiply-accumulates that cost something all the same: op -> FLOPs."""
FREE_KINDS = frozenset("activation pool dropout embedding reduce merge elementwise reshape constant".split())
"""Free under fvcore's convention, where an op has no handle: small beside the convolutions, or nothing computed."""


def macs_of(*ops: str) -> Callable[[Handle], Handle]:
    """Register a MAC formula for these ops."""
    return lambda handle: (MAC_HANDLES.update(dict.fromkeys(ops, handle)), handle)[1]


def flops_of(*ops: str) -> Callable[[Handle], Handle]:
    """Register a FLOP formula for these ops (their MACs are 0)."""
    return lambda handle: (FLOP_HANDLES.update(dict.fromkeys(ops, handle)), handle)[1]


def cost(call: Call) -> tuple[int | None, int | None]:
    """(MACs, FLOPs) of one call; (None, None) where nobody knows."""
    handle = MAC_HANDLES.get(call.op)
    if handle is not None:
        count = handle(call)
        return count, count
    handle = FLOP_HANDLES.get(call.op)
    if handle is not None:
        return 0, handle(call)
    return (0, 0) if KIND.get(call.op) in FREE_KINDS else (None, None)


class _Shaped:
    """A stand-in for ``torch._C.Value``: the three questions fvcore's handles ask of it."""

    __slots__ = ("_constant", "_shape")

    def __init__(self, shape: Shape | None, constant: Any = None) -> None:
        self._shape, self._constant = shape, constant

    def isCompleteTensor(self) -> bool:
        return self._shape is not None

    def type(self) -> _Shaped:
        return self

    def sizes(self) -> list[int]:
        return list(self._shape or ())

    def toIValue(self) -> Any:
        return self._constant


_NOTHING = _Shaped(None)


def _fvcore(name: str, inputs: list[_Shaped], output: Shape | None = None) -> int:
    """The count of fvcore's handle ``name`` (fvcore.nn.jit_handles)."""
    from fvcore.nn import jit_handles

    count = getattr(jit_handles, name)(inputs, [_Shaped(output)])
    return int(sum(count.values()) if isinstance(count, dict) else count)


@macs_of("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv(call: Call) -> int:
    axes = int(call.op[-2])
    source, weight = (s if len(s) == axes + 2 else (1, *s) for s in call.operands[:2])  # a map without a batch
    output = call.outputs[0] if len(call.outputs[0]) == axes + 2 else (1, *call.outputs[0])
    inputs = [_Shaped(source), _Shaped(weight), *[_NOTHING] * 10]
    inputs[6] = _Shaped(None, "transpose" in call.op)
    return _fvcore("conv_flop_jit", inputs, output)


@macs_of("linear")
def _linear(call: Call) -> int:
    return _fvcore("linear_flop_jit", [_Shaped(s) for s in call.operands[:2]])


@macs_of("bilinear")
def _bilinear(call: Call) -> int:
    weight = next(s for s in call.operands if len(s) == 3)
    return prod(call.outputs[0][:-1]) * prod(weight)


@macs_of("matmul", "bmm", "mm", "mv", "dot", "vdot", "inner")
def _matmul(call: Call) -> int:
    left, right = call.operands[:2]
    if len(left) == len(right) >= 2 and left[:-2] == right[:-2]:
        return _fvcore("matmul_flop_jit", [_Shaped(left), _Shaped(right)])
    return prod(call.outputs[0]) * left[-1]  # broadcast: fvcore would count the first operand's batch alone


@macs_of("outer", "addr")
def _outer(call: Call) -> int:
    return prod(call.outputs[0])


@macs_of("addmm", "baddbmm", "addmv")
def _addmm(call: Call) -> int:
    return prod(call.outputs[0]) * call.operands[1][-1]


@macs_of("addbmm")
def _addbmm(call: Call) -> int:
    return prod(call.operands[1]) * call.operands[2][-1]


@macs_of("cdist")
def _cdist(call: Call) -> int:
    return prod(call.outputs[0]) * call.operands[0][-1]


@macs_of("einsum")
def _einsum(call: Call) -> int:
    """Pairwise from the left, as torch contracts without opt_einsum: product of each pair's index sizes.

    fvcore's handle rounds to four digits (it reads numpy's printed report) and assumes an optimal order.
    """
    left, arrow, right = call.scalars["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    sizes: dict[str, int] = {}
    wide = max(len(s) - len(t.replace("...", "")) for t, s in zip(terms, call.operands, strict=True))
    for term, shape in zip(terms, call.operands, strict=True):
        extra = len(shape) - len(term.replace("...", ""))
        names = term.replace("...", "".join(chr(0x100 + i) for i in range(wide - extra, wide)))
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    if not arrow:
        right = "..." + "".join(c for c in left if c.isalpha() and left.count(c) == 1)
    total, held = 0, _indices(terms[0], wide)
    for position, term in enumerate(terms[1:], 1):
        both = held | _indices(term, wide)
        total += prod(sizes[i] for i in both)
        held = both & set().union(*(_indices(t, wide) for t in terms[position + 1 :]), _indices(right, wide))
    return total


def _indices(term: str, wide: int) -> set[str]:
    names = set(term.replace("...", ""))
    return names | {chr(0x100 + i) for i in range(wide)} if "..." in term else names


@macs_of("scaled_dot_product_attention")
def _attention(call: Call) -> int:
    query, key, value = call.operands[:3]
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@macs_of("multi_head_attention_forward")
def _multi_head(call: Call) -> int:
    """In-projections, scores, weighted values, out-projection (Vaswani et al. 2017, §3.2.2)."""
    query, key, value = call.operands[:3]
    width = call.scalars.get("embed_dim") or query[-1]
    if len(query) == 2:
        batch, length, source = 1, query[0], key[0]
    elif call.scalars.get("batch_first"):
        batch, length, source = query[0], query[1], key[1]
    else:
        batch, length, source = query[1], query[0], key[0]
    projected = length * query[-1] * width + source * (key[-1] + value[-1]) * width + length * width * width
    return int(batch * (projected + 2 * length * source * width))


@macs_of("lstm", "gru", "rnn", "rnn_tanh", "rnn_relu", "lstmcell", "grucell", "rnncell", "lstm_cell", "gru_cell",
         "rnn_tanh_cell", "rnn_relu_cell")  # fmt: skip
def _recurrent(call: Call) -> int:
    """Every weight matrix is applied once to each step of each sequence."""
    return prod(call.operands[0][:-1]) * sum(prod(w) for w in call.weights if len(w) == 2)


@flops_of("batch_norm")
def _batch_norm(call: Call) -> int:
    training = bool(call.scalars.get("training", False))
    inputs = [_Shaped((1, prod(call.operands[0]))), _affine(call), *[_NOTHING] * 3, _Shaped(None, training)]
    return _fvcore("batchnorm_flop_jit", inputs)


@flops_of("layer_norm", "group_norm", "instance_norm", "rms_norm")
def _norm(call: Call) -> int:
    from fvcore.nn.jit_handles import norm_flop_counter

    return int(norm_flop_counter(1)([_Shaped((1, prod(call.operands[0]))), _affine(call)], []))


def _affine(call: Call) -> _Shaped:
    return _Shaped(call.weights[0]) if len(call.weights) > call.from_weights else _NOTHING


@flops_of("avg_pool1d", "avg_pool2d", "avg_pool3d", "local_response_norm", "lp_pool1d", "lp_pool2d")
def _pool(call: Call) -> int:
    return prod(call.outputs[0])


@flops_of("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive(call: Call) -> int:
    return _elementwise(call, 1, 0)


@flops_of("max_unpool1d", "max_unpool2d", "max_unpool3d")
def _unpool(call: Call) -> int:
    return 0


@flops_of("interpolate", "upsample", "grid_sample")
def _upsample(call: Call) -> int:
    """Values read per output element, as fvcore counts nearest (1), bilinear (4) and grid_sample (4)."""
    default = "bilinear" if call.op == "grid_sample" else "nearest"
    taps = {"linear": 2, "bilinear": 4, "trilinear": 8, "bicubic": 16}
    return _elementwise(call, 0, taps.get(str(call.scalars.get("mode", default)), 1))


def _elementwise(call: Call, per_input: int, per_output: int) -> int:
    from fvcore.nn.jit_handles import elementwise_flop_counter

    return int(elementwise_flop_counter(per_input, per_output)([_Shaped(call.operands[0])], [_Shaped(call.outputs[0])]))
