"""`make zoo`: audit every timm architecture and torchvision builder on meta, and hold its MACs against torch's own count.

Prints a line for each model that is not ok or whose MACs differ from ``torch.utils.flop_counter`` / 2 by more than 0.5%
without an explanation, then a row for each rule that spoke: models at warning level or above, models at info, and
the former by family (their source file). ``zoo.py STRIDE`` takes every STRIDE-th model; ``--markdown`` prints the rows
as docs/zoo.md has them, ``--names`` the models' names instead of their families.
"""

from __future__ import annotations

import argparse
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
    codes: dict[str, bool] = field(default_factory=dict)
    """Rules that spoke, and whether at warning level or above."""

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
    for finding in result.findings:
        found.codes[finding.rule] = found.codes.get(finding.rule, False) or finding.severity != "info"
    model = built.model.to("meta").eval().requires_grad_(False)  # its module tracker wants gradients of parameters
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            model(*args)
    except (RuntimeError, NotImplementedError):
        return found
    found.counted = counter.get_total_flops() // 2
    return found


def family(target: str) -> str:
    """The source file of the target's model: ``resnet``, ``torchvision vgg``."""
    from timm.models import model_entrypoint
    from torchvision.models import get_model_builder

    zoo, _, name = target.partition(":")
    build = model_entrypoint(name) if zoo == "timm" else get_model_builder(name)
    module = build.__module__.rpartition(".")[2]
    return module if zoo == "timm" else f"{zoo} {module}"


def rows(spoke: dict[str, dict[bool, list[str]]], names: bool) -> list[tuple[str, str, str, str]]:
    """Rule, models at warning or above, models at info, and the former folded by family."""
    table = []
    for code, by_level in sorted(spoke.items()):
        loud, quiet = by_level.get(True, []), by_level.get(False, [])
        folded = Counter(map(family, loud)).most_common()
        listed = sorted(loud) if names else [f"{name} {count}" for name, count in folded]
        table.append((code, str(len(loud)), str(len(quiet)), ", ".join(listed)))
    return table


def main() -> int:
    """Sweep the zoo with two processes; 1 where a model failed or a difference is not explained."""
    parser = argparse.ArgumentParser(description="audit every timm architecture and torchvision builder on meta")
    parser.add_argument("stride", nargs="?", type=int, default=1, help="take every STRIDE-th model")
    parser.add_argument("--markdown", action="store_true", help="counts as rows of a Markdown table")
    parser.add_argument("--names", action="store_true", help="names of models instead of families")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    spoke: dict[str, dict[bool, list[str]]] = {}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for found in pool.imap_unordered(examine, zoo_names()[:: options.stride], chunksize=4):
            counts[found.status] += 1
            for code, loud in found.codes.items():
                spoke.setdefault(code, {}).setdefault(loud, []).append(found.target)
            if found.status != "ok" or "not counted" in found.reason:
                print(f"{found.target}: {found.status}: {found.reason}", flush=True)
            if found.counted is None:
                counts["not counted by torch"] += 1
            elif found.differs:
                counts["MACs differ"] += 1
                print(f"{found.target}: {found.macs:,} MACs, flop_counter / 2 is {found.counted:,}", flush=True)
    head = ("rule", "warning", "info", "families")
    for row in [head, *([("---",) * 4] if options.markdown else []), *rows(spoke, options.names)]:
        print(f"| {' | '.join(row)} |" if options.markdown else " | ".join(row))
    print(dict(counts))
    return int(bool(counts["failed"] or counts["MACs differ"]))


if __name__ == "__main__":
    sys.exit(main())
