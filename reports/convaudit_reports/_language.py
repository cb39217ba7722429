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

DOC = "doc"
"""Context of a rule's documentation: its headings and paragraphs, and the lines of its examples that hold a sentence."""

LONGEST = 1_000
"""Characters of a text that is matched against the patterns; a longer one holds more of names than of words."""
SENTENCE = re.compile("[a-z]+ [a-z]+ [a-z]+")
"""Plain words in a row, as in an exception's text: no list whose " and " would be translated."""
PIECE = re.compile(r"^(## | {4,})(.+)|^\S.*(?:\n(?!## )\S.*)*", re.MULTILINE)
"""Of a rule's documentation: a heading, an indented line, or a paragraph."""
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


def documented(text: str) -> str:
    """A rule's documentation, or a section of it, in the language spoken now; a paragraph becomes one line."""
    lang = _spoken.get()
    if lang == "en":
        return text
    said_in = catalogue(lang).pgettext
    return PIECE.sub(lambda piece: (piece[1] or "") + said_in(DOC, piece[2] or " ".join(piece[0].split())), text)


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
    notes = [msgspec.structs.replace(note, message=said(note.message)) for note in result.notes]
    return msgspec.structs.replace(result, notes=notes, targets=[
        msgspec.structs.replace(
            target, notes=[said(n) for n in target.notes], findings=[_finding(f) for f in target.findings],
            error=msgspec.structs.replace(target.error, message=said(target.error.message)) if target.error else None,
        )
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
    if text.startswith("import "):  # a line of Python
        return text
    patterns = _fitting(text) if len(text) <= LONGEST else []
    for pattern in patterns:
        found = pattern.end.search(text) if pattern.suffix else None
        head = said(text[: found.start()]) if found else text
        if found and head != text[: found.start()]:
            return head + pattern.form.format(*found.groups())
    for pattern in patterns:
        found = pattern.whole.fullmatch(text) if pattern.letters >= 5 else None
        form = _tight(pattern.form.format(*map(_value, found.groups()))) if found else ""
        if form and (pattern.letters >= 10 or not SENTENCE.search(form)):  # "{0} of the {1}" fits any English
            return form
    pieces = [next((p.form.format(*m.groups()) for p in patterns if (m := p.part.fullmatch(t))), "") for t in text.split("; ")]
    return "；".join(pieces) if all(pieces) else text


def _value(text: str) -> str:
    """What was filled in for a placeholder, with the phrases in it that the catalogue knows."""
    foreign = SENTENCE.search(text)
    patterns = [pattern for pattern in _fitting(text) if not (pattern.joint and foreign)]
    for pattern in patterns:
        if pattern.phrase:
            text = pattern.inside.sub(lambda found, form=pattern.form: form.format(*found.groups()), text)  # type: ignore[misc]
    found = ((pattern.form, pattern.whole.fullmatch(text)) for pattern in patterns)
    return next((form.format(*map(_value, match.groups())) for form, match in found if match), text)


def _fitting(text: str) -> list[_Pattern]:
    """The patterns that may match: their longest words are there."""
    return [pattern for pattern in _patterns(_spoken.get()) if pattern.longest in text]


def _tight(text: str) -> str:
    """No space beside a full-width mark: it brings its own."""
    return re.sub(r" *([，。：；（）、]) *", r"\1", text)


class _Pattern:
    """One text of the rules: what it matches, and its form in the other language."""

    def __init__(self, template: str, form: str) -> None:
        literals = [text.replace("{{", "{").replace("}}", "}") for text in re.split(r"\{\d+\}", template)]
        escaped = [re.escape(text) for text in literals]
        part = escaped[0]
        for before, text in zip(literals, escaped[1:]):  # a plural's s may be missing
            part += r"((?:[^\s;,()]|,(?=\d))" + ("*)" if before[-1:].isalpha() else "+)") + text
        self._part, self._whole = part, "(.*?)".join(escaped)
        self._inside = r"(?<!\w)" * template[0].isalpha() + part + r"(?![\w'])" * template[-1].isalpha()
        self.form, self.longest = form, max(literals, key=len)
        self.letters = sum(map(str.isalpha, "".join(literals)))
        self.phrase = " " in "".join(literals)
        self.joint = "".join(literals).strip() in ("and", "or")
        self.suffix, self.open = template[0] in " ;,", template.startswith("{")

    @functools.cached_property
    def whole(self) -> re.Pattern[str]:
        """A text that is this one."""
        return re.compile(self._whole, re.DOTALL)

    @functools.cached_property
    def part(self) -> re.Pattern[str]:
        """One whose values are single words."""
        return re.compile(self._part)

    @functools.cached_property
    def inside(self) -> re.Pattern[str]:
        """Such a one, between others."""
        return re.compile(self._inside)

    @functools.cached_property
    def end(self) -> re.Pattern[str]:
        """Such a one, at the end."""
        return re.compile(rf"{self._part}\Z")


@functools.cache
def _patterns(lang: str) -> list[_Pattern]:
    """The rules' texts, those that begin with a word first, then the most telling."""
    texts = {
        key.partition("\4")[2]: form
        for key, form in vars(catalogue(lang)).get("_catalog", {}).items()
        if isinstance(key, str) and key.startswith(f"{RULE}\4")
    }
    return sorted((_Pattern(text, form) for text, form in texts.items()), key=lambda p: (p.open, -p.letters))
