"""The guided tour: every figure is the article's where it gives one, in both languages, and the page holds up in a browser."""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from convaudit.cli import cli
from convaudit.demo import ARTICLE
from convaudit.settings import LANGUAGES
from convaudit.tour import figures
from convaudit.tour.figures import EXACT, Measuring, Tour
from convaudit_reports import _tour

AXE = Path(__file__).parents[2] / ".venv/axe-core/node_modules/axe-core/axe.min.js"
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def tour() -> Tour:
    import torch

    from convaudit import audit
    from convaudit.networks import NETWORKS

    measuring = Measuring()

    def audited(name: str, **settings: Any) -> Any:
        build, shape = NETWORKS[name]
        return audit(build(), torch.empty(shape, device="meta"), **settings).targets[0]

    return Tour({name: audited(name) for name in ARTICLE}, audited("BasicCNN", select=["CNV501"]), measuring.result())


@pytest.fixture(scope="module")
def pages(tour: Tour) -> dict[str, str]:
    return {lang: _tour.render(tour, lang=lang) for lang in LANGUAGES}


def text_of(page: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


THE_ARTICLE_S = [
    *("785,000", "1,025,000", "4,097,000", "10,001,000", "16,385,000", "50,177,000"),  # §1.1, §1.2.1
    *("784", "1,024", "4,096", "10,000", "50,176"),
    *("50,177.0", "5,017.7", "1,003.5", "501.8"),  # §1.2.3
    *("288", "320", "51,264", "73,856"),  # §2.1
    *("101,770", "63,050", "−38.0%"),  # §2.2
    *("1,792", "64×32×32", "64×16×16"),  # §3.3
    *("3,676,682", "1,193,642", "−67.5%"),  # §4.1
    *("1.155", "1.792", "0.057", "0.314"),  # §4.2
    *("840,970", "1,174,826"),  # §4.3
    *("274,250", "−77.0%"),  # §5
]
OURS = [
    *("896", "2.8", "99.5%", "88.3%", "−82.4%", "−8.1%", "4.3", "−38.3%"),
    *("101,632", "288,512", "3,675,136", "30,249,984", "228,985,344", "52,791,808", "18,662,400"),
    *("1,216", "0.0%", "3 5 10 14 24 32 52 68", "19,301,376", "37,963,776"),
]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_figures_stand_in_the_page(pages: dict[str, str], lang: str) -> None:
    text = text_of(pages[lang])

    assert [figure for figure in (*THE_ARTICLE_S, *OURS) if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d])", text)] == []


def test_risk_is_high_for_every_number_of_samples() -> None:
    assert [cost["risk"] for cost in figures.densities().values()] == ["High"] * 4


def test_correlation_and_convolution(tour: Tour) -> None:
    kernel = figures.EDGES

    assert figures.correlate(figures.IMAGE, kernel) == [[1, -8], [10, -8]] == tour.measured.conv2d
    assert figures.correlate(figures.IMAGE, figures.flipped(kernel)) == [[-1, 8], [-10, 8]]
    whole = figures.convolve(figures.IMAGE, kernel)
    assert [row[2:4] for row in whole[2:4]] == [[-1, 8], [-10, 8]]  # the definition, where the kernel fits


def test_laws_hold_for_convolution_and_two_for_correlation() -> None:
    laws = figures.laws()

    assert [left == right for left, right in (law.convolution for law in laws)] == [True] * 4
    assert [left == right for left, right in (law.correlation for law in laws)] == [False, False, True, True]
    assert laws[0].correlation == ([[0, 1, 2], [1, 5, 4], [3, 4, 0]], [[0, 4, 3], [4, 5, 1], [2, 1, 0]])  # the article's


def test_the_grouped_configuration_is_standard() -> None:
    made = figures.configurations()

    assert made["grouped"] == made["standard"]
    assert made["grouped-32"]["parameters"] == 64 * 2 * 9 + 64


def test_only_a_convolution_minds_permuted_pixels(tour: Tour) -> None:
    fit = tour.measured.fit

    assert max(fit.linear, fit.linear_permuted, fit.conv) < 1e-9
    assert fit.conv_permuted > 0.5
    assert sum(map(sum, fit.permuted_picture)) == 8
    assert fit.permuted_picture != figures.PICTURE


def test_equivariance(tour: Tour) -> None:
    shifts = {(s.case, s.amount): s for s in tour.measured.shifts}
    inside = {key for key, s in shifts.items() if s.inside is not None and s.inside < EXACT}
    everywhere = {key for key, s in shifts.items() if s.moved == 0}

    assert everywhere == {("circular", 1), ("circular", 5), ("stride", 2), ("pool", 2), ("global-pool", 1), ("global-pool", 5)}
    assert inside - everywhere == {("zeros", 1), ("features", 4)}
    assert all(s.amount % s.stride == 0 for key, s in shifts.items() if s.stride and key in inside)
    assert all(shifts[key].largest > 0.01 for key in shifts.keys() - inside - everywhere)


def test_what_stays_the_same_is_not_called_equivariant(pages: dict[str, str]) -> None:
    words = ("stays the same: invariant", "moves along: equivariant", "moves along, away from the border", "neither")
    rows = [row for row in re.findall(r"<tr>(.*?)</tr>", pages["en"], re.DOTALL) if any(f">{word}<" in row for word in words)]
    said = {re.sub("<.*?>", "", row.split("</th>")[0]): next(word for word in words if f">{word}<" in row) for row in rows}

    assert len(rows) == 13
    assert said["convolution, then global average pooling"] == words[0]
    assert said["3×3 convolution, circular padding"] == words[1]
    assert said["3×3 convolution, zero padding"] == words[2]
    assert said["BasicCNN with its flattened Linear"] == said["a Linear on the flattened image"] == words[3]


def test_algorithms_agree(tour: Tour) -> None:
    assert max(tour.measured.algorithms.values()) < EXACT
    cheapest = {key: min((a["multiplications"], name) for name, a in cost["algorithms"].items() if a)[1] for key, cost in figures.algorithms().items()}
    assert cheapest == {(3, 64, 32): "winograd", (3, 256, 8): "winograd", (7, 64, 32): "fft", (15, 64, 64): "fft"}


def test_both_languages_try_the_same_and_the_commands_work(pages: dict[str, str]) -> None:
    commands = {lang: re.findall(r"<pre[^>]*>(convaudit .*?)</pre>", page) for lang, page in pages.items()}

    assert commands["en"] == commands["zh"]
    assert len(commands["en"]) >= 10
    for command in dict.fromkeys(commands["en"]):
        outcome = CliRunner().invoke(cli, shlex.split(html.unescape(command))[1:])
        assert outcome.exit_code in (0, 1), (command, outcome.output)


def test_no_english_is_left_in_the_chinese_page(pages: dict[str, str]) -> None:
    body = re.sub(r"<(style|pre|code)\b.*?</\1>", "", pages["zh"], flags=re.DOTALL)
    text = re.sub(r"运行失败：.*?\] X \[[\d, ]+\]|convaudit", "", text_of(body))

    assert re.findall(r"(?<![\w:])[a-z]{3,} [a-z]{3,}(?: [a-z]+)*", text) == []


def test_the_page_is_written_without_torch() -> None:
    code = "import sys; from convaudit_reports import _tour; from convaudit.tour import figures; figures.laws(); assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_demo_writes_the_tour_beside_its_reports(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(cli, ["demo", "--output-dir", str(tmp_path), "--lang", "zh", "-o", str(tmp_path / "a.sarif")])

    assert outcome.exit_code == 0, outcome.output
    assert f"wrote {tmp_path / 'tour.html'}" in outcome.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.sarif", "report.html", "report.json", "report.md", "tour.html"]
    assert 'lang="zh-CN"' in (tmp_path / "tour.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("options", "said"), [
    (["-o", "a.pdf"], "-o a.pdf: the format comes from the suffix"),
    (["-o", "none/a.md"], "-o none/a.md: no such directory none"),
    (["--output-dir", "file"], "--output-dir file: cannot be made: File exists"),
])  # fmt: skip
def test_demo_says_what_it_cannot_write_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    outcome = CliRunner().invoke(cli, ["demo", *options])

    assert (outcome.exit_code, said in outcome.output, "wrote" in outcome.output) == (2, True, False)


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")
@pytest.mark.parametrize("lang", LANGUAGES)
def test_tour_in_chromium(pages: dict[str, str], lang: str, tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api")
    file = tmp_path / "tour.html"
    file.write_text(pages[lang], encoding="utf-8")
    said: list[str] = []
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_context(color_scheme=scheme, bypass_csp=False).new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: said.append(request.url) if request.url != file.as_uri() else None)
            for width in (360, 768, 1440):
                page.set_viewport_size({"width": width, "height": 900})
                page.goto(file.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("document.querySelectorAll('a[href^=\"#\"]').length") == page.evaluate(
                "[...document.querySelectorAll('a[href^=\"#\"]')].filter(a => document.querySelector(a.getAttribute('href'))).length"
            )
            if AXE.exists():
                page = browser.new_context(color_scheme=scheme, bypass_csp=True).new_page()
                page.goto(file.as_uri())
                page.add_script_tag(path=str(AXE))
                found = page.evaluate("axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes[0].html]))")
                assert [v for v in found if v[0] in ("serious", "critical")] == []
        browser.close()
    assert said == []
