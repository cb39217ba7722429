"""The result as JSON: the contract, in full. Its schema ships as ``convaudit/schema/audit-result-1.schema.json``."""

from __future__ import annotations

from typing import Any

import msgspec

from convaudit.result import SCHEMA_VERSION, AuditResult

NAME = "json"
SUFFIX = ".json"


def render(result: AuditResult, **_options: object) -> str:
    """The result, indented by two spaces, with a newline at the end."""
    return dump(result)


def dump(record: msgspec.Struct) -> str:
    """A record as :func:`render` prints a result."""
    try:
        encoded = msgspec.json.encode(record)
    except (UnicodeEncodeError, TypeError):  # a file name that is not UTF-8, or an odd value in a rule's evidence
        encoded = msgspec.json.encode(_plain(msgspec.to_builtins(record, enc_hook=repr)))
    return msgspec.json.format(encoded, indent=2).decode("utf-8") + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema of what :func:`render` gives."""
    made = msgspec.json.schema(AuditResult)
    made["$defs"]["AuditResult"]["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"convaudit result, schema version {SCHEMA_VERSION}",
        **made,
    }


def schema_text() -> str:
    """The schema as its file holds it."""
    return msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode("utf-8") + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
