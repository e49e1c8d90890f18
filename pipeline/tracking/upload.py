"""Uploads files to an MLflow run; large ones in parts, straight to the bucket, by URLs that MLflow's server signs.

Through the server, a file lies on its disk until the bucket has it. So such an upload has a time limit that counts its
bytes, and is not repeated after one: the server may still be at work on the first.
"""

import hashlib
import math
import mimetypes
import os
import posixpath
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PART_BYTES = 32 * 1024**2  # S3 takes 10,000 parts of a file
_SENDERS = 4  # parts at once, each in memory
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS, _BYTES_PER_SECOND = 60.0, 1e6  # what takes longer, or is slower, counts as stuck
_BLOCK = 1024**2


class RunFiles:
    """Where the files of one MLflow run go. `say` receives a line if that is not the way it should be."""

    def __init__(self, client: Any, run_id: str, say: Callable[[str], None] = lambda _: None) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

        self.place = str(client.get_run(run_id).info.artifact_uri)
        self._repository = get_artifact_repository(self.place, tracking_uri=client.tracking_uri)
        self._through_server = isinstance(self._repository, HttpArtifactRepository)
        self._signs = os.environ.get("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "").lower() not in ("false", "0")
        self._say = say

    def upload(self, path: Path, folder: str, progress: Callable[[int], None] = lambda _: None) -> None:
        """Upload a file into a folder of the run; `progress` receives the bytes that have been sent.

        Raises what MLflow's client, requests, or the client of the store raises.
        """
        if not self._through_server:
            self._repository.log_artifact(str(path), folder)
        elif path.stat().st_size <= PART_BYTES or not self._upload_signed(path, folder, progress):
            self._upload_proxied(path, folder, progress)
        progress(path.stat().st_size)

    def _upload_signed(self, path: Path, folder: str, progress: Callable[[int], None]) -> bool:
        """Whether the file was uploaded by signed URLs. Not if the server has none, or they do not work from here."""
        if not self._signs or (upload := self._begin(path, folder)) is None:
            return False
        try:
            parts = _send_parts(path, upload.credentials, progress)
        except OSError as error:  # of requests
            self._repository.abort_multipart_upload(path.name, upload.upload_id, folder)
            self._signs = False
            self._say(
                f"MLflow's server signs uploads to {_host(upload.credentials[0].url)}, which does not take them from "
                f"here ({_reason(error)}): files go through the server."
            )
            return False
        self._finish(path, folder, upload.upload_id, parts)
        return True

    def _begin(self, path: Path, folder: str) -> Any | None:
        """The signed URLs of a file's parts; None if the server, or the store behind it, has no such uploads."""
        from requests import HTTPError

        count = math.ceil(path.stat().st_size / PART_BYTES)
        try:
            return self._repository.create_multipart_upload(path.name, count, folder)
        except HTTPError as error:
            if error.response is None or error.response.status_code not in (404, 405, 501):
                raise
            self._signs = False
            return None

    def _finish(self, path: Path, folder: str, upload_id: str, parts: list[Any]) -> None:
        """Have the parts put together. An error counts for nothing if they are: its answer may have been lost."""
        try:
            self._repository.complete_multipart_upload(path.name, upload_id, parts, folder)
        except Exception:
            sizes = {entry.path: entry.file_size for entry in self._repository.list_artifacts(folder)}
            if sizes.get(posixpath.join(folder, path.name)) != path.stat().st_size:
                raise

    def _upload_proxied(self, path: Path, folder: str, progress: Callable[[int], None]) -> None:
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.request_utils import augmented_raise_for_status
        from mlflow.utils.rest_utils import http_request

        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        with path.open("rb") as file:
            answer = http_request(
                get_default_host_creds(self._repository.artifact_uri),
                posixpath.join("/", folder, path.name),
                "PUT",
                data=_Reader(file, path.stat().st_size, progress),
                extra_headers={"Content-Type": kind},
                timeout=(_CONNECT_SECONDS, seconds_for(path.stat().st_size)),
                max_retries=0,
                raise_on_status=False,
            )
        augmented_raise_for_status(answer)


def seconds_for(size: int) -> float:
    """How long an answer to an upload of `size` bytes may take before it counts as stuck."""
    return _ANSWER_SECONDS + size / _BYTES_PER_SECOND


class _Reader:
    """A file as a request's body, read in blocks."""

    def __init__(self, file: Any, size: int, progress: Callable[[int], None]) -> None:
        self._file, self._size, self._progress = file, size, progress

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while block := self.read(_BLOCK):
            yield block

    def read(self, size: int = -1) -> bytes:
        block: bytes = self._file.read(size)
        self._progress(self._file.tell())
        return block


def _send_parts(path: Path, credentials: list[Any], progress: Callable[[int], None]) -> list[Any]:
    """Send the parts to their URLs, some at once. The first failure ends it."""
    from mlflow.entities.multipart_upload import MultipartUploadPart

    lock, sent = threading.Lock(), 0

    def send(credential: Any) -> Any:
        nonlocal sent
        part = _part(path, credential.part_number)
        etag = _put(credential.url, credential.headers, part)
        with lock:
            sent += len(part)
            progress(sent)
        return MultipartUploadPart(credential.part_number, etag, credential.url)

    with ThreadPoolExecutor(_SENDERS) as pool:
        futures = [pool.submit(send, credential) for credential in credentials]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _part(path: Path, number: int) -> bytes:
    """A part's bytes; numbers begin at 1."""
    with path.open("rb") as file:
        file.seek((number - 1) * PART_BYTES)
        return file.read(PART_BYTES)


def _put(url: str, headers: dict[str, str], part: bytes) -> str:
    """PUT a part, again after passing failures; the store checks its MD5. Returns its ETag."""
    from requests import Session
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    retry = Retry(5, connect=1, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None, backoff_factor=0.5)
    md5 = b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()
    with Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        answer = session.put(
            url, data=part, headers={**headers, "Content-MD5": md5}, timeout=(_CONNECT_SECONDS, seconds_for(len(part)))
        )
    answer.raise_for_status()
    return str(answer.headers.get("ETag", ""))  # without one, the completion fails


def _host(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])


def _reason(error: OSError) -> str:
    """Without the URL, whose query is a password for an hour."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"status {status}"
    cause = getattr(error, "args", ("",))[0]
    return type(getattr(cause, "reason", cause) or error).__name__
