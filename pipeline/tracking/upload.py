"""Uploads files to an MLflow run; large ones in parts, straight to the bucket, by URLs that MLflow's server signs.

Through the server, a file lies on its disk until the bucket has it. So such an upload has a time limit that counts its
bytes, and is not repeated after one: the server may still be at work on the first.
"""

import hashlib
import math
import mimetypes
import os
import posixpath
import re
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

PART_BYTES = 32 * 1024**2  # S3 takes 10,000 parts of a file
_SENDERS = 4  # parts at once, each in memory
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS, _BYTES_PER_SECOND = 60.0, 1e6  # what takes longer, or is slower, counts as stuck
_BLOCK = 1024**2
_WITHOUT_SIGNING = (404, 405, 501)  # statuses of a server that knows no signed URLs, or has a store without them
_NOW_OR_LOGIN = (401, 408, 425, 429, 502, 503, 504)  # statuses that say nothing about signed URLs


class RunFiles:
    """Where the files of one MLflow run go. `say` receives a line if that is not the way it should be."""

    def __init__(self, client: Any, run_id: str, say: Callable[[str], None] = lambda _: None) -> None:
        self.place = str(client.get_run(run_id).info.artifact_uri)
        self._run_id, self._tracking_uri = run_id, str(client.tracking_uri)
        self._signs = os.environ.get("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "").lower() not in ("false", "0")
        self._is_shared = False  # a place that is a folder, between the server and this machine
        self._say = say

    @cached_property
    def _repository(self) -> Any:
        """MLflow's client of the place. An error if it has none for such a place, or that lacks a package or a login.

        This asks no server, so MLflow's exceptions, which elsewhere may mean that one is away, become ValueErrors.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        try:
            return get_artifact_repository(self.place, tracking_uri=self._tracking_uri)
        except MlflowException as error:
            raise ValueError(error.message) from error

    @property
    def _through_server(self) -> bool:
        from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

        return isinstance(self._repository, HttpArtifactRepository)

    def upload(self, path: Path, folder: str, progress: Callable[[int], None] = lambda _: None) -> None:
        """Upload a file into a folder of the run; `progress` receives the bytes that have been sent.

        Raises what MLflow's client, requests, or the client of the store raises.
        """
        if not self._through_server:
            self._repository.log_artifact(str(path), folder)
            self._check_arrival(path, folder)
        elif path.stat().st_size <= PART_BYTES or not self._upload_signed(path, folder, progress):
            self._upload_proxied(path, folder, progress)
        progress(path.stat().st_size)

    def _check_arrival(self, path: Path, folder: str) -> None:
        """ValueError for a file in a folder of this machine that the server does not find: it means one of its own."""
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.request_utils import augmented_raise_for_status
        from mlflow.utils.rest_utils import http_request

        local = isinstance(self._repository, LocalArtifactRepository)
        if self._is_shared or not local or not self._tracking_uri.startswith(("http://", "https://")):
            return
        answer = http_request(
            get_default_host_creds(self._tracking_uri),
            "/api/2.0/mlflow/artifacts/list",
            "GET",
            params={"run_id": self._run_id, "path": folder},
        )
        augmented_raise_for_status(answer)
        found = {entry["path"] for entry in answer.json().get("files", [])}
        self._is_shared = posixpath.join(folder, path.name) in found
        if not self._is_shared:
            (Path(self._repository.artifact_dir) / folder / path.name).unlink(missing_ok=True)
            raise ValueError(
                "that is a folder on the server's machine, which is not this one: start the server with "
                "--artifacts-destination, and take a new experiment"
            )

    def _upload_signed(self, path: Path, folder: str, progress: Callable[[int], None]) -> bool:
        """Whether the file was uploaded by signed URLs. Not if the server has none, or they do not work from here."""
        if not self._signs or (upload := self._begin(path, folder)) is None:
            return False
        before = self._stored_bytes(path, folder)
        try:
            parts = _send_parts(path, upload.credentials, progress)
        except BaseException as error:
            with suppress(Exception):  # not every store removes parts, and the error to tell is the first one
                self._repository.abort_multipart_upload(path.name, upload.upload_id, folder)
            if not isinstance(error, OSError):  # of requests
                raise
            self._signs = False
            self._say(
                f"MLflow's server signs uploads to {_host(upload.credentials[0].url)}, which does not take them from "
                f"here ({_reason(error)}): files go through the server."
            )
            return False
        try:
            self._repository.complete_multipart_upload(path.name, upload.upload_id, parts, folder)
        except Exception:  # which counts for nothing if the file is there now: the answer may have been lost
            size = path.stat().st_size
            if before == size or self._stored_bytes(path, folder) != size:
                raise
        return True

    def _begin(self, path: Path, folder: str) -> Any | None:
        """The signed URLs of a file's parts; None if there are none: the file then goes through the server."""
        from mlflow.exceptions import MlflowException
        from requests import HTTPError

        count = math.ceil(path.stat().st_size / PART_BYTES)
        try:
            return self._repository.create_multipart_upload(path.name, count, folder)
        except (HTTPError, MlflowException) as error:
            status = _status(error)
            if status is None or status in _NOW_OR_LOGIN:
                raise
            if status not in _WITHOUT_SIGNING:
                self._say(f"MLflow's server cannot sign uploads to its store (status {status}): files go through it.")
            self._signs = False
            return None

    def _stored_bytes(self, path: Path, folder: str) -> int | None:
        """The size of what the store has under the file's name; None if it has nothing."""
        sizes = {entry.path: entry.file_size for entry in self._repository.list_artifacts(folder)}
        size: int | None = sizes.get(posixpath.join(folder, path.name))
        return size

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
    """A file as a request's body, read in blocks, and again from its start if the request is redirected."""

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

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))


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
    """PUT a part, again after passing failures; the store checks its MD5. Returns its ETag, "" at a store without."""
    from requests import Session
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    retry = Retry(5, connect=1, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None, backoff_factor=0.5)
    md5 = b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()
    with Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        answer = session.put(
            url,
            data=part,
            headers={**headers, "Content-MD5": md5},
            auth=lambda request: request,  # the URL is signed: no login of ~/.netrc besides
            verify=os.environ.get("AWS_CA_BUNDLE") or True,  # as boto, which knows this bucket; else as requests
            timeout=(_CONNECT_SECONDS, seconds_for(len(part))),
        )
    answer.raise_for_status()
    return str(answer.headers.get("ETag", ""))


def _status(error: Exception) -> int | None:
    """The HTTP status of an answer that MLflow's client has raised as an error; None if there was no answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status
    found = re.search(r"too many (\d{3}) error responses", str(error))  # of urllib3, after its retries
    return int(found[1]) if found else None


def _host(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])


def _reason(error: OSError) -> str:
    """Without the URL, whose query is a password for an hour."""
    if (status := _status(error)) is not None:
        return f"status {status}"
    cause = getattr(error, "args", ("",))[0]
    return type(getattr(cause, "reason", cause) or error).__name__
