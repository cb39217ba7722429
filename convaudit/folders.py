"""What a folder holds: checkpoints, Python files, and what is worth a word. Nothing in it is run or obeyed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from convaudit.checkpoints.formats import sniff, sniff_any
from convaudit.checkpoints.recognition import SUFFIXES, UNREAD, recognise
from convaudit.checkpoints.shards import shards_of
from convaudit.discovery import SKIPPED
from convaudit.result import FolderNote, NoteKind

Look = Callable[[str], tuple[str | None, str | None]]
_OTHERS = (".onnx", ".h5", ".hdf5", ".keras", ".gguf", ".tflite", ".pb", ".joblib", ".nemo", ".mar", ".distcp", ".npz", ".zip", ".tar.gz", ".tgz")
"""Suffixes of what models of other tools come in."""
_MODELS = (*SUFFIXES, *_OTHERS, ".npy", ".pickle", ".model", ".msgpack", ".pdparams", ".mlmodel")
"""Suffixes of what comes in the download of a model, beside its Python files."""
_MODEL_BYTES = (b"\x89HDF", b"GGUF", b"ggml", b"\x93NUMPY")
_PROGRAMS = ".py .pyi .pyc .ipynb .js .ts .c .h .cc .cpp .cu .java .go .rs .sh".split()
"""Suffixes of files that nobody loads as a checkpoint."""
_RARELY = (
    ".json .jsonl .md .rst .html .css .svg .yaml .yml .toml .csv .so .dll .dylib .png .jpg .jpeg .gif .webp .bmp .tif .tiff .ico .mp3 .mp4 "
    ".wav .woff .woff2 .ttf"
).split()  # fmt: skip
"""Suffixes of files that are checkpoints only where they begin as one."""
_MOST = 20_000
"""Files and folders that :func:`holds_models` looks at."""
_SETTINGS = ("convaudit.toml", "pyproject.toml")


@dataclass
class Folder:
    """Paths as they are shown, relative to the working directory, in the order of the folder."""

    checkpoints: list[str] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    """Python files."""
    notes: list[FolderNote] = field(default_factory=list)
    lost: bool = False
    """Something in it cannot be read."""

    def note(self, path: str, kind: NoteKind, message: str) -> None:
        """Add a note."""
        self.notes.append(FolderNote(os.path.relpath(path), kind, message))
        self.lost = self.lost or kind == "unreadable"


def read_folder(top: Path, *, foreign: bool, allow_code: bool) -> Folder:
    """Look through a folder. Of a ``foreign`` one (outside the working directory's repository), and of a repository within it,
    Python files that are not run, settings and folders that are passed over are noted as well.

    A link is followed where it is the folder itself, or leads to a file; links to folders are noted, so there is no loop.
    """
    found, shards = Folder(), set[Path]()
    root = os.path.realpath(top)
    paths = []
    for path, strange in _walked(top, found, foreign):
        if path.endswith(".index.json") and os.path.isfile(path):
            shards.update(shards_of(Path(path)))  # these are audited with their index
        paths.append((path, strange))
    for path, strange in paths:
        name = os.path.basename(path)
        if path.endswith(".py"):
            if not os.path.isfile(path):
                _offer(path, root, found, sniff, strange)
            elif allow_code or not strange:
                found.sources.append(Path(path))
            else:
                found.note(path, "code", "a Python file, not run: it lies outside this repository (--allow-code runs its models)")
        elif strange and name in _SETTINGS and (name == _SETTINGS[0] or (os.path.isfile(path) and _mentions_convaudit(path))):
            found.note(path, "settings", "settings for convaudit, not obeyed: they lie outside this repository")
        elif (look := look_at(path)) is not None and Path(path) not in shards and not _is_part(path, found):
            _offer(path, root, found, look, strange)
    return found


def look_at(path: str) -> Look | None:
    """What tells whether a file is a checkpoint: :func:`sniff` by its suffix, :func:`sniff_any` where any file may be one, None
    for a program, and for a text, a picture or the like that does not begin as a checkpoint does."""
    if path.lower().endswith(SUFFIXES):
        return sniff
    suffix = os.path.splitext(path)[1].lower()
    return None if suffix in _PROGRAMS or (suffix in _RARELY and not _begins_as_one(path)) else sniff_any


def _begins_as_one(path: str, others: tuple[bytes, ...] = ()) -> bool:
    """Whether a file begins as a checkpoint, or as one of ``others``, does; or cannot be read, which its reader says."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb", buffering=0) as file:
            head, size = file.read(16), os.fstat(file.fileno()).st_size
    except OSError:
        return True
    return bool(head) and (head.startswith(others) or recognise(head, "", size) is not None)


def named_as_models(path: str) -> bool:
    """Whether a name is that of a model's file, of PyTorch or of another tool."""
    return path.lower().endswith(_MODELS)


def holds_models(top: str) -> bool:
    """Whether a folder holds what may be a model's file, by names and first bytes, or too many files to tell."""
    seen = 0
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if name not in SKIPPED]
        seen += 1 + len(files)
        if seen > _MOST or any(map(named_as_models, files)) or any(_is_models(os.path.join(folder, name)) for name in files):
            return True
    return False


def _is_models(path: str) -> bool:
    """Whether a file is a model's by its bytes, or cannot be read; ordinary archives are none."""
    if os.path.splitext(path)[1].lower() in _PROGRAMS or not _begins_as_one(path, _MODEL_BYTES):
        return False
    try:
        kind, other = sniff_any(path)
        return kind is not None or not _begins_as_one(path) or (other or "").endswith(": name it to audit it")
    except OSError:
        return True


def _walked(top: Path, found: Folder, foreign: bool) -> Iterator[tuple[str, bool]]:
    """Each file, and whether it is another repository's."""
    others: set[str] = set()

    def refused(error: OSError) -> None:
        found.note(str(error.filename), "unreadable", f"cannot be read: {error.strerror}")

    for folder, folders, files in os.walk(top, onerror=refused):
        strange = foreign or os.path.dirname(folder) in others or (folder != str(top) and ".git" in (*folders, *files))
        if strange:
            others.add(folder)
        for name in sorted(folders):
            path = os.path.join(folder, name)
            if name in SKIPPED:
                if strange and name != ".git":
                    found.note(path, "folder", "not looked into: name it to audit it")
            elif os.path.islink(path):
                found.note(path, "link", f"a link to a folder, {os.path.realpath(path)}, which is not followed: name it to audit it")
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        yield from ((os.path.join(folder, name), strange) for name in sorted(files))


def _is_part(path: str, found: Folder) -> bool:
    """Whether a part of a distributed checkpoint is audited with its ``.metadata``, which comes before it."""
    return path.endswith(".distcp") and os.path.relpath(os.path.join(os.path.dirname(path), ".metadata")) in found.checkpoints


def leads_nowhere(path: str | Path) -> str:
    """What is wrong with a link to nothing, or to itself."""
    place = os.readlink(path)
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return f"a link to {place}, which leads to itself"
    return f"a link to {place}, which is not there"


def _offer(path: str, root: str, found: Folder, look: Look, strange: bool) -> None:
    """Take a file where ``look`` finds a checkpoint; else a note, unless it was only tried."""
    quiet = look is sniff_any and not (strange and path.lower().endswith(_OTHERS))
    real = os.path.realpath(path) if os.path.islink(path) else ""
    if not os.path.isfile(path):
        if quiet:
            return
        if real and not os.path.exists(path):
            found.note(path, "link", leads_nowhere(path))
        else:
            found.note(path, "other", "no regular file")
        return
    try:
        kind, other = look(path)
    except OSError as error:
        found.note(path, "other" if quiet else "unreadable", f"cannot be read: {error.strerror}")
        return
    if kind is not None:
        found.checkpoints.append(os.path.relpath(path))
    elif quiet and not (strange and (other or "").startswith(UNREAD)):
        return
    if real and not Path(real).is_relative_to(root):
        found.note(path, "link", f"a link out of the folder, to {real}: {other or 'audited as it is there'}")
    elif kind is None:
        found.note(path, "other", other or "")


def _mentions_convaudit(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return b"tool.convaudit" in file.read(1 << 20)
    except OSError:
        return False
