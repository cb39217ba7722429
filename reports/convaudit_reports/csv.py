"""The layer table as CSV: a header, then one row for each layer call, of all targets.

An empty cell is *not known* (or, for ``call``, a module that never ran); 0 is known to be none. Shapes are
``1x3x224x224``, several are separated by spaces. UTF-8, a comma between cells, a newline after each row.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula. Such a text gets an apostrophe
in front. Control characters (a tab, a line break) are written as escapes, and so is a semicolon, which separates cells
where the comma is the decimal sign.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from convaudit.result import AuditResult, LayerRow, TargetResult
from convaudit_reports._figures import clean

NAME = "csv"
SUFFIX = ".csv"
COLUMNS = (
    "target", "layer", "call", "op", "kind", "input_shapes", "output_shapes", "dtype", "parameters", "macs", "flops",
    "flop_convention", "activation_bytes", "receptive_field", "receptive_field_largest", "path", "line",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def render(result: AuditResult, **_options: object) -> str:
    """The table; a failed target has no rows."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_row(target, row) for target in result.targets for row in target.layers)
    return out.getvalue()


def _row(target: TargetResult, row: LayerRow) -> list[str | int | None]:
    return [
        _cell(target.target),
        _cell(row.name),
        row.call,
        _cell(row.op),
        _cell(row.kind),
        _shapes(row.input_shapes),
        _shapes(row.output_shapes),
        _cell(row.dtype),
        row.parameters,
        row.macs,
        row.flops,
        _cell(target.flop_convention),
        row.activation_bytes,
        _field(row.receptive_field),
        _field(row.receptive_field_largest),
        _cell(row.location.path) if row.location else None,
        row.location.line if row.location else None,
    ]


def _cell(text: str | None) -> str | None:
    if text is None:
        return None
    safe = clean(text).replace(";", "\\x3b")
    return f"'{safe}" if safe.lstrip().startswith(FORMULA) else safe


def _shapes(shapes: list[list[int]] | None) -> str | None:
    return None if shapes is None else " ".join(_shape(shape) for shape in shapes)


def _shape(dimensions: Iterable[int]) -> str:
    return "x".join(map(str, dimensions)) or "()"


def _field(value: list[int] | str | None) -> str | None:
    return _shape(value) if isinstance(value, list) else value
