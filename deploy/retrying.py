"""Retries requests to a server that is unavailable for a while: a head or an API server that is being replaced."""

import time
from collections.abc import Callable
from typing import TypeVar

from deploy.errors import ConnectError

POLL_SECONDS = 2.0
_RETRY_SECONDS = 600.0

Say = Callable[[str], None]
Result = TypeVar("Result")


class Retrying:
    """Retries a request to the server at `address` while it is unavailable; each outage is reported once."""

    def __init__(self, address: str, say: Say) -> None:
        self._address, self._say = address, say

    def __call__(self, request: Callable[[], Result]) -> Result:
        """The result of `request`. ConnectError after ten minutes without an answer."""
        begin, reported = time.monotonic(), False
        while True:
            try:
                return request()
            except ConnectError:
                if time.monotonic() - begin > _RETRY_SECONDS:
                    raise
                if not reported:
                    self._say(f"no answer from {self._address}: retrying for up to {_RETRY_SECONDS:.0f} s")
                    reported = True
                time.sleep(POLL_SECONDS)
