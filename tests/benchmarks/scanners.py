"""Scanners of pickles side by side: convaudit, picklescan, modelscan and fickling on the same hostile and honest files.

The others live in an environment of their own, made beside this one: they pin what convaudit does not. Each file is
scanned in a process of its own, of at most 5 s and 2 GB. What a scanner cannot read, or fails on, counts as neither
caught nor passed. Packed or misplaced is code in a gzip, zlib or 7z file, or behind bytes that are no pickle.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

TOOLS = ("convaudit", "picklescan", "modelscan", "fickling")
SAID = {0: "nothing", 1: "alarm", 3: "note", 4: "refused"}
"""What a scanner says of a file, by its process's exit status; any other status is ``ended``."""
NOTHING, ALARM, NOTE, REFUSED = SAID
ALARMS = ("CNV601", "CNV602")
ROWS = {"alarm": "caught", "note": "told in a note", "refused": "failed, or not read", "ended": "over 5 s or 2 GB"}


def verdict(tool: str, path: str) -> int:
    """What a scanner says of a file: a key of :data:`SAID`."""
    if tool == "picklescan":
        found = import_module("picklescan.scanner").scan_file_path(path)
        return ALARM if found.issues_count else REFUSED if found.scan_err or not found.scanned_files else NOTHING
    if tool == "modelscan":
        scanned = import_module("modelscan.modelscan").ModelScan().scan(path)
        whole = scanned["summary"]["scanned"]["total_scanned"] and not scanned["errors"]
        return ALARM if scanned["issues"] else NOTHING if whole else REFUSED
    if tool == "fickling":
        loader, safe = import_module("fickling.loader"), import_module("fickling.analysis").Severity.LIKELY_SAFE
        parts = list(loader.scan_zip_archive(path, graceful=True).values()) if zipfile.is_zipfile(path) else [loader.scan_file(path, graceful=True)]
        if any(one.severity > safe for part in parts for one in part.results):
            return ALARM
        return REFUSED if not parts or any(part.errors for part in parts) else NOTHING
    from convaudit.checkpoints.audit import audit_file
    from convaudit.settings import AuditSettings

    result = audit_file(path, AuditSettings())
    if result.error is not None:
        return REFUSED
    if any(finding.rule in ALARMS for finding in result.findings):
        return ALARM
    return NOTE if any("is itself a pickle" in note or "it was not read" in note for note in result.notes) else NOTHING


def named_in(tool: str, folder: str) -> list[str]:
    """The folders, of one file each, whose file a scanner names when it is given the folder that holds them all."""
    if tool == "picklescan":
        logging, logged = import_module("logging"), io.StringIO()
        logging.getLogger("picklescan").addHandler(logging.StreamHandler(logged))
        import_module("picklescan.scanner").scan_directory_path(folder)
        named = [line.removeprefix(folder) for line in logged.getvalue().splitlines() if line.endswith("FOUND")]
    elif tool == "modelscan":
        named = ["/" + issue["source"] for issue in import_module("modelscan.modelscan").ModelScan().scan(folder)["issues"]]
    elif tool == "convaudit":
        command = [sys.executable, "-m", "convaudit", "check", ".", "--format", "json"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        named = ["/" + t["target"] for t in json.loads(done.stdout)["targets"] if any(f["rule"] in ALARMS for f in t["findings"])]
    else:
        raise NotImplementedError("it takes no folder")
    return sorted({name.split("/")[1] for name in named})


def scan(tool: str, folder: str) -> None:
    """Print the tool's version, a line for each file (its path, and what is said of it), and what is named of all code."""
    print(json.dumps(version(tool)))
    with contextlib.suppress(Exception):  # what it imports, once
        verdict(tool, __file__)
    for path in sorted(Path(folder).glob("*/*/*")):
        child = os.fork()
        if child:
            status = os.waitpid(child, 0)[1]
            print(json.dumps([str(path), SAID.get(os.waitstatus_to_exitcode(status), "ended")]), flush=True)
            continue
        resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
        resource.setrlimit(resource.RLIMIT_DATA, (2_000_000_000, 2_000_000_000))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        try:
            os._exit(verdict(tool, str(path)))
        except MemoryError:
            os._exit(2)
        except Exception:  # noqa: BLE001 - whatever it raises, it says nothing of the file
            os._exit(REFUSED)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            named: list[str] | str = named_in(tool, str(Path(folder, "code")))
    except Exception as error:  # noqa: BLE001 - as above
        named = f"{type(error).__name__}: {str(error)[:60]}"
    print(json.dumps(named))


def packed_by_7z(python: Path, name: str, data: bytes) -> bytes:
    """A 7z archive of one file, made where py7zr is."""
    code = "import io, py7zr, sys\nout = io.BytesIO()\nwith py7zr.SevenZipFile(out, 'w') as archive: archive.writestr(sys.stdin.buffer.read(), sys.argv[1])\nsys.stdout.buffer.write(out.getvalue())"
    return subprocess.run([python, "-c", code, name], input=data, capture_output=True, check=True).stdout


def archived(name: str, data: bytes) -> bytes:
    """An archive of one member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, data)
    return out.getvalue()


def more(python: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Code where the tests' files do not have it, as (group, title, file name, bytes)."""
    from checkpoints.malicious import EMPTY, GLOBAL, STACKED, in_zip, numpy_array

    evil = b"\x80\x02" + GLOBAL
    kinds = (("a pickle", evil), ("an old pickle", GLOBAL), ("a pickle without a header", STACKED))
    for what, data in (*kinds, ("an archive", in_zip(evil))):
        for name in ("weights", "model.pkl", "model.joblib", "model.ckpt", "model.dat", "model.PT", "model.weights"):
            yield "code", f"{what} called {name}", name, data
    for what, data in (*kinds, ("an instance", b"(S'x'\nibuiltins\neval\n.")):
        for name in ("a.pt", "a.pkl", "a"):
            yield "code", f"{what} before an archive, {name}", name, data + archived("a.txt", b"hello")
    for member in ("x.pickle", "x.joblib", "x.pkl", "x.dat", "x"):
        for what, data in kinds:
            yield "code", f"{what} alone in an archive, {member}", "a.zip", archived(member, data)
    for name in ("a.pt", "a.npy", "a.pkl", "a"):
        yield "code", f"an array of objects called {name}", name, numpy_array(evil)
    yield "code", "an archive of arrays called a.pt", "a.pt", in_zip(EMPTY, ("x.npy", numpy_array(GLOBAL)))
    for packed, data in (("gzip", gzip.compress(evil)), ("zlib", zlib.compress(evil)), ("7z", packed_by_7z(python, "a.pkl", evil))):
        for name in ("a.pkl", "a.joblib", "a.pt", f"a.pkl.{packed}", f"a.{packed}"):
            yield "packed, misplaced", f"{packed}: {name}", name, data
    for name in ("a.pt", "a.pkl"):
        yield "code", f"a pickle behind a pickle, {name}", name, EMPTY + evil
        for what, prefix in (("zeros", bytes(64)), ("words", b"hello\n"), ("a picture", b"\x89PNG\r\n\x1a\n"), ("a line", b"\n")):
            yield "packed, misplaced", f"a pickle behind {what}, {name}", name, prefix + evil


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
        subprocess.run([python, "-m", "pip", "install", "-q", "picklescan", "modelscan", "fickling", "typing_extensions", "py7zr"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        groups: dict[str, str] = {}
        titles: dict[str, str] = {}

        def add(group: str, title: str, name: str) -> Path:
            path = Path(folder, group, f"{len(groups):04}", name)
            path.parent.mkdir(parents=True)
            groups[str(path)], titles[str(path)] = group, title
            return path

        for title, name, data, said in cases():
            if said in ALARMS or said.startswith("~"):  # of the others, nothing is to be said
                group = {"CNV601": "code", "CNV602": "damage, limits"}.get(said, "code further in")
                with open(add(group, title, name), "wb") as file:
                    file.write(data)
                    file.truncate(getattr(data, "size", len(data)))
        for group, title, name, data in more(python):
            add(group, title, name).write_bytes(data)
        for title, make in HONEST.items():
            for zipped in (True, False) if title not in ("float8", "uint16", "torch values") else (True,):
                torch.save(make(), add("honest", title, "a.pt"), _use_new_zipfile_serialization=zipped)
        said, versions, named = {}, {}, {}
        for tool in TOOLS:
            runner = sys.executable if tool == "convaudit" else str(python)
            done = subprocess.run([runner, __file__, tool, folder], capture_output=True, text=True, check=False)
            versions[tool], *lines, named[tool] = map(json.loads, done.stdout.splitlines())
            said[tool] = dict(lines)
            if said[tool].keys() != groups.keys():
                raise SystemExit(f"{tool} has not been asked about every file:\n{done.stderr[-2000:]}")
    print(f"{'':<38}" + "".join(f"{f'{tool} {versions[tool]}':>20}" for tool in TOOLS))
    for group in ("code", "code further in", "packed, misplaced", "damage, limits", "honest"):
        paths = [path for path, one in groups.items() if one == group]
        for what, label in ROWS.items():
            counts = Counter(tool for tool in TOOLS for path in paths if said[tool][path] == what)
            label = "false alarms" if (group, what) == ("honest", "alarm") else label
            if what == "alarm" or counts:
                print(f"{group} ({len(paths)}): {label}".ljust(38) + "".join(f"{counts[tool]:>20}" for tool in TOOLS))
    print("code, all in one folder: caught".ljust(38) + "".join(f"{len(one) if isinstance(one, list) else 'failed':>20}" for one in named.values()))
    print(*(f"  {tool} on the folder: {one}" for tool, one in named.items() if isinstance(one, str)), sep="\n")
    print("caught by another, or code, and not named by convaudit:")
    for path, group in groups.items():
        own, others = said["convaudit"][path], [tool for tool in TOOLS[1:] if said[tool][path] == "alarm"]
        if group != "honest" and own != "alarm" and (others or group == "code"):
            print(f"  {titles[path]}: {own} ({', '.join(others) or 'none'})")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        scan(*sys.argv[1:])
    else:
        compare()
