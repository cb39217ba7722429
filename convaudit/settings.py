"""Settings: ``[tool.convaudit]`` of pyproject.toml, or the same keys in convaudit.toml. Never imports torch."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from convaudit.budgets import BUDGETS, Budget
from convaudit.errors import SettingsError, nearest, unknown_rule
from convaudit.paths import repository_root
from convaudit.result import RULE_SET, RULE_SETS, SEVERITIES, Severity

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FAIL_ON = ("error", "warning", "info", "never")
CONVENTIONS = ("fvcore", "two-per-mac")
WEIGHTS = ("auto", "always", "never")
LANGUAGES = ("en", "zh")
"""In which reports can be written."""
INPUT_FORM = "[NAME:]SHAPE[:DTYPE], such as 1,3,224,224 or mask:1,1,224,224:bool"
INTERNAL = ("here", "root", "reference")
"""Fields of :class:`AuditSettings` that are no keys of a settings file."""


def at_least(fail_on: str) -> tuple[Severity, ...]:
    """The severities that ``fail_on`` names: itself and the graver ones; none for "never"."""
    return tuple(severity for index, severity in enumerate(SEVERITIES) if fail_on in SEVERITIES[: index + 1])


def read_input(spec: str) -> re.Match[str] | None:
    """The parts of a text in the form of ``--input``: name, shape, dtype; None for any other text."""
    return re.fullmatch(
        r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<shape>\(\)|0*[1-9]\d*(?:,0*[1-9]\d*)*)(?::(?P<dtype>[a-z][a-z0-9]*))?", spec.replace(" ", "")
    )


def _check_input(value: Any, where: str) -> None:
    named = isinstance(value, dict)
    specs = list(value.values()) if named else [value] if isinstance(value, str) else value
    if not isinstance(specs, list) or not specs or not all(isinstance(spec, str) for spec in specs):
        raise SettingsError(f"{where}: input must be a string, a list of strings or a table of strings, not {value!r}")
    for spec in specs:
        if read_input(spec) is None:
            raise SettingsError(f"{where}: input {spec!r} is not {INPUT_FORM}")


@dataclass
class TargetSettings:
    """One ``[[tool.convaudit.target]]`` table: what holds for the targets that ``match`` fits."""

    match: str = "*"
    input: Any = None
    args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    budget: dict[str, Any] = field(default_factory=dict)
    ignore_layers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether ``match`` is the name of a single target."""
        return ":" in self.match and not set(self.match) & set("*?[")

    def fits(self, target: str, root: str) -> bool:
        """Whether ``match`` (a glob) fits a target without its arguments, or its file; paths are relative to ``root``."""
        place, colon, name = target.partition("(")[0].partition(":")
        if place.endswith(".py"):
            path = Path(place).resolve()
            place = path.relative_to(root).as_posix() if root and path.is_relative_to(root) else place
        return fnmatchcase(place + colon + name, self.match) or fnmatchcase(place, self.match)


@dataclass
class AuditSettings:
    """What a run is asked to do; keys in files are spelled with dashes."""

    select: list[str] = field(default_factory=list)
    extend_select: list[str] = field(default_factory=list)
    ignore: list[str] = field(default_factory=list)
    severity: dict[str, Severity] = field(default_factory=dict)
    rule_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    fail_on: str = "warning"
    flop_convention: Literal["fvcore", "two-per-mac"] = "fvcore"
    dataset_size: int | None = None
    pretrained: bool = False
    require_complete: bool = False
    allow_globals: list[str] = field(default_factory=list)
    """Globs of dotted names whose classes a checkpoint may hold (CNV610)."""
    strict_pickle: bool = False
    max_pickle: int = 64
    """Megabytes of one pickle that are read."""
    weights: Literal["auto", "always", "never"] = "auto"
    """Whether a checkpoint's weights are read; "auto": those of a file of up to 2 GB."""
    strict: bool = False
    rule_set: str = RULE_SET
    input: Any = None
    baseline: str = ""
    per_file_ignores: dict[str, list[str]] = field(default_factory=dict)
    target: list[TargetSettings] = field(default_factory=list)
    root: str = ""
    """Folder of the settings file."""
    reference: dict[str, int] = field(default_factory=dict)
    """The baseline's figures for the target being audited, by budget."""
    here: TargetSettings = field(default_factory=TargetSettings)
    """The first of ``target`` that fits the target being audited."""

    def for_target(self, target: str) -> AuditSettings:
        """These settings with the first target table that fits."""
        here = next((table for table in self.target if table.fits(target, self.root)), TargetSettings())
        return dataclasses.replace(self, here=here, target=[], pretrained=self.pretrained or here.pretrained)

    def configures(self, target: str) -> bool:
        """Whether a target table names ``FILE:NAME`` in full, or gives arguments for it."""
        return self.names(target) or bool(self.for_target(target).here.args)

    def names(self, target: str) -> bool:
        """Whether a target table names ``FILE:NAME`` in full."""
        return any(table.full and table.fits(target, self.root) for table in self.target)

    def toml(self, source: Callable[[str], str]) -> Iterator[str]:
        """A line of a convaudit.toml for each key; ``source`` says where a key comes from."""
        for key, name in self.keys().items():
            value = getattr(self, name)
            if name == "target":
                value = [_as_table(each) for each in value]
            yield f"{key} = {_toml(value)}  # {source(key)}" if value is not None else f"# {key} is not set"

    def enabled(self, code: str, default: bool) -> bool:
        """Whether a rule runs: the longest matching prefix among select and ignore decides, ignore wins a tie."""
        chosen = max((len(s) for s in [*self.select, *self.extend_select] if code.startswith(s)), default=-1)
        ignored = max((len(s) for s in self.ignore if code.startswith(s)), default=-1)
        if ignored >= 0 and ignored >= chosen:
            return False
        if not default:
            return chosen == len(code)
        return chosen >= 0 or not self.select

    @classmethod
    def from_mapping(cls, mapping: dict[str, Any], where: str) -> AuditSettings:
        """Checked settings from a table; ``where`` names the file in errors.

        Raises :class:`SettingsError` for an unknown key, rule or option and for a wrong type.
        """
        settings = cls()
        settings.update(mapping, where)
        return settings

    @classmethod
    def keys(cls) -> dict[str, str]:
        """Keys of a settings file → names of fields."""
        known = {f.name.replace("_", "-"): f.name for f in dataclasses.fields(cls) if f.name not in INTERNAL}
        return {"rules" if key == "rule-options" else key: name for key, name in known.items()}

    def update(self, mapping: dict[str, Any], where: str) -> None:
        """Take over checked values, as :meth:`from_mapping`."""
        _assign(self, {**mapping, "target": []} if "target" in mapping else mapping, self.keys(), where)
        for index, table in enumerate(_tables(mapping.get("target", []), where)):
            made = TargetSettings()
            names = {f.name.replace("_", "-"): f.name for f in dataclasses.fields(made)}
            _assign(made, table, names, f"{where}: target {index + 1}")
            if "match" not in table:
                raise SettingsError(f'{where}: target {index + 1} needs a match, such as "models/*.py:Net"; "*" is every target')
            try:
                json.dumps(made.args)
            except TypeError as error:
                raise SettingsError(f"{where}: target {index + 1}: args: {error}; dates and times are not") from error
            for name, budget in made.budget.items():
                if name not in BUDGETS:
                    raise SettingsError(f"{where}: unknown budget {name!r}{nearest(name, BUDGETS)}")
                try:
                    Budget.parse(budget)
                except ValueError as error:
                    raise SettingsError(f"{where}: budget {name}: {error}") from error
            self.target.append(made)
        self._check(where)

    def _check(self, where: str) -> None:
        from convaudit import registry

        for key, value, allowed in (
            ("fail-on", self.fail_on, FAIL_ON),
            ("flop-convention", self.flop_convention, CONVENTIONS),
            ("rule-set", self.rule_set, RULE_SETS),
            ("weights", self.weights, WEIGHTS),
        ):
            if value not in allowed:
                raise SettingsError(f"{where}: {key} is one of {', '.join(allowed)}, not {value!r}")
        for given in (self.input, *(table.input for table in self.target)):
            if given is not None:
                _check_input(given, where)
        tables = [table.ignore_layers for table in self.target]
        for key, table in [("ignore-layers", t) for t in tables] + [("per-file-ignores", self.per_file_ignores)]:
            for name, values in table.items():
                if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
                    raise SettingsError(f"{where}: {key}.{name} must be a list of strings, not {values!r}")
        ignored = [code for table in tables for code in table] + [c for v in self.per_file_ignores.values() for c in v]
        named = [*self.select, *self.extend_select, *self.ignore, *self.severity, *self.rule_options, *ignored]
        if not named:
            return
        rules = registry.rules()
        for code in named:
            if not isinstance(code, str) or not any(c.startswith(code) for c in rules):
                raise SettingsError(f"{where}: unknown rule {code!r}{unknown_rule(str(code), rules)}")
        for code, severity in self.severity.items():
            if severity not in SEVERITIES:
                raise SettingsError(f"{where}: severity of {code} is one of {', '.join(SEVERITIES)}, not {severity!r}")
        for code, options in self.rule_options.items():
            if code not in rules or not isinstance(options, dict):
                raise SettingsError(f"{where}: rules.{code} must be a table of one rule's options")
            fields = {f.name.replace("_", "-"): f for f in dataclasses.fields(rules[code].options)}
            for name, value in options.items():
                if name not in fields:
                    raise SettingsError(f"{where}: {code} has no option {name!r}{nearest(name, fields)}")
                default = fields[name].default
                if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
                    raise SettingsError(f"{where}: {code}.{name} must be {type(default).__name__}, not {value!r}")


def _tables(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise SettingsError(f"{where}: target must be an array of tables, [[tool.convaudit.target]]")
    return value


def _assign(settings: Any, mapping: dict[str, Any], known: dict[str, str], where: str) -> None:
    for key, value in mapping.items():
        if key not in known:
            raise SettingsError(f"{where}: unknown setting {key!r}{nearest(key, known)}")
        current = getattr(settings, known[key])
        expected: Any = object if key == "input" else int if current is None else type(current)
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise SettingsError(f"{where}: {key} must be {expected.__name__}, not {type(value).__name__}")
        setattr(settings, known[key], value)


class Resolver:
    """The settings of each target: those of the file nearest to it, from its own folder upwards, then the command line.

    A folder's own are in the folder itself. A checkpoint, what has no place inside the working directory's repository (a library's
    model, ``package.module:factory``, a file elsewhere) takes those of the working directory.
    """

    def __init__(self, config: Path | None = None, given: dict[str, Any] | None = None) -> None:
        self._given = given or {}
        self._config = (_table_of(config), config) if config is not None else None
        self._here = os.path.realpath(os.getcwd())
        self._tree = Path(os.path.realpath(repository_root(os.getcwd())))
        self._laid_out: tuple[Path, Path] | None = None
        self._found: dict[str, tuple[dict[str, Any], Path | None]] = {}
        self._made: dict[Path | None, AuditSettings] = {}

    def at(self, folder: Path, repository: Path) -> Resolver:
        """The same settings for the files of ``repository`` as they are laid out in ``folder``."""
        made = copy.copy(self)
        made._laid_out, made._made = (folder, repository), {}
        return made

    def of(self, target: str) -> AuditSettings:
        """The settings that hold for a target, a file or a folder; one object for one settings file.

        Raises :class:`SettingsError` where the file has a fault.
        """
        table, file = self._table(self._place(target))
        if file not in self._made:
            made = AuditSettings.from_mapping(table, str(file or "settings"))
            made.root = self._root(file)
            made.update(self._given, "command line")
            self._made[file] = made
        return self._made[file]

    def _place(self, target: str) -> str:
        """The folder where the search for a target's settings begins."""
        file = target if os.path.isfile(target) else target.partition(":")[0]
        if os.path.isdir(target):
            folder = os.path.realpath(target)
        elif file.endswith(".py"):
            folder = os.path.dirname(os.path.realpath(file))
        else:
            return self._here
        if self._laid_out is not None and Path(folder).is_relative_to(self._laid_out[0]):
            folder = os.path.normpath(os.path.join(self._laid_out[1], os.path.relpath(folder, self._laid_out[0])))
        return folder if Path(folder).is_relative_to(self._tree) else self._here

    def _table(self, folder: str) -> tuple[dict[str, Any], Path | None]:
        """The settings table nearest to a folder and its file; an empty one where there is none."""
        if self._config is not None:
            return self._config
        if folder not in self._found:
            self._found[folder] = self._nearest(folder)
        return self._found[folder]

    def _nearest(self, folder: str) -> tuple[dict[str, Any], Path | None]:
        for name in ("convaudit.toml", "pyproject.toml"):
            path = Path(folder, name)
            table = read_settings(path) if path.is_file() else None
            if table is not None:
                return table, path
        above = os.path.dirname(folder)
        return ({}, None) if above == folder else self._table(above)

    def _root(self, file: Path | None) -> str:
        root = file.resolve().parent if file is not None else None
        if root is not None and self._laid_out is not None and root.is_relative_to(self._laid_out[1]):
            root = self._laid_out[0] / root.relative_to(self._laid_out[1])
        return str(root or "")

    def text(self, targets: tuple[str, ...]) -> str:
        """The settings in force for the first of ``targets`` as a convaudit.toml, with where each key comes from."""
        first = targets[0] if targets else "."
        settings, (table, file) = self.of(first), self._table(self._place(first))
        lines = [f"# for {first}, from {_spelled(file)}" if file else f"# for {first}: no settings file"]
        here = self._table(self._here)[1]
        if os.path.isdir(first) and file != here:
            lines.append(f"# checkpoints in it take those of the working directory: {_spelled(here) if here else 'no settings file'}")
        others = {self._table(self._place(t))[1] for t in targets} - {file}
        lines += [f"# other targets take theirs from {_spelled(other)}" for other in sorted(o for o in others if o)]

        def source(key: str) -> str:
            return "command line" if key in self._given else _spelled(file) if file and key in table else "default"

        lines += settings.toml(source)
        return "\n".join(lines) + "\n"


def _table_of(config: Path) -> dict[str, Any]:
    table = read_settings(config)
    if table is None:
        raise SettingsError(f"{config} has no [tool.convaudit]")
    return table


def _spelled(path: Path) -> str:
    shown = os.path.relpath(path)
    return str(path) if shown.startswith(os.pardir) else shown


def _as_table(target: TargetSettings) -> dict[str, Any]:
    """A target table without what it leaves at its default."""
    fields = [(f.name, getattr(target, f.name)) for f in dataclasses.fields(target)]
    return {name.replace("_", "-"): value for name, value in fields if value or name == "match"}


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    """A value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings table of a file; None where a pyproject.toml has none."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    if path.name != "pyproject.toml":
        return data
    table = data.get("tool", {}).get("convaudit")
    if table is not None and not isinstance(table, dict):
        raise SettingsError(f"{path}: tool.convaudit must be a table")
    return table
