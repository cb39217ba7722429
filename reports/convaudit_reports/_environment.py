"""The Jinja environment of the built-in templates that are not HTML, and Markdown that always fits a comment."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

LIMIT = 65_000
"""GitHub refuses a comment of more than 65,536 characters."""


@functools.cache
def environment() -> Environment:
    """For the templates beside this file. Nothing is escaped: a template puts every value through a filter."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("convaudit_reports", "templates"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


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
