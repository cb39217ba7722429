"""One HTML file that opens offline: nothing is fetched, and it reads without its script.

Its Content-Security-Policy names the hashes of its own style and script, so nothing else can run in it.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from convaudit.result import AuditResult, TargetResult
from convaudit_reports import _figures
from convaudit_reports._figures import Bar

NAME = "html"
SUFFIX = ".html"
BARS = 14
"""At most this many bars in a chart."""


def render(result: AuditResult, **_options: object) -> str:
    """The whole page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    folder = files("convaudit_reports") / "templates"
    style = (folder / "report.css").read_text(encoding="utf-8")
    script = (folder / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("convaudit_reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["f"] = _figures
    environment.filters["clean"] = _figures.clean
    return environment.get_template("report.html.j2").render(
        result=result,
        reasons=_figures.reasons(result),
        charts=charts,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def charts(target: TargetResult) -> list[dict[str, Any]]:
    """The pictures of a target: cost by stage, by module and by layer; a chart of one bar says nothing."""
    made: list[tuple[str, str, list[Bar]]] = [
        ("By stage", "layers at one resolution", _figures.bars(_figures.by_stage(target), BARS)),
        ("By module", "top-level modules", _figures.bars(_figures.by_module(target), BARS)),
        ("By layer", "largest first", _figures.bars(_figures.by_layer(target), BARS, largest_first=True)),
    ]
    return [{"title": title, "note": note, "bars": bars} for title, note, bars in made if len(bars) > 1]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
