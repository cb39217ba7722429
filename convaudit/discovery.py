"""Which classes and functions of a project are models, read from its source: nothing runs, torch is not imported.

A model is an ``nn.Module`` class that no other model of the project is made of, or a function without required
arguments that returns one. A class that others only inherit from is one where it has layers and a forward. A class that
needs arguments gives way to the functions that make it, or else to the classes with layers and a forward that it is made of.
"""

from __future__ import annotations

import ast
import errno
import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convaudit.paths import relative_path, working_directory

_MODULES = {"Module", "Sequential", "LightningModule", "ScriptModule"}
_LIBRARIES = ("torch.nn", "torchvision.models", "timm", "pytorch_lightning", "lightning")
_NO_MODELS = ("Loss", "Criterion", "Metric", "Dataset", "DataModule", "Sampler", "Transform", "Optimizer", "Scheduler")
_NO_LAYERS = ("Module", "ModuleList", "ModuleDict", "Parameter", "Identity", "DataParallel")
SKIPPED = {".git", ".hg", ".venv", "venv", "env", "node_modules", "site-packages", "__pycache__", "build", "dist",
            ".tox", ".nox", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".eggs"}  # fmt: skip

Name = tuple[Path, str]
"""A definition: its file and its name."""


@dataclass
class Definition:
    """A top-level class, function or variable of one file."""

    name: str
    line: int
    kind: str
    """"class", "function" or "variable"."""
    bases: tuple[str, ...] = ()
    required: tuple[str, ...] | None = ()
    """Arguments without a default; None where a class takes its constructor from its base."""
    uses: frozenset[str] = frozenset()
    """Dotted names in its body."""
    passed: frozenset[str] = frozenset()
    """Dotted names that are arguments of a call in its body: ``BasicBlock`` in ``ResNet(BasicBlock, …)``."""
    gives: frozenset[str] = frozenset()
    """Dotted names of what a function returns or a variable holds, where that is a call."""
    returns: str | None = None
    """The dotted name that a function is annotated to return."""
    forwards: bool = False
    """A class with a ``forward`` of its own."""
    abstract: bool = False
    """A class with abstract methods, or a ``forward`` that only raises."""


@dataclass
class SourceFile:
    """What one file defines and imports."""

    path: Path
    definitions: dict[str, Definition] = field(default_factory=dict)
    imports: dict[str, tuple[int, str, str | None]] = field(default_factory=dict)
    """Local name → (relative level, module, name in it or None for the module itself)."""
    stars: list[tuple[int, str]] = field(default_factory=list)
    """(relative level, module) of each ``from module import *``."""

    @functools.cached_property
    def named(self) -> dict[str, list[tuple[Definition, str]]]:
        """Definitions and the dotted names in them, by the last part of the name: what a Module class uses anywhere,
        what others pass on as a value."""
        found: dict[str, list[tuple[Definition, str]]] = {}
        for definition in self.definitions.values():
            for dotted in definition.uses if definition.kind == "class" else definition.passed:
                found.setdefault(dotted.rpartition(".")[2], []).append((definition, dotted))
        return found


@dataclass
class Discovered:
    """The models of one file: targets to audit, and one line for each that cannot be built by itself."""

    targets: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    problem: str | None = None
    syntax_error: bool = False


class Project:
    """The Python files of a repository (or of a folder outside one), parsed when first needed.

    ``audited``: those whose models are audited in this run; only they take a model with them as a part of theirs.
    ``within``: where ``root`` is no repository, only these folders and what lies beside these files is looked at: ``root`` may
    be a whole disk. Modules that they import are found from ``root`` all the same.
    """

    def __init__(
        self, root: Path, audited: Callable[[Path], bool] = lambda path: not is_test(path), within: Sequence[Path] | None = None
    ) -> None:
        self.root, self.audited = root.resolve(), audited
        self._within = [self.root] if within is None else within
        self._parsed: dict[Path, SourceFile | None] = {}
        self._resolved: dict[tuple[Path, str], Name | str | None] = {}
        self._imported: dict[tuple[Path, int, str, str | None], tuple[Path | None, str]] = {}
        self._modules: dict[Name, bool] = {}
        self._real = functools.cache(Path.resolve)

    @functools.cached_property
    def files(self) -> list[Path]:
        """Every .py file that git knows or does not ignore; without git, every one outside the usual folders."""
        listed = _git_files(self.root, "-co", "--exclude-standard", "--deduplicate")
        if listed is None:
            paths = [path for place in self._within for path in _around(place)]
        else:
            paths = [self.root / name for name in listed if name.endswith(".py")]
        return [path for path in dict.fromkeys(paths) if path.is_file()]

    @functools.cached_property
    def _texts(self) -> dict[Path, bytes]:
        texts = {}
        for path in self.files:
            try:
                texts[path] = path.read_bytes()
            except OSError:  # gone, or not ours to read: it cannot name a model either
                continue
        return texts

    def parse(self, path: Path) -> SourceFile:
        """The definitions of a file. Raises OSError, SyntaxError or ValueError."""
        path = self._real(path)
        found = self._parsed.get(path)
        if found is None:
            found = self._parsed[path] = _read(path)
        return found

    def _known(self, path: Path) -> SourceFile | None:
        path = self._real(path)
        if path not in self._parsed:
            try:
                self._parsed[path] = _read(path)
            except (OSError, SyntaxError, ValueError, RecursionError):
                self._parsed[path] = None
        return self._parsed[path]

    def resolve(self, path: Path, dotted: str, depth: int = 0) -> Name | str | None:
        """Where a dotted name of a file is defined: (file, name), or the full dotted name of a library's."""
        key = (self._real(path), dotted)
        if key not in self._resolved:
            self._resolved[key] = self._resolve(*key, depth)
        return self._resolved[key]

    def _resolve(self, path: Path, dotted: str, depth: int) -> Name | str | None:
        source = self._known(path)
        if source is None or depth > 8:
            return None
        head, _, rest = dotted.partition(".")
        if head in source.definitions and not rest:
            return path, head
        if head not in source.imports:
            modules = (self._module_file(path, *star, None)[0] for star in source.stars)
            found_in = (self.resolve(module, dotted, depth + 1) for module in modules if module is not None)
            return next((where for where in found_in if isinstance(where, tuple)), None)
        level, module, name = source.imports[head]
        found, inner = self._module_file(path, level, module, name)
        wanted = ".".join(part for part in (inner, rest) if part)
        if found is None:
            return ".".join(part for part in (module, name, rest) if part)
        return self.resolve(found, wanted, depth + 1) if wanted else None

    def _module_file(self, path: Path, level: int, module: str, name: str | None) -> tuple[Path | None, str]:
        """The project's file of an import, and the name looked for in it."""
        key = (path, level, module, name)
        if key not in self._imported:
            self._imported[key] = self._find_module(*key)
        return self._imported[key]

    def _find_module(self, path: Path, level: int, module: str, name: str | None) -> tuple[Path | None, str]:
        parts = [part for part in module.split(".") if part]
        folders = [path.parent, self.root] if not level else [Path(path.parent, *[".."] * (level - 1))]
        for folder in folders:
            for names, inner in (([*parts, name], "") if name else (parts, ""), (parts, name or "")):
                base = Path(folder, *[str(part) for part in names])
                for candidate in (base.with_suffix(".py"), base / "__init__.py"):
                    if names and candidate.is_file():
                        return self._real(candidate), inner
                if not names and (base / "__init__.py").is_file():
                    return self._real(base / "__init__.py"), inner
        return None, name or ""

    def is_module(self, path: Path, name: str, depth: int = 0) -> bool:
        """Whether a class is an ``nn.Module``, through bases in other files of the project."""
        key = (self._real(path), name)
        if key not in self._modules:
            self._modules[key] = False  # a cycle is none
            source = self._known(path)
            found = source.definitions.get(name) if source else None
            if found is not None and found.kind == "class" and depth < 16:
                based = any(self._is_base(path, base, depth) for base in found.bases)
                self._modules[key] = based or self._seems_module(path, found)
        return self._modules[key]

    def _seems_module(self, path: Path, found: Definition) -> bool:
        """Whether a class of a base that nobody can look into has layers of torch's and a forward."""
        return (
            found.forwards
            and any(self._is_opaque(path, base) for base in found.bases)
            and any(str(self.resolve(path, name)).startswith("torch.nn") for name in found.uses)
        )

    def _is_opaque(self, path: Path, base: str, depth: int = 0) -> bool:
        """Whether a base leads out of the project, to what may be a Module or not."""
        where = self.resolve(path, base)
        if isinstance(where, tuple):
            source = self._known(where[0])
            inner = source.definitions.get(where[1]) if source else None
            return inner is not None and depth < 8 and any(self._is_opaque(where[0], b, depth + 1) for b in inner.bases)
        return "." in (where or "") and not str(where).startswith(("torch.", "abc.", "typing.", "enum."))

    def _is_base(self, path: Path, base: str, depth: int) -> bool:
        where = self.resolve(path, base)
        if isinstance(where, tuple):
            return self.is_module(*where, depth + 1)
        full = where or base
        last = full.rpartition(".")[2]
        return last in _MODULES or (full.startswith(_LIBRARIES) and not last.endswith((*_NO_MODELS, "Enum")))

    def required(self, path: Path, name: str, depth: int = 0) -> tuple[str, ...]:
        """Arguments a definition cannot be called without, a base's constructor included."""
        source = self._known(path)
        found = source.definitions.get(name) if source else None
        if found is None or depth > 16:
            return ()
        if found.required is not None:
            return found.required
        for base in found.bases:
            where = self.resolve(path, base)
            if isinstance(where, tuple) and self.is_module(*where):
                return self.required(*where, depth + 1)
        return ()

    def makes(self, path: Path, definition: Definition, depth: int = 0) -> tuple[bool, Name | None]:
        """Whether a function or variable gives a Module, and the project's class it is, where known."""
        for dotted in sorted(definition.gives):
            where = self.resolve(path, dotted)
            if isinstance(where, tuple):
                if self.is_module(*where):
                    return True, where
                source = self._known(where[0])
                inner = source.definitions.get(where[1]) if source else None
                if inner is not None and inner.kind == "function" and depth < 8:
                    given, of = self.makes(where[0], inner, depth + 1)
                    if given:
                        return True, of
            elif (where or dotted).startswith(_LIBRARIES) and not (where or dotted).endswith(_NO_MODELS):
                last = (where or dotted).rpartition(".")[2]
                if last in _MODULES or not (where or dotted).startswith("torch.nn"):
                    return True, None
        if definition.returns is None:
            return False, None
        where = self.resolve(path, definition.returns)
        if isinstance(where, tuple):
            return self.is_module(*where), where
        return definition.returns.rpartition(".")[2] in _MODULES, None

    @functools.cached_property
    def _mentions(self) -> Callable[[str], list[Path]]:
        def mentions(word: str) -> list[Path]:
            needle = word.encode()
            return [path for path, text in self._texts.items() if needle in text]

        return functools.cache(mentions)

    def _readers(self, key: Name) -> Iterator[tuple[Path, Definition]]:
        """Definitions that name this one: Module classes anywhere in their body, functions as a value they pass on."""
        for user in dict.fromkeys([key[0], *self._mentions(key[1])]):
            source = self._known(user)
            for definition, dotted in source.named.get(key[1], ()) if source else ():
                module = definition.kind != "class" or self.is_module(user, definition.name)
                if module and (user, definition.name) != key and self.resolve(user, dotted) == key:
                    yield user, definition

    def makers(self, key: Name) -> list[Name]:
        """Functions without required arguments, and variables, that give an instance of the class."""
        return [
            (path, definition.name)
            for path in dict.fromkeys([key[0], *self._mentions(key[1])])
            for definition in getattr(self._known(path), "definitions", {}).values()
            if _offers(definition) and self.makes(path, definition)[1] == key
        ]

    def is_part(self, key: Name) -> bool:
        """Whether this class is a block of a model, through others, or handed to a call as a value.

        One that could be a model by itself is no part of classes that cannot be built or are not audited, nor of those that
        inherit from it.
        """
        source = self._known(key[0])
        own = source.definitions.get(key[1]) if source else None
        complete = own is not None and own.kind == "class" and self._is_complete(key[0], own)
        seen, kin, queue = {key}, {key}, [key]
        while queue:
            current = queue.pop()
            for user, definition in self._readers(current):
                reader = (user, definition.name)
                inherits = any(self.resolve(user, base) == current for base in definition.bases)
                built = definition.kind != "class" or not self.required(*reader) or self.makers(reader)
                if complete and inherits and current in kin:
                    kin.add(reader)
                elif (built and self.audited(user)) if complete else built or self._has_layers(user, definition):
                    return True
                if reader not in seen:
                    seen.add(reader)
                    queue.append(reader)
        return False

    def _is_complete(self, path: Path, definition: Definition) -> bool:
        """Whether a class has a forward and layers, its bases' included, and its name does not call it a base."""
        name = definition.name
        if name.startswith(("_", "Base", "Abstract")) or name.endswith(("Base", "Mixin")):
            return False
        lineage = list(self._lineage(path, definition))
        inherited = (self.resolve(where, base) or base for where, kind in lineage for base in kind.bases)
        libraries = {full.rpartition(".")[2] for full in inherited if isinstance(full, str)}
        runs = any(kind.forwards for _, kind in lineage) or not libraries <= _MODULES - {"Sequential"}
        return runs and any(self._has_parts(*kind) for kind in lineage)

    def _lineage(self, path: Path, definition: Definition, depth: int = 0) -> Iterator[tuple[Path, Definition]]:
        """A class and the project's classes that it inherits from."""
        yield path, definition
        for where in (self.resolve(path, base) for base in definition.bases if depth < 16):
            source = self._known(where[0]) if isinstance(where, tuple) else None
            if source is not None and isinstance(where, tuple) and where[1] in source.definitions:
                yield from self._lineage(where[0], source.definitions[where[1]], depth + 1)

    def _has_parts(self, path: Path, definition: Definition) -> bool:
        """Whether a class names layers, other Modules of the project, or what may be some of another library's."""
        for where in (self.resolve(path, dotted) for dotted in definition.uses.difference(definition.bases)):
            if isinstance(where, tuple):
                if where[1] != definition.name and self.is_module(*where):
                    return True
            elif where and where.partition(".")[0] not in {"torch", *sys.stdlib_module_names} and (
                where.startswith(_LIBRARIES) or where.rpartition(".")[2][:1].isupper()
            ):
                return True
        return self._has_layers(path, definition)

    def _has_layers(self, path: Path, definition: Definition) -> bool:
        """Whether a class names layers of torch's, losses and containers of modules aside."""
        full = (self.resolve(path, dotted) for dotted in definition.uses.difference(definition.bases))
        names = (name.removeprefix("torch.nn.") for name in full if isinstance(name, str) and name.startswith("torch.nn."))
        return any(name.isidentifier() and name[0].isupper() and not name.endswith((*_NO_MODELS, *_NO_LAYERS)) for name in names)

    def _passed_on(self, key: Name) -> bool:
        """Whether a function hands the class to a call that makes it."""
        return any(definition.kind == "function" for _, definition in self._readers(key))

    def importers(self, changed: list[Path]) -> list[Path]:
        """Files of the project that import one of ``changed``, through others, in the project's order."""
        found: set[Path] = set()
        queue = [path.resolve() for path in changed]
        while queue:
            path = queue.pop()
            word = path.parent.name if path.name == "__init__.py" else path.stem
            for user in self._mentions(word):
                if user in found or user == path:
                    continue
                source = self._known(user)
                if source is not None and any(
                    self._module_file(user, *imported)[0] == path for imported in source.imports.values()
                ):
                    found.add(user)
                    queue.append(user)
        given = {path.resolve() for path in changed}
        return [path for path in self.files if path in found - given]

    def models_in(self, path: Path, shown: str, configured: Callable[[str], bool] = lambda _: False) -> Discovered:
        """The models of one file; targets are spelled ``shown:NAME``. ``configured`` says whose arguments are known."""
        try:
            source = self.parse(path)
        except OSError as error:
            return Discovered(problem=f"{shown}: cannot be read: {error.strerror}")
        except (SyntaxError, ValueError, RecursionError) as error:
            said = getattr(error, "msg", error)
            return Discovered(problem=f"{shown}:{getattr(error, 'lineno', None) or 1}: syntax error: {said}", syntax_error=True)
        found = Discovered()
        classes = [d for d in source.definitions.values() if d.kind == "class" and self.is_module(path, d.name)]
        names: list[str] = []
        for definition in source.definitions.values():
            key, spelled = (self._real(path), definition.name), f"{shown}:{definition.name}"
            if definition.kind != "class":
                given, of = self.makes(path, definition)
                if (given and configured(spelled)) or (given and _offers(definition) and not self.is_part(key) and (of is None or self.required(*of) or self._passed_on(of))):
                    names.append(spelled)
            elif definition in classes and configured(spelled):
                names.append(spelled)
            elif (
                definition in classes
                and not definition.abstract
                and not definition.name.endswith(_NO_MODELS)
                and not self.is_part(key)
            ):
                missing = self.required(path, definition.name)
                elsewhere = [maker for maker in self.makers(key) if maker[0] != key[0]]
                if not missing:
                    names.append(spelled)
                elif elsewhere:
                    names += [f"{os.path.relpath(maker)}:{name}" for maker, name in elsewhere]
                elif not self.makers(key) and not any(True for _ in self._readers(key)) and any(self._has_parts(*kind) for kind in self._lineage(path, definition)):
                    found.left.append(
                        f"{shown}:{definition.line}: {definition.name} needs {', '.join(missing)}; audit it as {spelled}({', '.join(f'{name}=…' for name in missing)})"
                    )
        found.targets = list(dict.fromkeys(names))
        parts = [d.name for d in classes if not d.abstract and not d.name.endswith(_NO_MODELS)]
        if not names and not found.left:
            rest = f" by itself in it, only parts of others; name one, as in {shown}:{parts[-1]}" if parts else " in it"
            found.problem = f"{shown}: no model{rest}"
        return found


def _offers(definition: Definition) -> bool:
    """Whether a function or variable is there to be taken as a model: no required arguments, no private or test name."""
    name = definition.name
    return definition.kind != "class" and not definition.required and not name.startswith(("_", "test")) and name != "main"


def definition_of(target: str) -> tuple[str, int] | None:
    """Path and line, as findings spell them, of what ``FILE.py:NAME`` names; None where its source does not tell."""
    place, _, name = target.partition(":")
    if not place.endswith(".py"):
        return None
    try:
        found = _read(Path(working_directory(), place)).definitions.get(re.split(r"[.(]", name)[0])
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    return (relative_path(place), found.line) if found is not None else None


def is_test(path: Path) -> bool:
    """Whether a file is a test by pytest's names: its models are toys."""
    return path.name.startswith("test_") or path.stem.endswith("_test") or path.name == "conftest.py"


def tracked(root: Path) -> set[str]:
    """Files that git tracks in a repository, by their real paths; none where there is no git."""
    return {os.path.realpath(root / name) for name in _git_files(root, "-c") or ()}


def _git_files(root: Path, *options: str) -> list[str] | None:
    """What ``git ls-files`` names, sorted; None where there is no git, or it is not its repository."""
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "ls-files", "-z", *options], cwd=root, capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return sorted(os.fsdecode(name) for name in done.stdout.split(b"\0") if name)


def _around(place: Path) -> Iterator[Path]:
    """The .py files of a folder; of a file those beside it, and, in a package, those of the package and beside it."""
    if place.is_dir():
        for folder, folders, files in os.walk(place):
            folders[:] = sorted(f for f in folders if f not in SKIPPED)
            yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))
        return
    above, package = place.parent, None
    while (above / "__init__.py").is_file() and above != above.parent:
        above, package = above.parent, above
    yield from sorted(above.glob("*.py"))
    if package is not None:
        yield from _around(package)


def _read(path: Path) -> SourceFile:
    source = SourceFile(path)
    if path.exists() and not path.is_file():  # a pipe would wait for a writer
        raise OSError(errno.EINVAL, "no regular file", str(path))
    data = path.read_bytes()
    for node in _statements(ast.parse(data, str(path)).body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                source.imports[name] = (0, alias.name if alias.asname else name, None)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name == "*":
                    source.stars.append((node.level, node.module or ""))
                else:
                    source.imports[alias.asname or alias.name] = (node.level, node.module or "", alias.name)
        elif isinstance(node, ast.ClassDef):
            uses, passed = _names(node)
            bases = tuple(filter(None, map(_dotted, node.bases)))
            source.definitions[node.name] = Definition(
                node.name, node.lineno, "class", bases, _constructor(node), uses, passed,
                forwards=any(method.name == "forward" for method in _methods(node)),
                abstract=any(
                    (_dotted(mark) or "").rpartition(".")[2].startswith("abstract")
                    for method in _methods(node) for mark in method.decorator_list
                ) or any(method.name == "forward" and isinstance(method.body[-1], ast.Raise) for method in _methods(node)),
            )  # fmt: skip
        elif isinstance(node, ast.FunctionDef):
            uses, passed = _names(node)
            source.definitions[node.name] = Definition(
                node.name, node.lineno, "function", (), _required(node.args, 0), uses, passed, _given(node),
                _annotated(node.returns),
            )  # fmt: skip
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            maker = _dotted(node.value.func)
            for target in node.targets:
                if isinstance(target, ast.Name) and maker:
                    source.definitions.setdefault(
                        target.id, Definition(target.id, node.lineno, "variable", gives=frozenset({maker}))
                    )
    return source


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those under ``try`` and ``if`` included, the script part left out."""
    for node in body:
        if isinstance(node, ast.If):
            if not any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(node.test)):
                yield from _statements(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            yield from _statements(node.body + [s for h in node.handlers for s in h.body] + node.orelse)
        else:
            yield node


def _dotted(node: ast.expr) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Subscript):
        return _dotted(node.value)
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _names(node: ast.AST) -> tuple[frozenset[str], frozenset[str]]:
    uses, passed = set(), set()
    for child in ast.walk(node):
        if isinstance(child, (ast.Name, ast.Attribute)) and (name := _dotted(child)):
            uses.add(name)
        elif isinstance(child, ast.Call):
            values = [*child.args, *(keyword.value for keyword in child.keywords)]
            passed |= {name for value in values if (name := _dotted(value))}
    return frozenset(uses), frozenset(passed)


def _annotated(node: ast.expr | None) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value if all(part.isidentifier() for part in node.value.split(".")) else None
    return _dotted(node) if isinstance(node, (ast.Name, ast.Attribute)) else None


def _methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    return (item for item in node.body if isinstance(item, ast.FunctionDef))


def _constructor(node: ast.ClassDef) -> tuple[str, ...] | None:
    for item in _methods(node):
        if item.name == "__init__":
            return _required(item.args, 1)
    return None


def _required(arguments: ast.arguments, skipped: int) -> tuple[str, ...]:
    positional = arguments.posonlyargs + arguments.args
    names = [a.arg for a in positional[skipped : len(positional) - len(arguments.defaults)]]
    return tuple(names + [a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults) if d is None])


def _given(node: ast.FunctionDef) -> frozenset[str]:
    """Dotted names of the calls a function returns, directly or through a variable."""
    held: dict[str, set[str]] = {}
    given: set[str] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Assign) and isinstance(child.value, ast.Call) and (called := _dotted(child.value.func)):
            for target in child.targets:
                if isinstance(target, ast.Name):
                    held.setdefault(target.id, set()).add(called)
    for child in ast.walk(node):
        if isinstance(child, ast.Return) and child.value is not None:
            if isinstance(child.value, ast.Call) and (called := _dotted(child.value.func)):
                given.add(called)
            elif isinstance(child.value, ast.Name):
                given |= held.get(child.value.id, set())
    return frozenset(given)
