"""`make zoo`: audit every timm architecture and torchvision builder on meta, and hold its MACs against torch's own count.

Prints a line for each model that is not ok or whose MACs differ from ``torch.utils.flop_counter`` / 2 by more than 0.5%
without an explanation, then which rules spoke at warning level about which models, and the counts. ``zoo.py STRIDE`` takes every STRIDE-th model.
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Examined:
    """What the sweep learned of one model."""

    target: str
    status: str
    reason: str = ""
    macs: int = 0
    counted: int | None = None
    """``torch.utils.flop_counter`` / 2; None where its own forward on meta fails."""
    codes: list[str] = field(default_factory=list)
    """Rules that spoke at warning level or above."""

    @property
    def differs(self) -> bool:
        """MACs and torch's count are more than 0.5% apart."""
        return self.counted is not None and abs(self.macs - self.counted) > 0.005 * max(self.counted, 1)


def zoo_names() -> list[str]:
    """Every architecture as a target, quantized ones aside."""
    import timm
    from torchvision.models import list_models

    return [f"timm:{name}" for name in timm.list_models()] + [
        f"torchvision:{name}" for name in list_models() if not name.startswith("quantized_")
    ]


def examine(target: str) -> Examined:
    """Build ``target`` on meta, audit it with its default input, and count with FlopCounterMode as well."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from convaudit import inputs, targets
    from convaudit.engine import audit_model
    from convaudit.errors import ConvauditError
    from convaudit.settings import AuditSettings

    warnings.simplefilter("ignore")
    try:
        built = targets.build(target)
        args: tuple[Any, ...] = built.args or (inputs.model_inputs(built.model) or ((),))[0]
        result = audit_model(built.model, args, {}, target=target, settings=AuditSettings())
    except ConvauditError as error:
        return Examined(target, "failed", str(error))
    assert result.totals is not None
    found = Examined(target, result.status, "; ".join(result.notes), result.totals.macs or 0)
    found.codes = sorted({f.rule for f in result.findings if f.severity != "info"})
    model = built.model.to("meta").eval().requires_grad_(False)  # its module tracker wants gradients of parameters
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            model(*args)
    except (RuntimeError, NotImplementedError):
        return found
    found.counted = counter.get_total_flops() // 2
    return found


def main() -> int:
    """Sweep the zoo with two processes; 1 where a model failed or a difference is not explained."""
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    counts: Counter[str] = Counter()
    spoke: dict[str, list[str]] = {}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for found in pool.imap_unordered(examine, zoo_names()[::every], chunksize=4):
            counts[found.status] += 1
            for code in found.codes:
                spoke.setdefault(code, []).append(found.target)
            if found.status != "ok" or "not counted" in found.reason:
                print(f"{found.target}: {found.status}: {found.reason}", flush=True)
            if found.counted is None:
                counts["not counted by torch"] += 1
            elif found.differs:
                counts["MACs differ"] += 1
                print(f"{found.target}: {found.macs:,} MACs, flop_counter / 2 is {found.counted:,}", flush=True)
    for code, targets in sorted(spoke.items()):
        print(f"{code} at warning or above, {len(targets)} models: {', '.join(sorted(targets))}")
    print(dict(counts))
    return int(bool(counts["failed"] or counts["MACs differ"]))


if __name__ == "__main__":
    sys.exit(main())
