"""The docs: links that lead somewhere, and a site that builds without a warning and fetches nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support import site

PAGES = [site.ROOT / "README.md", site.ROOT / "CONTRIBUTING.md", *(site.ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(site.ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"(?ms)^ *```.*?^ *```|`[^`\n]*`", "", page.read_text(encoding="utf-8"))
    links = [link for link in re.findall(r"\]\(([^)\s#]+)", text) if "://" not in link]

    assert [link for link in links if not (page.parent / link).exists()] == []


class Fetched(HTMLParser):
    """What a page makes its reader fetch from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            self.found += [f"{tag} {value}" for name, value in attrs if name in ("src", "href") and "//" in (value or "")]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    site.lay_out(tmp_path)
    done = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list((site.ROOT / "docs").rglob("*.md")))  # those, the README, the changelog, 404
    reader = Fetched()
    for page in pages:
        reader.feed(page.read_text(encoding="utf-8"))
    assert reader.found == []
    style = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.css"))
    assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", style)
