"""Pictures of a convolution's kernels (article §4.2), as data. Never imports torch."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convaudit.result import KernelGallery, KernelRow

MOST = 64
"""Filters in a gallery."""
_PIXELS = 1 << 16


@np.errstate(all="ignore")
def gallery(layer: str, shape: list[int], dtype: str, values: NDArray[Any]) -> KernelGallery | None:
    """The first filters of a weight [filters, channels, …] of 1 to 3 spatial axes; None where one takes too many pixels.

    A filter of three channels is a colour picture. Of any other the plane of largest norm is shown: no mean over channels,
    in which weights of opposite sign would cancel.
    """
    height, width = 1 if values.ndim == 3 else values.shape[-2], values.shape[-1]
    planes = 3 if values.ndim == 4 and values.shape[1] == 3 else 1
    number = min(MOST, len(values), _PIXELS // (planes * height * width))
    rows = [_row(filter_.reshape(-1, height * width).astype(np.float64), planes) for filter_ in values[:number]]
    return KernelGallery(layer, shape, dtype, planes, height, width, rows) if rows else None


def _row(filter_: NDArray[Any], planes: int) -> KernelRow:
    """One filter, [channels, pixels]."""
    total, deviation, lowest, highest = (float(figure) for figure in (filter_.sum(), filter_.std(), filter_.min(), filter_.max()))
    if not np.isfinite([total, deviation, lowest, highest]).all():  # nor need they be where all weights are: squares of float64 may overflow
        return KernelRow(None, None, None, None, None, None, None)
    plane = None if len(filter_) == planes else int(np.square(filter_).sum(axis=1).argmax())
    shown = filter_ if plane is None else filter_[plane]
    limit = float(np.abs(shown).max())
    pixels = np.rint(shown / (limit or 1.0) * 127) + 128
    return KernelRow(total, deviation, lowest, highest, plane, limit, base64.b64encode(pixels.astype(np.uint8).tobytes()).decode())
