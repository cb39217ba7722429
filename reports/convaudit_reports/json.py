"""The result as JSON: the contract, in full. Its schema ships as ``convaudit/schema/audit-result-1.schema.json``."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

import msgspec

from convaudit.result import SCHEMA_VERSION, AuditResult, encoded
from convaudit_reports._figures import plain_json

NAME = "json"
SUFFIX = ".json"


def render(result: AuditResult, **_options: object) -> str:
    """The result, indented by two spaces, with a newline at the end."""
    return dump(result)


def dump(record: msgspec.Struct) -> str:
    """A record as :func:`render` prints a result."""
    return plain_json(msgspec.json.format(encoded(record), indent=2).decode("utf-8")) + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema of what :func:`render` gives."""
    made = msgspec.json.schema(AuditResult)
    made["$defs"]["AuditResult"]["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    for part in made["$defs"].values():  # msgspec before 0.23 takes them with their indents
        if "description" in part:
            part["description"] = cleandoc(part["description"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"convaudit result, schema version {SCHEMA_VERSION}",
        **made,
    }


def schema_text() -> str:
    """The schema as its file holds it."""
    return msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode("utf-8") + "\n"
