"""Checks whether everything that a run needs is available: one line per check, with a hint if it failed.

The checks are independent: one that cannot be run counts as failed, and the others still run. The only change they
make is a probe file below the root, which is deleted again. This file has the order of the checks and those of S3,
MLflow and Ray; the Kubernetes checks are in `doctor_kubernetes`.
"""

import secrets
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version

import requests

from deploy import doctor_kubernetes as kubernetes
from deploy.errors import ConnectError, DeniedError
from deploy.findings import Check, CheckFailedError, Skipped
from deploy.jobs import Dashboard, reason, token
from deploy.kube import Kube
from deploy.rayjob import find_template
from deploy.submit import check_remote, check_tracking
from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.storage import Storage, open_storage
from pipeline.tracking import champion, tracking_uri

_SKEW_SECONDS = 30.0  # half of the lease timeout; S3 itself tolerates 15 minutes


def checks(
    kube: Kube | PipelineError, release: str | None, config: Config, address: str | None, nodes_on_demand: bool
) -> Iterator[Check]:
    """Every check, in order of dependency."""
    yield from _service_checks(config)
    yield "Ray", lambda: _ray(address)
    if isinstance(kube, PipelineError):
        unreachable = kube
        yield "Kubernetes", lambda: _raise(unreachable)
        return
    yield "Kubernetes", lambda: f"{kube.version()} at {kube.address}"
    yield "KubeRay's CRDs", lambda: kubernetes.crds(kube)
    yield "KubeRay's operator", lambda: kubernetes.operator(kube)
    try:
        template = find_template(kube, release)
    except PipelineError as error:
        missing = error
        yield "the chart", lambda: _raise(missing)
        return
    instance = template["metadata"]["labels"]["app.kubernetes.io/instance"]
    spec = template["spec"]["rayClusterSpec"]
    yield "the chart", lambda: f"release {instance} in {kube.namespace}, Ray {spec['rayVersion']}"
    yield "Secrets", lambda: kubernetes.secrets(kube, instance, spec)
    yield "volumes", lambda: kubernetes.volumes(kube, instance, spec)
    for group in spec["workerGroupSpecs"]:
        yield f"nodes for {group['groupName']}", lambda group=group: kubernetes.nodes(kube, group, nodes_on_demand)  # type: ignore[misc]
    yield "queue", lambda: kubernetes.queue(kube, template)
    yield "Ray cluster", lambda: kubernetes.cluster(kube, instance)
    yield "pods", lambda: kubernetes.pods(kube, instance)


def _raise(error: PipelineError) -> str:
    raise error


# --- S3, clock, MLflow, Ray ---


def _service_checks(config: Config) -> Iterator[Check]:
    yield "root", lambda: _root(config)
    yield "clock", lambda: _clock(config)
    yield "MLflow", lambda: _mlflow(config)


def _root(config: Config) -> str:
    """Write, write if absent, read, list and delete a probe file."""
    check_remote(config)
    storage, folder = open_storage(config.root), f".doctor/{secrets.token_hex(6)}"
    if storage.endpoint is not None:
        _answer(storage.endpoint, storage)  # fails at once: the S3 client would retry for a minute
    path, data = f"{folder}/probe", secrets.token_bytes(64)
    if not storage.write_new(path, data) or storage.write_new(path, b"another"):
        raise CheckFailedError(
            f"{storage.root} does not support conditional writes (If-None-Match)",
            "Use an S3 server that supports them (AWS, Ceph, MinIO): manifests and leases require them.",
        )
    if storage.read(path) != data or [entry.path for entry in storage.list(folder)] != [path]:
        raise CheckFailedError(
            f"{storage.root} does not return what was written", "Remove any cache in front of the server."
        )
    storage.delete_folder(folder)
    return f"{storage.root}: written, read, listed, deleted"


def _answer(endpoint: str, storage: Storage) -> requests.Response:
    """The storage server's answer to an unsigned request."""
    try:
        return requests.get(endpoint, timeout=10, allow_redirects=False, verify=storage.authority or True)
    except (requests.RequestException, OSError) as error:
        raise ConnectError(
            f"no S3 server answers at {endpoint} ({reason(error)})",
            "Correct AWS_ENDPOINT_URL, or AWS_CA_BUNDLE for TLS, or allow the connection in the firewall.",
        ) from error


def _clock(config: Config) -> str:
    """This machine's clock against that of the S3 server."""
    storage = open_storage(config.root)
    if storage.endpoint is None:
        raise Skipped("the root is a local folder")
    answer = _answer(storage.endpoint, storage)
    if "Date" not in answer.headers:
        raise Skipped(f"{answer.url} sends no Date header")
    skew = time.time() - parsedate_to_datetime(answer.headers["Date"]).timestamp()
    if abs(skew) > _SKEW_SECONDS:
        raise CheckFailedError(
            f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {answer.url}'s",
            "Synchronise it by NTP: signatures and leases depend on it.",
        )
    return f"within {_SKEW_SECONDS:.0f} s of {answer.url}'s"


def _mlflow(config: Config) -> str:
    check_tracking(config)
    uri = tracking_uri(config)
    champion_version = champion(uri, config.register.name)
    named = f"version {champion_version}" if champion_version else "none yet"
    return f"{uri}: answers; champion of {config.register.name}: {named}"


def _ray(address: str | None) -> str:
    if address is None:
        raise Skipped("give --address to check it")
    remote = Dashboard(address, token()).version()
    try:
        Dashboard(address, None).jobs()
    except DeniedError:
        pass
    else:
        raise CheckFailedError(
            f"{address} answers without a token", "Set authOptions.mode to token on the RayCluster, as the chart does."
        )
    try:
        local = version("ray")
    except PackageNotFoundError:
        return f"{remote} at {address}, which requires a token; Ray is not installed here to compare versions"
    if local != remote:
        raise CheckFailedError(
            f"{address} runs Ray {remote}, but Ray {local} is installed here",
            "Install the image's version here (`pip install -c constraints.txt .`).",
        )
    return f"{remote} at {address} and here; it requires a token"
