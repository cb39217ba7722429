"""``convaudit demo``'s guided tour from fully connected to convolution, as one HTML page; every figure is the tool's own."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from convaudit import __version__
from convaudit.result import Finding, LayerRow, TargetResult
from convaudit.tour import figures
from convaudit_reports import _language
from convaudit_reports._environment import page_environment, policy_hash

if TYPE_CHECKING:
    from convaudit.tour.figures import Image, Tour

GREYS = 32


def render(tour: Tour, *, lang: str = "en") -> str:
    """The whole page, in one of :data:`convaudit.settings.LANGUAGES`."""
    from markupsafe import Markup

    from convaudit.registry import rules

    folder = files("convaudit_reports") / "templates"
    style = "".join((folder / name).read_text(encoding="utf-8") for name in ("report.css", "tour.css"))
    environment = page_environment()
    environment.globals.update(t=figures, rules=rules(), said=_language.said, convs=convs, finding=finding)
    environment.filters["pixels"] = pixels
    with _language.speaking(lang):
        return environment.get_template("tour.html.j2").render(
            lang=lang,
            n=tour.networks,
            separable=tour.separable,
            measured=tour.measured,
            version=__version__,
            style=Markup(style),
            style_hash=policy_hash(style),
        )


def convs(target: TargetResult) -> list[LayerRow]:
    """Rows of the convolutions, in order of execution."""
    return [row for row in target.layers if row.kind == "conv"]


def finding(target: TargetResult, code: str) -> Finding:
    """What a rule says of a network."""
    return next(found for found in target.findings if found.rule == code)


def pixels(image: Image, size: int = 4, *, signed: bool = False) -> list[tuple[str, str]]:
    """(colour, path) of the pixels of each grey, runs of a row in one piece. Values from 0 to 1, or ``signed``: their
    size, the largest of the image black."""
    largest = max(abs(value) for row in image for value in row) or 1.0
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(image):
        levels = [
            round((1 - abs(value) / largest if signed else min(max(value, 0.0), 1.0)) * (GREYS - 1)) for value in row
        ]
        start = 0
        for x in range(1, len(levels) + 1):
            if x == len(levels) or levels[x] != levels[start]:
                paths.setdefault(levels[start], []).append(f"M{start * size} {y * size}h{(x - start) * size}v{size}h-{(x - start) * size}z")
                start = x
    return [(f"#{round(255 * level / (GREYS - 1)):02x}" + f"{round(255 * level / (GREYS - 1)):02x}" * 2, "".join(parts)) for level, parts in paths.items()]
