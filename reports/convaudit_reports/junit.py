"""JUnit XML, for whatever shows test results: a suite for each target, a test case for each finding.

An error or a warning is a ``failure``, a suppressed finding is ``skipped``, an info passes and says its text on
``system-out``; a target without findings is one case that passes, one that could not be audited an ``error``. A case
is named after its target and first layer under the class of its rule, so that its history survives edits. There is no
``time``: it is not known.

The text of a failure says all that its ``message`` says, because GitLab shows the text alone.
"""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

from convaudit.result import AuditResult, Finding, TargetResult
from convaudit_reports import _ci
from convaudit_reports._figures import clean

NAME = "junit"
SUFFIX = ".xml"


def render(result: AuditResult, **_options: object) -> str:
    """The XML document."""
    root = ElementTree.Element("testsuites", name="convaudit")
    names: Counter[str] = Counter()
    for target in result.targets:
        _suite(root, target, names)
    _total(root)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _suite(root: ElementTree.Element, target: TargetResult, names: Counter[str]) -> None:
    name = _xml(target.target)
    suite = ElementTree.SubElement(root, "testsuite", name=name)
    if target.status == "failed":
        _failed(suite, target, name, names)
    findings = [f for f in target.findings if not (target.status == "failed" and f.rule == "CNV001")]
    for finding in findings:
        _case(suite, target, finding, name, names)
    if not len(suite):
        ElementTree.SubElement(suite, "testcase", classname="convaudit", name=_unique(f"{name}: no findings", names))
    _total(suite)


def _failed(suite: ElementTree.Element, target: TargetResult, name: str, names: Counter[str]) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname="convaudit.CNV001", name=_unique(f"{name}: could not be audited", names)
    )
    error = target.error
    text = body = _ci.failure(error)
    if error and error.path:
        body += f"\nAt: {clean(error.path)}" + (f":{error.line}" if error.line else "")
    ElementTree.SubElement(
        case, "error", message=_xml(text), type=_xml(error.type if error else "not audited")
    ).text = _xml(body, lines=True)


def _case(suite: ElementTree.Element, target: TargetResult, finding: Finding, name: str, names: Counter[str]) -> None:
    place = _ci.place_of(target, finding)
    layer = _xml(finding.layers[0]) if finding.layers else ""
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=_xml(f"convaudit.{finding.rule}"),
        name=_unique(f"{name}: {layer or '(model)'}: {_xml(finding.name)}", names),
    )
    if place.in_repository:
        case.set("file", _xml(place.path))
        case.set("line", str(place.line or 1))
    text = _ci.headline(finding)
    at = f"{clean(place.path)}:{place.line}" if place.line else ""
    body = _xml(
        "\n".join([f"{finding.rule} {finding.severity}: {text}", *_ci.details(finding, place), at]).strip(), lines=True
    )
    if finding.suppressed is not None:
        ElementTree.SubElement(case, "skipped", message=_xml(f"suppressed ({finding.suppressed}): {text}"))
    elif finding.severity == "info":
        ElementTree.SubElement(case, "system-out").text = body
    else:
        ElementTree.SubElement(case, "failure", message=_xml(text), type=finding.severity).text = body


def _total(element: ElementTree.Element) -> None:
    for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(attribute, str(sum(1 for _ in element.iter(tag))))


def _unique(name: str, names: Counter[str]) -> str:
    """``name``, numbered from its second use on: viewers take two cases of one name for one."""
    names[name] += 1
    return name if names[name] == 1 else f"{name} ({names[name]})"


def _xml(text: str, lines: bool = False) -> str:
    """``text`` with everything XML 1.0 cannot hold written as escapes; line breaks stay where ``lines`` is set."""
    kept = "\n".join(clean(line) for line in text.split("\n")) if lines else clean(text)
    return re.sub("[\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", kept)
