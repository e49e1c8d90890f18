"""Runs work on a temporary cluster: creates a RayJob from the chart's template, follows it to its end, deletes it.

The chart stores the template in a ConfigMap; the command, the number of attempts and of pods are filled in here. The
pods' preStop hooks upload Ray's logs to the root. Jobs on a standing cluster are in `submit.py`.
"""

import copy
import itertools
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

from deploy.errors import ConnectError, DeniedError, LostError, ProtocolError, detach_on_interrupt
from deploy.kube import KUEUE_VERSIONS, Kube, Object, check_name, first_line, pods_refused, stuck
from deploy.printing import PrintOnce
from deploy.retrying import POLL_SECONDS, Say
from deploy.submit import ROOT, Work, attempt_of, check_root
from pipeline.cluster import tasks_per_gpu
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.workflow import NAMES

Delete = Literal["success", "always", "never"]
WORK = "denoising-vae/work"  # label: the name of the work
POOLS = "denoising-vae/stage-pools"  # annotation of the template: JSON, stage -> worker group
QUEUE = "kueue.x-k8s.io/queue-name"
ELASTIC = "kueue.x-k8s.io/elastic-job"
_TEMPLATE = "app.kubernetes.io/name=denoising-vae,app.kubernetes.io/component=rayjob"
_FINAL = ("Complete", "Failed", "ValidationFailed")


# --- rendering ---


def find_template(kube: Kube, release: str | None) -> Object:
    """The chart's RayJob template. ConfigError unless the namespace has exactly one."""
    selector = _TEMPLATE + (f",app.kubernetes.io/instance={release}" if release else "")
    found = kube.objects(f"/api/v1/namespaces/{kube.namespace}/configmaps", labelSelector=selector)
    if len(found) != 1:
        names = ", ".join(one["metadata"]["labels"]["app.kubernetes.io/instance"] for one in found)
        raise ConfigError(
            f"namespace {kube.namespace} has {len(found) or 'no'} releases of the chart"
            + (f" ({names})" if found else ""),
            "Choose one with --release." if found else "Install helm/denoising-vae there, or give --namespace.",
        )
    return parse_template(found[0]["data"]["rayjob.yaml"], found[0]["metadata"]["name"])


def parse_template(text: str, where: str) -> Object:
    """A RayJob from YAML, alone or in the chart's ConfigMap as rendered by Helm. ConfigError if it is invalid."""
    try:
        parsed = yaml.safe_load(text)
        if parsed["kind"] == "ConfigMap":
            parsed = yaml.safe_load(parsed["data"]["rayjob.yaml"])
        _check_template(parsed)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where} is not the chart's RayJob ({type(error).__name__}: {' '.join(str(error).split())[:150]})",
            "Create it with `helm template RELEASE helm/denoising-vae -f VALUES -s templates/rayjob.yaml`.",
        ) from error
    job: Object = parsed
    return job


def _check_template(job: Object) -> None:
    """KeyError, TypeError or ValueError if a field that `render` reads is missing."""
    if job["kind"] != "RayJob":
        raise ValueError(f"its kind is {job['kind']}")
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"] for group in cluster["workerGroupSpecs"]}
    for group in cluster["workerGroupSpecs"]:
        _ = group["maxReplicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"].keys()
    _ = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"][0], job["metadata"]["labels"].keys()
    pools = json.loads(job["metadata"]["annotations"][POOLS])
    for stage in NAMES:
        if pools[stage] not in groups:
            raise ValueError(f"group {pools[stage]} of stage {stage} is missing")


def read_template(path: Path) -> Object:
    try:
        return parse_template(path.read_text(errors="replace"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", "Check the path.") from error


@dataclass(frozen=True)
class JobOptions:
    """How to run the work."""

    attempts: int
    queue: str | None  # a Kueue LocalQueue; None: the chart's
    stages: tuple[str, ...]  # the stages that may run
    cluster: ClusterConfig


def render(template: Object, work: Work, options: JobOptions, attempt: int) -> Object:
    """The RayJob manifest. ConfigError if the chart's groups are too small for the work."""
    job = copy.deepcopy(template)
    metadata, spec = job["metadata"], job["spec"]
    metadata["name"] = f"{work.name}-{attempt}"
    metadata["labels"][WORK] = work.name
    if options.queue is not None:
        check_name("--queue", options.queue)
        metadata["labels"][QUEUE] = options.queue
    metadata["annotations"].update({_key(name): text for name, text in work.metadata.items()})
    # In the head's environment: KubeRay's submitter passes a runtime_env through a shell, which would expand it.
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["env"] += [{"name": name, "value": text} for name, text in work.variables.items()]
    _check_words(work.entrypoint)
    spec["entrypoint"] = work.entrypoint
    spec["backoffLimit"] = options.attempts - 1
    pods = _pods(json.loads(metadata["annotations"].pop(POOLS)), spec["rayClusterSpec"], options)
    if QUEUE in metadata["labels"] and metadata["annotations"].get(ELASTIC) != "true":
        _fix_size(spec["rayClusterSpec"], pods)
    return job


def _key(name: str) -> str:
    """The annotation key for a metadata key of a job."""
    return name.replace("dvae.", "denoising-vae/")


def _check_words(entrypoint: str) -> None:
    """ConfigError if the command has a character that the shells on its way would read."""
    words = shlex.split(entrypoint)
    for before, word in itertools.pairwise(words):
        if not _survives_shells(shlex.join([before, word])):
            mends = {"--set": "Set such a value in a preset file instead of --set.", "--root": "Take another root."}
            raise ConfigError(
                f"KubeRay's shells would change a character of `{word[:200]}`",
                mends.get(before, "Give the preset's file another name."),
            )


def _survives_shells(entrypoint: str) -> bool:
    """Whether the command survives: KubeRay's shell strips its quotes, Ray re-quotes it, and a shell parses that."""
    words = shlex.split(entrypoint)
    again = shlex.shlex(subprocess.list2cmdline(words), posix=True, punctuation_chars=True)
    again.whitespace_split = True
    return not re.search(r"[$`\\*?~{}]", entrypoint) and list(again) == words


def _pods(pools: dict[str, str], cluster: Object, options: JobOptions) -> dict[str, int]:
    """The number of pods per group that the stages need. ConfigError if it exceeds the group's maximum."""
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    needed: dict[str, int] = {}
    for stage in options.stages:
        group = groups[pools[stage]]
        gpus = ray_gpus(group)
        at_once = gpus * tasks_per_gpu(options.cluster, stage) if gpus else 1
        pods = math.ceil(_devices(stage, options.cluster) / at_once)
        if pods > group["maxReplicas"]:
            raise ConfigError(
                f"{stage} needs {pods} pods of the group {pools[stage]}, which has at most {group['maxReplicas']}",
                f"Raise the chart's groups.{pools[stage]}.max, or lower cluster.workers or cluster.encode_actors.",
            )
        needed[pools[stage]] = max(pods, needed.get(pools[stage], 0))
    return needed


def ray_gpus(group: Object) -> int:
    """The GPUs that Ray counts in a pod of the group: by its start parameters, else by Ray's rule for resources."""
    given = group.get("rayStartParams", {}).get("num-gpus")
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return (
        int(given) if given is not None else sum(int(count) for name, count in limits.items() if name.endswith("gpu"))
    )


def _devices(stage: str, cluster: ClusterConfig) -> int:
    if stage.startswith("train-"):
        return cluster.workers
    return cluster.encode_actors or 1 if stage in ("encode", "sample") else 1


def _fix_size(cluster: Object, pods: dict[str, int]) -> None:
    """Fix each group at the pods that the work needs: Kueue admits a cluster as a whole and does not let it scale."""
    for key in ("enableInTreeAutoscaling", "autoscalerOptions"):
        cluster.pop(key, None)
    cluster["workerGroupSpecs"] = [group for group in cluster["workerGroupSpecs"] if group["groupName"] in pods]
    for group in cluster["workerGroupSpecs"]:
        group.pop("idleTimeoutSeconds", None)  # a setting of the autoscaler
        count = pods[group["groupName"]]
        group.update({"replicas": count, "minReplicas": count, "maxReplicas": count})


# --- running ---


def run(kube: Kube, template: Object, work: Work, options: JobOptions, delete: Delete, say: Say, echo: Say) -> int:
    """Run the work on a temporary cluster: attach to its RayJob or create one; returns the job's exit code.

    LostError if it died without an exit code, ProtocolError if KubeRay rejects it, Detached on an interrupt, after
    which the RayJob keeps running.
    """
    name, how = _attach_or_create(kube, template, work, options)
    with detach_on_interrupt(name):
        say(how)
        status = _follow(kube, name, say, echo)
    done = status["jobDeploymentStatus"] == "Complete" and status.get("jobStatus") == "SUCCEEDED"
    if delete == "always" or (delete == "success" and done):
        try:
            kube.delete_rayjob(name)
            say(f"deleted {name} and its cluster")
        except PipelineError as error:  # the exit code of the work matters more
            say(f"{name} could not be deleted: {error}")
    return _exit_code(name, status)


def _attach_or_create(kube: Kube, template: Object, work: Work, options: JobOptions) -> tuple[str, str]:
    """The name of the work's RayJob, and a status line. BusyError if a running one uses another root."""
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
        time.sleep(POLL_SECONDS)  # another client created it first: attach to that


def _state(job: Object) -> str:
    return str(job.get("status", {}).get("jobDeploymentStatus", ""))


def _follow(kube: Kube, name: str, say: Say, echo: Say) -> Object:
    """Report the RayJob's progress until it ends; returns its last status. LostError if it is deleted before."""
    report, logs = SayOnce(say), Logs(kube, name, say, echo)
    for job in kube.watch_rayjob(name, say):
        status: Object = job.get("status", {})
        report(f"{name}: {_status_text(status)}")
        try:
            if _state(job) in ("", "Suspended", "Suspending", "Initializing"):
                report(_waiting_reason(kube, job))
            if status.get("jobStatus") == "RUNNING":
                logs.follow(status.get("jobId", ""))
        except ConnectError:
            continue  # the watch waits for the API server, then this is repeated
        except PipelineError as error:  # a failed query must not stop the job
            report(f"status unavailable: {error}")
        if _state(job) in _FINAL:
            logs.close()
            if not logs.any and status.get("message"):
                echo(f"{status['message']}\n")  # contains the last lines of the log
            return status
    raise LostError(f"{name} was deleted before it ended", "Run the same command again to resume.")


class SayOnce:
    """Passes a line to `say` only if it differs from the last one with the same text before its first colon."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._last: dict[str, str] = {}

    def __call__(self, text: str) -> None:
        kind = text.partition(":")[0]
        if text and self._last.get(kind) != text:
            self._last[kind] = text
            self._say(text)


def _status_text(status: Object) -> str:
    words = [(status.get("jobDeploymentStatus") or "new").lower(), status.get("jobStatus", "").lower()]
    if status.get("reason"):
        words.append(f"({status['reason']}: {first_line(status.get('message', ''))})")
    if status.get("failed"):
        words.append(f"after {status['failed']} failed attempts")
    return " ".join(word for word in words if word)


def _waiting_reason(kube: Kube, job: Object) -> str:
    """Why the job has not started: a queue, an image, no node. Empty if unknown."""
    if QUEUE in job["metadata"].get("labels", {}) and _state(job) in ("", "Suspended", "Suspending"):
        return _queue_status(kube, job)
    cluster = job.get("status", {}).get("rayClusterName")
    if not cluster:
        return ""
    pods = kube.objects(f"/api/v1/namespaces/{kube.namespace}/pods", labelSelector=f"ray.io/cluster={cluster}")
    problem = next(filter(None, map(stuck, pods)), None) or pods_refused(
        cluster, job["status"].get("rayClusterStatus", {})
    )
    return "{}. {}".format(*problem) if problem else ""


def _queue_status(kube: Kube, job: Object) -> str:
    """Whether Kueue has admitted the job, and if not, Kueue's reason."""
    queue, uid = job["metadata"]["labels"][QUEUE], job["metadata"]["uid"]
    for version in KUEUE_VERSIONS:
        try:
            found = kube.objects(
                f"/apis/kueue.x-k8s.io/{version}/namespaces/{kube.namespace}/workloads",
                labelSelector=f"kueue.x-k8s.io/job-uid={uid}",
            )
        except ProtocolError:  # the cluster does not serve this version
            continue
        conditions = {one["type"]: one for load in found for one in load.get("status", {}).get("conditions", [])}
        waits = conditions.get("QuotaReserved")
        if waits is None:
            return f"queue {queue}: Kueue has not processed it yet"
        if waits["status"] == "False":
            return f"queue {queue}: waiting ({first_line(waits.get('message', ''))})"
        return f"queue {queue}: admitted"
    return f"queue {queue}: Kueue is not installed in this cluster, so the job will not start"


def _exit_code(name: str, status: Object) -> int:
    """The exit code of a RayJob that has ended. LostError or ProtocolError if the job itself did not exit."""
    state, ray, message = status["jobDeploymentStatus"], status.get("jobStatus"), status.get("message", "")
    if state == "ValidationFailed":
        raise ProtocolError(
            f"KubeRay rejected {name}: {first_line(message)}",
            "Delete it, and use matching versions of chart and KubeRay.",
        )
    if ray == "SUCCEEDED":
        return 0
    if ray == "STOPPED":
        return 130
    code = re.search(r"exit code (\d+)", message)
    if status.get("reason") == "AppFailed" and code and 0 < int(code[1]) <= 128:
        return int(code[1])
    raise LostError(
        f"{name} died: {status.get('reason')}: {first_line(message)}",
        "Run the same command again to resume; give --attempts N to retry more often.",
    )


class Logs:
    """Prints the job's output, read from the log of KubeRay's submitter pod; there is one pod per attempt."""

    def __init__(self, kube: Kube, name: str, say: Say, echo: Callable[[str], Any]) -> None:
        self._kube, self._name, self._say, self._echo = kube, name, say, echo
        self._followed: set[str] = set()
        self._closing = threading.Event()
        self.any = False  # has anything been printed?
        self._thread: threading.Thread | None = None

    def follow(self, attempt: str) -> None:
        """Start to print this attempt's log, unless it has been started."""
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
        """Print until the pod ends; resumes after a broken connection."""
        print_once = PrintOnce(self._print_piece)
        while True:
            print_once.restart()
            try:
                for piece in self._kube.log(pod):
                    print_once(piece)
                if self._closing.is_set() or not self._kube.is_running(pod):
                    return
            except ConnectError:
                pass  # reported by the watch of the RayJob
            except DeniedError as error:
                self._say(f"cannot read the job's log: {error}")
                return
            except PipelineError as error:
                self._say(f"the job's log broke off: {error}")
                return
            self._closing.wait(POLL_SECONDS)

    def _print_piece(self, text: str) -> None:
        self.any = True
        self._echo(text)

    def close(self) -> None:
        """The job has ended: wait up to 30 s for the rest of its log."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
