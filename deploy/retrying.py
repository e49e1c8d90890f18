"""Waiting for a server that is away for a while: a head or an API server that is being replaced."""

import time
from collections.abc import Callable
from typing import TypeVar

from deploy.errors import ConnectError

POLL_SECONDS = 2.0
_RETRY_SECONDS = 600.0

Say = Callable[[str], None]
Result = TypeVar("Result")


class Retrying:
    """Asks the server at `address`, again and again while nobody answers, and says so once each time."""

    def __init__(self, address: str, say: Say) -> None:
        self._address, self._say = address, say

    def __call__(self, question: Callable[[], Result]) -> Result:
        """The answer. ConnectError when nobody has answered for ten minutes."""
        begin, told = time.monotonic(), False
        while True:
            try:
                return question()
            except ConnectError:
                if time.monotonic() - begin > _RETRY_SECONDS:
                    raise
                if not told:
                    self._say(f"no answer from {self._address}: waiting up to {_RETRY_SECONDS:.0f} s for it")
                    told = True
                time.sleep(POLL_SECONDS)
