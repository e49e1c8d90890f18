"""Prints a log over connections that may break. A new connection resends the log from its start; nothing repeats."""

from deploy.retrying import Say


class PrintOnce:
    """Passes to `echo` only the part of the log that has not been printed yet."""

    def __init__(self, echo: Say) -> None:
        self._echo = echo
        self._count = self._seen = 0

    def restart(self) -> None:
        """The next piece is the beginning of the log again."""
        self._seen = 0

    def __call__(self, piece: str) -> None:
        fresh = piece[max(0, self._count - self._seen) :]
        self._seen += len(piece)
        if fresh:
            self._echo(fresh)
            self._count += len(fresh)
