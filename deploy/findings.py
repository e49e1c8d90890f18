"""Runs the checks of `doctor` and turns what each returns or raises into a finding."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.errors import PipelineError


@dataclass(frozen=True)
class Finding:
    """The result of one check. `good` is None if it was skipped."""

    what: str
    good: bool | None
    text: str
    hint: str = ""


class CheckFailedError(PipelineError):
    """A check found a problem."""


class Skipped(Exception):  # noqa: N818  # not an error
    """The check was not requested, or what it examines is not used here."""


Check = tuple[str, Callable[[], str]]  # its name, and a function that returns a description or raises PipelineError


def run_checks(checks: Iterator[Check]) -> Iterator[Finding]:
    """Run the checks one after the other."""
    for what, check in checks:
        try:
            yield Finding(what, True, check())
        except Skipped as skipped:
            yield Finding(what, None, str(skipped))
        except PipelineError as error:
            yield Finding(what, False, error.what, error.hint)
        except Exception as error:  # the other checks must still run
            yield Finding(
                what, False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "Report this as a bug."
            )
