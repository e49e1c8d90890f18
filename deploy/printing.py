"""Printing a log whose connection may be cut: a new one tells everything from the beginning, which is printed once."""

from deploy.retrying import Say


class PrintOnce:
    """Hands on to `echo` what has not been handed on yet."""

    def __init__(self, echo: Say) -> None:
        self._echo = echo
        self._count = self._seen = 0

    def again(self) -> None:
        """What comes now is the log from its beginning."""
        self._seen = 0

    def __call__(self, piece: str) -> None:
        fresh = piece[max(0, self._count - self._seen) :]
        self._seen += len(piece)
        if fresh:
            self._echo(fresh)
            self._count += len(fresh)
