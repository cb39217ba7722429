"""`make zoo`: trace every timm architecture and torchvision builder on meta; name each that is not ok."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter

from convaudit.pool import Pool
from convaudit.result import TargetResult


def main() -> int:
    """Print a line for each target that is not ok, then the counts."""
    import timm
    from torchvision.models import list_models

    names = [f"timm:{name}" for name in timm.list_models()]
    names += [f"torchvision:{name}" for name in list_models() if not name.startswith("quantized_")]
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    counts: Counter[str] = Counter()

    def done(result: TargetResult) -> None:
        counts[result.status] += 1
        if result.status != "ok" or (result.totals and result.totals.uncounted_ops):
            reason = result.error.message if result.error else "; ".join(result.notes)
            print(f"{result.target}: {result.status}: {reason}", flush=True)
        for finding in result.findings:
            if finding.severity != "info":
                counts[finding.rule] += 1

    pool = Pool(2)
    try:
        pool.run([{"target": name, "settings": {}} for name in names[::every]], 120.0, done)
    finally:
        pool.close()
    print(dict(counts))
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    assert importlib.util.find_spec("timm")
    sys.exit(main())
