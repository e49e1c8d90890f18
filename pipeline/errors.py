"""The errors that a user is meant to read: one line that says what is wrong, where, and what to do about it.

Everything else is a bug and keeps its traceback. The command line (`__main__`) turns these into exit codes.
"""


class PipelineError(Exception):
    """Something the user can put right. `what` names the thing and the place, `hint` what to do about it."""

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what.rstrip('.')}. {self.hint}" if self.hint else self.what


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
