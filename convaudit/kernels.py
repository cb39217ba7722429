"""``convaudit kernels``: the classic kernels of article §4.2, and those of a checkpoint. Never imports torch, runs no code."""

from __future__ import annotations

import base64
import os
import shutil
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convaudit.errors import UsageError, nearest
from convaudit.registry import report_part

if TYPE_CHECKING:
    from convaudit.checkpoints.checkpoint import Checkpoint
    from convaudit.result import KernelGallery, KernelRow

_SHADES = " .:-=+*#%@"
_SCALE = "Dark is negative, light positive, each filter on its own scale."
_HONEST = "A sum proves little: sharpen and identity sum to 1 as well, and smooth nothing."
_READINGS = {"edges": "near 0: edge detection", "smoothing": "near 1: smoothing"}


@click.command()
@click.argument("file", required=False)
@click.argument("layer", required=False)
@click.option("--filters", "most", type=click.IntRange(1, 64), default=16, show_default=True, help="How many are printed.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write a picture: FILE.svg, up to 64 filters.")
def kernels(file: str | None, layer: str | None, most: int, output: Path | None) -> None:
    """Show the five classic kernels, or those of a convolution in a checkpoint: the first, or LAYER."""
    from convaudit import output as files

    if output is not None and output.suffix != ".svg":
        raise UsageError(f"-o {output}: a picture of kernels is an .svg")
    if output is not None:
        files.check_writable(output)
    if file is None:
        from convaudit.classic_kernels import CLASSIC_KERNELS

        shown, names = _classic(), [kernel.name for kernel in CLASSIC_KERNELS]
        title = "The five classic kernels, each with the article's reading of its sum"
        said = [f"sum {_READINGS[kernel.reading]}" for kernel in CLASSIC_KERNELS]
    else:
        shown = _of_file(file, layer)
        names = [f"filter {i}" for i in range(len(shown.filters))]
        said = [""] * len(names)
        title = f"{_clean(file)}: {_clean(shown.layer)}, {'×'.join(map(str, shown.shape))} of {shown.dtype}"
    if output is not None:
        files.write(output, svg(shown, names, said, title))
        click.echo(f"wrote {output}")
        return
    number = len(shown.filters[:most])
    click.echo(title)
    _picture(shown, shown.filters[:most])
    width = max(map(len, names[:number]))
    for name, row, reading in zip(names, shown.filters[:number], said):
        click.echo(f"{name:<{width}}  {_figures(row)}  {reading}".rstrip())
    if shown.shape[0] > number:
        click.echo(f"{number} of {shown.shape[0]:,} filters" + " (--filters shows up to 64)" * (number < min(64, len(shown.filters))))
    if shown.filters[0].plane is not None:
        click.echo("Of each filter the input channel of largest norm is shown; figures are of the whole filter.")
    click.echo(f"{_SCALE} {_HONEST}")


def _classic() -> KernelGallery:
    import numpy as np

    from convaudit.checkpoints.kernels import gallery
    from convaudit.classic_kernels import CLASSIC_KERNELS

    values = np.array([[[[float(value) for value in row] for row in kernel.rows]] for kernel in CLASSIC_KERNELS])
    made = gallery("classic kernels", list(values.shape), "float64", values)
    assert made is not None
    return made


def _of_file(path: str, layer: str | None) -> KernelGallery:
    """A gallery of one convolution of a checkpoint. Raises :class:`UsageError` where there is none."""
    if not os.path.isfile(path) or path.endswith(".py"):
        what = "a model" if ":" in path or path.endswith(".py") else "no such file"
        raise UsageError(f"{path}: {what}; kernels takes a checkpoint, such as a saved state_dict()")
    from convaudit.checkpoints.formats import read_checkpoint
    from convaudit.checkpoints.kernels import MOST, gallery
    from convaudit.checkpoints.weights import WeightsError, values_of

    file = read_checkpoint(path)
    if file.problems:
        raise UsageError(f"{path}: {file.problems[0]} (CNV602): its weights are not read")
    name, index = _convolution(file, layer)
    try:
        values = values_of(file, index, MOST)
    except (WeightsError, OSError) as error:
        raise UsageError(f"{path}: {_clean(name)}: {error}") from error
    row = file.tensors[index]
    made = gallery(name, row.shape or [], row.dtype, values)
    if made is None:
        raise UsageError(f"{path}: {_clean(name)}: its kernels are too large to be shown")
    return made


def _convolution(file: Checkpoint, wanted: str | None) -> tuple[str, int]:
    """A convolution's name and its weight's place in the table."""
    from convaudit.checkpoints.architecture import architecture_of, wrapper_of
    from convaudit.checkpoints.weights import first_convolution

    architecture = architecture_of(file)
    prefix = wrapper_of([row.name for row in file.tensors if row.role in ("parameter", "buffer")])
    places = {row.name.removeprefix(prefix): index for index, row in enumerate(file.tensors)}
    convs = [layer.name for layer in architecture.layers if layer.kind == "conv" and f"{layer.name}.weight" in places]
    first = first_convolution(architecture)
    if not convs:
        raise UsageError(f"{file.path}: there is no convolution in it")
    name = (first.name if first and first.name in convs else convs[0]) if wanted is None else wanted.removeprefix(prefix).removesuffix(".weight")
    if name not in convs:
        other = next((layer for layer in architecture.layers if layer.name == name), None)
        why = f"is no convolution ({other.op})" if other else f"is not in it{nearest(name, convs)}"
        listed = ", ".join(_clean(known) for known in convs[:5])
        raise UsageError(f"{file.path}: {wanted} {_clean(why)}; its convolutions: {listed}{', …' if convs[5:] else ''}")
    return name, places[f"{name}.weight"]


def _clean(text: str) -> str:
    cleaned: str = report_part("_figures").clean(text[:200])
    return cleaned


def _figures(row: KernelRow) -> str:
    if row.sum is None or row.std is None:
        return "not finite"
    lowest, highest = _number(row.minimum), _number(row.maximum)
    said: str = report_part("_figures").signed(f"sum {_number(row.sum):>7}  std {_number(row.std)}  range [{lowest}, {highest}]")
    return said


def _number(value: float | None) -> str:
    return f"{value:.3f}" if abs(value or 0) < 1e6 else f"{value:.3g}"


def _levels(shown: KernelGallery, row: KernelRow) -> list[list[tuple[int, ...]]]:
    """Red, green and blue of each pixel; grey where the filter is not finite."""
    area = shown.height * shown.width
    data = base64.b64decode(row.pixels) if row.pixels else bytes([128]) * (area * shown.planes)
    pixels = [tuple((*(data[plane * area + at] for plane in range(shown.planes)),) * 3)[:3] for at in range(area)]
    return [pixels[top : top + shown.width] for top in range(0, area, shown.width)]


def _picture(shown: KernelGallery, rows: Sequence[KernelRow]) -> None:
    """Filters side by side: two pixels a character in colour, else a pixel as two characters of one shade."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    each = shown.width * (1 if colour else 2) + 2
    across = max(1, shutil.get_terminal_size((100, 24)).columns // each)
    for start in range(0, len(rows), across):
        tiles = [_levels(shown, row) for row in rows[start : start + across]]
        if not colour:
            for y in range(shown.height):
                click.echo("  ".join("".join(_SHADES[sum(p) * len(_SHADES) // 766] * 2 for p in tile[y]) for tile in tiles).rstrip())
        else:
            _coloured(tiles, shown.height)
        click.echo()


def _coloured(tiles: Sequence[Sequence[Sequence[tuple[int, ...]]]], height: int) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for y in range(0, height, 2):
        line = Text()
        for tile in tiles:
            for x, upper in enumerate(tile[y]):
                style = f"rgb({upper[0]},{upper[1]},{upper[2]})"
                if y + 1 < height:
                    lower = tile[y + 1][x]
                    style += f" on rgb({lower[0]},{lower[1]},{lower[2]})"
                line.append("▀", style)
            line.append("  ")
        console.print(line, no_wrap=True, overflow="crop")


def svg(shown: KernelGallery, names: Sequence[str], said: Sequence[str], title: str) -> str:
    """A gallery as one static picture, each filter with its name, figures and what is said of it."""
    figures = report_part("_figures")
    side, gap, across = 96, 28, 8
    tiles = []
    for number, (row, *texts) in enumerate(zip(shown.filters, names, said)):
        x, y = 16 + number % across * (side + gap), 48 + number // across * (side + 56)
        scale = side / max(shown.height, shown.width)
        paths = "".join(f'<path fill="{colour}" d="{path}"/>' for colour, path in figures.kernel_picture(shown, row))
        texts.insert(1, "not finite" if row.sum is None else figures.signed(f"sum {_number(row.sum)}, std {_number(row.std)}"))
        captions = "".join(f'<text y="{side + 14 + 13 * line}">{escape(text)}</text>' for line, text in enumerate(texts) if text)
        tiles.append(
            f'<g transform="translate({x} {y})"><g transform="scale({scale:.4f})" shape-rendering="crispEdges">{paths}</g>{captions}</g>'
        )  # fmt: skip
    width, height = 16 + across * (side + gap), 48 + -(-len(tiles) // across) * (side + 56) + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="sans-serif" font-size="11"><title>{escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="16" y="20" font-size="14">{escape(title)}</text><text x="16" y="36">{_SCALE} {_HONEST}</text>{"".join(tiles)}</svg>\n'
    )  # fmt: skip
