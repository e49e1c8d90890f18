"""docs/operations.md, read: its blocks of commands, for the tests that run them."""

import re
import shlex
from dataclasses import dataclass

from tests.support import PROJECT

TEXT = (PROJECT / "docs" / "operations.md").read_text()
NOT_RUN = "# not run here"
_WANTS_PODS = (
    r"^ *(helm|ray) |rollout|port-forward|kubectl .* (wait|logs|delete) |create job"
    r"|^python -m deploy (submit|rayjob(?!.*--render))"
)


@dataclass(frozen=True)
class Block:
    section: str
    language: str
    code: str

    @property
    def is_run(self) -> bool:
        """By one kind of tests or the other."""
        return self.language == "bash" and not self.code.startswith(NOT_RUN)

    @property
    def wants_pods(self) -> bool:
        """An API server alone does not do: the tests of a whole cluster run it."""
        return bool(re.search(_WANTS_PODS, self.code, re.MULTILINE))


def blocks() -> list[Block]:
    found, section = [], ""
    for part in re.finditer(r"^#{2,3} ([^\n]+)$|^( *)```(\w+)\n(.*?)\n\2```$", TEXT, re.MULTILINE | re.DOTALL):
        if part[1]:
            section = part[1]
        else:
            code = "\n".join(line.removeprefix(part[2]) for line in part[4].splitlines())
            found.append(Block(section, part[3], code))
    return found


def commands() -> list[list[str]]:
    """The words of every line of shell, its comments and continuations resolved."""
    lines = "\n".join(block.code for block in blocks() if block.language == "bash").replace("\\\n", " ")
    return [words for line in lines.splitlines() if (words := shlex.split(line, comments=True))]


def starting(*begin: str) -> list[list[str]]:
    return [words for words in commands() if words[: len(begin)] == list(begin)]
