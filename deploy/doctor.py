"""Is everything there that a run needs? One line a thing, green or red, each red with its hint. Changes nothing but a
file that it writes to the root and takes away again.

Each check stands alone: one that cannot be made is red and says why, and the others go on. Here are their order and
those of S3, MLflow and Ray; those of Kubernetes are `doctor_kubernetes`.
"""

import secrets
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version

import requests

from deploy import doctor_kubernetes as kubernetes
from deploy.errors import ConnectError, DeniedError
from deploy.findings import Check, Skipped, UnfitError
from deploy.jobs import Dashboard, reason, token
from deploy.kube import Kube
from deploy.rayjob import find_template
from deploy.submit import check_remote, check_tracking
from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.storage import Storage, open_storage
from pipeline.tracking import champion, tracking_uri

_SKEW_SECONDS = 30.0  # half of a lease's patience; S3 itself bears 15 minutes


def checks(
    kube: Kube | PipelineError, release: str | None, config: Config, address: str | None, nodes_on_demand: bool
) -> Iterator[Check]:
    """Every check, in the order in which things depend on each other."""
    yield from _place_checks(config)
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


# --- the place: S3, clock, MLflow, Ray ---


def _place_checks(config: Config) -> Iterator[Check]:
    yield "root", lambda: _root(config)
    yield "clock", lambda: _clock(config)
    yield "MLflow", lambda: _mlflow(config)


def _root(config: Config) -> str:
    """Write, write if absent, read, list and delete."""
    check_remote(config)
    storage, folder = open_storage(config.root), f".doctor/{secrets.token_hex(6)}"
    if storage.endpoint is not None:
        _answer(storage.endpoint, storage)  # at once: S3's own client would try for a minute
    path, data = f"{folder}/probe", secrets.token_bytes(64)
    if not storage.write_new(path, data) or storage.write_new(path, b"another"):
        raise UnfitError(
            f"{storage.root} does not keep conditional writes (If-None-Match)",
            "Manifests and leases rest on them: use a server that has them (AWS, Ceph, MinIO do).",
        )
    if storage.read(path) != data or [entry.path for entry in storage.list(folder)] != [path]:
        raise UnfitError(f"{storage.root} does not give back what was written", "Is there a cache in front of it?")
    storage.delete_folder(folder)
    return f"{storage.root}: written, read, listed, deleted"


def _answer(endpoint: str, storage: Storage) -> requests.Response:
    """What the storage's server says to somebody without a signature."""
    try:
        return requests.get(endpoint, timeout=10, allow_redirects=False, verify=storage.authority or True)
    except (requests.RequestException, OSError) as error:
        raise ConnectError(
            f"no S3 server answers at {endpoint} ({reason(error)})",
            "Correct AWS_ENDPOINT_URL, or AWS_CA_BUNDLE for TLS, or open the way.",
        ) from error


def _clock(config: Config) -> str:
    """This machine's clock against that of the S3 server."""
    storage = open_storage(config.root)
    if storage.endpoint is None:
        raise Skipped("the root is a folder")
    answer = _answer(storage.endpoint, storage)
    if "Date" not in answer.headers:
        raise Skipped(f"{answer.url} does not tell its time")
    skew = time.time() - parsedate_to_datetime(answer.headers["Date"]).timestamp()
    if abs(skew) > _SKEW_SECONDS:
        raise UnfitError(
            f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {answer.url}'s",
            "Set it by NTP: signatures and leases go by it.",
        )
    return f"within {_SKEW_SECONDS:.0f} s of {answer.url}'s"


def _mlflow(config: Config) -> str:
    check_tracking(config)
    uri = tracking_uri(config)
    version_there = champion(uri, config.register.name)
    named = f"version {version_there}" if version_there else "none yet"
    return f"{uri}: answers; champion of {config.register.name}: {named}"


def _ray(address: str | None) -> str:
    if address is None:
        raise Skipped("give --address to have it asked")
    there = Dashboard(address, token()).version()
    try:
        Dashboard(address, None).jobs()
    except DeniedError:
        pass
    else:
        raise UnfitError(
            f"{address} answers without a token", "Give the cluster authOptions.mode token: see the chart."
        )
    try:
        here = version("ray")
    except PackageNotFoundError:
        return f"{there} at {address}, which wants a token; no Ray here to compare with"
    if here != there:
        raise UnfitError(
            f"{address} runs Ray {there}, here is {here}", "Install the image's version here (`pip install -c ...`)."
        )
    return f"{there} at {address} and here; it wants a token"
