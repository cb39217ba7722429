"""The HTML report's account of a checkpoint, from a file that torch saved to the page in a browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

playwright = pytest.importorskip("playwright.sync_api")


class Opened:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (open, ("<b>secret</b>",))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no chromium")
    folder = tmp_path_factory.mktemp("checkpoint")
    weight = torch.zeros(5, 3, 3, 3)
    weight[0] = 0.5  # white
    weight[1] = -0.5  # black
    weight[2, 0] = 0.5  # the red plane alone
    weight[4, 0, 0, 0] = float("nan")
    many = {f"head.{i}.weight": torch.zeros(2, 2) for i in range(300)}
    torch.save({"state_dict": {"conv1.weight": weight, **many}, "extra": Opened()}, folder / "w.pt")
    subprocess.run(
        [sys.executable, "-m", "convaudit", "check", "w.pt", "-o", "w.html"], cwd=folder, capture_output=True, check=False
    )
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        made = browser.new_page(viewport={"width": 360, "height": 740})
        made.said = []
        made.on("console", lambda message: made.said.append(message.text))
        made.goto((folder / "w.html").as_uri())
        yield made
        browser.close()


def test_kernels_are_drawn_with_their_figures(page) -> None:  # type: ignore[no-untyped-def]
    kernels = page.locator(".kernels li")
    fills = [kernels.nth(i).locator("path").evaluate_all("all => all.map(p => getComputedStyle(p).fill)") for i in range(5)]

    grey = "rgb(136, 136, 136)"
    assert fills == [["rgb(255, 255, 255)"], ["rgb(0, 0, 0)"], ["rgb(255, 136, 136)"], [grey], []]
    assert "sum 13.5, std 0, from 0.5 to 0.5" in kernels.nth(0).inner_text()
    assert "not finite" in kernels.nth(4).inner_text()


def test_key_figures_fill_their_strip(page) -> None:  # type: ignore[no-untyped-def]
    for width in (1440, 768, 360):
        page.set_viewport_size({"width": width, "height": 740})
        gaps = page.locator("dl.figures").evaluate(
            "strip => { const right = e => e.getBoundingClientRect().right; return right(strip) - right(strip.lastElementChild) }"
        )
        assert gaps < 2, width


def test_what_the_pickle_would_import_comes_worst_first(page) -> None:  # type: ignore[no-untyped-def]
    first = page.locator("section[id$=checkpoint] table").nth(1).locator("tbody tr").first

    assert first.locator("td, th").all_inner_texts()[:3] == ["code", "io.open", "called"]
    assert "<b>secret</b>" in first.inner_text()


def test_a_long_table_of_tensors_is_folded_and_filtered(page) -> None:  # type: ignore[no-untyped-def]
    table = page.locator("section[id$=checkpoint] details table")

    assert table.locator("tbody tr").count() == 301
    assert not table.is_visible()
    page.locator("summary", has_text="301 tensors").click()
    page.locator("section[id$=checkpoint] input[type=search]").fill("head.29")
    assert table.locator("tbody tr:visible").count() == 11
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.said == []
