"""Shared parts of the command lines of `pipeline` and `deploy`: common options, console, one-line errors.

No command is defined here.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn
from urllib.parse import unquote

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, PipelineError
from pipeline.storage import storage_error

Preset = Annotated[str, typer.Argument(help="A preset's name or a YAML file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a field: a.b=c. Repeatable.")]
Root = Annotated[str | None, typer.Option("--root", help="Location of the artifacts: a path, file:// or s3://.")]
SomePreset = Annotated[str | None, typer.Argument(help="Preset whose root is used.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Expect = Annotated[
    str | None, typer.Option("--expect", help="Fail unless the (last) stage's fingerprint begins with this.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for a stage that another run is at, and use what it makes.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show Ray's output and tracebacks.")]


def local_folder(value: str | Path) -> Path:
    """The parser of an option that is a folder here: a path, or file:///PATH. ConfigError for another URI."""
    return _local_path(str(value), "folder")


def local_file(value: str | Path) -> Path:
    """The same of an option that is a file."""
    return _local_path(str(value), "file")


def _local_path(given: str, what: str) -> Path:
    if given.startswith("file:///"):
        return Path(unquote(given.removeprefix("file://")))
    if "://" in given or not given:
        raise ConfigError(f"'{given}' is no local {what}", "Give a path, or file:///PATH.")
    return Path(given).expanduser()


console = Console()


def root_config(preset: str | None, set_: list[str] | None, root: str | None) -> Config:
    """The config of a preset, by default of the quickstart, for commands that use only its root and tracking."""
    return load_config(preset or "quickstart", set_, root)


def run_app(app: typer.Typer) -> None:
    """Run the command in sys.argv; errors are printed as one line on stderr and set the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # in a background process of a script it is ignored by default
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer returns 130 on an interrupt instead of raising it
            raise KeyboardInterrupt
    except typer.Exit as stop:
        raise SystemExit(stop.exit_code) from None
    except (typer.Abort, KeyboardInterrupt):
        Console(stderr=True).print("interrupted: run the same command again to resume", highlight=False)
        raise SystemExit(130) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # from click: a wrong option or argument
            if not error.format_message():  # no arguments: the help was printed
                raise SystemExit(2) from None
            _exit_with(ConfigError(str(error.format_message()), "See --help."))
        if debug:
            raise
        if isinstance(error, PipelineError):
            _exit_with(error)
        if isinstance(error, OSError) and error.errno is not None:
            _exit_with(storage_error(error))
        text = " ".join(str(error).split())[:300]
        _exit_with(PipelineError(f"{type(error).__name__}: {text}", "Report this bug with the traceback of --debug."))
    finally:
        sys.stdout.flush()
        os.environ.pop("RAY_AUTH_TOKEN", None)


def _exit_with(error: PipelineError) -> NoReturn:
    line = escape(" ".join(str(error).split()))  # a path may contain [brackets]
    Console(stderr=True).print(f"[red]error:[/] {line}", highlight=False, soft_wrap=True)
    raise SystemExit(error.exit_code)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise KeyboardInterrupt
