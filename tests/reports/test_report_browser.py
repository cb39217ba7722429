"""The HTML report in a real browser."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convaudit_reports import html

CHROMIUM = Path("/usr/bin/chromium")
pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


def test_html_in_chromium(make, browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html.render(make.result(make.target(), make.failed(), make.hostile())), encoding="utf-8")
    messages, requests = [], []
    page = browser.new_page()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    shots = os.environ.get("CONVAUDIT_SHOTS")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (360, 768, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(file.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            if shots:
                page.screenshot(path=f"{shots}/{scheme}-{width}.png", full_page=True)

    table = page.locator("table[data-layers]").first
    table.get_by_role("button", name="Parameters").click()
    assert "classifier.0" in table.locator("tbody tr").first.inner_text()
    table.get_by_role("button", name="Parameters").click()
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("Parameters")
    assert table.locator("tbody tr").last.locator("td").nth(1).inner_text() == "classifier.0"
    page.get_by_label("Filter").first.fill("features")
    assert table.locator("tbody tr:visible").count() == 5
    page.get_by_label("Kind").first.select_option("conv")
    assert table.locator("tbody tr:visible").count() == 2
    assert messages == []
    assert set(requests) == {file.as_uri()}


def test_html_reads_without_script(make, browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html.render(make.result(make.target())), encoding="utf-8")
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(file.as_uri())

    assert "1 note" in page.locator("h1").inner_text()
    assert page.locator("table[data-layers] tbody tr").count() == 8
    assert not page.get_by_label("Filter").is_visible()
