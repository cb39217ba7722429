"""Settings: ``[tool.convaudit]`` of pyproject.toml, or the same keys in convaudit.toml. Never imports torch."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from convaudit.budgets import BUDGETS, Budget
from convaudit.errors import SettingsError
from convaudit.result import RULE_SET, RULE_SETS, SEVERITIES, Severity

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FAIL_ON = ("error", "warning", "info", "never")
CONVENTIONS = ("fvcore", "two-per-mac")
INPUT_FORM = "[NAME:]SHAPE[:DTYPE], such as 1,3,224,224 or mask:1,1,224,224:bool"
INTERNAL = ("here", "root", "reference")
"""Fields of :class:`AuditSettings` that are no keys of a settings file."""


def at_least(fail_on: str) -> tuple[Severity, ...]:
    """The severities that ``fail_on`` names: itself and the graver ones; none for "never"."""
    return tuple(severity for index, severity in enumerate(SEVERITIES) if fail_on in SEVERITIES[: index + 1])


def is_input(spec: str) -> bool:
    """Whether a text has the form of ``--input``."""
    return bool(re.fullmatch(r"(?:[A-Za-z_]\w*:)?(?:\(\)|\d+(?:,\d+)*)(?::[a-z][a-z0-9]*)?", spec.replace(" ", "")))


def _check_input(value: Any, where: str) -> None:
    named = isinstance(value, dict)
    specs = list(value.values()) if named else [value] if isinstance(value, str) else value
    if not isinstance(specs, list) or not specs or not all(isinstance(spec, str) for spec in specs):
        raise SettingsError(f"{where}: input must be a string, a list of strings or a table of strings, not {value!r}")
    for spec in specs:
        if not is_input(spec):
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
        """Whether a target table that fits gives arguments for ``FILE:NAME``."""
        return bool(self.for_target(target).here.args)

    def text(self) -> str:
        """Every setting in force, one a line, spelled as in a settings file."""
        shown = {k.replace("_", "-"): v for k, v in dataclasses.asdict(self).items() if k not in INTERNAL}
        where = f"# from {self.root}\n" if self.root else "# no settings file\n"
        return where + "".join(f"{key} = {json.dumps(value)}\n" for key, value in shown.items())

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

    def update(self, mapping: dict[str, Any], where: str) -> None:
        """Take over checked values, as :meth:`from_mapping`."""
        known = {f.name.replace("_", "-"): f.name for f in dataclasses.fields(self) if f.name not in INTERNAL}
        known["rules"] = known.pop("rule-options")
        _assign(self, {**mapping, "target": []} if "target" in mapping else mapping, known, where)
        for index, table in enumerate(_tables(mapping.get("target", []), where)):
            made = TargetSettings()
            names = {f.name.replace("_", "-"): f.name for f in dataclasses.fields(made)}
            _assign(made, table, names, f"{where}: target {index + 1}")
            for name, budget in made.budget.items():
                if name not in BUDGETS:
                    raise SettingsError(f"{where}: unknown budget {name!r}{_nearest(name, list(BUDGETS))}")
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
                raise SettingsError(f"{where}: unknown rule {code!r}{_nearest(str(code), list(rules))}")
        for code, severity in self.severity.items():
            if severity not in SEVERITIES:
                raise SettingsError(f"{where}: severity of {code} is one of {', '.join(SEVERITIES)}, not {severity!r}")
        for code, options in self.rule_options.items():
            if code not in rules or not isinstance(options, dict):
                raise SettingsError(f"{where}: rules.{code} must be a table of one rule's options")
            fields = {f.name.replace("_", "-"): f for f in dataclasses.fields(rules[code].options)}
            for name, value in options.items():
                if name not in fields:
                    raise SettingsError(f"{where}: {code} has no option {name!r}{_nearest(name, list(fields))}")
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
            raise SettingsError(f"{where}: unknown setting {key!r}{_nearest(key, list(known))}")
        current = getattr(settings, known[key])
        expected: Any = object if key == "input" else int if current is None else type(current)
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise SettingsError(f"{where}: {key} must be {expected.__name__}, not {type(value).__name__}")
        setattr(settings, known[key], value)


def _nearest(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, 1, 0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def find_settings(start: Path) -> tuple[dict[str, Any], Path | None]:
    """The nearest settings table from ``start`` upwards and its file; an empty one where there is none."""
    for folder in [start, *start.parents]:
        for name in ("convaudit.toml", "pyproject.toml"):
            path = folder / name
            if path.is_file():
                table = read_settings(path)
                if table is not None:
                    return table, path
    return {}, None


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
