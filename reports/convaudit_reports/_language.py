"""Reports in other languages: gettext catalogues (``locale/``), spoken for the time of one rendering.

English is the language of the sources and needs no catalogue. ``make messages`` brings the catalogues up to date.
"""

from __future__ import annotations

import functools
import gettext as standard
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import msgspec

from convaudit.errors import UsageError
from convaudit.settings import LANGUAGES

if TYPE_CHECKING:
    from jinja2 import Environment

    from convaudit.result import AuditResult, Finding

RULE = "rule"
"""Context (msgctxt) of what rules say: patterns whose ``{0}``, ``{1}`` … stand for the values filled in."""

LONGEST = 1_000
"""Characters of a text that is matched against the patterns; a longer one holds more of names than of words."""
_SENTENCE = re.compile("[a-z]+ [a-z]+ [a-z]+")
"""Plain words in a row, as in an exception's text: no list whose " and " would be translated."""
_spoken: ContextVar[str] = ContextVar("language", default="en")


@functools.cache
def catalogue(lang: str) -> standard.NullTranslations:
    """The catalogue of a language. Raises :class:`UsageError` for an unknown one."""
    if lang == "en":
        return standard.NullTranslations()
    if lang not in LANGUAGES:
        raise UsageError(f"unknown language {lang!r}; one of {', '.join(LANGUAGES)}")
    from importlib.resources import files

    with (files("convaudit_reports") / "locale" / lang / "LC_MESSAGES" / "convaudit.mo").open("rb") as file:
        return standard.GNUTranslations(file)


@contextmanager
def speaking(lang: str) -> Iterator[None]:
    """All texts in ``lang``. Raises :class:`UsageError` for an unknown one."""
    catalogue(lang)
    token = _spoken.set(lang)
    try:
        yield
    finally:
        _spoken.reset(token)


def N_(text: str) -> str:
    """``text`` as it is, marked for the catalogues: it is translated where it is shown."""
    return text


def gettext(text: str) -> str:
    """``text`` in the language spoken now."""
    return catalogue(_spoken.get()).gettext(text)


def ngettext(one: str, many: str, number: int) -> str:
    """``one`` or ``many``, in the language spoken now."""
    return catalogue(_spoken.get()).ngettext(one, many, number)


def install(environment: Environment) -> None:
    """``_()``, ``ngettext()`` and ``{% trans %}`` (trimmed) in templates, in the language spoken when they render."""
    environment.add_extension("jinja2.ext.i18n")
    environment.policies["ext.i18n.trimmed"] = True
    environment.install_gettext_callables(gettext, ngettext, newstyle=True)  # type: ignore[attr-defined]


# What rules say: their English, which the JSON keeps, is matched against the catalogue's patterns


def translated(result: AuditResult) -> AuditResult:
    """The result with notes, messages and advice in the language spoken now; what has no translation stays."""
    if not _patterns(_spoken.get()):
        return result
    return msgspec.structs.replace(result, targets=[
        msgspec.structs.replace(target, notes=[said(n) for n in target.notes], findings=[_finding(f) for f in target.findings])
        for target in result.targets
    ])  # fmt: skip


def _finding(finding: Finding) -> Finding:
    if not finding.rule.startswith("CNV") or finding.rule == "CNV001":  # another's words: a plugin's, an exception's
        return finding
    alternatives = [msgspec.structs.replace(a, suggestion=said(a.suggestion)) for a in finding.alternatives]
    return msgspec.structs.replace(
        finding, message=said(finding.message), suggestion=said(finding.suggestion), alternatives=alternatives
    )


def said(text: str) -> str:
    """A rule's message, advice or title in the language spoken now."""
    patterns = _patterns(_spoken.get()) if len(text) <= LONGEST else []
    for pattern in patterns:
        found = pattern.whole.fullmatch(text) if pattern.letters >= 5 else None
        form = pattern.form.format(*map(_value, found.groups())) if found else ""
        if form and (pattern.letters >= 10 or not _SENTENCE.search(form)):  # "{0} of the {1}" fits any English
            return form
    for pattern in patterns:
        found = pattern.end.search(text) if pattern.suffix else None
        if found:
            return said(text[: found.start()]) + pattern.form.format(*found.groups())
    pieces = [next((p.form.format(*m.groups()) for p in patterns if (m := p.part.fullmatch(t))), "") for t in text.split("; ")]
    return "；".join(pieces) if all(pieces) else text


def _value(text: str) -> str:
    """What was filled in for a placeholder, with the phrases in it that the catalogue knows."""
    foreign = _SENTENCE.search(text)
    patterns = [pattern for pattern in _patterns(_spoken.get()) if not (pattern.joint and foreign)]
    for pattern in patterns:
        if pattern.phrase:
            text = pattern.part.sub(lambda found, form=pattern.form: form.format(*found.groups()), text)  # type: ignore[misc]
    found = ((pattern.form, pattern.whole.fullmatch(text)) for pattern in patterns)
    return next((form.format(*match.groups()) for form, match in found if match), text)


class _Pattern:
    """One text of the rules: what it matches, and its form in the other language."""

    def __init__(self, template: str, form: str) -> None:
        literals = [text.replace("{{", "{").replace("}}", "}") for text in re.split(r"\{\d+\}", template)]
        escaped = [re.escape(text) for text in literals]
        part = r"((?:[^\s;,()]|,(?=\d))+)".join(escaped)
        self.form = form
        self.letters = sum(map(str.isalpha, "".join(literals)))
        self.whole = re.compile("(.*?)".join(escaped), re.DOTALL)
        self.part, self.end = re.compile(part), re.compile(rf"{part}\Z")
        self.phrase = " " in "".join(literals)
        self.joint = "".join(literals).strip() in ("and", "or")
        self.suffix, self.open = template[0] in " ;,", template.startswith("{")


@functools.cache
def _patterns(lang: str) -> list[_Pattern]:
    """The rules' texts, those that begin with a word first, then the most telling."""
    texts = {
        key.partition("\4")[2]: form
        for key, form in vars(catalogue(lang)).get("_catalog", {}).items()
        if isinstance(key, str) and key.startswith(f"{RULE}\4")
    }
    return sorted((_Pattern(text, form) for text, form in texts.items()), key=lambda p: (p.open, -p.letters))
