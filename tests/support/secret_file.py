"""Files with tokens and keys: nobody else may read them, not even while they are written."""

import os
from pathlib import Path


def write_secret(path: Path, content: str | bytes) -> None:
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(number, 0o600)  # of a file that was there before
    with open(number, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
