"""``make fingerprints``: the table by which ``--model auto`` knows the nets of timm and torchvision from their state_dicts.

Every architecture is built on meta with its default arguments; a row holds a target's fingerprint at each level.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import sys
import warnings
from pathlib import Path

from support.zoo import zoo_names

from convaudit.checkpoints import match

TABLE = Path(match.__file__).with_name("fingerprints.json.gz")


def examine(target: str) -> tuple[str, list[str], str]:
    """A target's fingerprints, or why there are none."""
    import torch

    from convaudit import targets
    from convaudit.accounting import state_dict_rows

    warnings.simplefilter("ignore")
    try:
        with torch.no_grad():
            rows = [row for row in state_dict_rows(targets.build(target).model) if row.role != "other"]
    except Exception as error:  # noqa: BLE001 - the sweep goes on, and says which
        return target, [], f"{type(error).__name__}: {error}"
    return target, [match.fingerprint(rows, level) for level in match.LEVELS], ""


def main() -> None:
    """Build every architecture, and write the table."""
    import timm
    import torchvision

    names = zoo_names()
    found: dict[str, str] = {}
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=100) as pool:
        for count, (target, digests, error) in enumerate(pool.imap(examine, names), 1):
            if digests:
                found[target] = " ".join(digests)
            else:
                print(f"{target}: {error[:200]}", file=sys.stderr)
            if count % 100 == 0:
                print(f"{count} of {len(names)}", file=sys.stderr)
    table = {
        "versions": {"timm": timm.__version__, "torchvision": torchvision.__version__.partition("+")[0]},
        "fingerprints": found,
    }
    TABLE.write_bytes(gzip.compress(json.dumps(table, separators=(",", ":")).encode(), 9, mtime=0))
    print(f"{TABLE}: fingerprints of {len(found)} nets, {TABLE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
