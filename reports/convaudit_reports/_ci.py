"""What the formats for CI share: where a finding is shown, what it says in a line, and names that stay the same.

A place is a file of the repository wherever there is one. Locations that are not (torchvision's own source, a path
outside of the checkout) are named in the message, and the finding is shown at the target's own file; a target that
has no file either (``timm:resnet18``) stands in for it by its name.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from convaudit.paths import as_utf8, relative_path, repository_root
from convaudit.result import AuditResult, Finding, TargetFailure, TargetResult
from convaudit_reports._figures import clean, layers_of, live, one_line, saved_parameters, shorten, steps

TEXT = 600
"""Longest message or suggestion, in characters; what is left out stands in the JSON report."""


@dataclass(frozen=True)
class Place:
    """Where a finding is shown. ``line`` is None for a file as a whole."""

    path: str
    line: int | None
    in_repository: bool
    """False for a path outside of the repository and for a target's name that stands in for a file."""
    elsewhere: str = ""
    """``path:line`` of a location that is no file of the repository."""


def place_of(target: TargetResult, finding: Finding) -> Place:
    """The finding's own location, else the target's file, else the target's name."""
    own = _own_file(target)
    location = finding.location or target.location
    elsewhere = ""
    if location is not None:
        if _in_repository(location.path, own):
            return Place(as_utf8(location.path), max(1, location.line), True)
        elsewhere = f"{clean(location.path)}:{location.line}"
    if own is None:
        return Place(as_utf8(target.target) or "(model)", None, False, elsewhere)
    return Place(as_utf8(own), None, not _outside(own), elsewhere)


def _own_file(target: TargetResult) -> str | None:
    if target.kind == "checkpoint":
        return relative_path(target.target)
    head = target.target.partition(":")[0]
    if head.endswith(".py"):
        return relative_path(head)
    if target.location is not None and _in_repository(target.location.path, None):
        return target.location.path
    return None


def _outside(path: str) -> bool:
    return os.path.isabs(path) or path.startswith("/") or ".." in path.split("/")


def _in_repository(path: str, own: str | None) -> bool:
    """Whether a relative path is a file of the repository.

    A library's path is relative too (to site-packages), so the file is looked for; where the target's own file is not
    found either, the report is being written away from the repository and the path is believed.
    """
    if _outside(path):
        return False
    root = repository_root(os.getcwd())
    if os.path.isfile(os.path.join(root, path)):
        return True
    return own is not None and not os.path.isfile(os.path.join(root, own))


def ranked(result: AuditResult, *severities: str) -> list[tuple[TargetResult, Finding]]:
    """Live findings of all targets: errors first, then the largest saving."""
    order = {"error": 0, "warning": 1, "info": 2}
    found = [(target, finding) for target in result.targets for finding in live(target, *severities)]
    return sorted(found, key=lambda pair: (order[pair[1].severity], -saved_parameters(pair[1]), pair[1].rule))


def fingerprints(result: AuditResult) -> dict[int, str]:
    """A hash for each finding, by its ``id``: of its fingerprint, and its number among those that share it.

    Neither lines nor messages enter it. Two findings share a fingerprint where a rule speaks twice of one layer, or a
    target was given twice.
    """
    seen: Counter[str] = Counter()
    found: dict[int, str] = {}
    for finding in (f for target in result.targets for f in target.findings):
        seen[finding.fingerprint] += 1
        number = seen[finding.fingerprint]
        text = finding.fingerprint + (f"#{number}" if number > 1 else "")
        found[id(finding)] = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    return found


def headline(finding: Finding) -> str:
    """The message on one line, its layer named first."""
    message = shorten(one_line(finding.message), TEXT)
    layer = shorten(clean(finding.layers[0]), TEXT) if finding.layers else ""
    if not layer or re.search(rf"(?<![\w.]){re.escape(layer)}(?!\w)", message):
        return message
    more = f" and {len(finding.layers) - 1} more" if len(finding.layers) > 1 else ""
    return f"{layer}{more}: {message}"


def failure(error: TargetFailure | None) -> str:
    """Why a target could not be audited, on one line."""
    if error is None:
        return "not audited"
    message = shorten(one_line(error.message), TEXT)
    kind = "" if error.type in message else f"{clean(error.type)}: "
    return f"step {error.step}: {kind}{message}"


def details(finding: Finding, place: Place) -> Iterator[str]:
    """Lines under the headline: the advice, what it saves, the layers, a location outside of the repository."""
    if finding.suggestion:
        yield f"Instead: {shorten(one_line(finding.suggestion), TEXT)}"
    saved = ", ".join(str(step) for step in steps(finding.saving) if step.change != "±0%")
    if saved:
        yield f"Saves: {saved}"
    if len(finding.layers) > 1:
        yield f"Layers: {shorten(layers_of(finding, 10), 2 * TEXT)}"
    if place.elsewhere:
        yield f"At: {place.elsewhere}"


def sentences(finding: Finding, place: Place) -> str:
    """Headline and details in one line."""
    return " ".join(
        text if text.endswith((".", "!", "?")) else f"{text}." for text in (headline(finding), *details(finding, place))
    )
