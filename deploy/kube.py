"""A namespace of a Kubernetes, as far as `deploy` needs it: read a few objects, create, watch and delete a RayJob.

What goes wrong is told apart here, one line each. What a RayJob's fields mean is `rayjob.py`'s.
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

_SECONDS = 20.0  # for an answer
_WATCH_SECONDS = 20  # then the object is looked at anew: what keeps it waiting is told by other objects
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_IMAGE = "Correct image.repository and image.tag (or image.digest), or give image.pullSecrets."
_STUCK = {  # what a container waits for that does not come by itself -> the hint
    "ImagePullBackOff": _IMAGE,
    "ErrImagePull": _IMAGE,
    "ErrImageNeverPull": _IMAGE,
    "InvalidImageName": _IMAGE,
    "CreateContainerConfigError": "Make what is missing, and it goes on by itself.",
    "CrashLoopBackOff": "Its log says why: `kubectl logs --previous`.",
}
_RAY = {"group": "ray.io", "version": "v1"}
_GRANTED = ("RayJobs", "configmaps", "pods", "workloads")  # by the chart's role for submitters
KUEUE_VERSIONS = ("v1beta2", "v1beta1")  # the first that a cluster has


class Kube:
    """The cluster of the kubeconfig's context (KUBECONFIG, ~/.kube/config), or the one that this pod runs in.

    Each call raises ConnectError, DeniedError or ProtocolError.
    """

    def __init__(self, namespace: str | None = None, context: str | None = None) -> None:
        from kubernetes import client, config

        settings = client.Configuration()
        settings.retries = False  # urllib3's, without a word
        try:
            if _is_inside(context):
                config.load_incluster_config(settings)
            else:
                with _login_failures():
                    config.load_kube_config(os.environ.get("KUBECONFIG") or None, context, settings)
            self.namespace = namespace or _namespace(context)
        except (config.ConfigException, OSError, YAMLError, TypeError, ValueError) as error:
            raise ConfigError(
                f"no Kubernetes is configured here ({_one_line(f'{type(error).__name__}: {error}')})",
                "Name a kubeconfig by KUBECONFIG, and a context of it by --context.",
            ) from error
        check_name("--namespace", self.namespace)
        _strip_tokens(settings)
        self.client = client.ApiClient(settings)
        self.address = str(settings.host)
        self.core = client.CoreV1Api(self.client)
        self._objects = client.CustomObjectsApi(self.client)

    def version(self) -> str:
        from kubernetes import client

        with self._said("the version"):
            return str(client.VersionApi(self.client).get_code(_request_timeout=_SECONDS).git_version)

    def objects(self, path: str, **query: str) -> list[Object]:
        """The objects below an API path, such as /api/v1/nodes, as they come in JSON."""
        with self._said(path.rpartition("/")[2]):
            return list(self._ask(path, **query).get("items", []))

    def get(self, path: str) -> Object | None:
        """One object by its API path; None when it is not there."""
        from kubernetes.client import ApiException

        with self._said(path.rpartition("/")[2]):
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
        told = self.client.response_deserialize(answer, {"2XX": "object", "4XX": "object", "5XX": "object"})
        content: Object = told.data
        return content

    def rayjobs(self, selector: str) -> list[Object]:
        with self._said("RayJobs"):
            answer = self._objects.list_namespaced_custom_object(
                **_RAY, namespace=self.namespace, plural="rayjobs", label_selector=selector, _request_timeout=_SECONDS
            )
        return list(answer["items"])

    def create_rayjob(self, job: Object) -> bool:
        """False when there is one of this name."""
        from kubernetes.client import ApiException

        with self._said("RayJobs"):
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
        """Absent is fine. Its cluster goes with it."""
        from kubernetes.client import ApiException

        with self._said("RayJobs"):
            try:
                self._objects.delete_namespaced_custom_object(
                    **_RAY, namespace=self.namespace, plural="rayjobs", name=name, _request_timeout=_SECONDS
                )
            except ApiException as error:
                if error.status != 404:
                    raise

    def watch_rayjob(self, name: str, say: Say) -> Iterator[Object]:
        """The RayJob as it is and after every change, until it is deleted.

        Also now and then without a change. A watch that was cut, or whose version is too old (410), begins anew; an
        API server that is away is waited for.
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
                time.sleep(POLL_SECONDS)  # then it is looked at again, with patience

    def log(self, pod: str) -> Iterator[str]:
        """What a pod prints, from its beginning, in pieces as it comes."""
        with self._said(f"log of {pod}"):
            answer = self.core.read_namespaced_pod_log(pod, self.namespace, follow=True, _preload_content=False)
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            for piece in answer.stream(decode_content=True):
                yield decoder.decode(piece)

    def is_running(self, pod: str) -> bool:
        """False when it has ended, or is not there."""
        found = self.objects(f"/api/v1/namespaces/{self.namespace}/pods", fieldSelector=f"metadata.name={pod}")
        return any(one.get("status", {}).get("phase") == "Running" for one in found)

    def _events(self, name: str, version: str) -> Iterator[Object]:
        from kubernetes import watch
        from kubernetes.client import ApiException

        with self._said("RayJobs"):
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
    def _said(self, what: str) -> Iterator[None]:
        """Turn what the client raises into one line."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError, LocationParseError, SSLError

        try:
            yield
        except ApiException as error:
            raise self._refusal(error, what) from error
        except LocationParseError as error:
            raise ConfigError(f"'{self.address}' is no server's address", "Correct the kubeconfig.") from error
        except HTTPError as error:
            inner = getattr(error, "reason", None) or error
            if isinstance(inner, SSLError):
                raise self._no_tls(str(inner)) from error
            raise ConnectError(
                f"no Kubernetes answers at {self.address} ({_one_line(str(inner))})", "Is the context the right one?"
            ) from error
        except ValueError as error:
            if "header" not in str(error):
                raise
            raise DeniedError(
                "the kubeconfig's token holds what no request can carry", "Write it anew, as one line."
            ) from None  # whose text has the token

    def _no_tls(self, why: str) -> ProtocolError:
        return ProtocolError(
            f"{self.address}: TLS failed ({_one_line(why)})",
            "Does the kubeconfig have this cluster's certificate authority, and the right certificate of yours?",
        )

    def _refusal(self, error: Any, what: str) -> Exception:
        told = _message(error)
        if error.status == 0:  # the client's own, for what happens before an answer
            return self._no_tls(told)
        if error.status == 401 or "system:anonymous" in told:  # so it is where the kubeconfig's plugin has failed
            return DeniedError(
                f"{self.address} does not know these credentials", "Log in again, or correct KUBECONFIG."
            )
        if "admission webhook" in told:
            return ProtocolError(f"this cluster refuses it: {told}", "`deploy doctor` says what fits here.")
        if error.status == 403:
            granted = what in _GRANTED or what.startswith("log of")
            hint = "Have the chart's rbac.submitters name you" if granted else "Ask an administrator of the cluster"
            return DeniedError(told, f"{hint}, or use another context.")
        if error.status == 404:
            return ProtocolError(
                f"{self.address} has no {what}", "Install KubeRay 1.6 or newer; `deploy doctor` says what is missing."
            )
        if error.status in (429, 500, 502, 503, 504):
            return ConnectError(f"{self.address} answers {error.status}: {told}", "Wait, then try again.")
        return ProtocolError(f"{self.address} answers {error.status}: {told}", "`deploy doctor` says what fits here.")


@contextmanager
def _login_failures() -> Iterator[None]:
    """DeniedError for what the client only logs: that the kubeconfig's plugin, which fetches a token, has failed."""
    root, told = logging.getLogger(), _Kept()
    root.addHandler(told)
    try:
        yield
    finally:
        root.removeHandler(told)
    if told.lines:
        raise DeniedError(
            f"the kubeconfig's login has failed ({told.lines[0]})", "Log in again, or correct KUBECONFIG."
        )


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(_one_line(record.getMessage()))


def _strip_tokens(settings: Any) -> None:
    """A file's last line end is no part of the token in it; nor of one that is fetched later."""
    fetch = settings.refresh_api_key_hook

    def fetch_and_strip(given: Any) -> None:
        if fetch is not None:
            fetch(given)
        given.api_key = {name: secret.strip() for name, secret in given.api_key.items()}

    settings.refresh_api_key_hook = fetch_and_strip


def check_name(option: str, name: str) -> None:
    """ConfigError for what Kubernetes takes for nobody's name."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise ConfigError(f"{option}: '{name}' is no name in Kubernetes", "Small letters, digits and - make one.")


def _is_inside(context: str | None) -> bool:
    """Is this a pod that goes by its own account?"""
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
    """What keeps a pod from running, in Kubernetes' own words, and its hint; None when it only takes its time."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    look = f"See `kubectl -n {pod['metadata']['namespace']} describe pod {name}`."
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        waiting = container.get("state", {}).get("waiting", {})
        if hint := _STUCK.get(waiting.get("reason", "")):
            why = first_line(waiting.get("message", "")).rstrip(".")
            return f"pod {name}: {waiting['reason']}: {why}", f"{hint} {look}"
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            why = first_line(condition.get("message", "")).rstrip(".")
            return f"pod {name}: no node takes it: {why}", f"It waits for one. {look}"
    return None


def not_made(name: str, status: Object) -> tuple[str, str] | None:
    """Why pods of `name` are refused (a quota, an admission rule), and the hint; None when they are not.

    `status` is that of a RayCluster, which a RayJob's has within, or of a Deployment.
    """
    for condition in status.get("conditions", []):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            # KubeRay's word for it on a line of its own, then Kubernetes' words.
            why = _one_line(condition.get("message", "").removeprefix(condition.get("reason", ""))).rstrip(".")
            return f"{name}: its pods are refused: {why}", "Raise what is exceeded, or ask for less."
    return None


def first_line(text: str) -> str:
    """Of what somebody else has to say, the part that a line has room for."""
    return next((_one_line(line) for line in text.splitlines() if line.strip()), "")
