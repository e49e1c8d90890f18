"""Retries requests to a server that is unavailable for a while: a head or an API server that is being replaced."""

import time
from collections.abc import Callable
from typing import TypeVar

from deploy.errors import ConnectError, StrangerError

POLL_SECONDS = 2.0
_RETRY_SECONDS = 600.0

Say = Callable[[str], None]
Result = TypeVar("Result")


class Retrying:
    """Retries a request to the server at `address` while it, or something else in its place, gives no answer to it.

    To be used once the server itself has answered. Each outage is reported once, and who answers instead.
    """

    def __init__(self, address: str, say: Say) -> None:
        self._address, self._say = address, say

    def __call__(self, request: Callable[[], Result]) -> Result:
        """The result of `request`. ConnectError or StrangerError after ten minutes without an answer."""
        begin, reported = time.monotonic(), set[str]()
        while True:
            try:
                return request()
            except (ConnectError, StrangerError) as error:
                if time.monotonic() - begin > _RETRY_SECONDS:
                    raise
                why = error.what if isinstance(error, StrangerError) else f"no answer from {self._address}"
                if why not in reported:
                    self._say(f"{why}: retrying for up to {_RETRY_SECONDS:.0f} s")
                    reported.add(why)
                time.sleep(POLL_SECONDS)
