"""Which axis of each value is which: batch, channels or space, followed through permutes, reshapes and flattens.

A layout has one set of labels an axis: ``N`` batch, ``C`` channels or features, ``S0``, ``S1``, … the input's spatial
(or time) axes. The frames of a clip that a 2-D convolution reads one by one are ``N`` as well: each is an image. A
flattened map has ``{C, S0, S1}`` on one axis; an axis cut in two (window partition) has its label on both; an axis of
size 1 other than the batch has none. Values that do not come from the input have no layout.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from convaudit.graph import CALL, VAL, Call, LayerGraph, once, shape_of, tensors

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

Labels = frozenset[str]
Layout = tuple[Labels, ...]
_NONE: Labels = frozenset()
_N, _C = frozenset({"N"}), frozenset({"C"})


def space(layout: Layout) -> Labels:
    """The spatial labels anywhere in a layout."""
    return frozenset(label for axis in layout for label in axis if label[0] == "S")


def spatial_axes(layout: Layout) -> list[int]:
    """Axes of a map that hold positions, those of one position among them; the batch and one channel axis left out."""
    channels = next((i for i, axis in enumerate(layout) if "C" in axis), 1)
    return [i for i, axis in enumerate(layout) if i and i != channels and (space((axis,)) or not axis)]


def framed(layout: Layout) -> bool:
    """Whether an input is a clip whose frames are read one by one."""
    return len(layout) == 5 and sum("N" in axis for axis in layout) == 2


def flattened(layout: Layout) -> bool:
    """Whether one axis other than the batch holds channels and positions, or two spatial axes, together."""
    return any(len(axis - _N) > 1 and "N" not in axis for axis in layout)


@once
def layouts(graph: LayerGraph) -> dict[Node, Layout]:
    """Layout of each node whose value comes from the input; of a tuple's first tensor."""
    found: dict[Node, Layout] = {}
    for node in graph.graph.nodes:
        value = _first(node.meta.get(VAL))
        if value is None or node.op in ("get_attr", "output"):
            continue
        if node.op == "placeholder":
            if value.is_floating_point() or value.is_complex():
                found[node] = _of_input(node, value)
            elif any(user.meta[CALL].kind == "embedding" for user in node.users if CALL in user.meta):
                found[node] = (_N, *_spatial(value.dim() - 1))  # indices of tokens
            continue
        known = [n for n in node.all_input_nodes if n in found]
        call: Call | None = node.meta.get(CALL)
        if known and (call is None or call.kind != "constant"):
            made = found[known[0]] if call is None else _through(node, call, known, found, value)
            if len(made) != value.dim():
                made = _guess(value)
            found[node] = tuple(
                _NONE if size == 1 and "N" not in axis else axis for axis, size in zip(made, value.shape, strict=True)
            )
    return found


def _first(value: Any) -> Tensor | None:
    return next(iter(tensors(value)), None)


def _spatial(axes: int, first: int = 0) -> Layout:
    return tuple(frozenset({f"S{i}"}) for i in range(first, first + axes))


def _guess(value: Tensor) -> Layout:
    return (_N, _C, *_spatial(value.dim() - 2))[: value.dim()]


def _of_input(node: Node, value: Tensor) -> Layout:
    rank = value.dim()
    convolved = any(u.meta[CALL].op == "conv1d" for u in node.users if CALL in u.meta)
    if rank == 3 and not convolved:
        image = value.shape[0] in (1, 3, 4) and min(value.shape[1:]) >= 8
        return (_C, *_spatial(2)) if image else (_N, *_spatial(1), _C)
    if rank >= 4 and value.shape[-1] in (1, 3, 4) and value.shape[1] > 4:
        return (_N, *_spatial(rank - 2), _C)  # NHWC
    channels = _read_by_2d(node) if rank == 5 else None
    if channels is not None and channels in value.shape[1:3]:
        return (_N, _N, _C, *_spatial(2)) if value.shape[2] == channels else (_N, _C, _N, *_spatial(2))
    return _guess(value)


def _read_by_2d(node: Node) -> int | None:
    """Channels of the 2-D convolution that is the first to read a value, cut, reordered or scaled."""
    queue, seen = [node], {node}
    for at in queue:
        for user in at.users:
            call: Call | None = user.meta.get(CALL)
            if call is not None and call.conv is not None:
                return call.conv.in_channels if len(call.conv.kernel) == 2 else None
            if user not in seen and (call is None or call.kind in ("reshape", "merge", "elementwise", "norm")):
                seen.add(user)
                queue.append(user)
    return None


def _through(node: Node, call: Call, known: list[Node], found: dict[Node, Layout], value: Tensor) -> Layout:
    source = known[0]
    layout, shape = found[source], shape_of(source)
    if call.kind in ("conv", "upsample", "pool"):
        same = layout if len(layout) == value.dim() else _guess(value)
        grown = [i > 1 and not axis and value.shape[i] > 1 for i, axis in enumerate(same)]  # from one pixel to many
        same = tuple(frozenset({f"S{i - 2}"}) if new else axis for i, (axis, new) in enumerate(zip(same, grown)))
        return tuple(_C if i == 1 and call.kind == "conv" else axis for i, axis in enumerate(same))
    if call.kind == "embedding":
        return (*layout, _C) if len(layout) < value.dim() else (_N, _C)
    if call.kind == "linear" or (call.kind == "matmul" and len(known) == 1):
        return (*layout[:-1], _C)
    if call.kind == "matmul":
        other = found[known[1]]
        return (*layout[:-1], other[-1]) if len(layout) == len(other) == value.dim() else layout
    if call.op in ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "T", "mT"):
        return _permuted(call, node, layout)
    if call.op in ("squeeze", "unsqueeze", "flatten", "unflatten", "view", "reshape", "ravel", "view_as", "reshape_as",
                   "contiguous", "expand", "repeat", "stack", "select"):  # fmt: skip
        if call.op == "stack":
            dim = int(call.scalars.get("dim", 0)) % value.dim()
            return (*layout[:dim], _NONE, *layout[dim:])
        if call.op == "select":
            dim = int(node.args[1] if len(node.args) > 1 else node.kwargs["dim"]) % len(layout)  # type: ignore[arg-type]
            return tuple(axis for i, axis in enumerate(layout) if i != dim)
        whole = prod(shape) == value.numel()
        return regroup(shape, tuple(value.shape), layout) if whole else _fit(layout, shape, value)
    if call.op == "getitem":
        return _indexed(node, layout, value)
    if call.op == "unbind":
        dim = int(call.scalars.get("dim", 0)) % len(layout)
        return tuple(axis for i, axis in enumerate(layout) if i != dim)
    if call.kind == "reduce":
        return _reduced(call, layout, shape, value)
    # everything else works position by position: the operand of the result's rank that says most
    fitting = [found[n] for n in known if len(found[n]) == value.dim()]
    return max(fitting, key=lambda lay: sum(map(len, lay)), default=layout)


def _permuted(call: Call, node: Node, layout: Layout) -> Layout:
    rank = len(layout)
    numbers = [a for a in _flat(node.args[1:]) + _flat(tuple(node.kwargs.values())) if isinstance(a, int)]
    if call.op == "permute" and len(numbers) == rank:
        return tuple(layout[d] for d in numbers)
    axes = list(range(rank))
    if call.op in ("t", "T", "mT"):
        numbers = [-1, -2]
    if len(numbers) != 2 or rank < 2:
        return layout
    a, b = (n % rank for n in numbers)
    if call.op in ("movedim", "moveaxis"):
        axes.insert(b, axes.pop(a))
    else:
        axes[a], axes[b] = axes[b], axes[a]
    return tuple(layout[i] for i in axes)


def _flat(value: Any) -> list[Any]:
    return [x for item in value for x in _flat(item)] if isinstance(value, (tuple, list)) else [value]


def regroup(before: tuple[int, ...], after: tuple[int, ...], layout: Layout) -> Layout:
    """The layout of a reshape: axes are matched left to right into groups of equal size."""
    result: list[Labels] = []
    i = j = 0
    while j < len(after):
        start_i, start_j = i, j
        left = before[i] if i < len(before) else 1
        right = after[j]
        i, j = min(i + 1, len(before)), j + 1
        while left != right:
            if left < right and i < len(before):
                left *= before[i]
                i += 1
            elif j < len(after):
                right *= after[j]
                j += 1
            else:
                break
        labels = frozenset(label for axis in layout[start_i:i] for label in axis)
        group = j - start_j
        if group == 1 and i - start_i == 1:
            result.append(layout[start_i])
        else:
            result += [labels] * group
    if i < len(before) and result:
        result[-1] |= frozenset(label for axis in layout[i:] for label in axis)
    return tuple(result)


def _fit(layout: Layout, shape: tuple[int, ...], value: Tensor) -> Layout:
    if len(layout) == value.dim():
        return layout
    if len(layout) == value.dim() + 1:  # an axis is gone
        gone = next((i for i, (a, b) in enumerate(zip(shape, value.shape, strict=False)) if a != b), len(layout) - 1)
        return layout[:gone] + layout[gone + 1 :]
    return _guess(value)


def _indexed(node: Node, layout: Layout, value: Tensor) -> Layout:
    index = node.args[1] if len(node.args) > 1 else None
    parent = node.args[0]
    if isinstance(getattr(parent, "meta", {}).get(VAL), (tuple, list, dict)):
        return layout  # an element of a tuple
    result: list[Labels] = []
    left = list(layout)
    items = index if isinstance(index, tuple) else (index,)
    for position, item in enumerate(items):
        if item is None:
            result.append(_NONE)
        elif item is Ellipsis:
            rest = sum(i is not None for i in items[position + 1 :])
            keep = len(left) - rest
            result += left[:keep]
            left = left[keep:]
        elif isinstance(item, int):
            left = left[1:]
        elif left:
            result.append(left.pop(0))
    result += left
    return tuple(result) if len(result) == value.dim() else _guess(value)


def _reduced(call: Call, layout: Layout, shape: tuple[int, ...], value: Tensor) -> Layout:
    dims = call.scalars.get("dim")
    if dims is None:
        return (_NONE,) * value.dim()
    over = {d % len(layout) for d in ([dims] if isinstance(dims, int) else dims)}
    if len(layout) == value.dim():
        return tuple(_NONE if i in over and "N" not in axis else axis for i, axis in enumerate(layout))
    return tuple(axis for i, axis in enumerate(layout) if i not in over)
