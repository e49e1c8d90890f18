"""Our own commands as they are written down elsewhere (documents, workflows), read by the command line itself."""

from typing import Any

import typer

from deploy.__main__ import app as deploy
from pipeline.cli.app import app as pipeline


def parsed(words: list[str]) -> Any:
    """What follows `python -m`, as the command would be given it; nothing is run.

    click's error for an option that does not exist or is missing, LookupError for a command.
    """
    command: Any = typer.main.get_command({"deploy": deploy, "pipeline": pipeline}[words[0]])
    names, rest = [words[0]], words[1:]
    while hasattr(command, "commands"):
        if rest[0] not in command.commands:
            raise LookupError(f"{' '.join(names)} has no command {rest[0]}")
        names.append(rest[0])
        command, rest = command.commands[rest[0]], rest[1:]
    return command.make_context(" ".join(names), list(rest))
