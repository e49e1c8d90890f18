"""What the command lines share: the options that many commands know, where they print, and errors as one line.

`python -m pipeline` and `python -m deploy` are made of it. No command is here.
"""

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, PipelineError
from pipeline.storage import storage_error

Preset = Annotated[str, typer.Argument(help="A preset's name or a YAML file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a field: a.b=c. Repeatable.")]
Root = Annotated[str | None, typer.Option("--root", help="Where artifacts lie: a path, file:// or s3://.")]
SomePreset = Annotated[str | None, typer.Argument(help="A preset: whose root to look at.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show Ray's output, and tracebacks.")]


console = Console()


def root_config(preset: str | None, set_: list[str] | None, root: str | None) -> Config:
    """The config of a preset, or the defaults and the site file where none is named: what matters is the root."""
    return load_config(preset or "quickstart", set_, root)


def run_app(app: typer.Typer) -> None:
    """Run the command in sys.argv; what a user can put right is one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # started in a script's background, a process finds it ignored
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer hands an interrupt back instead of raising it
            raise KeyboardInterrupt
    except typer.Exit as stop:
        raise SystemExit(stop.exit_code) from None
    except (typer.Abort, KeyboardInterrupt):
        Console(stderr=True).print("interrupted: the same command goes on where this one stopped", highlight=False)
        raise SystemExit(130) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own: a wrong option or argument
            if not error.format_message():  # no argument at all: the help was printed
                raise SystemExit(2) from None
            _refuse(ConfigError(str(error.format_message()), "`--help` says what there is."))
        if debug:
            raise
        if isinstance(error, PipelineError):
            _refuse(error)
        if isinstance(error, OSError) and error.errno is not None:
            _refuse(storage_error(error))
        text = " ".join(str(error).split())[:300]
        _refuse(PipelineError(f"{type(error).__name__}: {text}", "This is a bug: run with --debug for the traceback."))
    finally:
        sys.stdout.flush()
        os.environ.pop("RAY_AUTH_TOKEN", None)


def _refuse(error: PipelineError) -> NoReturn:
    line = escape(" ".join(str(error).split()))  # a path may hold [brackets]
    Console(stderr=True).print(f"[red]error:[/] {line}", highlight=False, soft_wrap=True)
    raise SystemExit(error.exit_code)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise KeyboardInterrupt
