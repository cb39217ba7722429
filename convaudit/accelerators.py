"""Accelerators that are not there: code that moves itself to a GPU while it is imported or built stays where it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

_MOVES = {"cuda", "xpu", "npu", "hpu", "mps", "ipu"}
_HOSTS = {"cpu", "meta"}


class _Stay(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if args and isinstance(args[0], Tensor):
            if name in _MOVES:
                return args[0]
            if name == "to":
                args = tuple(args[0].device if _elsewhere(value) else value for value in args)
                kwargs = {k: args[0].device if _elsewhere(value) else value for k, value in kwargs.items()}
        if function in _device_constructors() and _elsewhere(kwargs.get("device")):
            kwargs = {key: value for key, value in kwargs.items() if key != "device"}
        return function(*args, **kwargs)


def _elsewhere(device: Any) -> bool:
    """Whether a value names an accelerator."""
    if isinstance(device, str):
        return device.partition(":")[0] not in _HOSTS and device != ""
    return isinstance(device, torch.device) and device.type not in _HOSTS


@contextlib.contextmanager
def absent() -> Iterator[None]:
    """Answer ``.cuda()``, ``.to("cuda")`` and ``device="cuda"`` with the tensor where it is.

    Nested inside ``torch.device("meta")``, tensors made for an accelerator are made on meta.
    """
    nothing = {"set_device": lambda *_: None, "synchronize": lambda *_: None, "current_device": lambda: 0}
    saved = {name: getattr(torch.cuda, name) for name in nothing}
    try:
        for name, stand_in in nothing.items():
            setattr(torch.cuda, name, stand_in)
        with _Stay():
            yield
    finally:
        for name, original in saved.items():
            setattr(torch.cuda, name, original)
