"""``convaudit show``: the layer table of one model."""

from __future__ import annotations

from typing import Any

import click

from convaudit.errors import UsageError
from convaudit.pool import Pool
from convaudit.result import LayerRow, TargetResult, note_lines
from convaudit.selection import select
from convaudit.session import Run, audit_options, settings_of, unbuilt
from convaudit.terminal import spelled

NUMBERS = ("parameters", "macs", "flops", "activation-bytes")
COLUMNS = ("type", "input", "output", *NUMBERS, "receptive-field", "line")
_DEFAULT = ("type", "output", "parameters", "macs", "flops")
_TITLES = {"macs": "MACs", "flops": "FLOPs", "activation-bytes": "activation bytes", "receptive-field": "receptive field"}


@click.command()
@click.argument("target")
@audit_options
@click.option("--depth", type=click.IntRange(1), help="Sum layers below this depth.")
@click.option("--sort", type=click.Choice(NUMBERS), help="Largest first, in place of execution order.")
@click.option("--columns", metavar="NAMES", help=f"Comma-separated, of {', '.join(COLUMNS)}.")
@click.option("--batch", type=click.IntRange(1), help="Batch size of the example input.")
def show(target: str, depth: int | None, sort: str | None, columns: str | None, jobs: int | None, **options: Any) -> None:
    """Print the layer table of one model."""
    chosen = tuple(columns.split(",")) if columns else _DEFAULT
    for column in chosen:
        if column not in COLUMNS:
            raise UsageError(f"--columns: unknown {column!r}; of {', '.join(COLUMNS)}")
    settings = settings_of(options)
    selection = select((target,), settings)
    if len(selection.targets) != 1:
        named = f"name one of {', '.join(selection.targets)}" if selection.targets else "; ".join([*selection.lines, *note_lines(selection.notes)])
        raise UsageError(f"{target}: {named}" if selection.targets else named)
    run = Run(selection.targets, settings, options)
    with Pool() as pool:
        found = run.results(pool).targets[0]
    if found.error is not None:
        raise UsageError(f"{target}: {unbuilt(found)}")
    for line in table(found, depth, sort, chosen):
        click.echo(spelled(line))


def table(found: TargetResult, depth: int | None, sort: str | None, columns: tuple[str, ...]) -> list[str]:
    """The lines of the table; ``depth`` sums the layers below a module, ``sort`` puts the largest first."""
    groups: dict[tuple[str, int | None, int], list[LayerRow]] = {}
    for index, layer in enumerate(found.layers):
        name = ".".join(layer.name.split(".")[:depth]) if depth else layer.name
        groups.setdefault((name, None, 0) if depth else (name, layer.call, index), []).append(layer)
    rows = list(groups.items())
    if sort:
        rows.sort(key=lambda row: -(_sum(row[1], sort) or 0))
    lines = [["layer", *(_TITLES.get(c, c) for c in columns)]]
    lines += [[name or "(model)", *(_cell(layers, c) for c in columns)] for (name, _, _), layers in rows]
    lines.append(
        ["total", *(_number(getattr(found.totals, c.replace("-", "_")) if found.totals else None) if c in NUMBERS else "" for c in columns)]
    )
    widths = [max(map(len, column)) for column in zip(*lines)]
    right = [c in NUMBERS for c in ("layer", *columns)]
    shape = " and ".join("×".join(map(str, i.shape)) for i in found.inputs)
    note = f"input {shape}; FLOPs by the {found.flop_convention} convention" if "flops" in columns else f"input {shape}"
    if not found.inputs and found.kind == "checkpoint":
        note = "from names and shapes: what a forward pass costs, they do not tell"
    return [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right)).rstrip()
        for line in lines
    ] + [note, *found.notes]


def _sum(layers: list[LayerRow], column: str) -> int | None:
    values = [getattr(layer, column.replace("-", "_")) for layer in layers]
    return None if None in values else sum(values)


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _cell(layers: list[LayerRow], column: str) -> str:
    first, last = layers[0], layers[-1]
    if column in NUMBERS:
        return _number(_sum(layers, column))
    if column == "type":
        return first.op if len(layers) == 1 else f"{len(layers)} layers"
    if column == "receptive-field":
        field = last.receptive_field
        return "?" if field is None else field if isinstance(field, str) else "×".join(map(str, field))
    if column == "line":
        return f"{first.location.path}:{first.location.line}" if first.location else ""
    shapes = first.input_shapes if column == "input" else last.output_shapes
    return "×".join(map(str, shapes[0])) if shapes else ""
