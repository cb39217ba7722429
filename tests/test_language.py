"""Reports in Chinese: complete catalogues, every rule's words, and data that stays the same."""

from __future__ import annotations

import gettext
import io
import math
import re
import string
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from torch import Tensor, nn

pytest.importorskip("babel")
from click.testing import CliRunner
from support import messages
from test_rules import RULES, cases, run

from convaudit.checkpoints.audit import audit_file
from convaudit.cli import cli
from convaudit.errors import UsageError
from convaudit.output import report
from convaudit.result import AuditResult, Finding, TargetFailure, assemble, failed_target
from convaudit.rule import Example
from convaudit.settings import LANGUAGES, AuditSettings
from convaudit_reports import _language
from convaudit_reports._language import said, speaking

CJK = re.compile("[\u4e00-\u9fff]")
ENGLISH = re.compile(r"(?<![\w.=(])[a-z]{2,}(?: [a-z]{2,})+(?![\w.(])")
"""Two plain words in a row."""
KEPT = re.compile(r"运行失败：.*|convaudit (check|rule) \S+")
"""An exception of torch, a command."""
MIXED = re.compile(r"[\u4e00-\u9fff）”] ?[,;:!?)]|[\u4e00-\u9fff] ?\((?!k-1)|[\u4e00-\u9fff]\.(?!\w)|[,;:(] ?[\u4e00-\u9fff]")
"""A half-width mark beside Chinese."""
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

    for number, example in enumerate(RULES[code].bad_files()):
        file = tmp_path / f"{number}{example.suffix}"
        file.write_bytes(example.build())
        model = Expected.of("a model", example.model) if example.model else None
        for finding in audit_file(str(file), AuditSettings(select=[code]), model=model).findings:
            assert_chinese(finding.message)
            if code == "CNV611":  # a line of Python
                with _language.speaking("zh"):
                    assert _language.said(finding.suggestion) == finding.suggestion != ""
            else:
                assert_chinese(finding.suggestion)


@pytest.mark.parametrize("code", RULES)
def test_titles_are_translated(code: str) -> None:
    assert_chinese(RULES[code].title())


def test_marks_beside_chinese_are_full_width(lang: str) -> None:
    forms = [form for m in messages.read(lang) if m.id for form in ([m.string] if isinstance(m.string, str) else m.string)]

    assert [form for form in forms if MIXED.search(re.sub(r"`.*?`", "", form))] == []


@pytest.mark.parametrize("code", ["CNV001", "CNV101", "CNV601"])
@pytest.mark.parametrize("form", ["text", "md"])
def test_a_rule_is_explained_in_chinese(code: str, form: str) -> None:
    said = CliRunner().invoke(cli, ["rule", code, "--lang", "zh", "--format", form]).output
    prose = re.sub(r"(?m)^    .*|`.*?`", "", re.sub(r"## 参考文献\n.*", "", said))

    assert "## 为什么重要" in said
    assert not ENGLISH.search(prose), prose


class Words(HTMLParser):
    """What a page says: its text and labels outside of code and names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.outside: list[bool] = []
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        quoted = tag in ("style", "script", "pre", "code") or "mono" in given.get("class", "").split()
        outside = self.outside[-1:] != [False] and not quoted
        if outside:
            self.found += [given[key] for key in ("aria-label", "title", "data-form") if key in given]
        if tag not in ("meta", "input", "br"):
            self.outside.append(outside)

    def handle_endtag(self, tag: str) -> None:
        self.outside.pop()

    def handle_data(self, data: str) -> None:
        if self.outside[-1:] == [True] and data.strip():
            self.found.append(" ".join(data.split()))


class Partial(nn.Module):
    """Reads its values, runs an op without a formula, and holds a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.spare = nn.Conv2d(3, 8, 3), nn.Linear(8 * 30 * 30, 200), nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.mean() > 0:
            x = x * self.scale
        return torch.fft.fft(self.head(x.view(-1, 8 * 30 * 30))).real.softmax(1)


def test_nothing_stays_english_in_a_report(tmp_path: Path) -> None:
    """Of models and checkpoints, whole, partial and not audited."""
    state = {"weight": torch.full((2, 1, 3, 3), math.nan), "n": torch.zeros(1, dtype=torch.float64)}
    torch.save({"state_dict": {"conv.weight": state["weight"]}, "optimizer": {"state": {0: state}}}, tmp_path / "a.pt")
    torch.save(nn.Conv2d(1, 2, 3), tmp_path / "b.pt")
    files = [audit_file(str(tmp_path / name), AuditSettings()) for name in ("a.pt", "b.pt")]
    broken = failed_target("timm:x", TargetFailure("construct", "LookupError", "timm has no model 'x'", None, None))
    result = assemble([*_audited().targets, run(Partial(), [(1, 3, 32, 32)]), broken, *files])

    said = Words(report("html").render(result, lang="zh")).found
    said += report("text").render(result, lang="zh", show_info=True).splitlines()

    assert [text for text in said if ENGLISH.search(KEPT.sub("", text))] == []
    assert [text for text in said if MIXED.search(KEPT.sub("", text))] == []


def test_a_long_chinese_line_fits_the_screen() -> None:
    info = Finding(
        rule="CNV301", name="x", severity="info", message="hidden widths are not powers of two" + " 宽度" * 50, layers=[],
        location=None, saving=None, alternatives=[], evidence={}, changes_state_dict=None, suggestion="", fingerprint="x",
    )  # fmt: skip
    result = _audited()
    result.targets[0].findings = [info]

    line = report("text").render(result, lang="zh", width=60).splitlines()[1]

    assert 56 <= cell_len(line) <= 60
    assert line.endswith("…")


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
