"""Settings: ``[tool.convaudit]`` of pyproject.toml, or the same keys in convaudit.toml. Never imports torch."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from convaudit.errors import SettingsError
from convaudit.result import SEVERITIES, Severity

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FAIL_ON = ("error", "warning", "info", "never")
CONVENTIONS = ("fvcore", "two-per-mac")


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
    strict: bool = False
    rule_set: str = "2026.11"
    input: Any = None

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
        known = {f.name.replace("_", "-"): f.name for f in dataclasses.fields(cls)}
        known["rules"] = known.pop("rule-options")
        settings = cls()
        for key, value in mapping.items():
            if key not in known:
                raise SettingsError(f"{where}: unknown setting {key!r}{_nearest(key, list(known))}")
            current = getattr(settings, known[key])
            expected: Any = object if key == "input" else int if current is None else type(current)
            if value is not None and (not isinstance(value, expected) or (expected is int and isinstance(value, bool))):
                raise SettingsError(f"{where}: {key} must be {expected.__name__}, not {type(value).__name__}")
            setattr(settings, known[key], value)
        settings._check(where)
        return settings

    def _check(self, where: str) -> None:
        from convaudit import registry

        for key, value, allowed in (
            ("fail-on", self.fail_on, FAIL_ON),
            ("flop-convention", self.flop_convention, CONVENTIONS),
        ):
            if value not in allowed:
                raise SettingsError(f"{where}: {key} is one of {', '.join(allowed)}, not {value!r}")
        if not (self.select or self.extend_select or self.ignore or self.severity or self.rule_options):
            return
        rules = registry.rules()
        for code in [*self.select, *self.extend_select, *self.ignore, *self.severity, *self.rule_options]:
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


def _nearest(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, 1, 0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def find_settings(start: Path) -> tuple[dict[str, Any], str]:
    """The nearest settings table from ``start`` upwards and its file's name; an empty one where there is none."""
    for folder in [start, *start.parents]:
        for name in ("convaudit.toml", "pyproject.toml"):
            path = folder / name
            if path.is_file():
                table = read_settings(path)
                if table is not None:
                    return table, str(path)
    return {}, "settings"


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
