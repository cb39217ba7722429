"""CNV204 skipped-pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from convaudit.graph import CALL, main_input, shape_of
from convaudit.rule import Example, Options, Rule

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

    from convaudit.context import Context
    from convaudit.graph import Call
    from convaudit.result import Finding


@dataclass(frozen=True)
class SkippedPixelsOptions(Options):
    """``min_share``: share of a tensor's positions nobody reads from which it is listed."""

    min_share: float = 0.25


class SkippedPixels(Rule):
    """part of a map is read by nothing

    ## What it does
    Finds maps of whose positions at least `min-share` are read by none of their consumers: a stride beyond the kernel,
    a kernel-1 pool, a strided slice, with no other layer that reads the rest. Rows a window does not reach at the
    border do not count.

    ## Why it matters
    Those positions were computed for nothing, and what they hold is lost. Caffe-style ResNets have their 1×1 stride-2
    convolution in both branches and lose 75% of the map.

    ## Example
        nn.Conv2d(256, 128, 1, stride=2), nn.Conv2d(128, 128, 3, padding=1)      # and a 1×1 stride-2 shortcut

    ## Use instead
        nn.Conv2d(256, 128, 1), nn.Conv2d(128, 128, 3, stride=2, padding=1)

    ## Exceptions
    A 1×1 stride-2 shortcut beside a 3×3 that reads everything.

    ## References
    He, Zhang, Zhang, Zhang, Xie, Li 2019, Bag of Tricks for Image Classification with Convolutional Neural Networks,
    arXiv:1812.01187, section 4.2 (ResNet-B).
    """

    code = "CNV204"
    name = "skipped-pixels"
    severity = "info"
    changes_state_dict = False
    needs_complete = True
    options = SkippedPixelsOptions

    def check(self, context: Context) -> Iterator[Finding]:
        """One finding for the model, with all layers that skip."""
        options = context.options
        assert isinstance(options, SkippedPixelsOptions)
        unread: dict[str, float] = {}
        for source in context.graph.graph.nodes:
            skipping = [user for user in source.users if _steps(context, user, source)]
            if not skipping or _moved_from_shared(_origin(source)):
                continue
            share = _unread(context, _origin(source))
            if share >= options.min_share:
                for user in skipping:
                    layer = user.meta[CALL].layer
                    unread[layer] = max(share, unread.get(layer, 0.0))
        if unread:
            shares = sorted({f"{share:.0%}" for share in unread.values()})
            more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
            yield context.finding(
                f"{' or '.join(shares)} of the map that {next(iter(unread))}{more} reads with gaps is read by nothing",
                list(unread),
                evidence={"unread": unread},
                suggestion="let the 3×3 take the stride, or pool before the 1×1",
            )

    @classmethod
    def bad(cls) -> list[Example]:
        """Stride beyond the kernel, in both branches too; a kernel-1 pool; a strided slice; dilation 2 at stride 2."""
        from torch import nn
        from torch.nn import functional

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
                self.conv1, self.conv2 = nn.Conv2d(8, 8, 1, 2), nn.Conv2d(8, 8, 3, padding=1)
                self.shortcut = nn.Conv2d(8, 8, 1, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = functional.relu(self.norm(self.stem(x)))
                value: torch.Tensor = self.conv2(functional.relu(self.conv1(x))) + self.shortcut(x)
                return value

        class Sliced(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = self.head(self.conv(x)[:, :, ::2, ::2])
                return value

        image = ((1, 3, 16, 16),)
        return [
            Example(Block, image, "1×1 stride 2 in both branches"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 2, 3)), image, "stride beyond the kernel"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(1, 2)), image, "a kernel-1 pool"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 2, dilation=2)), image, "dilated"),
            Example(lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 1, 2)), ((1, 3, 32),), "Conv1d"),
            Example(Sliced, image, "a strided slice"),
        ]  # fmt: skip

    @classmethod
    def good(cls) -> list[Example]:
        """One guard each."""
        import torch
        from torch import nn

        class Shortcut(nn.Module):
            def __init__(self, before: nn.Module) -> None:
                super().__init__()
                self.stem, self.before = nn.Conv2d(3, 8, 3, padding=1), before
                self.conv, self.shortcut = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 1, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.stem(x)
                value: torch.Tensor = self.conv(x) + self.shortcut(self.before(x))[..., :8, :8]
                return value

        class Sliced(nn.Module):
            def __init__(self, *starts: tuple[int, int]) -> None:
                super().__init__()
                self.conv, self.starts = nn.Conv2d(3, 8, 3, 2, 1), starts

            def forward(self, x: torch.Tensor) -> Any:
                return self.conv(x), torch.cat([x[:, :, i::2, j::2] for i, j in self.starts], 1)

        class Cropped(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x[:, ::2, :4, 3].relu()

        class Returned(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, 2)

            def forward(self, x: torch.Tensor) -> Any:
                x = self.stem(x)
                return x, self.head(x)

        image = ((1, 3, 16, 16),)
        patches = ((0, 0), (0, 1), (1, 0), (1, 1))
        return [
            Example(lambda: Shortcut(nn.Identity()), image, "a shortcut beside a 3×3"),
            Example(lambda: Shortcut(nn.BatchNorm2d(8)), image, "a norm before the shortcut"),
            Example(lambda: Shortcut(nn.ZeroPad2d((0, 1, 0, 1))), image, "a pad before the shortcut"),
            Example(lambda: Sliced((0, 0)), image, "a sliced shortcut beside a 3×3"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 2, 2)), image, "patchify"),
            Example(lambda: Sliced(*patches), image, "slices that cover the map"),
            Example(Cropped, image, "a crop, a slice of channels"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 8, 9)), ((1, 3, 20, 20),), "under min-share"),
            Example(Returned, image, "returned as well"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)), ((1, 3, 5, 5),), "the border of a pool"),
            Example(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, 2)), ((1, 3, 3, 3),), "a 1×1 map"),
        ]  # fmt: skip


def _pointwise(node: Node) -> bool:
    """Whether each position of the value is made of the same position of one other value."""
    call: Call | None = node.meta.get(CALL)
    return call is not None and (
        call.kind in ("activation", "dropout", "elementwise")
        or call.op in ("batch_norm", "contiguous", "clone", "detach")
    )


def _origin(node: Node) -> Node:
    """The value that ``node`` was made of position by position."""
    source = main_input(node) if _pointwise(node) else None
    return node if source is None else _origin(source)


def _moved_from_shared(node: Node) -> bool:
    """Whether the value is a pad, view or crop of one that others read too."""
    call: Call | None = node.meta.get(CALL)
    source = main_input(node)
    if call is None or source is None or not (call.kind == "reshape" or _pointwise(node)):
        return False
    return len(source.users) > 1 or _moved_from_shared(source)


def _unread(context: Context, node: Node) -> float:
    """Share of the node's positions that nothing reads."""
    read = _read(context, node)
    return 0.0 if read is None else 1.0 - int(read.sum()) / prod(read.shape)


def _read(context: Context, node: Node) -> torch.Tensor | None:
    """The positions of the node's value that something reads; None for all of them."""
    import torch

    size = _size(context, node)
    if not size:
        return None
    read = torch.zeros(tuple(size.values()), dtype=torch.bool, device="cpu")
    for user in node.users:
        steps = _steps(context, user, node)
        mask = _mask(steps, size) if steps else _read(context, user) if _pointwise(user) and user.users else None
        if mask is None or mask.shape != read.shape:
            return None
        read |= mask
    return read


def _mask(steps: dict[int, set[int]], size: dict[int, int]) -> torch.Tensor:
    import torch

    mask = torch.ones((), dtype=torch.bool, device="cpu")
    for axis, length in size.items():
        row = torch.tensor([axis not in steps or i in steps[axis] for i in range(length)], device="cpu")
        mask = mask[..., None] & row
    return mask


def _size(context: Context, node: Node) -> dict[int, int]:
    """Length of each purely spatial axis of the node's value, by axis."""
    layout, shape = context.layouts.get(node, ()), shape_of(node)
    return {
        i: length
        for i, (axis, length) in enumerate(zip(layout, shape))
        if len(axis) == 1 and next(iter(axis))[0] == "S"
    }


def _steps(context: Context, user: Node, source: Node) -> dict[int, set[int]] | None:
    """Positions ``user`` reads on each axis of ``source`` it steps over; None where it reads all of them."""
    call: Call | None = user.meta.get(CALL)
    size = _size(context, source)
    if call is None or not size or main_input(user) is not source:
        return None
    if call.op == "getitem":
        found = _slices(user, shape_of(source), size)
    elif call.conv is not None and not call.conv.transposed:
        conv = call.conv
        low = tuple(p for p, _ in conv.padding)
        found = _windows(shape_of(source), conv.kernel, conv.stride, low, conv.dilation)
    elif call.kind == "pool" and call.op.startswith(("max_pool", "avg_pool")):
        axes = int(call.op[8])
        kernel = _spread(call.scalars.get("kernel_size"), axes)
        stride = _spread(call.scalars.get("stride") or kernel, axes)
        padding = _spread(call.scalars.get("padding", 0), axes)
        dilation = _spread(call.scalars.get("dilation", 1), axes)
        if not kernel or not stride or not padding or not dilation:
            return None
        found = _windows(shape_of(source), kernel, stride, padding, dilation)
    else:
        return None
    found = {axis: read for axis, read in found.items() if axis in size and len(read) < size[axis]}
    return found or None


def _spread(value: Any, axes: int) -> tuple[int, ...]:
    """A pool's argument, one entry an axis; () where it is not plain."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not all(isinstance(v, int) for v in values):
        return ()
    return values * axes if len(values) == 1 else values


def _windows(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> dict[int, set[int]]:
    """Positions that windows read, continued past the last one."""
    first = len(shape) - len(kernel)
    return {
        first + i: {
            at for start in range(-padding[i], shape[first + i], s) for at in range(start, start + d * k, d)
            if 0 <= at < shape[first + i]
        }
        for i, (k, s, d) in enumerate(zip(kernel, stride, dilation))
    }  # fmt: skip


def _slices(node: Node, shape: tuple[int, ...], size: dict[int, int]) -> dict[int, set[int]]:
    """Positions that slices with a step read, continued past both ends; plain crops read everything."""
    index = node.args[1] if len(node.args) > 1 else None
    items = list(index) if isinstance(index, (tuple, list)) else [index]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(shape) - sum(i is not None for i in items) + 1)
    found: dict[int, set[int]] = {}
    axis = 0
    for item in items:
        if item is None:
            continue
        if isinstance(item, slice) and isinstance(item.step, int) and item.step > 1 and axis in size:
            start = item.start if isinstance(item.start, int) else 0
            found[axis] = set(range(start % item.step, size[axis], item.step))
        axis += 1
    return found
