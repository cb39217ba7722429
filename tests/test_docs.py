"""The documentation says what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from convaudit import registry
from convaudit.explain import page

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "rules"


@pytest.mark.parametrize("code", registry.rules())
def test_rule_pages_are_the_docstrings(code: str) -> None:
    """`convaudit rule --format md` writes them."""
    assert (PAGES / f"{code}.md").read_text(encoding="utf-8") == page(registry.rules()[code])


def test_no_page_is_left_over() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == {*registry.rules(), "README"}


def test_rule_runs_its_own_example() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "convaudit", "rule", "large-kernel"], capture_output=True, text=True, check=True
    )

    assert "## What it does" in done.stdout
    assert "parameters 821,512 → 444,808" in done.stdout


def test_an_unknown_rule_names_the_nearest() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "convaudit", "rule", "CNV210x"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert done.stderr == "convaudit: no rule 'CNV210x'; did you mean 'CNV210'?\n"
