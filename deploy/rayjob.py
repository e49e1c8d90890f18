"""Work on a short-lived cluster of its own: a RayJob made of the chart's pods, watched to its end, then taken away.

The chart lays a RayJob without work into a ConfigMap; what is to be done, how often, and with how many pods is put in
here. Ray's logs are kept at the root by the pods' preStop hooks. A standing cluster is `submit.py`'s.
"""

import copy
import json
import math
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from deploy.errors import ConnectError, DeniedError, LostError, ProtocolError, followed
from deploy.kube import KUEUE_VERSIONS, Kube, Object, check_name, first_line, not_made, stuck
from deploy.printing import PrintOnce
from deploy.retrying import POLL_SECONDS, Say
from deploy.submit import ROOT, Work, attempt_of, check_root
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.workflow import NAMES

Delete = Literal["success", "always", "never"]
WORK = "denoising-vae/work"  # label: what a RayJob is to do
POOLS = "denoising-vae/stage-pools"  # annotation of the template: JSON, stage to group
QUEUE = "kueue.x-k8s.io/queue-name"
ELASTIC = "kueue.x-k8s.io/elastic-job"
_TEMPLATE = "app.kubernetes.io/name=denoising-vae,app.kubernetes.io/component=rayjob"
_FINAL = ("Complete", "Failed", "ValidationFailed")


# --- what is created ---


def find_template(kube: Kube, release: str | None) -> Object:
    """The chart's RayJob without work. ConfigError when there is none in the namespace, or more than one."""
    selector = _TEMPLATE + (f",app.kubernetes.io/instance={release}" if release else "")
    found = kube.objects(f"/api/v1/namespaces/{kube.namespace}/configmaps", labelSelector=selector)
    if len(found) != 1:
        names = ", ".join(one["metadata"]["labels"]["app.kubernetes.io/instance"] for one in found)
        raise ConfigError(
            f"namespace {kube.namespace} has {len(found) or 'no'} releases of the chart"
            + (f" ({names})" if found else ""),
            "Choose one by --release." if found else "Install helm/denoising-vae there, or give --namespace.",
        )
    return parse_template(found[0]["data"]["rayjob.yaml"], found[0]["metadata"]["name"])


def parse_template(text: str, where: str) -> Object:
    """A RayJob from YAML, alone or inside of the chart's ConfigMap as Helm renders it. ConfigError when it is none."""
    try:
        made = yaml.safe_load(text)
        if made["kind"] == "ConfigMap":
            made = yaml.safe_load(made["data"]["rayjob.yaml"])
        _check_template(made)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where} is not the chart's RayJob ({type(error).__name__}: {' '.join(str(error).split())[:150]})",
            "Make it by `helm template RELEASE helm/denoising-vae -f VALUES -s templates/rayjob.yaml`.",
        ) from error
    job: Object = made
    return job


def _check_template(job: Object) -> None:
    """KeyError, TypeError or ValueError where `render` would not find what it reads."""
    if job["kind"] != "RayJob":
        raise ValueError(f"it is of kind {job['kind']}")
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"] for group in cluster["workerGroupSpecs"]}
    for group in cluster["workerGroupSpecs"]:
        _ = group["maxReplicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"].keys()
    _ = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"][0], job["metadata"]["labels"].keys()
    pools = json.loads(job["metadata"]["annotations"][POOLS])
    for stage in NAMES:
        if pools[stage] not in groups:
            raise ValueError(f"stage {stage} has no group {pools[stage]}")


def read_template(path: Path) -> Object:
    try:
        return parse_template(path.read_text(errors="replace"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", "Check the path.") from error


@dataclass(frozen=True)
class JobOptions:
    """How the work is to be done."""

    attempts: int
    queue: str | None  # a LocalQueue of Kueue's; None: as the chart says
    stages: tuple[str, ...]  # that may run
    cluster: ClusterConfig


def render(template: Object, work: Work, options: JobOptions, attempt: int) -> Object:
    """The RayJob. ConfigError when the chart's groups are too small for the work."""
    job = copy.deepcopy(template)
    metadata, spec = job["metadata"], job["spec"]
    metadata["name"] = f"{work.name}-{attempt}"
    metadata["labels"][WORK] = work.name
    if options.queue is not None:
        check_name("--queue", options.queue)
        metadata["labels"][QUEUE] = options.queue
    metadata["annotations"].update({_key(name): text for name, text in work.metadata.items()})
    # By the head's environment: KubeRay's submitter puts a runtime_env through a shell, which would read it.
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["env"] += [{"name": name, "value": text} for name, text in work.variables.items()]
    if not _survives_shells(work.entrypoint):
        raise ConfigError(
            f"KubeRay's shells would read a sign of `{work.entrypoint}`", "Write such a value into a preset's file."
        )
    spec["entrypoint"] = work.entrypoint
    spec["backoffLimit"] = options.attempts - 1
    pods = _pods(json.loads(metadata["annotations"].pop(POOLS)), spec["rayClusterSpec"], options)
    if QUEUE in metadata["labels"] and metadata["annotations"].get(ELASTIC) != "true":
        _fix_size(spec["rayClusterSpec"], pods)
    return job


def _key(name: str) -> str:
    """A job's metadata as an annotation."""
    return name.replace("dvae.", "denoising-vae/")


def _survives_shells(entrypoint: str) -> bool:
    """Do the words come through? A shell of KubeRay's takes the quotes off, Ray joins them anew, a shell reads that."""
    words = shlex.split(entrypoint)
    again = shlex.shlex(subprocess.list2cmdline(words), posix=True, punctuation_chars=True)
    again.whitespace_split = True
    return not re.search(r"[$`\\*?~{}]", entrypoint) and list(again) == words


def _pods(pools: dict[str, str], cluster: Object, options: JobOptions) -> dict[str, int]:
    """How many pods of each group the stages need. ConfigError where a group may not have so many."""
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    wanted: dict[str, int] = {}
    for stage in options.stages:
        group = groups[pools[stage]]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        devices = sum(int(count) for name, count in limits.items() if "gpu" in name) or 1
        pods = math.ceil(_devices(stage, options.cluster) / devices)
        if pods > group["maxReplicas"]:
            raise ConfigError(
                f"{stage} wants {pods} pods of the group {pools[stage]}, which has at most {group['maxReplicas']}",
                f"Raise the chart's groups.{pools[stage]}.max, or lower cluster.workers or cluster.encode_actors.",
            )
        wanted[pools[stage]] = max(pods, wanted.get(pools[stage], 0))
    return wanted


def _devices(stage: str, cluster: ClusterConfig) -> int:
    if stage.startswith("train-"):
        return cluster.workers
    return cluster.encode_actors if stage in ("encode", "sample") else 1


def _fix_size(cluster: Object, pods: dict[str, int]) -> None:
    """Just the pods that the work needs, from the beginning: Kueue admits a cluster whole and lets nothing scale it."""
    for key in ("enableInTreeAutoscaling", "autoscalerOptions"):
        cluster.pop(key, None)
    cluster["workerGroupSpecs"] = [group for group in cluster["workerGroupSpecs"] if group["groupName"] in pods]
    for group in cluster["workerGroupSpecs"]:
        group.pop("idleTimeoutSeconds", None)  # the autoscaler's
        count = pods[group["groupName"]]
        group.update({"replicas": count, "minReplicas": count, "maxReplicas": count})


# --- what happens to it ---


def run(kube: Kube, template: Object, work: Work, options: JobOptions, delete: Delete, say: Say, echo: Say) -> int:
    """Have the work done on a cluster of its own: attach to the RayJob that does it, else create one; its exit code.

    LostError when it did not come to its end, ProtocolError when KubeRay refuses it, Detached when this is interrupted
    and the RayJob goes on.
    """
    name, how = _attach_or_create(kube, template, work, options)
    with followed(name):
        say(how)
        status = _follow(kube, name, say, echo)
    done = status["jobDeploymentStatus"] == "Complete" and status.get("jobStatus") == "SUCCEEDED"
    if delete == "always" or (delete == "success" and done):
        try:
            kube.delete_rayjob(name)
            say(f"{name} and its cluster are taken away")
        except PipelineError as error:  # what came of the work is worth more
            say(f"{name} stays: {error}")
    return _verdict(name, status)


def _attach_or_create(kube: Kube, template: Object, work: Work, options: JobOptions) -> tuple[str, str]:
    """The name of the RayJob that does the work now, and how it came to. BusyError when it is for another root."""
    while True:
        earlier: dict[str, Object] = {job["metadata"]["name"]: job for job in kube.rayjobs(f"{WORK}={work.name}")}
        for name, job in earlier.items():
            if _state(job) not in _FINAL and "deletionTimestamp" not in job["metadata"]:
                check_root(name, job["metadata"].get("annotations", {}).get(_key(ROOT)), work)
                return name, f"attached to {name}, which is {_state(job) or 'new'} in {kube.namespace}"
        attempt = 1 + max((attempt_of(name, work.name) or 0 for name in earlier), default=0)
        job = render(template, work, options, attempt)
        if kube.create_rayjob(job):
            return f"{work.name}-{attempt}", f"created {work.name}-{attempt} in {kube.namespace}"
        time.sleep(POLL_SECONDS)  # somebody was faster with the same work: attach to theirs


def _state(job: Object) -> str:
    return str(job.get("status", {}).get("jobDeploymentStatus", ""))


def _follow(kube: Kube, name: str, say: Say, echo: Say) -> Object:
    """Say what becomes of the RayJob until it has ended; its last status. LostError when it is deleted before."""
    said, logs = SayOnce(say), Logs(kube, name, say, echo)
    for job in kube.watch_rayjob(name, say):
        status: Object = job.get("status", {})
        said(f"{name}: {_words(status)}")
        try:
            if _state(job) in ("", "Suspended", "Suspending", "Initializing"):
                said(_obstacle(kube, job))
            if status.get("jobStatus") == "RUNNING":
                logs.follow(status.get("jobId", ""))
        except ConnectError:
            continue  # the watch waits for the API server, then this is asked again
        except PipelineError as error:  # looking is not the work
            said(f"not to be seen: {error}")
        if _state(job) in _FINAL:
            logs.close()
            if not logs.any and status.get("message"):
                echo(f"{status['message']}\n")  # with the last lines of its log
            return status
    raise LostError(f"{name} was deleted before it had come to its end", "The same command goes on from what is there.")


class SayOnce:
    """Says what is new."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._last: dict[str, str] = {}

    def __call__(self, text: str) -> None:
        kind = text.partition(":")[0]
        if text and self._last.get(kind) != text:
            self._last[kind] = text
            self._say(text)


def _words(status: Object) -> str:
    words = [(status.get("jobDeploymentStatus") or "new").lower(), status.get("jobStatus", "").lower()]
    if status.get("reason"):
        words.append(f"({status['reason']}: {first_line(status.get('message', ''))})")
    if status.get("failed"):
        words.append(f"after {status['failed']} failed attempts")
    return " ".join(word for word in words if word)


def _obstacle(kube: Kube, job: Object) -> str:
    """What keeps it from beginning: a queue, an image, no node. Empty when nothing is known."""
    if QUEUE in job["metadata"].get("labels", {}) and _state(job) in ("", "Suspended", "Suspending"):
        return _queue_word(kube, job)
    cluster = job.get("status", {}).get("rayClusterName")
    if not cluster:
        return ""
    pods = kube.objects(f"/api/v1/namespaces/{kube.namespace}/pods", labelSelector=f"ray.io/cluster={cluster}")
    told = next(filter(None, map(stuck, pods)), None) or not_made(cluster, job["status"].get("rayClusterStatus", {}))
    return "{}. {}".format(*told) if told else ""


def _queue_word(kube: Kube, job: Object) -> str:
    """Why Kueue has not admitted it yet, in Kueue's own words."""
    queue, uid = job["metadata"]["labels"][QUEUE], job["metadata"]["uid"]
    for version in KUEUE_VERSIONS:
        try:
            found = kube.objects(
                f"/apis/kueue.x-k8s.io/{version}/namespaces/{kube.namespace}/workloads",
                labelSelector=f"kueue.x-k8s.io/job-uid={uid}",
            )
        except ProtocolError:  # this Kubernetes does not have that version
            continue
        conditions = {one["type"]: one for load in found for one in load.get("status", {}).get("conditions", [])}
        waits = conditions.get("QuotaReserved")
        if waits is None:
            return f"queue {queue}: Kueue has not looked at it yet"
        if waits["status"] == "False":
            return f"queue {queue}: waits ({first_line(waits.get('message', ''))})"
        return f"queue {queue}: admitted"
    return f"queue {queue}: there is no Kueue in this cluster, and nothing else will start it"


def _verdict(name: str, status: Object) -> int:
    """The exit code of a RayJob that has ended. LostError or ProtocolError where the work itself did not end."""
    state, ray, message = status["jobDeploymentStatus"], status.get("jobStatus"), status.get("message", "")
    if state == "ValidationFailed":
        raise ProtocolError(
            f"KubeRay refuses {name}: {first_line(message)}", "Delete it, and bring chart and KubeRay together."
        )
    if ray == "SUCCEEDED":
        return 0
    if ray == "STOPPED":
        return 130
    told = re.search(r"exit code (\d+)", message)
    if status.get("reason") == "AppFailed" and told and 0 < int(told[1]) <= 128:
        return int(told[1])
    raise LostError(
        f"{name} did not come to its end: {status.get('reason')}: {first_line(message)}",
        "The same command goes on from what is there; --attempts N tries more often.",
    )


class Logs:
    """What the job prints, by way of the pod that KubeRay submits it from; one pod an attempt."""

    def __init__(self, kube: Kube, name: str, say: Say, echo: Callable[[str], Any]) -> None:
        self._kube, self._name, self._say, self._echo = kube, name, say, echo
        self._followed: set[str] = set()
        self._closing = threading.Event()
        self.any = False  # has anything been printed?
        self._thread: threading.Thread | None = None

    def follow(self, attempt: str) -> None:
        """Begin with this attempt's log, if that has not been done."""
        if attempt in self._followed:
            return
        pods = self._kube.objects(
            f"/api/v1/namespaces/{self._kube.namespace}/pods",
            labelSelector=f"batch.kubernetes.io/job-name={self._name}",
        )
        running = [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]
        if running:
            self._followed.add(attempt)
            self._thread = threading.Thread(target=self._print, args=(running[0]["metadata"]["name"],), daemon=True)
            self._thread.start()

    def _print(self, pod: str) -> None:
        """Until the pod has ended; a log that was cut is taken up where it was."""
        printed = PrintOnce(self._print_some)
        while True:
            printed.again()
            try:
                for piece in self._kube.log(pod):
                    printed(piece)
                if self._closing.is_set() or not self._kube.is_running(pod):
                    return
            except ConnectError:
                pass  # who follows the RayJob says so
            except DeniedError as error:
                self._say(f"its log cannot be shown: {error}")
                return
            except PipelineError as error:
                self._say(f"its log was cut: {error}")
                return
            self._closing.wait(POLL_SECONDS)

    def _print_some(self, text: str) -> None:
        self.any = True
        self._echo(text)

    def close(self) -> None:
        """Wait for the rest of what was printed: the work has ended."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
