"""Audits files with an audit hook that lets nothing be imported or run: FOLDER → one JSON line a file.

Each in a process of its own, which ends after three seconds of processor time or beyond 300 MB of data.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

import msgspec

from convaudit import registry
from convaudit.checkpoints.audit import audit_file
from convaudit.settings import AuditSettings

FORBIDDEN = ("import", "exec", "compile", "os.system", "subprocess.Popen", "marshal.loads", "pickle.find_class", "os.exec", "ctypes.dlopen")
SECONDS, MEMORY = 3, 300_000_000


def main() -> None:
    registry.rules()
    settings = AuditSettings()
    empty = Path(sys.argv[1], "empty.safetensors")
    empty.write_bytes(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{}")
    audit_file(str(empty), settings)
    empty.unlink()
    seen: list[str] = []
    sys.addaudithook(lambda event, args: seen.append(f"{event} {args[:1]}") if event in FORBIDDEN else None)
    for path in sorted(Path(sys.argv[1]).glob("*/*")):
        child = os.fork()
        if child:
            status = os.waitpid(child, 0)[1]
            if status:
                print(json.dumps({"name": str(path), "codes": [], "notes": [], "status": f"ended by {status}"}), flush=True)
            continue
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        seen.clear()
        result = audit_file(str(path), settings)
        msgspec.json.encode(result)
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        row = {
            "name": str(path), "codes": [f.rule for f in result.findings], "notes": result.notes, "status": result.status,
            "events": list(seen), "seconds": time.process_time(), "kilobytes": int(peak.split()[1]), "torch": "torch" in sys.modules,
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        os._exit(0)


if __name__ == "__main__":
    main()
