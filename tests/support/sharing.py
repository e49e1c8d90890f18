"""How several processes share the tests (pytest-xdist): a file at a time, and all files of the API server to one."""

from functools import cache
from pathlib import Path

from xdist.scheduler import LoadFileScheduling

from tests.support import PROJECT

_SERVER = "api_server"


class SharedByServer(LoadFileScheduling):  # type: ignore[misc]  # xdist is untyped here
    """By file; the files that name the fixture `api_server` go to the same process, or each would start its own."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return _SERVER if _names_server(PROJECT / file) else file


@cache
def _names_server(file: Path) -> bool:
    return _SERVER in file.read_text()
