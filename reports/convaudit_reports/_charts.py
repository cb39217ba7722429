"""The pictures of the HTML report: static SVG by Vega (vl-convert), coloured by the page's own style sheet.

Text stays text, every mark says what it is, and nothing needs a script or a style of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from convaudit.errors import ReportError
from convaudit.result import LayerRow, TargetResult
from convaudit_reports import _blocks, _figures
from convaudit_reports._blocks import Block
from convaudit_reports._figures import count, percent, shape, short, shorten, size
from convaudit_reports._language import gettext as _
from convaudit_reports._language import ngettext
from convaudit_reports._vega import VEGA

PIECES = 28
"""At most this many rectangles in a treemap."""
SPLIT = 0.12
"""A module that holds more of the whole is shown by what it holds."""
STAGES = 14
WIDTHS = (1100, 640, 340)
"""Of the picture along the depth, which is drawn for each: the style sheet shows the one that fits."""
_COLUMN = 360
_STRETCH = 2.4
"""A treemap's rectangles are so many times as wide as high: room for their names."""
_PYRAMID, _WIDTH, _FIELD = (24, 150), (226, 84), (372, 110)
"""Top and height of the three pictures along the depth."""
_END_FIELDS = ("end1", "end2", "end3", "end4")
"""Ends of a name that are tried where a rectangle has no room for all of it."""
_KINDS = {"conv": "conv", "linear": "fc", "matmul": "attention", "attention": "attention", "recurrent": "attention"}
_FONT = {"font": {"value": "inherit"}, "fontSize": {"value": 12}}


@dataclass(frozen=True)
class Cost:
    """One column of pictures: what a measure's total is made of."""

    name: str
    total: str
    treemap: str
    stages: str
    """Empty where all of it is in one."""
    kinds: tuple[str, ...]
    """The colours of its treemap."""


@dataclass(frozen=True)
class Point:
    """One layer along the depth; receptive fields are the larger axis, None where not known or unbounded."""

    row: LayerRow
    positions: int
    resolution: str
    channels: int
    smallest: int | None
    largest: int | None
    unbounded: bool


def costs(target: TargetResult) -> list[Cost]:
    """Parameters, MACs and activation memory: a treemap by module and bars by stage of each that is known."""
    totals = target.totals
    if totals is None:
        return []
    measures: list[tuple[str, str, int | None, str, Callable[[int | None], str], str]] = [
        (_("Parameters"), "params", totals.parameters, "parameters", short, ""),
        (_("MACs"), "macs", totals.macs, "macs", short, _figures.at_least(target)),
        (_("Activation memory"), "memory", totals.activation_bytes, "activation_bytes", size, _figures.at_least(target, activations=True)),
    ]
    root = _blocks.tree(target)
    stages = _figures.by_stage(target)
    made = []
    for name, css, total, field, form, least in measures:
        pieces = _pieces(root, field)
        if total and len(pieces) > 1:
            kinds = tuple(dict.fromkeys(kind for _, _, kind in pieces))
            bars = [(stage.label, getattr(stage, field)) for stage in stages if getattr(stage, field)]
            drawn = _bars(name, css, bars, total, form) if len(bars) > 1 else ""
            made.append(Cost(name, least + form(total), _treemap(name, pieces, total, form), drawn, kinds))
    return made


def _pieces(root: Block, field: str) -> list[tuple[str, int, str]]:
    """Path, amount and kind of the modules that make up the whole, the largest split into what they hold: one that is most of
    the whole even where it holds more than there is room for."""

    def amount(block: Block) -> int:
        return sum(getattr(row, field) or 0 for row in block.all_rows)

    def parts(block: Block) -> list[tuple[int, Block]]:
        return [(number, part) for part in block.parts.values() if (number := amount(part))]

    whole = amount(root)
    pieces = parts(root)
    while True:
        room = PIECES + 1 - len(pieces)
        splits = [
            p for p in pieces
            if p[1].children and (p[0] > whole / 2 or (len(parts(p[1])) <= room and (p[0] > SPLIT * whole or len(pieces) == 1)))
        ]  # fmt: skip
        if not splits:
            break
        largest = max(splits, key=lambda p: p[0])
        at = pieces.index(largest)
        pieces[at : at + 1] = parts(largest[1])
    large = sorted((p for p in pieces if p[0] >= 0.004 * whole), key=lambda p: -p[0])[: PIECES - 1]
    made = [(shorten(_figures.clean(block.path), 60) or _("(model)"), number, _kind(block, field)) for number, block in large]
    left = [p for p in pieces if not any(p is other for other in large)]
    if left:
        label = ngettext("{} other", "{} others", len(left)).format(len(left))
        made.append((label, sum(number for number, _ in left), "rest"))
    return made


def _kind(block: Block, field: str) -> str:
    """What most of a block is: the class of its colour."""
    sums: dict[str, int] = {}
    for row in block.all_rows:
        kind = "idle" if row.call is None else _KINDS.get(row.kind, "rest")
        sums[kind] = sums.get(kind, 0) + (getattr(row, field) or 0)
    return max(sums, key=lambda kind: sums[kind])


def _ends(label: str, others: Sequence[str]) -> dict[str, Any]:
    """A piece's name, its halves, its ends, longest first, that are no other piece's, and how many letters tell it from all."""
    parts = label.split(".")
    tails = [".".join(parts[at:]) for at in range(1, len(parts))]
    own = [tail for tail in tails if not tail[:1].isdigit() and not any(f".{other}".endswith(f".{tail}") for other in others)]
    need = next((n for n in range(4, len(label)) if not any(other.endswith(label[-n:]) for other in others)), len(label))
    dots = (at + 1 for at, letter in enumerate(label) if letter == "." and 3 < at < len(label) - 4)
    cut = min(dots, key=lambda at: abs(2 * at - len(label)), default=len(label))
    halves = {"first": label[:cut], "second": label[cut:]}
    return {"label": label, **halves, "need": need, **dict(zip(_END_FIELDS, [*own[-len(_END_FIELDS) :], *[""] * len(_END_FIELDS)]))}


def _treemap(name: str, pieces: Sequence[tuple[str, int, str]], total: int, form: Callable[[int], str]) -> str:
    values = [{"id": "whole", "parent": None}] + [
        {
            "id": str(index), "parent": "whole", "amount": number, "colour": f"var(--{kind})", "share": percent(number, total),
            "said": _cost(label, form(number), percent(number, total)),
            **_ends(label, [other for other, _, _ in pieces if other != label]),
        }
        for index, (label, number, kind) in enumerate(pieces)
    ]  # fmt: skip
    below = "(isArray(datum.shown)?44:30)"
    box = {"x": {"field": "x0"}, "x2": {"field": "x1"}, "y": {"field": "top"}, "y2": {"field": "bottom"}}
    letters, high = "floor((datum.x1-datum.x0-8)/7.6)", "datum.bottom-datum.top"
    shown = f"{letters}>datum.need+1?'…'+replace(slice(datum.label,2-{letters}),regexp('^\\\\.'),''):''"
    shown = f"{letters}>=max(length(datum.first),length(datum.second))&&{high}>34?[datum.first,datum.second]:{shown}"
    for field in (*reversed(_END_FIELDS), "label"):
        shown = f"datum.{field}&&{letters}>=length(datum.{field})?datum.{field}:{shown}"

    def text(said: str, down: str, **more: Any) -> dict[str, Any]:
        place = {"x": {"signal": "datum.x0+6"}, "y": {"signal": f"datum.top+{down}"}, "text": {"signal": said}}
        return _mark("text", "fitting", {**place, "fill": {"value": "var(--ink)"}, **_FONT, **more})

    return _svg(_("{}, treemap by module").format(name), _COLUMN, 260, {
        "data": [
            {"name": "pieces", "values": values, "transform": [
                {"type": "stratify", "key": "id", "parentKey": "parent"},
                {"type": "treemap", "field": "amount", "sort": {"field": "value", "order": "descending"},
                 "size": [{"signal": "width"}, {"signal": f"height*{_STRETCH}"}]},
                {"type": "filter", "expr": "datum.parent !== null"},
                {"type": "formula", "as": "top", "expr": f"datum.y0/{_STRETCH}"},
                {"type": "formula", "as": "bottom", "expr": f"datum.y1/{_STRETCH}"},
            ]},
            {"name": "fitting", "source": "pieces", "transform": [
                {"type": "formula", "as": "shown", "expr": shown}, {"type": "filter", "expr": f"{high}>18&&datum.shown"},
            ]},
        ],
        "marks": [
            _mark("rect", "pieces", {**box, "fill": {"field": "colour"}, "stroke": {"value": "var(--card)"}, "strokeWidth": {"value": 2}}, speaks=True),
            text("datum.shown", "15", fontWeight={"value": 600}),
            text(f"{high}>{below}+4&&{letters}>4?datum.share:''", below),
        ],
    })  # fmt: skip


def _bars(name: str, css: str, bars: Sequence[tuple[str, int]], total: int, form: Callable[[int], str]) -> str:
    kept = sorted(bars, key=lambda bar: -bar[1])
    if len(kept) > STAGES:
        kept = kept[: STAGES - 1]
    shown = [bar for bar in bars if bar in kept]
    left = [bar for bar in bars if bar not in kept]
    if left:
        shown.append((ngettext("{} other", "{} others", len(left)).format(len(left)), sum(number for _, number in left)))
    most = max(number for _, number in shown)
    step, start, end = 25, 98, 236
    values = [
        {
            "y": index * step, "label": shorten(_stage(label), 15), "to": start + (end - start) * number / most,
            "value": f"{form(number)} · {percent(number, total)}", "said": _cost(_stage(label), form(number), percent(number, total)),
        }
        for index, (label, number) in enumerate(shown)
    ]  # fmt: skip

    def rect(to: dict[str, Any], fill: str, speaks: bool) -> dict[str, Any]:
        place = {"x": {"value": start}, "x2": to, "y": {"field": "y", "offset": 8}, "height": {"value": 10}, "cornerRadius": {"value": 2}}
        return _mark("rect", "bars", {**place, "fill": {"value": f"var(--{fill})"}}, speaks=speaks)

    def text(field: str, x: int, fill: str, **more: Any) -> dict[str, Any]:
        return _text("bars", field, {"x": {"value": x}, "y": {"field": "y", "offset": 17}}, fill, **more)

    return _svg(_("{}, bars by stage").format(name), _COLUMN, step * len(values), {
        "data": [{"name": "bars", "values": values}],
        "marks": [
            rect({"value": end}, "track", speaks=False),
            rect({"field": "to"}, css, speaks=True),
            text("label", 0, "text"),
            text("value", _COLUMN, "muted", align={"value": "right"}),
        ],
    })  # fmt: skip


def _cost(label: str, amount: str, share: str) -> str:
    return label + _(": ") + amount + _(", ") + share


def _stage(label: str) -> str:
    """A stage's label; only these are words."""
    return {"vector": _("vector"), _figures.ELSEWHERE: _("no resolution"), _figures.IDLE: _("not called")}.get(label, label)


# Along the depth


def depth(target: TargetResult) -> list[str]:
    """The feature pyramid and the receptive field along the depth, in each width; empty where no two maps differ."""
    points = along(target)
    if len(points) < 3 or len({(p.positions, p.channels) for p in points}) < 2 or max(p.positions for p in points) < 2:
        return []
    return [_depth(target, points, width) for width in WIDTHS]


def along(target: TargetResult) -> list[Point]:
    """The layers that make maps or tokens, in execution order. A gate, whose map is one position for a while, is left out."""
    batch = next((i.shape[0] for i in target.inputs if i.shape), 1) or 1
    found: list[Point] = []
    before: int | None = None
    for row in target.layers:
        if row.call is None or row.kind not in ("conv", "linear", "pool", "upsample") or not row.output_shapes:
            continue
        number, name = _figures.positions(row, batch, before)
        output = row.output_shapes[0]
        if number is None or len(output) < 2:
            continue
        before = number
        channels = output[-1] if row.kind == "linear" or len(output) < 3 else output[1]
        fields = [max(f) if isinstance(f, list) else None for f in (row.receptive_field, row.receptive_field_largest)]
        unbounded = "unbounded" in (row.receptive_field, row.receptive_field_largest)
        found.append(Point(row, number, name, channels, fields[0], fields[1], unbounded))
    largest_after = [0] * (len(found) + 1)
    for index in range(len(found) - 1, -1, -1):
        largest_after[index] = max(found[index].positions, largest_after[index + 1])
    return [p for index, p in enumerate(found) if p.positions > 1 or largest_after[index] == 1]


def unbounded_from(target: TargetResult) -> str:
    """The first layer along the depth whose receptive field is unbounded; empty where none is."""
    return next((_figures.clean(p.row.name) for p in along(target) if p.unbounded), "")


def _is_line(points: list[Point]) -> bool:
    """Whether the model reads a line of samples: a Conv1d comes first."""
    return points[0].row.kind == "conv" and [len(s) for s in points[0].row.input_shapes or ()] == [3]


def _given(target: TargetResult, points: list[Point]) -> list[int] | None:
    """The spatial sizes of the input."""
    return next((i.shape[2:] for i in target.inputs if len(i.shape) > (2 if _is_line(points) else 3)), None)


def shows_fields(target: TargetResult) -> bool:
    """Whether the receptive field is drawn: not of a code that a generator reads, nor where it is known of hardly any layer."""
    points = along(target)
    known = sum(p.smallest is not None for p in points[: _bounded(points)])
    return known >= max(2, len(points) / 8) and max(_given(target, points) or [2]) > 1


def _bounded(points: list[Point]) -> int:
    """How many come before the first whose receptive field is unbounded."""
    return next((at for at, p in enumerate(points) if p.unbounded), len(points))


def _depth(target: TargetResult, points: list[Point], width: int) -> str:
    step = width / len(points)
    speaks = step >= 2  # nobody can point at less
    given = _given(target, points)
    tallest = math.sqrt(max(p.positions for p in points))
    widest = max(p.channels for p in points)
    bounded = _bounded(points)
    fields = [f for p in points for f in (p.smallest, p.largest) if f]
    furthest = max([*fields, *(given or ()), 2])
    middle, floor, base = _PYRAMID[0] + _PYRAMID[1] / 2, sum(_WIDTH), sum(_FIELD)

    def level(value: int | None) -> float | None:
        return None if value is None else base - _FIELD[1] * math.log(max(value, 1)) / math.log(furthest)

    rows = [
        {
            "x": index * step, "x2": (index + 1) * step, "half": _PYRAMID[1] / 2 * math.sqrt(p.positions) / tallest,
            "channels": _WIDTH[1] * p.channels / widest, "smallest": level(p.smallest if index < bounded else None),
            "largest": level(p.largest if index < bounded else None),
            "said": _said(p) if speaks else "",
        }
        for index, p in enumerate(points)
    ]  # fmt: skip
    ended = [*rows, {**rows[-1], "x": width}]
    named = {"rows": rows, "ended": ended, "plateaus": _plateaus(points, step)}
    data: list[dict[str, Any]] = [{"name": name, "values": values} for name, values in named.items()]
    bottom = base if shows_fields(target) else floor
    marks: list[dict[str, Any]] = [
        _rule("plateaus", {"x": {"field": "x"}, "y": {"value": _PYRAMID[0]}, "y2": {"value": bottom}}, "grid"),
        _title(_("Resolution: side of the map"), _PYRAMID[0]),
        _steps({"y": {"signal": f"{middle}-datum.half"}, "y2": {"signal": f"{middle}+datum.half"}}, "macs", speaks),
        _label("resolution", sum(_PYRAMID)),
        _title(_("Width: channels; the widest in figures"), _WIDTH[0]),
        _steps({"y": {"signal": f"{floor}-datum.channels"}, "y2": {"value": floor}}, "params", speaks=False),
        _label("channels", floor),
    ]
    if bottom == base:
        side = level(max(given)) if given else None
        ticks = [
            {"y": y, "text": count(tick)}
            for tick in (1, 10, 100, 1_000, 10_000)
            if tick <= furthest / 1.6 and (y := level(tick)) is not None and abs(y - (side or 0)) > 14
        ]
        across = {"x": {"value": 0}, "x2": {"value": width}, "y": {"field": "y"}}
        above = {"x": {"value": 0}, "y": {"field": "y", "offset": -4}}
        data.append({"name": "ticks", "values": ticks})
        marks += [
            _title(_("Receptive field: samples, log scale") if _is_line(points) else _("Receptive field: pixels, log scale"), _FIELD[0] - 14),
            _rule("ticks", across, "grid"),
            _text("ticks", "text", above, "muted"),
            _line("smallest", strokeDash={"value": [4, 3]}),
            _line("largest"),
        ]
        if given:
            data.append({"name": "side", "values": [{"y": side, "text": _("input {}").format(shape(given))}]})
            marks += [_rule("side", across, "error"), _text("side", "text", above, "error")]
    return _svg(_("Resolution, width and receptive field along the depth"), width, bottom + 22, {"data": data, "marks": marks})


def _said(point: Point) -> str:
    """What a layer's mark says."""
    seen = _("unbounded") if point.unbounded else count(point.smallest) if point.smallest else _("not known")
    if point.largest and point.largest != point.smallest and not point.unbounded:
        seen += f"–{count(point.largest)}"
    where = _stage(point.resolution) or ngettext("{} position", "{} positions", point.positions).format(count(point.positions))
    name = shorten(_figures.clean(point.row.name), 60)
    channels = ngettext("{} channel", "{} channels", point.channels).format(count(point.channels))
    return name + _(": ") + _(", ").join((where, channels, _("receptive field {}").format(seen)))


def _plateaus(points: list[Point], step: float) -> list[dict[str, Any]]:
    """Runs of layers at one resolution: where they begin, and their labels where there is room."""
    starts = [i for i, p in enumerate(points) if not i or p.positions != points[i - 1].positions]
    made = []
    free = {"resolution": -math.inf, "channels": -math.inf}
    for start, end in zip(starts, [*starts[1:], len(points)]):
        widest = max(p.channels for p in points[start:end])
        name = next((p.resolution for p in points[start:end] if "×" in p.resolution), points[start].resolution or count(points[start].positions))
        middle = (start + end) / 2 * step
        labels = {"resolution": _stage(name), "channels": count(widest)}
        shown: dict[str, Any] = {"x": start * step}
        for field, text in labels.items():
            half = len(text) * 3.6 + 3
            at = min(max(middle, half), len(points) * step - half)
            fits = at - half > free[field]
            shown |= {field: text if fits else "", f"{field}_at": at}
            free[field] = at + half if fits else free[field]
        made.append(shown)
    return made


def _mark(kind: str, data: str, enter: dict[str, Any], *, speaks: bool = False) -> dict[str, Any]:
    said = {"description": {"field": "said"}} if speaks else {}
    return {"type": kind, "aria": speaks, "from": {"data": data}, "encode": {"enter": {**enter, **said}}}


def _steps(place: dict[str, Any], css: str, speaks: bool) -> dict[str, Any]:
    """One step a layer: a rectangle each where they speak, else one area."""
    enter = {"x": {"field": "x"}, **place, "fill": {"value": f"var(--{css})"}}
    if speaks:
        return _mark("rect", "rows", {**enter, "x2": {"field": "x2"}}, speaks=True)
    return _mark("area", "ended", {**enter, "interpolate": {"value": "step-after"}})


def _line(field: str, **more: Any) -> dict[str, Any]:
    place = {"x": {"signal": "(datum.x+datum.x2)/2"}, "y": {"field": field}, "defined": {"signal": f"datum.{field}!==null"}}
    return _mark("line", "rows", {**place, "stroke": {"value": "var(--memory)"}, "strokeWidth": {"value": 2}, **more})


def _rule(data: str, place: dict[str, Any], css: str) -> dict[str, Any]:
    return _mark("rule", data, {**place, "stroke": {"value": f"var(--{css})"}})


def _text(data: str, field: str, place: dict[str, Any], css: str, **more: Any) -> dict[str, Any]:
    return _mark("text", data, {**place, "text": {"field": field}, "fill": {"value": f"var(--{css})"}, **_FONT, **more})


def _label(field: str, y: float) -> dict[str, Any]:
    return _text("plateaus", field, {"x": {"field": f"{field}_at"}, "y": {"value": y + 15}}, "text", align={"value": "center"})


def _title(text: str, y: float) -> dict[str, Any]:
    place = {"x": {"value": 0}, "y": {"value": y - 12}}
    enter = {**place, "text": {"value": text}, "fill": {"value": "var(--muted)"}, **_FONT, "fontSize": {"value": 13}}
    return {"type": "text", "aria": False, "encode": {"enter": enter}}


def _svg(description: str, width: int, height: int, spec: dict[str, Any]) -> str:
    """The picture, of which each described mark also has a title: what a pointer that rests on it is shown. A sentence
    where it cannot be drawn."""
    whole = {"$schema": "https://vega.github.io/schema/vega/v5.json", "width": width, "height": height, "padding": 0, "autosize": "none", **spec}
    try:
        svg = VEGA.svg(whole)
    except ReportError as error:
        return f'<p class="notice small">{_escaped(_("This chart could not be drawn: {}").format(_figures.one_line(str(error))))}</p>'
    svg = re.sub(r' (?:d|transform)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)  # enough for a screen
    svg = re.sub(r'(<path aria-label="([^"]*)"[^>]*)/>', r"\1><title>\2</title></path>", svg)
    return svg.replace("<svg ", f'<svg role="group" aria-label="{_escaped(description)}" ', 1)


def _escaped(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))
