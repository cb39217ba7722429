"""MACs and FLOPs of one operator call, from shapes alone.

Unit: one MAC is one multiply-accumulate. FLOPs follow fvcore's convention: one per multiply-accumulate, plus
norm, pooling and upsampling work as fvcore's handles count it. ``None`` means no formula: the op is uncounted.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

Shape = tuple[int, ...]
Cost = tuple["int | None", "int | None"]
Handle = Callable[[list[Shape], list[Shape], list[Shape], dict[str, Any]], int]

MAC_HANDLES: dict[str, Handle] = {}
"""Ops made of multiply-accumulates: op -> MACs (FLOPs are the same number)."""
FLOP_HANDLES: dict[str, Handle] = {}
"""Ops without multiply-accumulates that fvcore counts all the same: op -> FLOPs."""


def macs_of(*ops: str) -> Callable[[Handle], Handle]:
    """Register a MAC formula for these ops."""
    return lambda handle: (MAC_HANDLES.update(dict.fromkeys(ops, handle)), handle)[1]


def flops_of(*ops: str) -> Callable[[Handle], Handle]:
    """Register a FLOP formula for these ops (their MACs are 0)."""
    return lambda handle: (FLOP_HANDLES.update(dict.fromkeys(ops, handle)), handle)[1]


def cost(op: str, inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> Cost:
    """(MACs, FLOPs) of one call; ``scalars["operands"]`` lists all tensor shapes in argument order."""
    handle = MAC_HANDLES.get(op)
    if handle is not None:
        count = handle(inputs, outputs, weights, scalars)
        return count, count
    handle = FLOP_HANDLES.get(op)
    if handle is not None:
        return 0, handle(inputs, outputs, weights, scalars)
    return (0, 0) if op in FREE_OPS else (None, None)


@macs_of("conv1d", "conv2d", "conv3d")
def _conv(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    weight = scalars["operands"][1]
    return prod(outputs[0]) * prod(weight[1:])


@macs_of("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    source, weight = scalars["operands"][:2]
    return prod(source) * prod(weight[1:])


@macs_of("linear")
def _linear(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    source, weight = scalars["operands"][:2]
    return prod(source) * weight[0]


@macs_of("bilinear")
def _bilinear(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    weight = next(s for s in scalars["operands"] if len(s) == 3)
    return prod(outputs[0][:-1]) * prod(weight)


@macs_of("matmul", "bmm", "mm", "mv", "dot", "inner")
def _matmul(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    return prod(outputs[0]) * scalars["operands"][0][-1]


@macs_of("addmm", "baddbmm")
def _addmm(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    return prod(outputs[0]) * scalars["operands"][1][-1]


@macs_of("einsum")
def _einsum(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    """Pairwise from the left, as torch contracts without opt_einsum: product of each pair's index sizes."""
    operands: list[Shape] = scalars["operands"]
    left, _, right = scalars["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    sizes: dict[str, int] = {}
    wide = 0
    for term, shape in zip(terms, operands):
        wide = max(wide, len(shape) - len(term.replace("...", "")))
        names = term.replace("...", "".join(chr(0x100 + i) for i in range(len(shape) - len(term.replace("...", "")))))
        sizes.update(zip(names, shape))
    total, held = 0, set(_indices(terms[0], wide))
    for position, term in enumerate(terms[1:], 1):
        both = held | set(_indices(term, wide))
        total += prod(sizes[i] for i in both)
        later = set().union(*(_indices(t, wide) for t in terms[position + 1 :]), _indices(right, wide))
        held = both & later
    return total


def _indices(term: str, wide: int) -> set[str]:
    names = set(term.replace("...", ""))
    return names | {chr(0x100 + i) for i in range(wide)} if "..." in term else names


@macs_of("scaled_dot_product_attention")
def _attention(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    query, key, value = scalars["operands"][:3]
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@macs_of("multi_head_attention_forward")
def _multi_head(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    """In-projections, scores, weighted values, out-projection (Vaswani et al. 2017, §3.2.2)."""
    query, key, value = scalars["operands"][:3]
    width = scalars.get("embed_dim") or query[-1]
    if len(query) == 2:
        batch, length, source = 1, query[0], key[0]
    elif scalars.get("batch_first"):
        batch, length, source = query[0], query[1], key[1]
    else:
        batch, length, source = query[1], query[0], key[0]
    projected = length * query[-1] * width + source * (key[-1] + value[-1]) * width + length * width * width
    return int(batch * (projected + 2 * length * source * width))


@macs_of("lstm", "gru", "rnn", "rnn_tanh", "rnn_relu", "lstmcell", "grucell", "rnncell", "lstm_cell", "gru_cell")
def _recurrent(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    """Every weight matrix is applied once to each step of each sequence."""
    steps = prod(inputs[0][:-1])
    return steps * sum(prod(w) for w in weights if len(w) == 2)


@flops_of("batch_norm")
def _batch_norm(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    affine = any(len(w) == 1 for w in weights[-2:]) and len(weights) > 0
    return prod(inputs[0]) * (2 if affine else 1)


@flops_of("layer_norm", "group_norm", "instance_norm", "rms_norm")
def _norm(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    return prod(inputs[0]) * (5 if weights else 4)


@flops_of("avg_pool1d", "avg_pool2d", "avg_pool3d", "local_response_norm", "lp_pool2d")
def _elements(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    return prod(outputs[0])


@flops_of("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    return prod(inputs[0])


@flops_of("interpolate", "upsample", "grid_sample")
def _upsample(inputs: list[Shape], outputs: list[Shape], weights: list[Shape], scalars: dict[str, Any]) -> int:
    return prod(outputs[0]) * {"bilinear": 4, "linear": 2, "trilinear": 8, "bicubic": 16}.get(
        str(scalars.get("mode")), 1
    )


FREE_OPS = frozenset(
    [
        "relu",
        "relu6",
        "leaky_relu",
        "prelu",
        "rrelu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "sigmoid",
        "tanh",
        "softmax",
        "log_softmax",
        "softmin",
        "softplus",
        "softsign",
        "tanhshrink",
        "logsigmoid",
        "threshold",
        "glu",
        "softmax2d",
        "hardshrink",
        "softshrink",
        "add",
        "sub",
        "mul",
        "div",
        "rsub",
        "pow",
        "sqrt",
        "rsqrt",
        "square",
        "exp",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "atan2",
        "sinh",
        "cosh",
        "abs",
        "neg",
        "sign",
        "floor",
        "ceil",
        "round",
        "trunc",
        "frac",
        "fmod",
        "remainder",
        "mod",
        "floordiv",
        "floor_divide",
        "reciprocal",
        "erf",
        "erfinv",
        "erfc",
        "clamp",
        "clamp_min",
        "clamp_max",
        "clip",
        "maximum",
        "minimum",
        "max",
        "min",
        "amax",
        "amin",
        "aminmax",
        "mean",
        "sum",
        "prod",
        "std",
        "var",
        "std_mean",
        "var_mean",
        "norm",
        "vector_norm",
        "linalg_vector_norm",
        "matrix_norm",
        "normalize",
        "cumsum",
        "cumprod",
        "logsumexp",
        "lerp",
        "addcmul",
        "addcdiv",
        "where",
        "masked_fill",
        "masked_select",
        "masked_scatter",
        "logical_and",
        "logical_or",
        "logical_not",
        "logical_xor",
        "and",
        "or",
        "xor",
        "invert",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "isnan",
        "isinf",
        "isfinite",
        "isclose",
        "all",
        "any",
        "argmax",
        "argmin",
        "argsort",
        "sort",
        "topk",
        "unique",
        "bincount",
        "histc",
        "nonzero",
        "cosine_similarity",
        "pairwise_distance",
        "cross",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
        "max_unpool1d",
        "max_unpool2d",
        "max_unpool3d",
        "max_pool2d_with_indices",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_alpha_dropout",
        "feature_dropout",
        "native_dropout",
        "flatten",
        "unflatten",
        "view",
        "reshape",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "getitem",
        "setitem",
        "expand",
        "expand_as",
        "chunk",
        "split",
        "unbind",
        "narrow",
        "select",
        "swapaxes",
        "swapdims",
        "movedim",
        "moveaxis",
        "t",
        "T",
        "mT",
        "H",
        "mH",
        "detach",
        "contiguous",
        "identity",
        "view_as",
        "reshape_as",
        "unfold",
        "fold",
        "tensor_split",
        "split_with_sizes",
        "data",
        "real",
        "imag",
        "to",
        "float",
        "half",
        "double",
        "bfloat16",
        "long",
        "int",
        "bool",
        "cpu",
        "cuda",
        "type",
        "type_as",
        "ravel",
        "pad",
        "roll",
        "repeat",
        "tile",
        "clone",
        "gather",
        "scatter",
        "scatter_add",
        "index_select",
        "index_add",
        "index_copy",
        "index_put",
        "index_fill",
        "take",
        "take_along_dim",
        "flip",
        "fliplr",
        "flipud",
        "rot90",
        "repeat_interleave",
        "channel_shuffle",
        "pixel_shuffle",
        "pixel_unshuffle",
        "cat",
        "stack",
        "hstack",
        "vstack",
        "dstack",
        "column_stack",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
        "broadcast_to",
        "broadcast_tensors",
        "meshgrid",
        "diagonal",
        "diag",
        "diag_embed",
        "tril",
        "triu",
        "embedding",
        "one_hot",
        "view_as_complex",
        "view_as_real",
        "complex",
        "polar",
        "conj",
        "resolve_conj",
        "angle",
        "zeros",
        "ones",
        "empty",
        "full",
        "rand",
        "randn",
        "randint",
        "randperm",
        "arange",
        "linspace",
        "logspace",
        "eye",
        "tensor",
        "as_tensor",
        "zeros_like",
        "ones_like",
        "empty_like",
        "full_like",
        "rand_like",
        "randn_like",
        "new_zeros",
        "new_ones",
        "new_empty",
        "new_full",
        "new_tensor",
        "scalar_tensor",
        "tril_indices",
        "triu_indices",
        "hann_window",
        "hamming_window",
        "from_numpy",
        "fill",
        "zero",
        "copy",
        "normal",
        "uniform",
        "bernoulli",
        "set_",
        "requires_grad",
        "requires_grad_",
        "values",
        "indices",
        "is_floating_point",
        "numel",
        "size",
        "item",
        "bucketize",
        "searchsorted",
        "count_nonzero",
        "addr",
        "affine_grid",
        "heaviside",
        "signbit",
        "sinc",
        "nan_to_num",
        "quantile",
        "median",
        "mode",
        "kthvalue",
        "diff",
        "outer",
        "as_strided",
        "asinh",
    ]
)
"""Free under fvcore's convention: activations, comparisons and element-by-element arithmetic (fvcore leaves them out:
small beside the convolutions), moves and views (nothing is computed), creation of constants, max pooling."""
