"""Lays out the docs site for its generator (``make docs``): docs/, the README as its first page, and the changelog.

``python tests/support/site.py FOLDER`` writes ``FOLDER/mkdocs.yml`` and ``FOLDER/docs``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FIRST = ("index.md", "reports.md", "rules", "ci", "integrations.md", "diff.md", "templates.md", "zoo.md")
LAST = ("changelog.md",)


def lay_out(folder: Path) -> None:
    """Write the generator's input."""
    docs = folder / "docs"
    shutil.rmtree(docs, ignore_errors=True)
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("mkdocs.yml", "*.py", "__pycache__"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (docs / "index.md").write_text(readme.replace("](docs/", "]("), encoding="utf-8")
    shutil.copy(ROOT / "CHANGELOG.md", docs / "changelog.md")
    settings = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    (folder / "mkdocs.yml").write_text(f"{settings}nav: {json.dumps(navigation(docs))}\n", encoding="utf-8")


def navigation(docs: Path) -> list[Any]:
    """Pages and folders of pages, by their titles."""
    found = {path.name for path in docs.iterdir() if path.suffix == ".md" or list(path.glob("*.md"))}
    middle = sorted(found - {*FIRST, *LAST})
    return [_entry(docs, docs / name) for name in (*FIRST, *middle, *LAST) if name in found]


def _entry(docs: Path, path: Path) -> dict[str, Any]:
    if path.is_dir():
        pages = sorted(path.glob("*.md"), key=lambda page: (page.name != "README.md", page.name))
        return {_title(pages[0]): [_entry(docs, page) for page in pages]}
    return {path.stem if path.stem.startswith("CNV") else _title(path): path.relative_to(docs).as_posix()}


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
