"""What a notebook shows of a result: in a real kernel, and drawn by a browser in light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from convaudit.result import Finding, Location, Saving, TargetFailure, assemble, failed_target

CHROMIUM = Path("/usr/bin/chromium")
CELL = """
import torch
from torch import nn
import convaudit

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, 2, 1)
        self.fc = nn.Linear(64 * 16 * 16, 512)
        self.head = nn.Linear(512, 10)

    def forward(self, x):
        return self.head(self.fc(self.stem(x).flatten(1)).relu())

convaudit.audit(Net(), torch.zeros(1, 3, 32, 32))
"""
HOSTILE = "</style><script>alert(1)</script><img src=x onerror='alert(1)'>\u202e\n\"&"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the cell gave, by MIME type."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    where = {"metadata": {"path": tmp_path_factory.mktemp("book")}}
    nbclient.NotebookClient(book, timeout=120, resources=where).execute()
    return dict(book.cells[0].outputs[-1]["data"])


def finding(severity: Any, number: int, text: str = "a layer", saving: Saving | None = None) -> Finding:
    return Finding(
        rule=f"CNV{number}", name="name", severity=severity, message=text, layers=[text], location=Location(text, 1),
        saving=saving, alternatives=[], evidence={}, changes_state_dict=None, suggestion=text, fingerprint=text,
    )  # fmt: skip


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_kernel_shows_totals_and_savings(shown: dict[str, str]) -> None:
    html = shown["text/html"]
    text = " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL).split())

    assert text.startswith("Net 8,396,042 parameters · ")
    assert "input 1×3×32×32 float32" in text
    assert "warning CNV101 Linear 16,384→512" in text
    assert "parameters 8,396,042 → " in text
    assert "AuditResult(" in shown["text/plain"]
    tags = {tag for tag, _ in Tags(html).seen}
    assert tags <= {"div", "style", "b", "span", "ul", "li", "code", "details", "summary"}
    style = html.partition("<style>")[2].partition("</style>")[0].strip()
    assert all(rule.startswith(".convaudit") for rule in style.splitlines())  # nothing of the page around it changes


def test_hostile_names_stay_text() -> None:
    failed = failed_target(HOSTILE, TargetFailure("import", "E", HOSTILE, HOSTILE, 1))
    target = msgspec.structs.replace(
        failed, status="partial", error=None, findings=[finding("error", 1, HOSTILE), finding("info", 2, HOSTILE)]
    )
    html = assemble([failed, target])._repr_html_()

    assert not {tag for tag, _ in Tags(html).seen} & {"script", "img"}
    assert all(name == "class" for _, attributes in Tags(html).seen for name in attributes)
    assert "\u202e" not in html
    assert html.count("&lt;script&gt;") == 11  # said in full each time


def test_many_findings_are_counted() -> None:
    target = failed_target("net", TargetFailure("import", "E", "", None, None))
    many = [finding("warning", n) for n in range(30)] + [finding("info", n) for n in range(3)]
    target = msgspec.structs.replace(target, status="ok", error=None, findings=many)
    html = assemble([target])._repr_html_()

    assert html.count('class="sev warning"') == 20
    assert "and 10 findings more" in html
    assert "<summary>3 infos</summary>" in html
    assert "No targets" in assemble([])._repr_html_()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("needs /usr/bin/chromium")
    with playwright.sync_playwright() as play:
        started = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize(("paper", "ink"), [("#ffffff", "#000000"), ("#111111", "#dddddd")], ids=["light", "dark"])
def test_it_reads_on_the_page_around_it(browser: Any, shown: dict[str, str], paper: str, ink: str) -> None:
    saving = Saving((10, 5), None, None)
    target = failed_target("net", TargetFailure("import", "E", "it failed", None, None))
    levels = [finding("error", 1, saving=saving), finding("warning", 2), finding("info", 3)]
    made = assemble([target, msgspec.structs.replace(target, status="ok", error=None, findings=levels)])._repr_html_()
    page = browser.new_page(viewport={"width": 500, "height": 400})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_content(f"<body style='background:{paper};color:{ink}'>{shown['text/html']}{made}</body>")
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    colours = page.evaluate(
        """([paper]) => [...document.querySelectorAll('.convaudit *')].filter(e => e.tagName != 'STYLE').map(e => {
            const s = getComputedStyle(e), behind = s.backgroundColor == 'rgba(0, 0, 0, 0)' ? paper : s.backgroundColor
            let fade = 1
            for (let p = e; p; p = p.parentElement) fade *= getComputedStyle(p).opacity
            return [e.outerHTML.slice(0, 80), s.color, behind, fade]
        })""",
        [f"rgb({', '.join(str(int(paper[i : i + 2], 16)) for i in (1, 3, 5))})"],
    )
    wide = page.evaluate("document.documentElement.scrollWidth")
    page.close()

    assert len(colours) > 20
    assert [what for what, front, back, fade in colours if contrast(front, back, fade) < 4.5] == []
    assert wide <= 500
    assert [url for url in asked if not url.startswith(("data:", "about:"))] == []


def contrast(front: str, back: str, fade: float) -> float:
    """WCAG's ratio of a colour that is faded over another."""
    over, under = ([int(c) for c in re.findall(r"\d+", colour)[:3]] for colour in (front, back))
    mixed = [fade * a + (1 - fade) * b for a, b in zip(over, under)]
    first, second = sorted((luminance(mixed), luminance([float(c) for c in under])), reverse=True)
    return (first + 0.05) / (second + 0.05)


def luminance(colour: list[float]) -> float:
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
