"""What the tour measures with torch, in a process of its own: prints one JSON line and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import ceil

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convaudit.graph import main_input
from convaudit.networks import BasicCNN
from convaudit.receptive_field import receptive_fields
from convaudit.tour.figures import EDGES, EXACT, IMAGE, PICTURE, Fit, Measured, Shift
from convaudit.tracer import trace

SIDE = 64


def main() -> None:
    """Measure, and print what was found."""
    torch.manual_seed(0)
    with torch.no_grad():
        found = Measured(str(torch.__version__), _correlation(), _fit(), _shifts(), _algorithms())
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")


def _correlation() -> list[list[int]]:
    """What torch's own conv2d makes of the article's image and kernel."""
    image, kernel = (torch.tensor(rows, dtype=torch.float64)[None, None] for rows in (IMAGE, EDGES))
    return [[int(value) for value in row] for row in F.conv2d(image, kernel)[0, 0].tolist()]


def _fit(images: int = 512) -> Fit:
    """Least squares of a Linear and of a 3×3 convolution, to the edges of 4×4 images, as they are and with their
    pixels permuted; each judged by images that it was not fitted to."""
    order = torch.randperm(16)
    x = torch.rand(2 * images, 1, 4, 4, dtype=torch.float64)
    y = F.conv2d(x, torch.tensor(EDGES, dtype=torch.float64)[None, None]).flatten(1)
    permuted = x.flatten(1)[:, order].view_as(x)

    def unexplained(rows: Callable[[Tensor], Tensor], source: Tensor) -> float:
        """Share of the variance of ``y`` that the best weights leave; ``rows`` gives what each output may read."""
        inputs = rows(source)
        inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], -1)
        target = y[:, :, None] if inputs.dim() == 3 else y
        width = inputs.shape[-1]
        weights = torch.linalg.lstsq(inputs[:images].reshape(-1, width), target[:images].reshape(-1, target.shape[-1])).solution
        left = inputs[images:] @ weights - target[images:]
        return float(left.square().sum() / (y[images:] - y[:images].mean(0)).square().sum())

    def linear(source: Tensor) -> Tensor:
        return source.flatten(1)

    def conv(source: Tensor) -> Tensor:
        return F.unfold(source, 3).transpose(1, 2)

    picture = torch.tensor(PICTURE).flatten()[order].view(4, 4).tolist()
    shares = [unexplained(rows, source) for rows in (linear, conv) for source in (x, permuted)]
    return Fit(images, picture, *shares)


def _shifts() -> list[Shift]:
    """The same picture moved: what comes out must be the same, moved as far."""
    basic = BasicCNN()
    conv = nn.Conv2d(3, 8, 3, padding=1)
    around = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular")
    strided = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="circular")
    pooled = nn.Sequential(around, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    cases: list[tuple[str, nn.Module, tuple[int, ...]]] = [
        ("circular", around, (1, 5)),
        ("zeros", conv, (1,)),
        ("stride", strided, (2, 1)),
        ("pool", nn.MaxPool2d(2), (2, 1)),
        ("features", basic.features[:-1], (4, 1)),
        ("global-pool", pooled, (1, 5)),
        ("network", basic, (4,)),
        ("linear", nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 10)), (1,)),
    ]
    return [_shift(name, module, amount) for name, module, amounts in cases for amount in amounts]


def _shift(name: str, module: nn.Module, amount: int) -> Shift:
    image = 0.2 * torch.rand(1, 3, SIDE, SIDE)
    image[:, :, SIDE // 8 : SIDE // 2, SIDE // 8 : SIDE // 2] += 1
    graph = trace(module.eval(), image)
    last = main_input(next(node for node in graph.graph.nodes if node.op == "output"))
    field = receptive_fields(graph).get(last) if last is not None else None
    run = graph.graph_module
    before, after = run(image), run(image.roll((amount, amount), (2, 3)))
    if before.dim() < 4:
        difference = (after - before).abs() / before.abs().max()
        return Shift(name, amount, None, None, float(difference.max()), None, float((difference > EXACT).float().mean()))
    assert field is not None
    assert field.small is not None
    stride, extent = int(field.small_jump[0]), int(field.small[0])
    moved = before.roll((amount // stride, amount // stride), (2, 3))
    difference = (after - moved).abs().amax((0, 1)) / before.abs().max()
    edge = ceil(extent / stride)
    inside = difference[edge + ceil(amount / stride) : -edge, edge + ceil(amount / stride) : -edge]
    share = float((difference > EXACT).float().mean())
    return Shift(name, amount, stride, extent, float(difference.max()), float(inside.max()), share)


def _algorithms() -> dict[str, float]:
    """Largest relative difference of im2col, FFT and Winograd from the direct convolution, 64 to 64 channels, 32×32."""
    x, w = torch.randn(1, 64, 32, 32), torch.randn(64, 64, 3, 3)
    direct = F.conv2d(x.double(), w.double(), padding=1)
    columns = (w.flatten(1) @ F.unfold(x, 3, padding=1)).view_as(direct)
    size = (34, 34)
    spectra = torch.fft.rfft2(F.pad(x, (1, 1, 1, 1))) * torch.fft.rfft2(w, s=size).conj()
    fft = torch.fft.irfft2(spectra.sum(1), s=size)[None, :, :32, :32]
    found = {"im2col": columns, "fft": fft, "winograd": _winograd(F.pad(x, (1, 1, 1, 1)), w)}
    return {name: float((y - direct).abs().max() / direct.abs().max()) for name, y in found.items()}


def _winograd(x: Tensor, w: Tensor) -> Tensor:
    """F(2×2, 3×3) on padded maps (Lavin, Gray 2016, arXiv:1509.09308, section 4.1)."""
    into = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    kernel = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    out = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])
    tiles = x.unfold(2, 4, 2).unfold(3, 4, 2)
    products = torch.einsum("nchwij,ocij->nohwij", into @ tiles @ into.T, kernel @ w @ kernel.T)
    pairs = out @ products @ out.T
    return pairs.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
