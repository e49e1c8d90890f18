"""A client of one Kubernetes namespace: read objects and logs, create, watch and delete RayJobs.

Errors of the API are turned into one-line messages here. The meaning of a RayJob's fields is in `rayjob.py`.
"""

import codecs
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yaml import YAMLError

from deploy.errors import ConnectError, DeniedError, ProtocolError
from deploy.retrying import POLL_SECONDS, Retrying, Say
from pipeline.errors import ConfigError

Object = dict[str, Any]

_SECONDS = 20.0  # timeout of one request
_WATCH_SECONDS = 20  # then read the object again: why it waits is visible only in other objects
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_IMAGE = "Correct image.repository and image.tag (or image.digest), or give image.pullSecrets."
_STUCK = {  # waiting reason that does not resolve by itself -> hint
    "ImagePullBackOff": _IMAGE,
    "ErrImagePull": _IMAGE,
    "ErrImageNeverPull": _IMAGE,
    "InvalidImageName": _IMAGE,
    "CreateContainerConfigError": "Create what is missing; the pod then starts by itself.",
    "CrashLoopBackOff": "See its log: `kubectl logs --previous`.",
}
_RAY = {"group": "ray.io", "version": "v1"}
_GRANTED = ("RayJobs", "configmaps", "pods", "workloads")  # by the chart's role for submitters
KUEUE_VERSIONS = ("v1beta2", "v1beta1")  # the first one that the cluster has is used


class Kube:
    """The cluster of the kubeconfig's context (KUBECONFIG, ~/.kube/config), or the cluster that this pod runs in.

    Each call raises ConnectError, DeniedError or ProtocolError.
    """

    def __init__(self, namespace: str | None = None, context: str | None = None) -> None:
        from kubernetes import client, config

        settings = client.Configuration()
        settings.retries = False  # else urllib3 retries silently
        try:
            if _is_inside(context):
                config.load_incluster_config(settings)
            else:
                with _login_failures():
                    config.load_kube_config(os.environ.get("KUBECONFIG") or None, context, settings)
            self.namespace = namespace or _namespace(context)
        except (config.ConfigException, OSError, YAMLError, TypeError, ValueError) as error:
            raise ConfigError(
                f"no usable kubeconfig ({_one_line(f'{type(error).__name__}: {error}')})",
                "Set KUBECONFIG to a kubeconfig, and choose a context with --context.",
            ) from error
        check_name("--namespace", self.namespace)
        _strip_tokens(settings)
        self.client = client.ApiClient(settings)
        self.address = str(settings.host)
        self.core = client.CoreV1Api(self.client)
        self._objects = client.CustomObjectsApi(self.client)

    def version(self) -> str:
        from kubernetes import client

        with self._translated_errors("the version"):
            return str(client.VersionApi(self.client).get_code(_request_timeout=_SECONDS).git_version)

    def objects(self, path: str, **query: str) -> list[Object]:
        """The objects below an API path such as /api/v1/nodes, as parsed JSON."""
        with self._translated_errors(path.rpartition("/")[2]):
            return list(self._ask(path, **query).get("items", []))

    def get(self, path: str) -> Object | None:
        """One object by its API path; None if it does not exist."""
        from kubernetes.client import ApiException

        with self._translated_errors(path.rpartition("/")[2]):
            try:
                return self._ask(path)
            except ApiException as error:
                if error.status == 404:
                    return None
                raise

    def _ask(self, path: str, **query: str) -> Object:
        request = self.client.param_serialize(
            "GET", path, query_params=list(query.items()), auth_settings=["BearerToken"]
        )
        answer = self.client.call_api(*request, _request_timeout=_SECONDS)
        answer.read()
        parsed = self.client.response_deserialize(answer, {"2XX": "object", "4XX": "object", "5XX": "object"})
        content: Object = parsed.data
        return content

    def rayjobs(self, selector: str) -> list[Object]:
        with self._translated_errors("RayJobs"):
            answer = self._objects.list_namespaced_custom_object(
                **_RAY, namespace=self.namespace, plural="rayjobs", label_selector=selector, _request_timeout=_SECONDS
            )
        return list(answer["items"])

    def create_rayjob(self, job: Object) -> bool:
        """False if a RayJob of this name exists already."""
        from kubernetes.client import ApiException

        with self._translated_errors("RayJobs"):
            try:
                self._objects.create_namespaced_custom_object(
                    **_RAY, namespace=self.namespace, plural="rayjobs", body=job, field_validation="Strict",
                    _request_timeout=_SECONDS,
                )  # fmt: skip
            except ApiException as error:
                if error.status == 409:
                    return False
                raise
        return True

    def delete_rayjob(self, name: str) -> None:
        """Delete the RayJob and its cluster; no error if it does not exist."""
        from kubernetes.client import ApiException

        with self._translated_errors("RayJobs"):
            try:
                self._objects.delete_namespaced_custom_object(
                    **_RAY, namespace=self.namespace, plural="rayjobs", name=name, _request_timeout=_SECONDS
                )
            except ApiException as error:
                if error.status != 404:
                    raise

    def watch_rayjob(self, name: str, say: Say) -> Iterator[Object]:
        """Yields the RayJob now and after every change, and also every 20 s without one, until it is deleted.

        A watch that breaks, or whose resource version is too old (410), is restarted; an API server that is unavailable
        is retried.
        """
        ask = Retrying(self.address, say)
        while True:
            job = ask(lambda: self._rayjob(name))
            if job is None:
                return
            yield job
            try:
                for event in self._events(name, job["metadata"]["resourceVersion"]):
                    if event["type"] == "DELETED":
                        return
                    yield event["object"]
            except ConnectError:
                time.sleep(POLL_SECONDS)  # the next `ask` retries

    def log(self, pod: str) -> Iterator[str]:
        """A pod's log from its start, in pieces as it arrives."""
        with self._translated_errors(f"log of {pod}"):
            answer = self.core.read_namespaced_pod_log(pod, self.namespace, follow=True, _preload_content=False)
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            for piece in answer.stream(decode_content=True):
                yield decoder.decode(piece)

    def is_running(self, pod: str) -> bool:
        """False if it has ended or does not exist."""
        found = self.objects(f"/api/v1/namespaces/{self.namespace}/pods", fieldSelector=f"metadata.name={pod}")
        return any(one.get("status", {}).get("phase") == "Running" for one in found)

    def _events(self, name: str, version: str) -> Iterator[Object]:
        from kubernetes import watch
        from kubernetes.client import ApiException

        with self._translated_errors("RayJobs"):
            try:
                yield from watch.Watch().stream(
                    self._objects.list_namespaced_custom_object, **_RAY, namespace=self.namespace, plural="rayjobs",
                    field_selector=f"metadata.name={name}", resource_version=version, timeout_seconds=_WATCH_SECONDS,
                    _request_timeout=(_SECONDS, _WATCH_SECONDS + _SECONDS),
                )  # fmt: skip
            except ApiException as error:
                if error.status != 410:
                    raise

    def _rayjob(self, name: str) -> Object | None:
        return self.get(f"/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs/{name}")

    @contextmanager
    def _translated_errors(self, what: str) -> Iterator[None]:
        """Turn the client's exceptions into PipelineErrors. `what`: what was requested."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError, LocationParseError, SSLError

        try:
            yield
        except ApiException as error:
            raise self._refusal(error, what) from error
        except LocationParseError as error:
            raise ConfigError(f"'{self.address}' is not a server address", "Correct the kubeconfig.") from error
        except HTTPError as error:
            inner = getattr(error, "reason", None) or error
            if isinstance(inner, SSLError):
                raise self._no_tls(str(inner)) from error
            raise ConnectError(
                f"no Kubernetes API server answers at {self.address} ({_one_line(str(inner))})", "Check the context."
            ) from error
        except ValueError as error:
            if "header" not in str(error):
                raise
            raise DeniedError(
                "the kubeconfig's token contains invalid characters", "Write the token as one line."
            ) from None  # whose text contains the token

    def _no_tls(self, why: str) -> ProtocolError:
        return ProtocolError(
            f"{self.address}: TLS failed ({_one_line(why)})",
            "Correct the cluster's certificate authority, or your client certificate, in the kubeconfig.",
        )

    def _refusal(self, error: Any, what: str) -> Exception:
        message = _message(error)
        if error.status == 0:  # set by the client for an error before any answer
            return self._no_tls(message)
        if error.status == 401 or "system:anonymous" in message:  # the kubeconfig's plugin failed
            return DeniedError(f"{self.address} rejected the credentials", "Log in again, or correct KUBECONFIG.")
        if "admission webhook" in message:
            return ProtocolError(
                f"an admission webhook refused it: {message}", "Run `python -m deploy doctor` to check the cluster."
            )
        if error.status == 403:
            granted = what in _GRANTED or what.startswith("log of")
            hint = "Add yourself to the chart's rbac.submitters" if granted else "Ask an administrator of the cluster"
            return DeniedError(message, f"{hint}, or use another context.")
        if error.status == 404:
            return ProtocolError(
                f"{self.address} has no {what}",
                "Install KubeRay 1.6 or newer; run `python -m deploy doctor` to see what is missing.",
            )
        if error.status in (429, 500, 502, 503, 504):
            return ConnectError(f"{self.address} answers {error.status}: {message}", "Wait, then retry.")
        return ProtocolError(
            f"{self.address} answers {error.status}: {message}", "Run `python -m deploy doctor` to check the cluster."
        )


@contextmanager
def _login_failures() -> Iterator[None]:
    """DeniedError if the kubeconfig's credential plugin failed, which the client only logs."""
    root, errors = logging.getLogger(), _ErrorLines()
    root.addHandler(errors)
    try:
        yield
    finally:
        root.removeHandler(errors)
    if errors.lines:
        raise DeniedError(f"the kubeconfig's login failed ({errors.lines[0]})", "Log in again, or correct KUBECONFIG.")


class _ErrorLines(logging.Handler):
    """Collects logged errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(_one_line(record.getMessage()))


def _strip_tokens(settings: Any) -> None:
    """Strip line ends from the token, now and whenever it is refreshed."""
    fetch = settings.refresh_api_key_hook

    def fetch_and_strip(configuration: Any) -> None:
        if fetch is not None:
            fetch(configuration)
        configuration.api_key = {name: secret.strip() for name, secret in configuration.api_key.items()}

    settings.refresh_api_key_hook = fetch_and_strip


def check_name(option: str, name: str) -> None:
    """ConfigError if `name` is not a valid Kubernetes name."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise ConfigError(f"{option}: '{name}' is not a valid Kubernetes name", "Use lower-case letters, digits and -.")


def _is_inside(context: str | None) -> bool:
    """Whether this is a pod that uses its own service account."""
    return _OWN_NAMESPACE.exists() and context is None and not os.environ.get("KUBECONFIG")


def _namespace(context: str | None) -> str:
    """The namespace of the pod, or of the kubeconfig's context."""
    from kubernetes import config

    if _is_inside(context):
        return _OWN_NAMESPACE.read_text().strip()
    contexts, active = config.list_kube_config_contexts(os.environ.get("KUBECONFIG") or None)
    chosen = next((one for one in contexts if one["name"] == context), active)
    return str(chosen["context"].get("namespace") or "default")


def _message(error: Any) -> str:
    try:
        return _one_line(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return _one_line(str(error.reason))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def stuck(pod: Object) -> tuple[str, str] | None:
    """Why a pod cannot start, in Kubernetes' words, and a hint; None if it is starting normally."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    describe = f"See `kubectl -n {pod['metadata']['namespace']} describe pod {name}`."
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        waiting = container.get("state", {}).get("waiting", {})
        if hint := _STUCK.get(waiting.get("reason", "")):
            why = first_line(waiting.get("message", "")).rstrip(".")
            return f"pod {name}: {waiting['reason']}: {why}", f"{hint} {describe}"
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            why = first_line(condition.get("message", "")).rstrip(".")
            return f"pod {name}: cannot be scheduled: {why}", f"Add such a node, or wait for one. {describe}"
    return None


def pods_refused(name: str, status: Object) -> tuple[str, str] | None:
    """Why pods of `name` cannot be created (quota, admission rule), and a hint; None if they can.

    `status` is that of a RayCluster (a RayJob's status contains it) or of a Deployment.
    """
    for condition in status.get("conditions", []):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            # KubeRay puts its reason on the first line, then Kubernetes' message.
            why = _one_line(condition.get("message", "").removeprefix(condition.get("reason", ""))).rstrip(".")
            return f"{name}: its pods cannot be created: {why}", "Raise the quota or limit, or request less."
    return None


def first_line(text: str) -> str:
    """The first non-empty line of a message, at most 300 characters."""
    return next((_one_line(line) for line in text.splitlines() if line.strip()), "")
