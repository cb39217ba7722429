"""The recording tracer: one forward pass on meta tensors becomes a torch.fx graph.

A ``TorchFunctionMode`` sees every functional call, a wrapper around ``nn.Module.__call__`` sees the modules. Plain
torch.nn layers become ``call_module`` nodes; anything else is followed to the functional calls it makes. Where meta
tensors do not carry a model (``.item()``, branches on data), the same recording runs on zero-stride CPU tensors.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
import inspect
import operator
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from convaudit import flops
from convaudit.construction import OWN, TORCH, is_user_code
from convaudit.describe import LEAVES, describe, function_name
from convaudit.errors import TargetError, UsageError, first_line, message_of
from convaudit.graph import CALL, VAL, LayerGraph, mapped, tensors
from convaudit.paths import LIBRARY, relative_path
from convaudit.result import InputInfo, Location
from convaudit.shape_formulas import FORMULAS

META = torch.device("meta")
_SMALL_BUFFER = 1 << 20  # bytes; smaller buffers keep their real values in a run on CPU tensors
_READS = 1000  # values that a forward may ask of stand-ins
_CPU_MACS = 10**10  # a forward that stopped behind this much work on meta is not run again on CPU tensors


class _DataDependent(Exception):
    """The forward asked a meta tensor for its values."""


class _Endless(NotImplementedError):
    """The forward asks stand-ins for values again and again: it loops over what it found in the input."""


def trace(model: nn.Module, example_input: Any = None) -> LayerGraph:
    """Record ``model``'s forward pass in eval mode and cost every layer.

    ``example_input`` is a tensor, a tuple of positional arguments or a dict of keyword arguments; the model and the
    input may each be real or on meta. Without one the trace is symbolic and knows no shape. The model comes back as it was: parameters, buffers, attributes, hooks,
    training flags and RNG state. Raises :class:`TargetError` (step "trace") where the forward fails at once;
    a forward that fails midway gives a graph with ``status == "partial"``.
    """
    if example_input is None and isinstance(model, nn.Module):
        from convaudit.symbolic import trace_symbolically

        return trace_symbolically(model)
    args, kwargs = arguments(example_input)
    return record(model, args, kwargs)


def arguments(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an example input."""
    if isinstance(example_input, Tensor):
        return (example_input,), {}
    if isinstance(example_input, dict):
        return (), example_input
    if isinstance(example_input, (tuple, list)):
        return tuple(example_input), {}
    raise UsageError(f"example_input is a tensor, a tuple or a dict, not {type(example_input).__name__}")


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    inputs: list[InputInfo] | None = None,
    locations: dict[str, Location] | None = None,
    formulas: bool = True,
    costs: bool = True,
    training: bool = False,
) -> LayerGraph:
    """:func:`trace` with the arguments already split.

    ``formulas=False`` runs torch's own meta kernels throughout; ``costs=False`` leaves ``layers`` and ``totals`` empty;
    ``training=True`` records the forward in train mode.
    """
    from convaudit.accounting import account

    if not isinstance(model, nn.Module):
        raise UsageError(f"only an nn.Module can be traced, not {type(model).__name__}")
    notes: list[str] = []
    if unsized(model):
        model = _materialise(model, args, kwargs)
        notes.append("lazy modules were materialised on a copy by one dry forward")
    infos = inputs or [
        InputInfo(list(t.shape), str(t.dtype).removeprefix("torch."), "option") for t in tensors((args, kwargs))
    ]
    recorder = _Recorder(model, on_meta=True, formulas=formulas, training=training)
    try:
        problem = recorder.run(args, kwargs)
        tracer = "recorded"
    except _DataDependent as asked:
        on_cpu = _Recorder(model, on_meta=False, formulas=False, training=training)
        try:
            try:
                problem = on_cpu.run(args, kwargs)
            except TargetError as error:
                if "single memory location" not in str(error):  # a stand-in has one value in memory: no write in place
                    raise
                on_cpu = _Recorder(model, on_meta=False, formulas=False, training=training, spread=False)
                problem = on_cpu.run(args, kwargs)
            problem = problem or on_cpu.made_up_branch
            recorder, tracer = on_cpu, "recorded-cpu"
            notes.append(f"traced on stand-in values on the CPU: {asked}")
        except TargetError as error:
            refused = on_cpu.failed_at is not None and type(on_cpu.failed_at[1]) in LEAVES
            if refused or not recorder.weighted():  # a plain layer refuses its input whatever the values are
                raise
            tracer, problem = "recorded", f"the forward pass stopped: {asked}; on stand-in values {error}"
            recorder.graph.output(())
    graph = LayerGraph(
        model=model,
        graph=recorder.graph,
        tracer=tracer,
        inputs=infos,
        status="partial" if problem else "ok",
        notes=notes + recorder.notes,
        problem=problem,
        parameters=dict(model.named_parameters()),
        locations=locations or {},
        root=recorder.root,
    )
    if costs:
        account(graph)
    return graph


def evaluate(node: Node, root: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one node on meta values (formulas first); ``args`` are values, not nodes."""
    with torch.no_grad():
        if node.op == "call_module":
            with _FormulaMode():
                return _on_meta(root[str(node.target)]).forward(*args, **kwargs)
        if node.op == "call_method":
            function: Any = getattr(Tensor, str(node.target))
        else:
            function = node.target
        if function in _constructors():
            kwargs = {**kwargs, "device": META}
        return _run(function, args, kwargs)


def _on_meta(module: nn.Module) -> nn.Module:
    """A shallow copy in eval mode whose parameters and buffers are on meta."""
    made = copy.copy(module)
    made.__dict__["training"] = False
    for name in ("_parameters", "_buffers"):
        store = module.__dict__[name]
        made.__dict__[name] = {k: None if t is None else torch.empty_like(t, device=META) for k, t in store.items()}
    made.__dict__["_modules"] = {k: None if m is None else _on_meta(m) for k, m in module._modules.items()}
    return made


def build_graph_module(layers: LayerGraph) -> GraphModule:
    """A GraphModule over shallow copies of the model's modules, sharing its parameters."""
    root: dict[str, Any] = {}
    for target, value in layers.root.items():
        if isinstance(value, nn.Module):
            value = copy.copy(value)
            for name in ("_parameters", "_buffers", "_modules"):
                value.__dict__[name] = dict(value.__dict__[name])
            value.training = False
        root[target] = value
    used = {str(n.target) for n in layers.graph.nodes if n.op in ("call_module", "get_attr")}
    return GraphModule({k: v for k, v in root.items() if k in used}, layers.graph, type(layers.model).__name__)


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back every module's attributes, the RNG state and the attention fast path afterwards."""
    modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    saved = [(m, dict(m.__dict__)) for m in modules]
    inner = [
        (d, dict(d))
        for m in modules
        for d in (m.__dict__.get(k) for k in ("_parameters", "_buffers", "_modules"))
        if d is not None
    ]
    rng, fast_path = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    call, scripted, made = nn.Module.__call__, torch.jit.ScriptFunction.__call__, torch.autograd.Variable.__new__
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        nn.Module.__call__ = call  # type: ignore[method-assign]
        torch.jit.ScriptFunction.__call__ = scripted  # type: ignore[method-assign]
        torch.autograd.Variable.__new__ = made  # type: ignore[method-assign]
        for module, state in saved:
            module.__dict__.clear()
            module.__dict__.update(state)
        for mapping, state in inner:
            mapping.clear()
            mapping.update(state)
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_rng_state(rng)


def unsized(model: nn.Module) -> bool:
    """Whether lazy layers of the model wait for their first input; norms without weights do so with their buffers."""
    return any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers())))


def _materialise(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    lazy = (b for b in model.buffers() if isinstance(b, nn.parameter.UninitializedBuffer))  # deepcopy refuses these
    model = copy.deepcopy(model, {id(b): nn.parameter.UninitializedBuffer(device="meta") for b in lazy})  # type: ignore[call-arg]
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                module._parameters[name] = nn.parameter.UninitializedParameter(device="meta")
            elif parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if isinstance(buffer, nn.parameter.UninitializedBuffer):
                module._buffers[name] = nn.parameter.UninitializedBuffer(device="meta")  # type: ignore[call-arg]
            elif buffer is not None:
                module._buffers[name] = buffer.to("meta")
    training = {m: m.training for m in model.modules()}
    model.eval()
    move = mapped(lambda t: torch.empty_like(t, device=META))
    try:
        with torch.no_grad(), META:
            model(*move(args), **move(kwargs))
    except Exception as error:
        raise TargetError(
            "trace", f"the dry forward for lazy modules failed: {_first_line(error)}", kind=type(error).__name__
        ) from error
    for module, flag in training.items():
        module.training = flag
    return model


def _first_line(error: BaseException) -> str:
    first = first_line(error)
    return first if len(first) <= 160 else textwrap.shorten(first.partition(". ")[0], 300, placeholder="…")


def _variable(_: Any, data: Any = None, *__: Any, **___: Any) -> Any:
    """What ``torch.autograd.Variable(data)`` has been since torch 0.4: the tensor itself."""
    return torch.tensor([]) if data is None else data


_CONSTRUCTORS: set[Any] = set()


def _constructors() -> set[Any]:
    if not _CONSTRUCTORS:
        _CONSTRUCTORS.update(_device_constructors())
    return _CONSTRUCTORS


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    made = FORMULAS.get(function)
    if made is not None:
        try:
            result = made(*args, **kwargs)
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError, ZeroDivisionError):
            result = None  # unusual arguments: torch's own kernel answers, or raises its own error
        if result is not None:
            return result
    return function(*args, **kwargs)


class _FormulaMode(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


_VALUE_METHODS = {
    "item",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "tolist",
    "numpy",
    "__array__",
    "__complex__",
}
_PROPERTIES = {"T", "mT", "H", "mH", "real", "imag", "data"}
_MOVES = {"to", "cuda", "cpu", "type", "type_as", "xpu", "npu"}


class _Recorder(TorchFunctionMode):
    """Records one forward pass. ``names`` and ``root`` speak in qualified names of the model."""

    def __init__(
        self, model: nn.Module, *, on_meta: bool, formulas: bool, training: bool, spread: bool = True
    ) -> None:
        super().__init__()
        self.model, self.on_meta, self.formulas, self.training = model, on_meta, formulas, training
        self.spread = spread
        """On the CPU, a parameter's stand-in is one zero spread over its shape."""
        self.graph = Graph()
        self.root: dict[str, Any] = {}
        self.notes: list[str] = []
        self.unfollowed: list[str] = []
        """What ran without being recorded."""
        self.made_up_branch: str | None = None
        self.reads = 0
        self.inside_leaf = 0
        self.stack: list[tuple[str, nn.Module]] = []
        self.failed_at: tuple[str, nn.Module, Any] | None = None
        self.names: dict[int, str] = {}
        self.node_of: dict[int, tuple[Node, tuple[Any, ...]]] = {}
        self.alive: list[Any] = []
        self.attributes: dict[int, tuple[str, Any]] = {}
        self.calls: dict[str, int] = {}
        self.lines: dict[tuple[str, int], Location] = {}
        self._weights: dict[str, int] = {}
        self.from_input: set[Node] = set()
        self.derived: dict[Node, tuple[str, ...]] = {}
        self.device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Run and record; the reason where the forward stopped midway, else None."""
        with _as_it_was(self.model), torch.no_grad():
            self._stand_in()
            call = nn.Module.__call__
            recorder = self

            def wrapped(module: nn.Module, *a: Any, **k: Any) -> Any:
                return recorder._module(call, module, a, k)

            nn.Module.__call__ = wrapped  # type: ignore[method-assign]
            torch.jit.ScriptFunction.__call__ = self._scripted(torch.jit.ScriptFunction.__call__)  # type: ignore[method-assign]
            torch.autograd.Variable.__new__ = _variable  # type: ignore[assignment, method-assign]
            placed_args, placed_kwargs = self._placeholders(args, kwargs)
            try:
                with self:
                    for module in self.model.modules():  # attributes that a module makes when its mode is set
                        if type(module).train is not nn.Module.train and not isinstance(module, torch.jit.ScriptModule):
                            module.train(self.training)
                    output = self.model(*placed_args, **placed_kwargs)
            except _DataDependent:
                raise
            except Exception as error:  # noqa: BLE001 - the user's forward may raise anything; it is reported
                return self._stopped(error)
            self.graph.output(self._argument(_plain_output(output)))
        return "; ".join(dict.fromkeys(self.unfollowed)) or None

    def _stopped(self, error: Exception) -> str:
        if self.on_meta and _asks_for_values(error) and self._macs() <= _CPU_MACS:
            raise _DataDependent(_reason(error)) from error
        name, module, shapes = self.failed_at or ("", self.model, [])
        where = f"layer {name or '(model)'} ({_geometry(module)})"
        got = ", ".join(str(list(s)) for s in shapes)
        message = f"{where} failed on input {got or 'without tensors'}: {_reason(error)}"
        if not (self.weighted() and _unsupported(error)):
            path, line = _user_line(error)
            raise TargetError(
                "trace", message, kind=type(error).__name__, path=path, line=line, recorded=len(self.graph.nodes)
            ) from error
        self.graph.output(())
        return f"the forward pass stopped: {message}"

    def weighted(self) -> bool:
        """Whether a layer with parameters has been recorded."""
        return any(CALL in node.meta and node.meta[CALL].parameters for node in self.graph.nodes)

    def _macs(self) -> int:
        return sum(flops.cost(node.meta[CALL])[0] or 0 for node in self.graph.nodes if CALL in node.meta)

    def _stand_in(self) -> None:
        """Put stand-ins for parameters and buffers into the modules, and remember every tensor's name."""
        seen: dict[int, Tensor] = {}
        for prefix, module in self.model.named_modules():
            self.names.setdefault(id(module), prefix)
            if isinstance(module, torch.jit.ScriptModule):
                continue
            module.__dict__["training"] = self.training
            dot = f"{prefix}." if prefix else ""
            for store in (module._parameters, module._buffers):
                for name, value in store.items():
                    if value is None:
                        continue
                    stand_in = seen.get(id(value))
                    if stand_in is None:
                        stand_in = seen[id(value)] = self._replacement(value, store is module._buffers)
                        self.attributes[id(stand_in)] = (dot + name, value)
                    if stand_in is not value:
                        store[name] = stand_in
            for name, held in module.__dict__.items():  # constants that are no buffers, of a model built on meta
                if isinstance(held, (Tensor, list, tuple, dict)) and not name.startswith("_"):
                    for index, value in enumerate(tensors(held)):
                        if value.device.type == "meta" and id(value) not in self.attributes:
                            self.attributes[id(value)] = (f"{dot}{name}" if held is value else f"{dot}{name}_{index}", value)
        self.alive.append(seen)

    def _replacement(self, value: Tensor, is_buffer: bool) -> Tensor:
        if self.on_meta:
            if value.device.type == "meta":
                return value
            made = (
                torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
                if not value.is_sparse
                else value
            )
        elif is_buffer and value.device.type != "meta" and value.numel() * value.element_size() <= _SMALL_BUFFER:
            return value.clone()
        else:
            made = torch.zeros((), dtype=value.dtype).expand(value.shape)
            made = made if self.spread else made.contiguous()
        return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made

    def _placeholders(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def move(t: Tensor) -> Tensor:
            if self.on_meta:
                return torch.empty_like(t, device=META)
            return torch.zeros(t.shape, dtype=t.dtype) if t.device.type == "meta" else t.clone()

        args, kwargs = mapped(move)(args), mapped(move)(kwargs)
        names: list[str] = []
        with contextlib.suppress(TypeError, ValueError):
            names = [
                p.name
                for p in inspect.signature(self.model.forward).parameters.values()
                if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            ]
        for index, value in enumerate(args):
            self._placeholder(names[index] if index < len(names) else f"arg_{index}", value)
        for name, value in kwargs.items():
            self._placeholder(name, value)
        return args, kwargs

    def _placeholder(self, name: str, value: Any) -> None:
        node = self.graph.placeholder(name)
        node.meta[VAL] = value
        self.from_input.add(node)
        self._own(value, node, ())

    # -- modules ---------------------------------------------------------------------------------------------------

    def _module(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self.inside_leaf:
            return call(module, *args, **kwargs)
        name = self.names.get(id(module))
        leaf = type(module) in LEAVES and not module._forward_hooks and not module._forward_pre_hooks
        if isinstance(module, torch.jit.ScriptModule):
            leaf = True
            self.unfollowed.append(f"the inside of {name or 'the model'}, a ScriptModule, was not followed")
        if name is None:
            if not leaf or isinstance(module, torch.jit.ScriptModule) or next(module.parameters(), None) is not None:
                name = f"{self.stack[-1][0] if self.stack else ''}.{type(module).__name__}".lstrip(".")
                leaf = False
            else:
                leaf = False
                name = self.stack[-1][0] if self.stack else ""
        self.stack.append((name, module))
        try:
            if not leaf:
                return call(module, *args, **kwargs)
            if kwargs or not (len(args) == 1 and type(args[0]) is Tensor):
                args, kwargs = self._known(args), self._known(kwargs)
            else:
                args = (self._known_tensor(args[0]),)
            self.inside_leaf += 1
            try:
                result = module.forward(*args, **kwargs)
            finally:
                self.inside_leaf -= 1
            self.root.setdefault(name, module)
            node = self.graph.call_module(name, self._argument(args), self._argument(kwargs))
            self._note(node, module, result, args, kwargs)
            return result
        except Exception:
            if self.failed_at is None:
                self.failed_at = (name, module, [tuple(t.shape) for t in tensors((args, kwargs))])
            raise
        finally:
            self.stack.pop()

    def _scripted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A call of a TorchScript function that follows the Python it was compiled from, where torch kept it."""

        def run(function: Any, *args: Any, **kwargs: Any) -> Any:
            source = getattr(function, "_torchdynamo_inline", None)
            return (source or functools.partial(call, function))(*args, **kwargs)

        return run

    # -- functions -------------------------------------------------------------------------------------------------

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside_leaf:
            return _run(function, args, kwargs) if self.formulas else function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name == "__get__":
            prop = getattr(getattr(function, "__self__", None), "__name__", "")
            if prop not in _PROPERTIES:
                return function(*args, **kwargs)
            result = function(*args, **kwargs)
            node = self.graph.call_function(getattr, (self._argument(args[0]), prop))
            self._note(node, getattr, result, args, kwargs, op=prop)
            return result
        if name in _VALUE_METHODS:
            return self._value(function, name, args, kwargs)
        if name == "__iter__":
            return iter(self.__torch_function__(Tensor.unbind, types, (args[0], 0), {}))
        ran_args, ran_kwargs = self._known(args), self._known(kwargs)
        if self.on_meta:
            if function in _constructors():
                ran_kwargs = {**ran_kwargs, "device": META}
            elif name in _MOVES or "device" in ran_kwargs:
                if name in ("cuda", "cpu", "xpu", "npu"):
                    return args[0]
                ran_args = tuple(META if _is_device(a) else a for a in ran_args)
                ran_kwargs = {k: META if k == "device" and v is not None else v for k, v in ran_kwargs.items()}
        result = _run(function, ran_args, ran_kwargs) if self.formulas else function(*ran_args, **ran_kwargs)
        setter = name in ("__setitem__", "__set__")
        if not setter and not _has_tensor(result):
            return result
        if name == "__set__":
            return result
        node_args, node_kwargs = self._argument(args), self._argument(kwargs)
        node = self._node(function, name, node_args, node_kwargs)
        self._note(node, function, args[0] if setter else result, ran_args, ran_kwargs)
        return result

    def _node(self, function: Any, name: str, args: Any, kwargs: Any) -> Node:
        if name == "__setitem__":
            return self.graph.call_function(operator.setitem, args, kwargs)
        if name == "__getitem__":
            return self.graph.call_function(operator.getitem, args, kwargs)
        if getattr(Tensor, name, None) is function or inspect.ismethoddescriptor(function):
            if name.startswith("__"):
                return self.graph.call_function(
                    _dunder(name), (args[1], args[0]) if name in _REVERSED else args, kwargs
                )
            return self.graph.call_method(name, args, kwargs)
        return self.graph.call_function(function, args, kwargs)

    def _value(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        if self.on_meta:
            raise _DataDependent(f"the forward reads a tensor's value ({name}) in {self._where()}")
        node = self._find(args[0])
        if node in self.from_input or self.parameters_behind(args[0]):
            self.reads += 1
            if self.reads > _READS:
                raise _Endless(f"it asks for the values of tensors more than {_READS:,} times")
            self.made_up_branch = self.made_up_branch or (
                f"{self._where()} reads values computed from the input ({name}); stand-in values were used"
            )
        return function(*args, **kwargs)

    def _where(self) -> str:
        return (self.stack[-1][0] if self.stack else "") or "the model's forward"

    # -- bookkeeping -----------------------------------------------------------------------------------------------

    def _note(self, node: Node, source: Any, result: Any, args: Any, kwargs: Any, op: str | None = None) -> None:
        node.meta[VAL] = result
        call = describe(self, node, source, result, args, kwargs, op)
        if not isinstance(source, nn.Module):
            call.location = self._line()
        call.index = self.calls.get(call.layer, 0)
        self.calls[call.layer] = call.index + 1
        node.meta[CALL] = call
        if call.kind != "constant" and any(n in self.from_input for n in node.all_input_nodes):
            self.from_input.add(node)
        elif call.parameters:
            self.derived[node] = call.parameters
        self._own(result, node, ())

    def _line(self) -> Location | None:
        """The innermost line of the forward outside of torch, outside of installed packages where there is one."""
        found: tuple[str, int] | None = None
        frame: FrameType | None = sys._getframe(3)
        while frame is not None and frame.f_code is not _Recorder.run.__code__:
            path = frame.f_code.co_filename
            if not path.startswith((TORCH, OWN, "<")):
                if not any(part in path for part in LIBRARY):
                    found = (path, frame.f_lineno)
                    break
                found = found or (path, frame.f_lineno)
            frame = frame.f_back
        if found is not None and found not in self.lines:
            self.lines[found] = Location(relative_path(found[0]), found[1])
        return self.lines[found] if found else None

    def _own(self, value: Any, node: Node, path: tuple[Any, ...]) -> None:
        if isinstance(value, Tensor):
            self.node_of[id(value)] = (node, path)
            self.alive.append(value)
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                self._own(item, node, (*path, index))
        elif isinstance(value, dict):
            for key, item in value.items():
                self._own(item, node, (*path, key))

    def _find(self, tensor: Tensor) -> Node:
        found = self.node_of.get(id(tensor))
        if found is None:
            return self._attribute(tensor)
        node, path = found
        if path:
            for key in path:
                parent, node = node, self.graph.call_function(operator.getitem, (node, key))
                node.meta[VAL] = parent.meta[VAL][key]
                if parent in self.from_input:
                    self.from_input.add(node)
                elif parent in self.derived:
                    self.derived[node] = self.derived[parent]
            self.node_of[id(tensor)] = (node, ())
        return node

    def _attribute(self, tensor: Tensor) -> Node:
        """A get_attr node for a parameter, a buffer, or a constant the model keeps elsewhere."""
        name, value = self.attributes.get(id(tensor), ("", tensor))
        if not name and isinstance(tensor, nn.Parameter) and tensor.device.type == "meta":
            # of a module made inside the forward: its initialisation is recorded, and runs again on this
            made = self.graph.call_function(torch.empty, (tuple(tensor.shape),), {"dtype": tensor.dtype})
            made.meta[VAL] = tensor
            self._own(tensor, made, ())
            return made
        if not name:
            name = f"_constant_{sum(k.startswith('_constant_') for k in self.root)}"
            if tensor.device.type == "meta":
                self.unfollowed.append(f"an operator in {self._where()} could not be recorded")
        self.root[name] = value
        node = self.graph.create_node("get_attr", name)
        node.meta[VAL] = tensor
        self.node_of[id(tensor)] = (node, ())
        self.alive.append(tensor)
        return node

    def weights_of(self, owner: str) -> int:
        """How many matrices or kernels a module holds itself; a gain for each output is none."""
        if not self._weights:
            for name, value in self.attributes.values():
                if isinstance(value, nn.Parameter) and value.dim() > 1 and value[0].numel() > 1:
                    parent = name.rpartition(".")[0]
                    self._weights[parent] = self._weights.get(parent, 0) + 1
        return self._weights.get(owner, 0)

    def parameters_behind(self, tensor: Tensor) -> tuple[str, ...] | None:
        """Names of the parameters a tensor is, or is made of alone; () for a buffer, None for anything else."""
        known = self.attributes.get(id(tensor))
        if known is not None:
            return (known[0],) if isinstance(known[1], nn.Parameter) else ()
        made = self.node_of.get(id(tensor))
        return self.derived.get(made[0]) if made is not None else None

    def _known_tensor(self, tensor: Tensor) -> Tensor:
        """The stand-in for a real tensor met in the forward; 0-dim constants mix with meta tensors as they are."""
        if not self.on_meta or tensor.device.type == "meta" or (tensor.dim() == 0 and id(tensor) in self.node_of):
            return tensor
        node = self._find(tensor)
        stand_in: Tensor = node.meta[VAL]
        if stand_in.device.type != "meta":
            stand_in = torch.empty_like(tensor, device=META)
            node.meta[VAL] = stand_in
            self.node_of[id(stand_in)] = (node, ())
            self.alive.append(stand_in)
        return stand_in

    def _known(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._known_tensor(value)
        kind = type(value)
        if kind is tuple or kind is list:
            return kind([self._known(v) for v in value])
        if kind is dict:
            return {k: self._known(v) for k, v in value.items()}
        return value

    def _argument(self, value: Any) -> Any:
        """``value`` as an argument of an fx node."""
        if isinstance(value, Tensor):
            return self._find(value)
        kind = type(value)
        if kind in (int, float, bool, str, type(None), torch.dtype):
            return value
        if kind is tuple or kind is torch.Size:
            return tuple([self._argument(v) for v in value])
        if kind is list:
            return [self._argument(v) for v in value]
        if isinstance(value, dict):
            return {k: self._argument(v) for k, v in value.items()}
        if kind is slice:
            return slice(self._argument(value.start), self._argument(value.stop), self._argument(value.step))
        if isinstance(value, tuple):  # named tuples of torch.return_types
            return tuple(self._argument(v) for v in value)
        if kind is torch.device:
            return self.device if value.type == "meta" else value
        if isinstance(value, enum.Enum):
            return value.value
        if hasattr(value, "item") and hasattr(value, "dtype"):  # numpy scalars
            return value.item() if getattr(value, "ndim", 0) == 0 else value.tolist()
        return value


_REVERSED = {"__radd__", "__rsub__", "__rmul__", "__rtruediv__", "__rfloordiv__", "__rpow__", "__rmatmul__", "__rmod__", "__rdiv__"}


def _dunder(name: str) -> Any:
    plain = "__" + name[3:] if name in _REVERSED else name
    return getattr(operator, plain.replace("div__", "truediv__") if plain in ("__div__", "__idiv__") else plain)


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (
        isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda", "mps", "xpu")
    )


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, (tuple, list)):
        return any(_has_tensor(v) for v in value)
    return isinstance(value, dict) and any(_has_tensor(v) for v in value.values())


def _plain_output(value: Any) -> Any:
    """The output as tuples, lists and dicts; other objects give the tensors among their attributes."""
    if value is None or isinstance(value, (Tensor, tuple, list, int, float, str, bool)):
        return value
    if isinstance(value, dict):
        return dict(value)
    return {k: v for k, v in getattr(value, "__dict__", {}).items() if _has_tensor(v)}


def _reason(error: BaseException) -> str:
    """The first line of an error; torch's long one about meta kernels in plain words."""
    found = re.search(r"register_meta function for (\S+?)\(?\)? raises", message_of(error))
    if found:
        return f"{found[1]} gives as many values as the data says, which meta tensors do not hold"
    return _first_line(error)


def _asks_for_values(error: BaseException) -> bool:
    text = message_of(error)
    return isinstance(error, (NotImplementedError, RuntimeError, TypeError, ValueError)) and any(
        part in text
        for part in (
            "meta tensor",
            "register_meta",
            "Meta",
            "'Meta' backend",
            "data-dependent",
            "on meta",
            "expected device meta",
            "not on the expected device",
            "Cannot copy out",
        )
    )


def _unsupported(error: BaseException) -> bool:
    """Whether the platform, not the model, is at fault: an operator without a kernel, a value that cannot be had."""
    return (
        isinstance(error, NotImplementedError)
        or "Could not run" in message_of(error)
        or "no kernel" in message_of(error)
        or _asks_for_values(error)
    )


def _geometry(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, nn.Linear):
        return f"{name} {module.in_features}→{module.out_features}, expected {module.in_features} features"
    channels = getattr(module, "in_channels", None)
    if channels is not None and hasattr(module, "out_channels"):
        return f"{name} {channels}→{module.out_channels}, expected {channels} channels"
    features = getattr(module, "num_features", None)
    return f"{name}, expected {features} channels" if features is not None else name


def _user_line(error: BaseException) -> tuple[str | None, int | None]:
    """The last line of the traceback that is the user's own."""
    found: tuple[str | None, int | None] = (None, None)
    step = error.__traceback__
    while step is not None:
        path = step.tb_frame.f_code.co_filename
        if is_user_code(path):
            found = (relative_path(path), step.tb_lineno)
        step = step.tb_next
    return found


__all__ = ["arguments", "build_graph_module", "evaluate", "function_name", "record", "trace"]
