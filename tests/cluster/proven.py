"""Whether the tests of a whole Kubernetes have passed on what is here: a digest of their subjects, and when they did.

`python -m tests.cluster.proven write` notes in `tests/cluster/proven` that they have, after a green
`make test-cluster`; `... due` says whether they have, with exit code 0 where they have to be run. Needs no package but
the standard library.
"""

import hashlib
import subprocess
import sys
from datetime import UTC, datetime

from tests.support import PROJECT

SUBJECTS = ("Dockerfile", "constraints.txt", "deploy", "docs/operations.md", "helm", "pipeline", "tests/cluster")
RECORD = PROJECT / "tests" / "cluster" / "proven"


def digest() -> str:
    """Over the path and the content of every file of the subjects that git tracks."""
    asked = ["git", "ls-files", "-z", "--", *SUBJECTS]
    listed = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    found = hashlib.sha256()
    for path in sorted(name for name in listed.split("\0") if name):
        if PROJECT / path != RECORD and (PROJECT / path).exists():
            content = hashlib.sha256((PROJECT / path).read_bytes()).hexdigest()
            found.update(f"{content} {path}\n".encode())
    return found.hexdigest()


def write() -> None:
    RECORD.write_text(f"{digest()} {datetime.now(UTC):%Y-%m-%d}\n")


def due() -> str | None:
    """Why the tests have to be run; None where they have passed on exactly this."""
    if not RECORD.exists():
        return "they have not passed yet"
    known, date = RECORD.read_text().split()
    return None if known == digest() else f"since {date}, when they passed, {', '.join(SUBJECTS)} have changed"


def main() -> None:
    if sys.argv[1:] == ["write"]:
        write()
        return
    reason = due()
    print(f"the tests of a whole Kubernetes are {f'due: {reason}' if reason else 'not due: they passed on this code'}")
    sys.exit(0 if reason else 1)


if __name__ == "__main__":
    main()
