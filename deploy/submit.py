"""Submitting a stage or a run to a Ray cluster, attaching to one that goes on there, and following it to its end.

The resolved config travels with the job, and the pipeline over there refuses if it comes to another fingerprint. A
job's name is its stage, its fingerprint and its attempt; so whoever submits the same work finds the job that does it.
"""

import os
import re
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import BusyError, LostError, ProtocolError, followed
from deploy.jobs import Dashboard, Job
from deploy.printing import PrintOnce
from deploy.retrying import POLL_SECONDS, Retrying, Say
from pipeline.artifacts import SHORT
from pipeline.config import SENT, SENT_VARIABLE, Config, load_config
from pipeline.errors import ConfigError, PipelineError
from pipeline.storage import open_storage
from pipeline.tracking import tracking_uri
from pipeline.workflow import STAGES, check_source, find_stage, resolved, stage_fingerprints, stages_until

_OLDEST = (2, 55)  # CVE-2026-41486

_PART_SECONDS = 15.0  # between two looks at a log that cannot be followed; each takes it whole

ROOT = "dvae.root"
MODEL = "dvae.model"  # in a job's metadata: the registered model that it may come to


@dataclass(frozen=True)
class Work:
    """What a job is to do, in what is common to all its attempts."""

    name: str  # STAGE-FINGERPRINT or run-FINGERPRINT; Kubernetes takes 47 characters of it and the attempt
    entrypoint: str
    variables: dict[str, str]
    metadata: dict[str, str]


def stage_work(stage: str, preset: str, sets: list[str] | None, root: str | None) -> Work:
    """The work of one stage. ConfigError as `load_config`, or for a root that only this machine has."""
    find_stage(stage)
    return _work(stage, ["stage", stage], stage, known_config(preset, sets, root), preset, sets)


def run_work(preset: str, until: str | None, sets: list[str] | None, root: str | None) -> Work:
    """The work of a whole run, or of its stages up to `until`. ConfigError as `stage_work`."""
    last = stages_until(until)[-1].name
    return _work("run", ["run"], last, known_config(preset, sets, root), preset, sets, until)


def run_work_of(config: Config, preset: str, sets: list[str] | None) -> Work:
    """The work of a whole run of a config that is known already."""
    return _work("run", ["run"], STAGES[-1].name, config, preset, sets)


def _work(
    what: str,
    command: list[str],
    stage: str,
    config: Config,
    preset: str,
    sets: list[str] | None,
    until: str | None = None,
) -> Work:
    fingerprint = stage_fingerprints(config)[stage]
    assert fingerprint is not None
    name = Path(preset).stem
    words = ["python", "-m", "pipeline", *command, SENT + name, *(["--until", until] if until else [])]
    words += [word for override in sets or [] for word in ("--set", override)]  # they hold over the site file there
    words += ["--root", open_storage(config.root).root, "--expect", fingerprint[:SHORT]]
    return Work(
        name=f"{what}-{fingerprint[:SHORT]}",
        entrypoint=shlex.join(words),
        variables={SENT_VARIABLE: config.model_dump_json()},
        metadata={
            "dvae.preset": name,
            "dvae.stage": what,
            "dvae.fingerprint": fingerprint,
            ROOT: open_storage(config.root).root,
            MODEL: config.register.name,
        },
    )


def remote_config(preset: str, sets: list[str] | None, root: str | None) -> Config:
    """The config of a preset whose root a cluster can reach. ConfigError as `load_config`, or for another root."""
    config = load_config(preset, sets, root)
    check_remote(config)
    return config


def check_remote(config: Config) -> None:
    """ConfigError for a root that only this machine has."""
    if not config.root.startswith(("s3://", "file:///", "/")):
        raise ConfigError(
            f"root {config.root} is a folder of this machine, which the cluster does not have",
            "Give --root s3://BUCKET/PREFIX, or a site file (DVAE_SITE) that has it.",
        )


def check_tracking(config: Config) -> None:
    """ConfigError where MLflow would be a file on this machine: there nothing seems registered, time and again.

    Or as `tracking_uri`.
    """
    tracking_uri(config)
    if config.root.startswith("s3://") and not (config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise ConfigError(
            "where MLflow is has not been said",
            "Set MLFLOW_TRACKING_URI, or tracking.uri in the site file (DVAE_SITE).",
        )


def known_config(preset: str, sets: list[str] | None, root: str | None) -> Config:
    """`remote_config`, with what its source holds. ConfigError where that is not known."""
    config = resolved(remote_config(preset, sets, root), fresh=False)
    check_source(config, preset)
    return config


def submit(dashboard: Dashboard, work: Work, attempts: int, say: Say, echo: Say) -> int:
    """Have the work done: attach to the job that does it, else start one; the job's exit code.

    `echo` gets what the job prints, `say` what there is to say beside it. A job whose driver or head died is followed
    by another, `attempts` in all; then LostError. A job that ended by itself is not tried again: it would end alike.
    Detached when this is interrupted and the job goes on.
    """
    _check_version(dashboard)
    ask = Retrying(dashboard.address, say)
    for left in reversed(range(attempts)):
        name, how = _attach_or_start(dashboard, work, ask)
        with followed(name):
            say(how)
            job = _follow(dashboard, name, say, echo, ask)
        if job is not None and job.status == "SUCCEEDED":
            return 0
        if job is not None and job.status == "STOPPED":
            say(f"{name} was stopped")
            return 130
        if job is not None and job.exit_code is not None and 0 < job.exit_code <= 128:
            return job.exit_code
        say(f"{name} died: {job.message if job else 'the cluster has forgotten it'}; {left} attempts left")
    raise LostError(
        f"{work.name} did not come to its end in {attempts} attempts",
        "The same command goes on from what is there; --attempts N tries more often.",
    )


def _check_version(dashboard: Dashboard) -> None:
    version = dashboard.version()
    known = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if known < _OLDEST:
        raise ProtocolError(
            f"{dashboard.address} runs Ray {version}, which strangers can take over (CVE-2026-41486)",
            f"Update it to {'.'.join(map(str, _OLDEST))} or newer.",
        )


def attempt_of(name: str, work: str) -> int | None:
    """The number in the name of a job of this work; None for another's name."""
    found = re.fullmatch(re.escape(work) + r"-(\d+)", name)
    return int(found[1]) if found else None


def _attach_or_start(dashboard: Dashboard, work: Work, ask: Retrying) -> tuple[str, str]:
    """The name of the job that does the work now, and how it came to do so. BusyError when it is for another root."""
    while True:
        earlier = {job.id: job for job in ask(dashboard.jobs) if attempt_of(job.id, work.name) is not None}
        for job in earlier.values():
            if job.running:
                check_root(job.id, job.metadata.get(ROOT), work)
                return job.id, f"attached to {job.id}, which is {job.status.lower()} at {dashboard.address}"
        attempt = 1 + max((attempt_of(name, work.name) or 0 for name in earlier), default=0)
        name = f"{work.name}-{attempt}"
        if ask(lambda name=name: dashboard.submit(name, work.entrypoint, work.variables, work.metadata)):  # type: ignore[misc]
            return name, f"submitted {name} to {dashboard.address}"
        time.sleep(POLL_SECONDS)  # somebody was faster with the same work: attach to theirs


def check_root(name: str, root: str | None, work: Work) -> None:
    """BusyError when the running job of the same fingerprint leaves its artifacts elsewhere."""
    if root is not None and root != work.metadata[ROOT]:
        raise BusyError(
            f"{name} does this for the root {root}, not {work.metadata[ROOT]}", "Wait for it, or give that root."
        )


def _follow(dashboard: Dashboard, name: str, say: Say, echo: Say, ask: Retrying) -> Job | None:
    """Print what the job says until it ends; the job as it ended, None when the cluster does not know it any more."""
    printed, live = PrintOnce(echo), True
    while True:
        try:
            _print_live(dashboard, name, printed, ask)
        except ProtocolError as error:  # what is in between lets no websocket through
            if live:
                say(f"{error.what}: the log comes in parts, every {_PART_SECONDS:.0f} s")
            live = False
        job = ask(lambda: dashboard.job(name))
        if job is not None and not (job.running and live):
            with suppress(PipelineError):  # its node may be gone, and the log with it
                printed.again()
                printed(dashboard.log(name))
        if job is None or not job.running:
            return job
        time.sleep(POLL_SECONDS if live else _PART_SECONDS)


def _print_live(dashboard: Dashboard, name: str, printed: PrintOnce, ask: Retrying) -> None:
    """Print the log as it grows, until the job ends or the connection does. ProtocolError as `Dashboard.follow`."""
    printed.again()
    for piece in dashboard.follow(name):
        printed(piece)
        if not piece:  # it has been silent for a while: perhaps the connection is dead, and the job too
            job = ask(lambda: dashboard.job(name))
            if job is None or not job.running:
                return
