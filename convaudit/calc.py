"""The article's calculators: a Linear on an image, a convolution four ways. Never imports torch."""

from __future__ import annotations

import json
from math import log2, prod
from typing import Any

import click

BYTES = 4  # float32


def linear_cost(
    image: tuple[int, ...], units: int, channels: int = 1, dataset_size: int | None = None
) -> dict[str, Any]:
    """Parameters of a Linear from a flattened ``channels``×``image`` to ``units`` (article §1.1).

    ``density`` is parameters per sample; above 10 the risk is High, above 1 Medium, else Low (article §1.2.3).
    """
    inputs = channels * prod(image)
    result: dict[str, Any] = {
        "inputs": inputs, "parameters": inputs * units + units, "weights": inputs * units, "bias": units, "macs": inputs * units,
    }  # fmt: skip
    if dataset_size is not None:
        density = result["parameters"] / dataset_size
        result["density"] = density
        result["risk"] = "High" if density > 10 else "Medium" if density > 1 else "Low"
    return result


def conv_cost(
    kernel: tuple[int, int], inward: int, outward: int, size: tuple[int, int], *, stride: int = 1, dilation: int = 1,
    groups: int = 1, padding: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Parameters (bias on), output shape, MACs, and multiplications and scratch bytes of four algorithms, one image.

    Direct: one multiplication a MAC, no scratch. im2col (Chellapilla, Puri, Simard 2006, section 2.1): as many, and a
    matrix of every patch. FFT (Mathieu, Henaff, LeCun 2014, arXiv:1312.5851, section 2): a transform of n² log2 n²·2
    real multiplications for each input, kernel and output map, 4 for each complex product. Winograd F(2×2, 3×3)
    (Lavin, Gray 2016, arXiv:1509.09308, section 4.1): 16 multiplications a 2×2 tile in place of 36.
    Raises ``ValueError`` where the geometry is impossible.
    """
    if inward % groups or outward % groups:
        raise ValueError(f"{inward} and {outward} channels are not divisible into {groups} groups")
    out = tuple((n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(size, kernel))
    if min(out) < 1:
        raise ValueError(
            f"a {kernel[0]}×{kernel[1]} kernel does not fit into {size[0]}×{size[1]} with padding {padding}"
        )
    per = inward // groups
    macs = outward * prod(out) * per * prod(kernel)
    padded = [n + 2 * padding for n in size]
    area = prod(padded)
    maps = inward + outward * per + outward
    fft = round(2 * area * log2(max(2, area)) * maps + 4 * area * outward * per)
    winograd = None
    if tuple(kernel) == (3, 3) and stride == 1 and dilation == 1:
        tiles = -(-out[0] // 2) * -(-out[1] // 2)
        scratch = 16 * BYTES * (tiles * (inward + outward) + outward * per)
        winograd = {"multiplications": 16 * tiles * per * outward, "scratch_bytes": scratch}
    return {
        "parameters": outward * per * prod(kernel) + outward,
        "output": [outward, *out],
        "macs": macs,
        "algorithms": {
            "direct": {"multiplications": macs, "scratch_bytes": 0},
            "im2col": {"multiplications": macs, "scratch_bytes": BYTES * inward * prod(kernel) * prod(out)},
            "fft": {"multiplications": fft, "scratch_bytes": 2 * BYTES * area * maps},
            "winograd": winograd,
        },
    }


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        parts = str(value).lower().replace("×", "x").split("x")
        if len(parts) != 2 or not all(p.isdigit() and int(p) > 0 for p in parts):
            example = "3x3" if param is not None and param.name == "kernel" else "224x224"
            self.fail(f"{value!r} is not HxW, such as {example}", param, ctx)
        return tuple(map(int, parts))


_FORMAT = click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
_POSITIVE = click.IntRange(1)


@click.group()
def calc() -> None:
    """Calculate what a Linear on an image, or a convolution, costs."""


@calc.command()
@click.argument("image", type=_Size())
@click.argument("units", type=_POSITIVE)
@click.option("--channels", type=_POSITIVE, default=1, show_default=True)
@click.option("--dataset-size", type=_POSITIVE)
@_FORMAT
def linear(image: tuple[int, ...], units: int, channels: int, dataset_size: int | None, form: str) -> None:
    """A Linear on a flattened IMAGE (HxW) to UNITS, as in `calc linear 224x224 1000 --channels 3`."""
    cost = linear_cost(image, units, channels, dataset_size)
    if form == "json":
        click.echo(json.dumps(cost))
        return
    click.echo(
        f"Linear {cost['inputs']:,} → {units:,}: {cost['parameters']:,} parameters ({cost['weights']:,} weights, {units:,} bias), {cost['macs']:,} MACs"
    )
    if dataset_size is not None:
        click.echo(
            f"{cost['density']:,.1f} parameters a sample at {dataset_size:,} samples: over-fitting risk {cost['risk']}"
        )


@calc.command()
@click.argument("kernel", type=_Size())
@click.argument("inward", metavar="IN", type=_POSITIVE)
@click.argument("outward", metavar="OUT", type=_POSITIVE)
@click.option("--input", "size", type=_Size(), required=True)
@click.option("--stride", type=_POSITIVE, default=1)
@click.option("--dilation", type=_POSITIVE, default=1)
@click.option("--groups", type=_POSITIVE, default=1)
@click.option("--padding", type=click.IntRange(0), default=0)
@_FORMAT
def conv(kernel: Any, inward: int, outward: int, size: Any, form: str, **geometry: int) -> None:
    """A KERNEL (HxW) convolution from IN to OUT channels, as in `calc conv 3x3 64 128 --input 56x56`.

    Bias on, no padding unless given.
    """
    try:
        cost = conv_cost(kernel, inward, outward, size, **geometry)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if form == "json":
        click.echo(json.dumps(cost))
        return
    click.echo(f"{cost['parameters']:,} parameters, output {'×'.join(map(str, cost['output']))}, {cost['macs']:,} MACs")
    for name, row in cost["algorithms"].items():
        if row is None:
            click.echo(f"  {name:<9} not applicable (3×3, stride 1, dilation 1 only)")
        else:
            click.echo(
                f"  {name:<9} {row['multiplications']:>16,} multiplications  {row['scratch_bytes']:>14,} bytes scratch"
            )
