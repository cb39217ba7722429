"""Hostile names of tensors, layers, classes and files, from the command line to each format's own reader."""

from __future__ import annotations

import csv
import json
import os
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from support.rendered import REFERENCE, github, gitlab

from convaudit_reports._figures import clean, one_line

NAMES = [
    "new\nline\r\n::error::x", "\x1b[2J\x1b]0;title\x07red", "::stop-commands::x", "::add-mask::x", "<script>alert(1)</script>",
    "![x](http://evil.example/p.png)", "=cmd()", "@octocat", "\u202egnp.\u2066exe", "{{7*7}}{% raw %}", "\U0001f600\u200b", "%0A::error::x",
    "]]><x>&amp;", "a|b`c``d\\|e", '"; DROP', "x" * 10_000,
]  # fmt: skip
NET = """
from torch import nn

NAMES = {names!r}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        for name in NAMES:
            made = type(name.replace(chr(0), ""), (nn.Linear,), {{}})
            self.add_module(name.replace(".", "_"), made(8, 8))

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x
"""


def safetensors(path: Path, names: list[str], gap: int = 0) -> None:
    """A file of 2×2 tensors; ``gap`` bytes that belong to none before each make it corrupt, which names them."""
    header, end = {}, 0
    for name in names:
        header[name] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [end + gap, end + gap + 16]}
        end += gap + 16
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(end))


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the command line makes of them, by format."""
    folder = tmp_path_factory.mktemp("hostile")
    safetensors(folder / "all.safetensors", [f"{name}.weight" for name in NAMES])
    files = ["all.safetensors"]
    for number, name in enumerate(NAMES):
        files.append(f"{number}{name[:60].replace('/', '_')}.safetensors")
        safetensors(folder / files[-1], [name], gap=4)
    (folder / "net.py").write_text(NET.format(names=NAMES), encoding="utf-8")
    targets = [f"./{name}" for name in files] + ["net.py:Net"]
    written = ["json", "md", "html", "sarif", "xml", "csv"]
    made = {}
    for printed in ("text", "github", "gitlab"):
        given = [word for suffix in written for word in ("-o", f"out.{suffix}")] if printed == "text" else []
        done = subprocess.run(
            [sys.executable, "-m", "convaudit", "check", *targets, "--input", "1,8", "--format", printed, *given],
            cwd=folder, capture_output=True, text=True, check=False, encoding="utf-8",
            env=os.environ | {"CONVAUDIT_CACHE_DIR": str(folder / "cache")},
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert all(line.isprintable() for line in done.stderr.splitlines())
        made[printed] = done.stdout
    return made | {suffix: (folder / f"out.{suffix}").read_bytes().decode("utf-8") for suffix in written}


def test_json_keeps_them_as_they_are(reports: dict[str, str]) -> None:
    targets = json.loads(reports["json"])["targets"]

    assert [row["name"] for row in targets[0]["checkpoint"]["tensors"]] == [f"{name}.weight" for name in NAMES]
    rows = {row["name"]: row["op"] for row in targets[-1]["layers"]}
    assert rows == {name.replace(".", "_"): name for name in NAMES}


def test_text_prints_no_control_character_and_no_command(reports: dict[str, str]) -> None:
    lines = reports["text"].split("\n")

    assert all(line.isprintable() for line in lines)
    assert not any(line.lstrip().startswith("::") for line in lines)
    assert any("<script>alert(1)</script>: its data leaves a gap" in line for line in lines)


@pytest.mark.parametrize("host", [github, gitlab])
def test_markdown_shows_them_as_code(reports: dict[str, str], host: Any) -> None:
    page = host(reports["md"])

    assert not page.tags & {"a", "img", "script", "x"}
    assert not REFERENCE.search(page.text)
    assert all(len(set(rows)) == 1 for rows in page.tables)
    for name in NAMES[:-1]:
        shown = clean(f"{name}.weight")
        assert any(shown in (code, code.replace("\\\\|", "\\|")) for code in page.codes), shown  # comrak keeps `\\|` in tables


def test_github_reads_its_own_commands_alone(reports: dict[str, str]) -> None:
    found = [line for line in reports["github"].splitlines() if line.lstrip().startswith("::")]

    assert reports["github"].replace("\n", "").isprintable()
    assert len(found) == 11  # ten annotations, and how many are left
    assert all(re.match(r"::(error|warning|notice) [^:]*title=[^:]*::", line) for line in found)


def test_gitlab_sarif_and_junit_hold_them_as_text(reports: dict[str, str]) -> None:
    entries = json.loads(reports["gitlab"])
    results = [found["message"]["text"] for found in json.loads(reports["sarif"])["runs"][0]["results"]]
    cases = [node.text or node.get("message", "") for node in ElementTree.fromstring(reports["xml"]).iter("failure")]

    for said in ([e["description"] for e in entries], results, cases):
        together = "\n".join(said)
        for name in NAMES:
            shown = one_line(name[:80])
            assert (shown.replace("](", "] (") if said is results else shown) in together  # a link, to a viewer of SARIF
        assert together.replace("\n", "").isprintable()


def test_csv_holds_no_formula_and_no_broken_row(reports: dict[str, str]) -> None:
    rows = list(csv.DictReader(reports["csv"].splitlines()))

    ops = [row["op"] for row in rows if row["target"] == "net.py:Net"]
    assert [op.lstrip("'").replace("\\x3b", ";") for op in ops] == [clean(name) for name in NAMES]
    assert not any(value.startswith(("=", "+", "-", "@", "\t")) for row in rows for value in row.values())


def test_html_shows_them_in_a_browser(reports: dict[str, str], tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no chromium")
    (tmp_path / "page.html").write_text(reports["html"], encoding="utf-8")
    seen: list[str] = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.on("request", lambda request: seen.append(request.url))
        page.on("console", lambda message: seen.append(message.text))
        page.on("dialog", lambda dialog: seen.append(dialog.message))
        page.goto((tmp_path / "page.html").as_uri())
        text = page.evaluate("document.body.textContent")
        made = page.evaluate("[...document.querySelectorAll('script, img, x, iframe, object')].map(e => e.tagName)")
        width = page.evaluate("document.documentElement.scrollWidth")
        browser.close()

    assert (seen[1:], made, width) == ([], ["SCRIPT"], 360)
    for name in NAMES[:-1]:
        assert f"{clean(name)}.weight" in text
    assert f"{'x' * 50}" in text
    assert not re.search("[\x00-\x08\x1b\u202a-\u202e\u2066-\u2069]", text)
