"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for torch, not yet imported: two processes of two threads on two cores take ten times as long

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
