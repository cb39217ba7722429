"""Example inputs: parsed from the command line or settings, asked of the model, or inferred from its layers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from convaudit.errors import TargetError, UsageError, message_of
from convaudit.result import InputInfo
from convaudit.settings import INPUT_FORM, read_input

if TYPE_CHECKING:
    from convaudit.graph import LayerGraph

Source = Literal["option", "config", "model", "inferred"]
_SIZES = (224, 32, 28, 64, 96, 112, 128, 48, 256, 299, 331, 384, 448, 512, 16)
_ODD_SIZES = (24, 20, 36, 40, 56, 60, 72, 80, 84, 100, 120, 144, 150, 160, 180, 192, 200, 227, 240, 288, 300, 320, 400, 416, 480, 600, 640)
"""Tried where a Linear refused the first of the usual sizes: one of them may be what it was made for."""


def parse_input(spec: str) -> tuple[str | None, tuple[int, ...], str]:
    """(name, shape, dtype) of ``[NAME:]SHAPE[:DTYPE]``. Raises :class:`UsageError` for anything else."""
    match = read_input(spec)
    if match is None:
        raise UsageError(f"--input {spec!r} is not {INPUT_FORM}")
    dtype = {"long": "int64", "int": "int32", "float": "float32", "half": "float16", "double": "float64"}.get(
        match["dtype"] or "float32", match["dtype"] or "float32"
    )
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UsageError(f"--input {spec!r}: unknown dtype {match['dtype']!r}; such as float32, int64 or bool")
    shape = () if match["shape"] == "()" else tuple(map(int, match["shape"].split(",")))
    return match["name"], shape, dtype


def given_inputs(specs: list[str], source: Source) -> tuple[tuple[Any, ...], dict[str, Any], list[InputInfo]]:
    """Tensors on meta for the specs: unnamed ones positional in order, named ones by keyword."""
    args, kwargs, infos = [], {}, []
    for spec in specs:
        name, shape, dtype = parse_input(spec)
        value = torch.zeros(shape, dtype=getattr(torch, dtype), device="meta")
        infos.append(InputInfo(list(shape), dtype, source))
        if name is None:
            args.append(value)
        else:
            kwargs[name] = value
    return tuple(args), kwargs, infos


def model_inputs(model: nn.Module) -> tuple[tuple[Any, ...], list[InputInfo]] | None:
    """The model's own word: ``example_input_array``, or timm's pretrained configuration."""
    example = getattr(model, "example_input_array", None)
    if isinstance(example, torch.Tensor):
        return (example,), [InputInfo(list(example.shape), str(example.dtype)[6:], "model")]
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        shape = [1, *config["input_size"]]
        return (torch.empty(shape, device="meta"),), [InputInfo(shape, "float32", "model")]
    return None


def inferred_inputs(model: nn.Module) -> tuple[tuple[Any, ...], list[InputInfo]]:
    """An input that the model accepts, guessed from its first layer and tried by a forward on meta.

    Raises :class:`TargetError` (step "input") where none fits.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TargetError(
            "input", "it is a ScriptModule, which is not followed inside: audit it as a plain nn.Module",
            kind="InputError",
        )  # fmt: skip
    from convaudit.tracer import record, unsized

    refused = ""
    errors: list[TargetError] = []
    candidates = _candidates(model)
    lazy = unsized(model)
    if lazy and not candidates:
        raise _sized_by_input()
    usual = len(candidates)
    for index, (shape, dtype) in enumerate(candidates):  # which may grow
        value = torch.zeros(shape, dtype=dtype, device="meta")
        try:
            graph = record(model, (value,), {})  # a part that cannot be followed is none at another size either
        except TargetError as error:
            refused = refused or f"; tried {','.join(map(str, shape))}: {error}"
            errors.append(error)
            if index == usual - 1:
                candidates += _others(candidates[0][0], refused)
            continue
        others = [_size(model, other, dtype) for other, _ in candidates[index + 1 : index + 2]] if lazy else []
        if any(size not in (None, _weights(graph)) for size in others):
            raise _sized_by_input()
        return (value,), [InputInfo(list(shape), str(dtype)[6:], "inferred")]
    if len(errors) > 1 and "for each of" not in wanted(model) and len({(message_of(e.__cause__ or e), e.path, e.line) for e in errors}) == 1:
        raise TargetError(
            "trace", f"it fails alike on all {len(errors)} inputs that were tried: {errors[0]}", kind=errors[0].kind,
            path=errors[0].path, line=errors[0].line,
        )  # fmt: skip
    if not any(True for _ in model.parameters()):
        refused = "; it has no parameters"
    example = next((",".join(map(str, shape)) for shape, _ in candidates if len(shape) >= 4), "1,3,224,224")
    raise TargetError("input", f"no input could be inferred; {wanted(model, example)}{refused}", kind="InputError")


def wanted(model: nn.Module, example: str = "1,3,224,224") -> str:
    """What to type: an --input for each argument that the forward needs."""
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(names) < 2:
        return f"give one with --input {example}"
    return f"give one for each of {', '.join(names)}: --input {names[0]}:{example} --input {names[1]}:…"


def _sized_by_input() -> TargetError:
    return TargetError(
        "input", "its lazy layers take their size from the input: give the real one with --input, "
        "such as --input 1,3,224,224", kind="InputError",
    )  # fmt: skip


def _weights(graph: LayerGraph) -> int:
    return sum(parameter.numel() for parameter in graph.parameters.values())


def _size(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> int | None:
    """How many parameters a lazy model has on another input; None where it does not run there."""
    from convaudit.tracer import record

    try:
        return _weights(record(model, (torch.zeros(shape, dtype=dtype, device="meta"),), {}))
    except TargetError:
        return None


def _candidates(model: nn.Module) -> list[tuple[tuple[int, ...], torch.dtype]]:
    made = {getattr(layer, "out_channels", None) for layer in model.modules() if _convolves(layer)}
    takes = [layer for layer in model.modules() if _convolves(layer) and layer.in_channels not in made]
    for layer in model.modules():
        axes = _convolves(layer)
        if axes:
            layer = takes[0] if takes and _convolves(takes[0]) == axes else layer  # the first is declared first, no more
            channels = int(layer.in_channels)  # type: ignore[arg-type]
            if not channels:  # lazy, and the first: it takes anything
                return []
            if axes == 1:
                return [((1, channels, n), torch.float32) for n in (1024, 128, 16000)]
            if axes == 3:
                return [((1, channels, t, n, n), torch.float32) for t, n in ((16, 112), (16, 224), (8, 32), (64, 64))]
            code = (1,) if isinstance(layer, nn.ConvTranspose2d) else ()  # a generator's first layer takes a code
            return [((1, channels, n, n), torch.float32) for n in (*code, *_SIZES)]
        if isinstance(layer, nn.Embedding):
            return [((1, 16), torch.int64)]
        if isinstance(layer, nn.Linear):
            n = layer.in_features
            if not n:  # lazy, and the first: it takes anything
                return []
            images = [(c, round((n / c) ** 0.5)) for c in (1, 3) if n % c == 0]
            maps = [((1, c, side, side), torch.float32) for c, side in images if c * side * side == n and side >= 8]
            flattens = any(isinstance(m, nn.Flatten) for m in model.modules())
            vectors = [((1, n), torch.float32), ((1, 16, n), torch.float32)]
            return [*maps, *vectors] if flattens else [*vectors, *maps]
        if isinstance(layer, (nn.LSTM, nn.GRU, nn.RNN)):
            return [((1, 16, layer.input_size), torch.float32)]
    kernel = next((p for p in model.parameters() if not is_lazy(p) and p.dim() == 4), None)  # of a class of one's own
    return [((1, kernel.shape[1], n, n), torch.float32) for n in _SIZES] if kernel is not None else []


def _others(shape: tuple[int, ...], refused: str) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Further inputs where all of the usual ones were refused, by what was said about the first: sizes, or clips."""
    if len(shape) == 4 and "(Linear " in refused:
        return [((*shape[:2], n, n), torch.float32) for n in _ODD_SIZES]
    if len(shape) == 4 and "expected 5" in refused:
        return [((1, 8, shape[1], n, n), torch.float32) for n in (112, 224, 64)]
    return []


def _convolves(layer: nn.Module) -> int:
    """Spatial axes of a convolution: torch's, or a class of one's own with ``in_channels`` and a kernel."""
    for axes, kind in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
        if isinstance(layer, kind):
            return axes
    kernel = getattr(layer, "weight", None)
    own = isinstance(kernel, nn.Parameter) and not is_lazy(kernel) and isinstance(getattr(layer, "in_channels", None), int)
    return kernel.dim() - 2 if own and 3 <= kernel.dim() <= 5 else 0  # type: ignore[union-attr]


def with_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any], infos: list[InputInfo], batch: int
) -> tuple[tuple[Any, ...], dict[str, Any], list[InputInfo]]:
    """The same input, ``batch`` times: the first axis of every tensor that has one."""
    from convaudit.graph import mapped

    grow = mapped(lambda t: torch.empty((batch, *t.shape[1:]), dtype=t.dtype, device="meta") if t.dim() else t)
    for info in infos:
        info.shape[:1] = [batch] if info.shape else []
    return grow(args), grow(kwargs), infos


def made_inputs(maker: str) -> tuple[tuple[Any, ...], dict[str, Any], list[InputInfo]]:
    """What MODULE:FUNCTION or FILE.py:FUNCTION returns: a tensor, a tuple of arguments, a dict of keywords, or
    (args, kwargs). Raises :class:`TargetError` (step "input") where it cannot be imported or fails."""
    from convaudit.graph import tensors
    from convaudit.targets import load

    head, _, function = maker.partition(":")
    if not function:
        raise TargetError(
            "input", f"--input-from {maker}: name a function, as in {maker}:make_inputs", kind="ValueError"
        )
    try:
        value = getattr(load(head), function)()
    except TargetError as error:
        raise TargetError(
            "input", f"--input-from {maker}: {error}", kind=error.kind, path=error.path, line=error.line
        ) from error
    except Exception as error:
        raise TargetError(
            "input", f"--input-from {maker}: {type(error).__name__}: {message_of(error)}", kind=type(error).__name__
        ) from error
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], tuple) and isinstance(value[1], dict):
        args, kwargs = value
    elif isinstance(value, dict):
        args, kwargs = (), value
    else:
        args, kwargs = (value if isinstance(value, tuple) else (value,)), {}
    infos = [InputInfo(list(t.shape), str(t.dtype)[6:], "option") for t in tensors((args, kwargs))]
    return args, kwargs, infos


def inputs_of(
    model: nn.Module, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> tuple[tuple[Any, ...], dict[str, Any], list[InputInfo]]:
    """The arguments that ``part`` gets when ``model`` runs."""
    from convaudit.graph import tensors
    from convaudit.tracer import record

    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = part.register_forward_pre_hook(lambda _, a, k: caught.append((a, k)), with_kwargs=True)
    try:
        record(model, args, kwargs)
    finally:
        hook.remove()
    if not caught:
        raise TargetError("input", f"the forward never calls {name!r}", kind="LookupError")
    found, named = caught[0]
    infos = [InputInfo(list(t.shape), str(t.dtype)[6:], "model") for t in tensors((found, named))]
    return found, named, infos
