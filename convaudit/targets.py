"""Targets: a name on the command line becomes a model. Runs in a worker; building a target runs its code."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convaudit import accelerators
from convaudit.checkpoints.recognition import SUFFIXES
from convaudit.construction import ConstructionLines, construction_locations, is_user_code
from convaudit.discovery import definition_of
from convaudit.errors import TargetError, first_line, message_of, nearest
from convaudit.folders import leads_nowhere
from convaudit.paths import relative_path


@dataclass
class BuiltTarget:
    """A model, the lines its modules were constructed at, and its conventional arguments where they are known."""

    model: nn.Module
    lines: ConstructionLines
    args: tuple[Any, ...] | None = None
    notes: tuple[str, ...] = ()


def build(target: str, args: dict[str, Any] | None = None, imported: Callable[[], None] = lambda: None) -> BuiltTarget:
    """Build ``model.py[:NAME[(ARGS)]]``, ``package.module:NAME``, ``timm:NAME`` or ``torchvision:NAME`` (with ARGS too).

    ``args`` are keyword arguments from the settings; arguments written in the target replace them. ``imported`` is
    called between the import of the target's module and what is made of it. Raises :class:`TargetError` with the step
    that failed and the user's own line.
    """
    head, _, name = target.partition(":")
    for prefix, builder in (("timm", _timm), ("torchvision", _torchvision)):
        if head == prefix and name:
            imported()
            bare, called, call = name.partition("(")
            return builder(bare, _literals(call, target)[1] if called else args or {})
    if not name and not head.endswith(".py"):
        if os.sep in head or os.path.islink(head) or head.lower().endswith(SUFFIXES):
            raise TargetError("read", f"{target}: {_absent(head)}", kind="FileNotFoundError")
        raise TargetError(
            "read", f"{target}: neither a .py file nor MODULE:NAME, timm:NAME or torchvision:NAME", kind="ValueError"
        )
    with construction_locations() as lines:
        module = load(head)
    imported()
    return _from_module(module, name, target, Path(getattr(module, "__file__", "") or "."), args, lines)


def load(head: str) -> Any:
    """The module of a .py file or a dotted name; the file's folder, or the working directory, is on ``sys.path``."""
    if head.endswith(".py"):
        return _load_file(Path(head))
    with _blaming("import", None):
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return _run(lambda: importlib.import_module(head))


def _timm(name: str, args: dict[str, Any]) -> BuiltTarget:
    with _blaming("import", None):
        import timm
    if not timm.is_model(name):
        raise TargetError(
            "construct", f"timm has no model {name!r}{nearest(name, timm.list_models())}", kind="LookupError"
        )
    return _construct(lambda: timm.create_model(name, pretrained=False, **args))


def _torchvision(name: str, args: dict[str, Any]) -> BuiltTarget:
    with _blaming("import", None):
        from torchvision import models
    if name not in models.list_models():
        raise TargetError(
            "construct", f"torchvision has no model {name!r}{nearest(name, models.list_models())}", kind="LookupError"
        )
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


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise TargetError("read", f"{path}: {_absent(path)}", kind="FileNotFoundError")
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise TargetError("read", f"{path}: cannot be read: {error.strerror}", kind=type(error).__name__) from error
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise TargetError(
            "import", f"{path}:{line}: syntax error: {getattr(error, 'msg', error)}", kind="SyntaxError",
            path=relative_path(str(path)), line=line,
        ) from error  # fmt: skip
    file = path.resolve()
    known = (str(path), file.stat().st_mtime_ns)
    if known in _FAILED:
        raise _FAILED[known]
    top = next(folder for folder in file.parents if not (folder / "__init__.py").is_file())
    sys.path[:0] = dict.fromkeys([str(file.parent), str(top)])
    sys.path.append(str(Path.cwd()))
    try:
        with _blaming("import", path):
            packaged = _in_package(file, tree)
            return _run(lambda: importlib.import_module(packaged) if packaged else _execute(file))
    except TargetError as error:
        _FAILED[known] = error
        raise


_FAILED: dict[tuple[str, int], TargetError] = {}
"""Files of this run that cannot be imported: what that takes is spent once, not for each model of the file."""


def _absent(path: str | Path) -> str:
    if os.path.exists(path):
        return "no regular file"
    return leads_nowhere(path) if os.path.islink(path) else f"no such file or folder{_neighbour(path)}"


def _neighbour(path: str | Path) -> str:
    """The end of a message about a path that is not there: the one beside it that was meant."""
    folder, name = os.path.split(path)
    stem = name.partition(".")[0]  # a suffix in common is no likeness
    try:
        names = [other for other in os.listdir(folder or ".") if nearest(stem, [other.partition(".")[0]])]
        return nearest(name, names)
    except OSError:  # no such folder either
        return ""


def _run(load: Callable[[], Any]) -> Any:
    """Run the code of a module. It may train as it is imported, so gradients are on."""
    with torch.enable_grad(), accelerators.absent():
        return load()


_OURS = ("torch", "numpy", "msgspec", "convaudit")
"""Modules that an audit itself uses."""


def _execute(file: Path) -> Any:
    if file.stem in _OURS:
        said = f"{file.name}: it would stand in front of the installed {file.stem}: rename it"
        raise TargetError("import", said, kind="ImportError", path=relative_path(str(file)), line=1)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def _in_package(file: Path, tree: ast.Module) -> str | None:
    """The dotted name of a file that imports from its own package, whose folder comes first on ``sys.path``; None for
    others."""
    imports = list(_imports(tree.body))
    level = max((node.level for node in imports), default=0)
    if not all(_is_there(file, node) for node in imports if node.level):
        return None
    folder, packages = file.parent, list[str]()
    while len(packages) < level or (folder / "__init__.py").is_file():
        if not folder.name.isidentifier():  # no package: Python says so in its own words
            return None
        packages.insert(0, folder.name)
        folder = folder.parent
    named = {(node.module or "").partition(".")[0] for node in imports if not node.level}
    if not packages or not (level or packages[0] in named):
        return None
    found = sys.modules.get(packages[0])
    if found is not None and str(folder / packages[0]) not in list(getattr(found, "__path__", ())):
        return None  # an installed package of that name is in use
    sys.path.insert(0, str(folder))  # before the file's own folder, which may hold a module of the package's name
    return ".".join(packages if file.stem == "__init__" else [*packages, file.stem])


def _imports(body: list[ast.stmt]) -> Iterator[ast.ImportFrom]:
    """The imports from a module that run with this one and that nothing catches."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If):
            yield from _imports(node.body + node.orelse)


def _is_there(file: Path, node: ast.ImportFrom) -> bool:
    """Whether a relative import leads into a package, or to a file beside: a package needs no ``__init__.py``."""
    folder = file.parents[min(node.level, len(file.parents)) - 1]
    if (folder / "__init__.py").is_file():
        return True
    wanted = folder.joinpath(*(node.module or node.names[0].name).split("."))
    return wanted.is_dir() or wanted.with_suffix(".py").is_file()


def _from_module(
    module: Any, name: str, target: str, path: Path, configured: dict[str, Any] | None, lines: ConstructionLines
) -> BuiltTarget:
    if not name:
        raise TargetError("construct", f"{target}: name a model, as in {target.rstrip(':')}:Net", kind="ValueError")
    bare, called, call = name.partition("(")
    args, kwargs = _literals(call, target) if called else ((), dict(configured or {}))
    found = module
    for part in bare.split("."):
        if not hasattr(found, part):
            known = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, nn.Module)]
            raise TargetError("construct", f"{target}: no {bare!r} in it{nearest(bare, known)}", kind="AttributeError")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return BuiltTarget(unwrap(found), lines)
    if isinstance(found, type) and not issubclass(found, nn.Module):
        raise TargetError("construct", f"{target}: class {bare} is not an nn.Module", kind="TypeError")
    if not callable(found):
        raise TargetError("construct", f"{target}: {bare} is a {type(found).__name__}, not a model", kind="TypeError")
    maker: Callable[..., Any] = found
    built = _construct(lambda: maker(*args, **kwargs), path, target, found)
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


def _construct(make: Callable[[], Any], path: Path | None = None, target: str = "", of: Any = None) -> BuiltTarget:
    """Build on meta; where the constructor needs real values, again with only its parameters on meta."""
    note: tuple[str, ...] = ()
    with construction_locations() as lines, _blaming("construct", path, target, of):
        try:
            with torch.device("meta"), accelerators.absent(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*copying from a non-meta parameter", UserWarning)  # load_state_dict
                model = make()
        except (NotImplementedError, RuntimeError, ValueError, TypeError, AssertionError) as error:
            if isinstance(error, TypeError) and "argument" in message_of(error):
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


_SCRIPT = "what a script does belongs under if __name__ == '__main__'"


@contextlib.contextmanager
def _blaming(step: Any, path: Path | None, target: str = "", of: Any = None) -> Iterator[None]:
    """Turn whatever the user's code raises into a TargetError that names its own line, or else that of ``of``."""
    try:
        yield
    except TargetError:
        raise
    except BaseException as error:
        frames = [(f.f_code.co_filename, line, f.f_code.co_name) for f, line in traceback.walk_tb(error.__traceback__)]
        own = [frame for frame in frames if is_user_code(frame[0])]
        where, line = (relative_path(own[-1][0]), own[-1][1]) if own else (None, None)
        if where is None and path is not None:
            where, line = _place_of(of) or definition_of(target) or (relative_path(str(path)), 1)
        what = first_line(error).rstrip(" :")
        if step == "import" and any("argparse" in frame[0] for frame in frames):
            what = f"it reads the command line as it is imported; {_SCRIPT}"
        elif step == "import" and own and own[-1][2] == "<module>" and isinstance(error, _OF_SCRIPTS):
            behind = frames[frames.index(own[-1]) + 1 :]
            if not any(frame[2] == "<module>" for frame in behind):  # else it is an import that fails
                what = f"{what}; {_SCRIPT}"
        elif step == "construct" and isinstance(error, OSError) and (spared := _without_weights(of)):
            what = f"{what}; without weights: {target}({spared})"
        elif isinstance(error, TypeError) and " missing " in what and not own:
            what = f"{what}; give them, as in {_call_of(of, target)}"
        place = f"{where}:{line}: " if where else f"{target}: " if target else ""
        raise TargetError(
            step,
            f"{place}{step} failed: {type(error).__name__}: {what}",
            kind=type(error).__name__,
            path=where,
            line=line,
        ) from error


_OF_SCRIPTS = (OSError, RuntimeError, AssertionError, EOFError, SystemExit)
"""What code that trains, reads data or asks for a GPU fails with; NotImplementedError and RecursionError come along."""


def _place_of(of: Any) -> tuple[str, int] | None:
    """Path and line of a class or function of the user's."""
    try:
        of = inspect.unwrap(of)
        path, line = inspect.getsourcefile(of), inspect.findsource(of)[1] + 1
    except (OSError, TypeError, ValueError):  # made by exec, or by type()
        return None
    return (relative_path(path), line) if path is not None and is_user_code(path) else None


def _without_weights(of: Any) -> str | None:
    """The argument that keeps a constructor from loading weights, as ``pretrained=False``."""
    with contextlib.suppress(TypeError, ValueError):
        for name, parameter in inspect.signature(of).parameters.items():
            if name in ("pretrained", "weights", "encoder_weights") and parameter.default:
                return f"{name}={False if parameter.default is True else None}"
    return None


def _call_of(of: Any, target: str) -> str:
    """A target with every argument that ``of`` cannot be called without."""
    try:
        parameters = inspect.signature(of).parameters.values()
    except (TypeError, ValueError):  # of C
        return f"{target}(…)"
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return f"{target.partition('(')[0]}({', '.join(f'{name}=…' for name in needed)})"
