"""Targets: a name on the command line becomes a model. Runs in a worker; building a target runs its code."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convaudit import accelerators
from convaudit.construction import ConstructionLines, construction_locations
from convaudit.errors import TargetError
from convaudit.paths import relative_path


@dataclass
class BuiltTarget:
    """A model, the lines its modules were constructed at, and its conventional arguments where they are known."""

    model: nn.Module
    lines: ConstructionLines
    args: tuple[Any, ...] | None = None
    notes: tuple[str, ...] = ()


def build(target: str, args: dict[str, Any] | None = None) -> BuiltTarget:
    """Build ``model.py[:NAME[(ARGS)]]``, ``package.module:NAME``, ``timm:NAME`` or ``torchvision:NAME``.

    ``args`` are keyword arguments from the settings; arguments written in the target replace them. Raises :class:`TargetError` with the step that failed and the user's own line.
    """
    head, _, name = target.partition(":")
    for prefix, builder in (("timm", _timm), ("torchvision", _torchvision)):
        if head == prefix and name:
            return builder(name, args or {})
    if not name and not head.endswith(".py"):
        raise TargetError(
            "read", f"{target}: neither a .py file nor MODULE:NAME, timm:NAME or torchvision:NAME", kind="ValueError"
        )
    module = load(head)
    return _from_module(module, name, target, Path(getattr(module, "__file__", "") or "."), args)


def load(head: str) -> Any:
    """The module of a .py file or a dotted name; the file's folder, or the working directory, is on ``sys.path``."""
    if head.endswith(".py"):
        return _load_file(Path(head))
    with _blaming("import", None):
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        with accelerators.absent():
            return importlib.import_module(head)


def _timm(name: str, args: dict[str, Any]) -> BuiltTarget:
    with _blaming("import", None):
        import timm
    if not timm.is_model(name):
        raise TargetError(
            "construct", f"timm has no model {name!r}{_nearest(name, timm.list_models())}", kind="LookupError"
        )
    return _construct(lambda: timm.create_model(name, pretrained=False, **args))


def _torchvision(name: str, args: dict[str, Any]) -> BuiltTarget:
    with _blaming("import", None):
        from torchvision import models
    if name not in models.list_models():
        raise TargetError(
            "construct", f"torchvision has no model {name!r}{_nearest(name, models.list_models())}", kind="LookupError"
        )
    import inspect

    accepted = inspect.signature(models.get_model_builder(name)).parameters
    extra = {"weights_backbone": None} if "weights_backbone" in accepted else {}
    built = _construct(lambda: models.get_model(name, weights=None, **{**extra, **args}))
    weights = getattr(models.get_model_weights(name), "DEFAULT", None)
    crop = getattr(weights.transforms, "keywords", {}).get("crop_size") if weights is not None else None
    side = getattr(built.model, "image_size", None) or (crop[0] if isinstance(crop, (tuple, list)) else crop or 224)
    built.args = _torchvision_args(type(built.model).__module__, side)
    return built


def _torchvision_args(home: str, side: int) -> tuple[Any, ...]:
    """The sizes torchvision's own weights were evaluated at: ``side`` from their transforms, the rest from their pages."""

    def image(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    if ".video" in home:
        return (image(1, 3, 16, side, side),)
    if ".segmentation" in home:
        return (image(1, 3, 520, 520),)
    if ".optical_flow" in home:
        return image(1, 3, 520, 960), image(1, 3, 520, 960)
    if ".detection" in home:
        return ([image(3, 800, 800)],)
    return (image(1, 3, side, side),)


def _nearest(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, 1, 0.4)
    return f"; the nearest is {match[0]!r}" if match else ""


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise TargetError("read", f"{path}: no such file", kind="FileNotFoundError")
    try:
        source = path.read_bytes()
        ast.parse(source, str(path))
    except OSError as error:
        raise TargetError("read", f"{path}: cannot be read: {error.strerror}", kind=type(error).__name__) from error
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise TargetError(
            "import", f"{path}:{line}: syntax error: {getattr(error, 'msg', error)}", kind="SyntaxError",
            path=relative_path(str(path)), line=line,
        ) from error  # fmt: skip
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    with _blaming("import", path), accelerators.absent():
        spec.loader.exec_module(module)
    return module


def _from_module(module: Any, name: str, target: str, path: Path, configured: dict[str, Any] | None) -> BuiltTarget:
    if not name:
        raise TargetError("construct", f"{target}: name a model, as in {target}:Net", kind="ValueError")
    bare, _, call = name.partition("(")
    args, kwargs = _literals(call, target) if call else ((), dict(configured or {}))
    found = module
    for part in bare.split("."):
        if not hasattr(found, part):
            known = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, nn.Module)]
            raise TargetError("construct", f"{target}: no {bare!r} in it{_nearest(bare, known)}", kind="AttributeError")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return BuiltTarget(unwrap(found), ConstructionLines())
    if isinstance(found, type) and not issubclass(found, nn.Module):
        raise TargetError("construct", f"{target}: class {bare} is not an nn.Module", kind="TypeError")
    if not callable(found):
        raise TargetError("construct", f"{target}: {bare} is a {type(found).__name__}, not a model", kind="TypeError")
    maker: Callable[..., Any] = found
    built = _construct(lambda: maker(*args, **kwargs), path, target)
    if isinstance(found, type):
        built.lines.defined(built.model, found)
    return built


def _literals(call: str, target: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        node = ast.parse(f"f({call}", mode="eval").body
        assert isinstance(node, ast.Call)
        args = tuple(ast.literal_eval(a) for a in node.args)
        return args, {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise TargetError(
            "construct", f"{target}: arguments must be literals, as in Net(num_classes=10)", kind="ValueError"
        ) from error


def _construct(make: Callable[[], Any], path: Path | None = None, target: str = "") -> BuiltTarget:
    """Build on meta; where the constructor needs real values, again with only its parameters on meta."""
    note: tuple[str, ...] = ()
    with construction_locations() as lines, _blaming("construct", path, target):
        try:
            with torch.device("meta"), accelerators.absent():
                model = make()
        except (NotImplementedError, RuntimeError, ValueError, TypeError, AssertionError) as error:
            if isinstance(error, TypeError) and "argument" in str(error):
                raise
            note = (f"constructed on the CPU, parameters on meta ({type(error).__name__} under the meta device)",)
            try:
                with _parameters_on_meta(), accelerators.absent():
                    model = make()
            except RuntimeError:  # the constructor writes real values into its parameters
                note = (f"constructed on the CPU ({type(error).__name__} under the meta device)",)
                with accelerators.absent():
                    model = make()
        if isinstance(model, nn.Module) and any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
            note = ("constructed on the CPU (it holds a ScriptModule)",)
            with accelerators.absent():
                model = make()
    if not isinstance(model, nn.Module):
        raise TargetError("construct", f"{target}: gives a {type(model).__name__}, not an nn.Module", kind="TypeError")
    return BuiltTarget(unwrap(model), lines, notes=note)


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    original = nn.Module.register_parameter

    def register(self: nn.Module, name: str, param: Any) -> None:
        if (
            param is not None
            and param.device.type != "meta"
            and not isinstance(param, nn.parameter.UninitializedParameter)
        ):
            param = nn.Parameter(param.detach().to("meta"), param.requires_grad)
        original(self, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel or torch.compile's wrapper."""
    while type(model).__name__ in ("DataParallel", "DistributedDataParallel", "OptimizedModule"):
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


@contextlib.contextmanager
def _blaming(step: Any, path: Path | None, target: str = "") -> Iterator[None]:
    """Turn whatever the user's code raises into a TargetError that names its own line."""
    from convaudit.tracer import _user_line

    try:
        yield
    except TargetError:
        raise
    except BaseException as error:
        where, line = _user_line(error)
        if where is None and path is not None:
            where, line = relative_path(str(path)), 1
        text = str(error).strip().splitlines()
        what = text[0] if text else "no message"
        place = f"{where}:{line}: " if where else f"{target}: " if target else ""
        raise TargetError(
            step,
            f"{place}{step} failed: {type(error).__name__}: {what}",
            kind=type(error).__name__,
            path=where,
            line=line,
        ) from error
