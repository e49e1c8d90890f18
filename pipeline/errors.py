"""The errors that a user is meant to read: one line that says what is wrong, where, and how to mend it.

Everything else is a bug and keeps its traceback. The command line (`__main__`) turns these into exit codes.
"""


class PipelineError(Exception):
    """Something the user can mend. `what` names the thing and the place, `mend` what to do about it."""

    exit_code = 1

    def __init__(self, what: str, mend: str = "") -> None:
        super().__init__(what, mend)
        self.what = what
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.what.rstrip('.')}. {self.mend}" if self.mend else self.what


class ConfigError(PipelineError):
    """The preset, an override or the site file is wrong; nothing has been started."""

    exit_code = 2


class DataError(PipelineError):
    """The source, or an image in it, cannot be used."""


class StorageError(PipelineError):
    """A file or object cannot be read or written: no permission, no space, no such bucket."""


class LeaseError(PipelineError):
    """Another driver owns the stage, or has taken it over from this one."""


class ContractError(PipelineError):
    """An input artifact is not what the stage needs, or does not match its own manifest."""
