"""Scanners of pickles side by side: convaudit, picklescan, modelscan and fickling on the same hostile and honest files.

The others live in an environment of their own, made beside this one: they pin what convaudit does not. Each file is
scanned in a process of its own, of at most 5 s and 2 GB. A scanner's error counts as caught: it says that something is wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from importlib import import_module
from pathlib import Path

TOOLS = ("convaudit", "picklescan", "modelscan", "fickling")


def alarmed(tool: str, path: str) -> int:
    """Whether a scanner says that something is wrong with a file: 1; 3 where it is told, and is no finding."""
    if tool == "picklescan":
        said = import_module("picklescan.scanner").scan_file_path(path)
        return bool(said.issues_count or said.scan_err)
    if tool == "modelscan":
        found = import_module("modelscan.modelscan").ModelScan().scan(path)
        return bool(found["issues"] or found["errors"])
    if tool == "fickling":
        loader = import_module("fickling.loader")
        if zipfile.is_zipfile(path):
            return not all(loader.scan_zip_archive(path, graceful=True).values())
        return not loader.scan_file(path, graceful=True)
    from convaudit.checkpoints.audit import audit_file
    from convaudit.settings import AuditSettings

    result = audit_file(path, AuditSettings())
    if any(finding.severity == "error" for finding in result.findings):
        return 1
    return 3 if any("is itself a pickle" in note or "it was not read" in note for note in result.notes) else 0


def scan(tool: str, folder: str) -> None:
    """One line a file: its path, and ``alarm``, ``note``, ``nothing`` or ``ended``."""
    with contextlib.suppress(Exception):  # what it imports, once
        alarmed(tool, __file__)
    for path in sorted(Path(folder).glob("*/*")):
        child = os.fork()
        if child:
            status = os.waitpid(child, 0)[1]
            said = {0: "nothing", 1: "alarm", 3: "note"}.get(os.waitstatus_to_exitcode(status), "ended")
            print(json.dumps([str(path), said]), flush=True)
            continue
        resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
        resource.setrlimit(resource.RLIMIT_DATA, (2_000_000_000, 2_000_000_000))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        try:
            os._exit(int(alarmed(tool, str(path))))
        except MemoryError:
            os._exit(2)
        except Exception:  # noqa: BLE001 - whatever it raises, it has not passed the file
            os._exit(1)


def compare() -> None:
    """Write the files, run all scanners, print the table and what another one catches and convaudit does not."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from checkpoints.malicious import cases
    from checkpoints.test_honest import HONEST

    home = Path(sys.prefix) / "scanners"
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "picklescan", "modelscan", "fickling", "typing_extensions"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        groups: dict[str, str] = {}
        titles: dict[str, str] = {}

        def add(index: int, group: str, title: str, name: str) -> Path:
            path = Path(folder, f"{index:04}", name)
            path.parent.mkdir()
            groups[str(path)], titles[str(path)] = group, title
            return path

        index = 0
        for title, name, data, said in cases():
            if said not in ("CNV601", "CNV602") and not said.startswith("~"):
                continue  # nothing is wrong with it
            group = {"CNV601": "code", "CNV602": "damage, limits"}.get(said, "code further in")
            index += 1
            with open(add(index, group, title, name), "wb") as file:
                file.write(data)
                file.truncate(getattr(data, "size", len(data)))
        for title, make in HONEST.items():
            for zipped in (True, False) if title not in ("float8", "uint16") else (True,):
                index += 1
                torch.save(make(), add(index, "honest", title, "a.pt"), _use_new_zipfile_serialization=zipped)
        said: dict[str, dict[str, str]] = {}
        for tool in TOOLS:
            runner = sys.executable if tool == "convaudit" else str(python)
            done = subprocess.run([runner, __file__, tool, folder], capture_output=True, text=True, check=False)
            said[tool] = dict(json.loads(line) for line in done.stdout.splitlines())
    print(f"{'':<34}" + "".join(f"{tool:>12}" for tool in TOOLS))
    for group in ("code", "code further in", "damage, limits", "honest"):
        paths = [path for path, one in groups.items() if one == group]
        for what, label in (("alarm", "false alarms" if group == "honest" else "caught"), ("note", "told in a note"), ("ended", "over 5 s or 2 GB")):
            counts = Counter(tool for tool in TOOLS for path in paths if said[tool].get(path) == what)
            if what == "alarm" or counts:
                print(f"{group} ({len(paths)}): {label}".ljust(34) + "".join(f"{counts[tool]:>12}" for tool in TOOLS))
    missed = [p for p, group in groups.items() if group != "honest" and said["convaudit"][p] in ("nothing", "ended") and "alarm" in {said[t].get(p) for t in TOOLS}]
    print("caught by another and not by convaudit: " + (", ".join(titles[path] for path in missed) or "nothing"))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        scan(*sys.argv[1:])
    else:
        compare()
