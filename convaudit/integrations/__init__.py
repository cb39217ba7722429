"""convaudit inside other tools, one module each. Nothing here is imported before its host asks for it."""

from __future__ import annotations

from typing import Any


def default_options() -> dict[str, Any]:
    """The options of ``convaudit check`` where none is given: with them both find the same kept results."""
    import click

    from convaudit.session import audit_options

    command = click.command("check")(audit_options(lambda **_: None))
    return command.make_context("check", []).params
