"""What goes wrong between this side and a cluster, told apart by exit code (those of sysexits.h).

A job's own failure is none of these: its exit code is handed on as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import PipelineError


class ConnectError(PipelineError):
    """Nobody answers: wrong address, no route, the head is away."""

    exit_code = 69  # EX_UNAVAILABLE


class BusyError(PipelineError):
    """Something else that is going on has to end first."""

    exit_code = 73  # EX_CANTCREAT


class LostError(PipelineError):
    """The job's driver or head died, and there is no attempt left."""

    exit_code = 75  # EX_TEMPFAIL: the same command may do it


class ProtocolError(PipelineError):
    """Somebody answers, but not what is expected: TLS, another service, another version."""

    exit_code = 76  # EX_PROTOCOL


class DeniedError(PipelineError):
    """No token, a wrong one, or no permission."""

    exit_code = 77  # EX_NOPERM


class Detached(KeyboardInterrupt):  # no error
    """Interrupted while a job was followed, which goes on."""

    def __init__(self, job: str) -> None:
        super().__init__(job)
        self.job = job


@contextmanager
def followed(job: str) -> Iterator[None]:
    """An interrupt in here leaves the job alone: Detached."""
    try:
        yield
    except KeyboardInterrupt:
        raise Detached(job) from None
