"""Reports in Chinese: complete catalogues, every rule's words, and data that stays the same."""

from __future__ import annotations

import gettext
import io
import re
import string
from typing import Any

import pytest

pytest.importorskip("babel")
from click.testing import CliRunner
from support import messages
from test_rules import RULES, cases, run

from convaudit.cli import cli
from convaudit.errors import UsageError
from convaudit.output import report
from convaudit.result import AuditResult, assemble
from convaudit.rule import Example
from convaudit.settings import LANGUAGES
from convaudit_reports import _language
from convaudit_reports._language import said, speaking

CJK = re.compile("[\u4e00-\u9fff]")
ENGLISH = re.compile(r"(?<![\w.=(])[a-z]{2,}(?: [a-z]{2,})+(?![\w.(])")
"""Two plain words in a row."""
KEPT = re.compile(r"layer \S+ \(.*?\) (\(.*?\) )?failed on input .*|convaudit check \S+")
"""An exception of torch, a command."""
CODE = re.compile(r"[\w.]+[(=].*")


def assert_chinese(text: str) -> None:
    if text and not CODE.fullmatch(text):
        with speaking("zh"):
            form = said(text)
        assert CJK.search(form), text
        assert not ENGLISH.search(KEPT.sub("", form)), form


@pytest.fixture(params=LANGUAGES[1:])
def lang(request: Any) -> str:
    return str(request.param)


def test_catalogue_is_complete_and_compiled(lang: str) -> None:
    catalogue = messages.read(lang)
    known = {(m.context, m.id): m for m in catalogue if m.id}
    missing = [m.id for m in messages.sources() if m.id and (m.context, m.id) not in known]
    empty = [m.id for m in known.values() if not m.string or not any(m.string)]

    assert missing == []
    assert empty == []
    assert _texts((messages.LOCALE / lang / "LC_MESSAGES/convaudit.mo").read_bytes()) == _texts(messages.compiled(catalogue))


def test_placeholders_survive_translation(lang: str) -> None:
    def fields(text: str, rule: bool) -> set[str]:
        braces = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        return braces if rule else braces | set(re.findall(r"%\((\w+)\)s", text))

    for message in messages.read(lang):
        if message.id:
            forms = message.id if isinstance(message.id, (tuple, list)) else [message.id]
            strings = message.string if isinstance(message.string, (tuple, list)) else [message.string]
            rule = message.context == _language.RULE
            before, after = fields(forms[-1], rule), set.union(*(fields(s, rule) for s in strings))

            assert after <= before if rule else after == before, message.id


@pytest.mark.parametrize(("code", "example"), cases("bad"))
def test_every_rule_speaks_chinese(code: str, example: Example) -> None:
    finding = run(example.build(), example.inputs, select=[code], **example.settings).findings[0]

    for text in (finding.message, finding.suggestion, *(other.suggestion for other in finding.alternatives)):
        assert_chinese(text)


@pytest.mark.parametrize("code", [code for code, rule in RULES.items() if rule.subject == "checkpoint"])
def test_checkpoint_rules_speak_chinese(code: str, tmp_path: Any) -> None:
    from convaudit.checkpoints.architecture import Expected
    from convaudit.checkpoints.audit import audit_file
    from convaudit.settings import AuditSettings

    for number, example in enumerate(RULES[code].bad_files()):
        file = tmp_path / f"{number}{example.suffix}"
        file.write_bytes(example.build())
        model = Expected.of("a model", example.model) if example.model else None
        for finding in audit_file(str(file), AuditSettings(select=[code]), model=model).findings:
            assert_chinese(finding.suggestion)
            if code != "CNV602":  # the file's own contradictions, told in English
                assert_chinese(finding.message)


@pytest.mark.parametrize("code", RULES)
def test_titles_are_translated(code: str) -> None:
    assert_chinese(RULES[code].title())


@pytest.mark.parametrize("text", ["a sentence of a stranger's rule about conv1 and conv2", "conv {0} %s \\1: " * 5000])
def test_what_is_not_known_stays_english(text: str) -> None:
    with speaking("zh"):
        assert said(text) == text


@pytest.mark.parametrize("name", ["json", "sarif", "csv", "junit", "gitlab", "markdown"])
def test_data_is_the_same_in_any_language(name: str) -> None:
    result = _audited()

    assert report(name).render(result, lang="zh") == report(name).render(result)


def test_text_and_html_speak_it() -> None:
    result = _audited()

    for name in ("text", "html"):
        assert "占模型的 88%" in report(name).render(result, lang="zh")
    assert next(f.message for f in result.targets[0].findings if f.rule == "CNV101").endswith("88% of the model")


def test_an_unknown_language_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="one of en, zh"):
        report("html").render(assemble([]), lang="tlh")
    for command in (["check", "x.py"], ["demo"]):
        outcome = CliRunner().invoke(cli, [*command, "--lang", "tlh"])
        assert (outcome.exit_code, "tlh" in outcome.output) == (2, True)


def _texts(compiled: bytes) -> dict[Any, str]:
    """All texts of a .mo file but its header, which names the Babel that wrote it."""
    found: dict[Any, str] = dict(vars(gettext.GNUTranslations(io.BytesIO(compiled)))["_catalog"])
    del found[""]
    return found


def _audited() -> AuditResult:
    from convaudit.networks import BasicCNN

    return assemble([run(BasicCNN(), [(1, 3, 32, 32)])])
