"""The calculators give the article's figures."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from convaudit.calc import conv_cost, linear_cost
from convaudit.cli import cli


@pytest.mark.parametrize(
    ("side", "parameters"),
    [(28, 785_000), (32, 1_025_000), (64, 4_097_000), (100, 10_001_000), (128, 16_385_000), (224, 50_177_000)],
)
def test_linear_on_an_image(side: int, parameters: int) -> None:
    assert linear_cost((side, side), 1000)["parameters"] == parameters


@pytest.mark.parametrize(
    ("samples", "risk"), [(1_000, "High"), (100_000, "High"), (50_177_000, "Low"), (10_000_000, "Medium")]
)
def test_risk(samples: int, risk: str) -> None:
    assert linear_cost((224, 224), 1000, dataset_size=samples)["risk"] == risk


def test_conv() -> None:
    done = CliRunner().invoke(
        cli, ["calc", "conv", "3x3", "64", "128", "--input", "56x56", "--padding", "1", "--format", "json"]
    )
    cost = json.loads(done.output)

    assert cost["parameters"] == 73_856
    assert cost["output"] == [128, 56, 56]
    assert cost["macs"] == 231_211_008
    assert cost["algorithms"]["winograd"]["multiplications"] * 36 == cost["macs"] * 16
    assert cost["algorithms"]["im2col"]["scratch_bytes"] == 4 * 64 * 9 * 56 * 56


def test_winograd_only_where_it_applies() -> None:
    assert conv_cost((3, 3), 8, 8, (32, 32), stride=2)["algorithms"]["winograd"] is None


@pytest.mark.parametrize(
    "args",
    [
        ["linear", "224", "10"],
        ["conv", "9x9", "3", "8", "--input", "4x4"],
        ["conv", "3x3", "3", "8", "--input", "8x8", "--groups", "2"],
    ],
)
def test_bad_geometry_is_one_line_and_exit_2(args: list[str]) -> None:
    done = CliRunner().invoke(cli, ["calc", *args])

    assert done.exit_code == 2
    assert "Traceback" not in done.output
