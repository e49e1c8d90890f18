"""What a check of `doctor` comes to: a finding, made of what it returns or raises."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.errors import PipelineError


@dataclass(frozen=True)
class Finding:
    """How one thing stands. `good` is None for what was not looked at."""

    what: str
    good: bool | None
    text: str
    hint: str = ""


class UnfitError(PipelineError):
    """Something is not as it has to be."""


class Skipped(Exception):  # noqa: N818  # it is none
    """The check was not asked for, or what it looks at is not used here."""


Check = tuple[str, Callable[[], str]]  # its name, and what says how it stands or raises PipelineError


def look(checks: Iterator[Check]) -> Iterator[Finding]:
    """Make them, one after the other."""
    for what, check in checks:
        try:
            yield Finding(what, True, check())
        except Skipped as skipped:
            yield Finding(what, None, str(skipped))
        except PipelineError as error:
            yield Finding(what, False, error.what, error.hint)
        except Exception as error:  # the other checks are worth as much
            yield Finding(
                what, False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "This is a bug."
            )
