"""The errors meant for users: one line with the problem, its place and a hint. The command line sets the exit codes.

Any other exception is a bug and keeps its traceback.
"""


class PipelineError(Exception):
    """A problem that the user can fix. `what`: the problem and its place; `hint`: what to do, in the imperative."""

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what.rstrip('.')}. {self.hint}" if self.hint else self.what


class ConfigError(PipelineError):
    """The preset, an override or the site file is invalid; nothing has been started."""

    exit_code = 2


class DataError(PipelineError):
    """The source, or an image in it, cannot be used."""


class StorageError(PipelineError):
    """A file or object cannot be read or written: permission denied, disk full, bucket missing."""


class LeaseError(PipelineError):
    """Another driver holds the stage's lease."""


class ContractError(PipelineError):
    """An artifact does not match its manifest, or is not a valid input for the stage."""
