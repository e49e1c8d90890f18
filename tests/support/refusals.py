"""Command lines that end early, run in this process: what a process of their own would cost is its imports."""

import io
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from unittest import mock

import pytest


def refusal(main: Callable[[], None], words: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and stderr, which is one line and no traceback."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    error = io.StringIO()
    arguments = mock.patch("sys.argv", ["dvae", *words])
    with arguments, mock.patch.dict(os.environ, environment), redirect_stderr(error), pytest.raises(SystemExit) as stop:
        main()
    for number, handler in handlers.items():  # the command line has set its own
        signal.signal(number, handler)
    assert error.getvalue().count("\n") == 1, error.getvalue()
    return int(stop.value.code or 0), error.getvalue()
