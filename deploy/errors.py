"""Errors between this machine and a cluster, each with its exit code (as in sysexits.h).

A job that fails is not an error here: its own exit code is returned unchanged.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import PipelineError


class ConnectError(PipelineError):
    """The server is unavailable: wrong address, no route, head restarting."""

    exit_code = 69  # EX_UNAVAILABLE


class BusyError(PipelineError):
    """A conflicting job is running and must end first."""

    exit_code = 73  # EX_CANTCREAT


class LostError(PipelineError):
    """The job's driver or head died, and no attempt is left."""

    exit_code = 75  # EX_TEMPFAIL: the same command may succeed


class ProtocolError(PipelineError):
    """The server is incompatible: TLS, another service, another version."""

    exit_code = 76  # EX_PROTOCOL


class StrangerError(ProtocolError):
    """Something else answers in a dashboard's place: a login page, a proxy, another service."""


class DeniedError(PipelineError):
    """The token is missing or wrong, or permission is denied."""

    exit_code = 77  # EX_NOPERM


class Detached(KeyboardInterrupt):  # not an error
    """Interrupted while following a job, which keeps running."""

    def __init__(self, job: str) -> None:
        super().__init__(job)
        self.job = job


@contextmanager
def detach_on_interrupt(job: str) -> Iterator[None]:
    """Turn an interrupt inside the block into Detached: the job is not stopped."""
    try:
        yield
    except KeyboardInterrupt:
        raise Detached(job) from None


@contextmanager
def keeps_running(job: str) -> Iterator[None]:
    """Add to an error inside the block that the job goes on without this client."""
    try:
        yield
    except PipelineError as error:
        hint = f"{error.hint} {job} keeps running meanwhile: the same command attaches to it again."
        raise type(error)(error.what, hint.strip()) from error
