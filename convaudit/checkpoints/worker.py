"""The process that reads checkpoints beside others: audits one for each JSON line it gets. Never imports torch."""

from __future__ import annotations

import json
import time

from convaudit import registry
from convaudit.checkpoints.audit import audit_or_say
from convaudit.child import Channel
from convaudit.pool import Answer, spoken
from convaudit.settings import AuditSettings, TargetSettings

_PAUSE = 0.2  # seconds between two words on how much is read


def main() -> None:
    """Answer requests until the parent closes standard input."""
    channel = Channel()
    registry.rules()
    channel.say(b"ready")
    said = 0.0

    def heard(read: int, size: int) -> None:
        nonlocal said
        if time.monotonic() - said > _PAUSE:
            said = time.monotonic()
            channel.say(b"%d %d" % (read, size))

    while True:
        request = json.loads(channel.get())
        given = request["settings"]
        settings = AuditSettings(**{**given, "here": TargetSettings(**given["here"])})
        answer = Answer(audit_or_say(request["target"], settings, sha256=request["sha256"], heard=heard))
        channel.say(spoken(answer))
