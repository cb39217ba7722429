"""Markdown as GitHub (cmark-gfm) and GitLab (comrak) render it, read back from the HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import cmarkgfm
import comrak
from cmarkgfm.cmark import Options

VOID = {"hr", "br", "img", "input"}
REFERENCE = re.compile(
    r"@\w|[#!~%&^$]\d|\w#\d|://|\bwww\.|\bGH-\d|\b[0-9a-f]{7,40}\b|\b[A-Z][A-Z0-9_]+-\d|:\w+:|\[\[|\$\S+\$", re.IGNORECASE
)
"""What the hosts make a link, a notification or a picture of, after rendering, in text that is not code."""


def github(text: str) -> Page:
    return Page(cmarkgfm.github_flavored_markdown_to_html(text, Options.CMARK_OPT_UNSAFE | Options.CMARK_OPT_FOOTNOTES))


def gitlab(text: str) -> Page:
    extensions, options = comrak.ExtensionOptions(), comrak.RenderOptions()
    for name in (
        "alerts", "autolink", "description_lists", "footnotes", "math_code", "math_dollars", "multiline_block_quotes",
        "shortcodes", "strikethrough", "table", "tasklist", "wikilinks_title_after_pipe",
    ):  # fmt: skip
        setattr(extensions, name, True)
    options.unsafe_ = True
    return Page(comrak.render_markdown(text, extensions, render_options=options))


class Page(HTMLParser):
    """A page's tags, the rows of its tables, its code, and the text outside of code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.tables: list[list[int]] = []
        """Cells of each row of each table."""
        self.codes: list[str] = []
        self.text = ""
        self.unfolded = ""
        """All text outside of ``<details>``."""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs} - {"align", "start"}
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append(0)
        elif tag in ("td", "th"):
            self.tables[-1][-1] += 1
        elif tag == "code":
            self.codes.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1:] == [tag], f"</{tag}> closes {self._open}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "code" in self._open:
            self.codes[-1] += data
        else:
            self.text += data
        if "details" not in self._open:
            self.unfolded += data
