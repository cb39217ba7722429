"""The Jinja environments of the built-in templates, and Markdown that always fits a comment."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from convaudit_reports import _figures, _language

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

LIMIT = 65_000
"""GitHub refuses a comment of more than 65,536 characters."""


@functools.cache
def environment() -> Environment:
    """For templates that are not HTML. Nothing is escaped: a template puts every value through a filter."""
    return _made(autoescape=False)


def page_environment() -> Environment:
    """For HTML pages: values are escaped, texts are in the language spoken."""
    made = _made(autoescape=True)
    _language.install(made)
    made.globals["f"] = _figures
    made.filters.update(clean=_figures.clean, line=_figures.one_line, word=_language.gettext, ticked=_ticked)
    return made


def _ticked(text: str) -> Markup:
    """Words between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(`+)([^`]+)\1", r"<code>\2</code>", str(escape(text))))


def _made(*, autoescape: bool) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("convaudit_reports", "templates"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def policy_hash(text: str) -> str:
    """How a Content-Security-Policy names a style or a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def fitted(name: str, contexts: Iterable[dict[str, Any]]) -> str:
    """A Markdown template in the first of the contexts that keeps it shorter than :data:`LIMIT`; the last must do."""
    template = environment().get_template(name)
    pieces: list[str] = []
    for context in contexts:
        pieces, size = [], 0
        for piece in template.generate(context):
            pieces.append(piece)
            size += len(piece)
            if size >= LIMIT:
                break
        else:
            break
    return re.sub(r"\n{3,}", "\n\n", "".join(pieces)).strip() + "\n"
