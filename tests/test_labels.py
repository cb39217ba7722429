"""Labelled third-party models, where the folder of labels stands beside the checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

LABELS = Path(__file__).parent.parent.parent / "shared" / "labels"


@pytest.mark.skipif(not LABELS.is_dir(), reason="no labelled models beside the checkout")
def test_precision_and_recall() -> None:
    convaudit = Path(sysconfig.get_paths()["scripts"]) / "convaudit"
    done = subprocess.run(
        [sys.executable, str(LABELS / "score.py"), str(convaudit)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout
