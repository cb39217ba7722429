"""How a Python process of ours is started, and how it hears from the one that started it and answers."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from typing import BinaryIO

_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def command(module: str, *homes: str) -> list[str]:
    """The command line that runs ``main()`` of a module; ``homes`` are folders of further packages that it imports.

    Without the working directory on ``sys.path``: what lies there must not stand in for a module.
    """
    code = f"import sys; sys.path[:1] = []; sys.path += sys.argv[1:]; from {module} import main; main()"
    return [sys.executable, "-c", code, _HOME, *homes]


class Channel:
    """In the child: the lines that the parent sends, and the answers to it.

    Answers go to the descriptor that was standard output; whatever code prints goes to standard error. The process ends
    when the parent closes its side.
    """

    def __init__(self) -> None:
        self._answers: BinaryIO = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(os.dup(0),), daemon=True).start()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)

    def get(self) -> bytes:
        """The next line of the parent."""
        return self._requests.get()

    def say(self, line: bytes) -> None:
        """Send a line."""
        self._answers.write(line + b"\n")
        self._answers.flush()

    def _listen(self, descriptor: int) -> None:
        """Queue each request; when the parent is gone, end this process and all that its targets started."""
        with os.fdopen(descriptor, "rb") as lines:
            for line in lines:
                self._requests.put(line)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(0)
