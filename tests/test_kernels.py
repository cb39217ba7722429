"""``convaudit kernels``: the classic five, a checkpoint's convolutions, and the gallery in the result."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from convaudit.checkpoints.audit import audit_file
from convaudit.result import KernelGallery
from convaudit.settings import AuditSettings


def kernels(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "convaudit", "kernels", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def gallery(folder: Path, tensors: dict[str, Any]) -> KernelGallery | None:
    torch.save(tensors, folder / "a.pt")
    made = audit_file(str(folder / "a.pt"), AuditSettings())
    assert made.checkpoint is not None
    return made.checkpoint.kernels


def decoded(made: KernelGallery, index: int) -> Any:
    row = made.filters[index]
    assert row.pixels is not None
    assert row.limit is not None
    data = np.frombuffer(base64.b64decode(row.pixels), np.uint8).reshape(made.planes, made.height, made.width)
    return (data.astype(float) - 128) / 127 * row.limit


@pytest.mark.parametrize(("shape", "planes", "size"), [
    ((100, 3, 7, 7), 3, (7, 7)), ((8, 1, 5, 3), 1, (5, 3)), ((8, 16, 3, 3), 1, (3, 3)), ((8, 3, 2, 3, 3), 1, (3, 3)), ((8, 2, 9), 1, (1, 9)),
])  # fmt: skip
def test_a_gallery_gives_the_weights_back(tmp_path: Path, shape: tuple[int, ...], planes: int, size: tuple[int, int]) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    made = gallery(tmp_path, {"conv.weight": weight, "conv.bias": torch.zeros(shape[0])})
    assert made is not None

    assert (made.layer, made.shape, made.planes, (made.height, made.width), len(made.filters)) == ("conv", list(shape), planes, size, min(shape[0], 64))
    for index in (0, len(made.filters) - 1):
        row, values = made.filters[index], weight[index].double()
        assert np.allclose((row.sum, row.std, row.minimum, row.maximum), (values.sum(), values.std(correction=0), values.min(), values.max()))
        flat = values.reshape(-1, *size)
        assert row.plane == (None if len(flat) == planes else int(flat.square().sum((1, 2)).argmax()))
        shown = flat if row.plane is None else flat[row.plane : row.plane + 1]
        assert np.abs(decoded(made, index) - shown.numpy()).max() <= float(shown.abs().max()) / 127


def test_a_gallery_where_there_is_none(tmp_path: Path) -> None:
    weight = torch.ones(2, 3, 3, 3)
    weight[1, 0, 0, 0] = float("nan")
    made = gallery(tmp_path, {"conv.weight": weight})

    assert made is not None
    assert [row.pixels is None and row.sum is None for row in made.filters] == [False, True]
    assert not decoded(gallery(tmp_path, {"conv.weight": torch.zeros(1, 1, 3, 3)}) or made, 0).any()
    assert gallery(tmp_path, {"fc.weight": torch.ones(4, 4)}) is None
    assert gallery(tmp_path, {"conv.weight": torch.ones(1, 1, 300, 300)}) is None


@pytest.mark.filterwarnings("error")
def test_weights_whose_figures_overflow(tmp_path: Path) -> None:
    weight = torch.ones(3, 1, 3, 3, dtype=torch.float64)
    weight[0, 0, 0] = torch.tensor([1e300, 0, 0])
    weight[1, 0, 0] = torch.tensor([1.7e308, -1.7e308, float("nan")])
    weight[2] *= 2e9
    made = gallery(tmp_path, {"conv.weight": weight})
    shown = kernels(tmp_path, "a.pt")

    assert made is not None
    assert [row.std for row in made.filters] == [None, None, 0]
    assert "filter 2  sum 1.8e+10  std 0.000  range [2e+09, 2e+09]\n" in shown.stdout
    assert shown.stderr == ""


def test_the_first_convolution_is_the_one_that_reads_the_image(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"blocks.0.weight": torch.ones(8, 8, 3, 3), "conv_stem.weight": torch.ones(8, 3, 3, 3), "to_rgb.weight": torch.ones(3, 8, 1, 1)}
    save_file(tensors, tmp_path / "sorted.safetensors")
    result = audit_file(str(tmp_path / "sorted.safetensors"), AuditSettings())

    assert result.checkpoint is not None
    assert result.checkpoint.kernels is not None
    assert result.checkpoint.kernels.layer == "conv_stem"


def test_the_five_classic_kernels(tmp_path: Path) -> None:
    """The article's figures (§4.2), and why they prove little."""
    lines = kernels(tmp_path).stdout.splitlines()
    figures = [line.split("  ", 1) for line in lines if "std" in line]

    assert [name.strip() for name, _ in figures] == ["vertical edges", "horizontal edges", "sharpen", "Gaussian blur", "identity"]
    assert figures[0][1].split("sum", 1)[1].split() == ["0.000", "std", "1.155", "range", "[−2.000,", "2.000]", "sum", "near", "0:", "edge", "detection"]
    assert figures[2][1].endswith("range [−1.000, 5.000]  sum near 1: smoothing")
    assert "  ++@@  " in lines[2]
    assert "sharpen and identity sum to 1 as well" in lines[-1]


def test_kernels_of_a_file(tmp_path: Path) -> None:
    weight = torch.zeros(40, 3, 3, 3)
    weight[0, :, 1, 1] = 1
    torch.save({"module.a.weight": weight, "module.b\x1b[31m.weight": -torch.ones(4, 40, 1, 1), "module.fc.weight": torch.ones(2, 2)}, tmp_path / "a.pt")
    first, named, picture = kernels(tmp_path, "a.pt"), kernels(tmp_path, "a.pt", "b\x1b[31m"), kernels(tmp_path, "a.pt", "a", "-o", "a.svg")
    drawn = ElementTree.parse(tmp_path / "a.svg").getroot()

    assert first.stdout.startswith("a.pt: a, 40×3×3×3 of float32\n")
    assert "filter 0   sum   3.000  std 0.314  range [0.000, 1.000]\n" in first.stdout
    assert "16 of 40 filters (--filters shows up to 64)" in first.stdout
    assert named.stdout.startswith("a.pt: b\\x1b[31m, 4×40×1×1 of float32\n")
    assert picture.stdout == "wrote a.svg\n"
    assert len([each for each in drawn.iter() if each.tag.endswith("}g") and each.get("shape-rendering")]) == 40


@pytest.mark.parametrize(("arguments", "said"), [
    (("a.pt", "cnov"), "a.pt: cnov is not in it; did you mean 'conv'?; its convolutions: conv"),
    (("a.pt", "fc"), "a.pt: fc is no convolution (Linear 2→2); its convolutions: conv"),
    (("b.pt",), "b.pt: there is no convolution in it"),
    (("timm:resnet18",), "timm:resnet18: a model; kernels takes a checkpoint, such as a saved state_dict()"),
    (("none.pt",), "none.pt: no such file; kernels takes a checkpoint, such as a saved state_dict()"),
    (("a.pt", "-o", "a.png"), "-o a.png: a picture of kernels is an .svg"),
])  # fmt: skip
def test_mistakes_are_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    torch.save({"conv.weight": torch.ones(2, 3, 3, 3), "fc.weight": torch.ones(2, 2)}, tmp_path / "a.pt")
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "b.pt")
    run = kernels(tmp_path, *arguments)

    assert (run.returncode, run.stderr, run.stdout) == (2, f"convaudit: {said}\n", "")
