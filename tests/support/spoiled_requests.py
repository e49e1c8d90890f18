"""Which requests to spoil, and what is said then."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import StorageError
from tests.support.fault_proxy import Seen

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def puts(seen: Seen) -> bool:
    return seen.method == "PUT"


def gets(seen: Seen) -> bool:
    return seen.method == "GET" and "list-type" not in seen.path


def begins(seen: Seen) -> bool:
    """Begins a multipart upload."""
    return seen.method == "POST" and "uploads" in seen.path


def ends(seen: Seen) -> bool:
    """Completes a multipart upload."""
    return seen.method == "POST" and "uploadId" in seen.path


def refusal(work: Callable[[], Any]) -> str:
    with pytest.raises(StorageError) as refused:
        work()
    (line,) = str(refused.value).splitlines()
    print(f"error: {line}")
    return line
