"""``make fingerprints``: the table by which ``--model auto`` knows the nets of timm and torchvision from their state_dicts.

Every architecture is built on meta with its default arguments; nets that differ in nothing but their heads share a row.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import sys
import warnings
from pathlib import Path

from support.zoo import zoo_names

from convaudit.checkpoints import architecture

TABLE = Path(architecture.__file__).with_name("fingerprints.json.gz")


def examine(target: str) -> tuple[str, str]:
    """A target's fingerprint, or why there is none."""
    import torch

    from convaudit import targets
    from convaudit.accounting import state_dict_rows

    warnings.simplefilter("ignore")
    try:
        with torch.no_grad():
            return target, architecture.fingerprint_of(state_dict_rows(targets.build(target).model))
    except Exception as error:  # noqa: BLE001 - the sweep goes on, and says which
        return target, f"{type(error).__name__}: {error}"


def main() -> None:
    """Build every architecture, and write the table."""
    import timm
    import torchvision

    names = zoo_names()
    found: dict[str, list[str]] = {}
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=100) as pool:
        for count, (target, said) in enumerate(pool.imap(examine, names), 1):
            if len(said) == 16 and set(said) <= set("0123456789abcdef"):
                found.setdefault(said, []).append(target)
            else:
                print(f"{target}: {said[:200]}", file=sys.stderr)
            if count % 100 == 0:
                print(f"{count} of {len(names)}", file=sys.stderr)
    table = {
        "versions": {"timm": timm.__version__, "torchvision": torchvision.__version__.partition("+")[0]},
        "fingerprints": {key: " ".join(targets) for key, targets in sorted(found.items())},
    }
    TABLE.write_bytes(gzip.compress(json.dumps(table, separators=(",", ":")).encode(), 9, mtime=0))
    print(f"{TABLE}: {len(found)} fingerprints of {sum(map(len, found.values()))} nets, {TABLE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
