"""Submits a stage or a run to a Ray cluster, or attaches to the running job, and follows it to its end.

The resolved config is sent with the job; the pipeline there refuses to run if it computes another fingerprint. A job's
name consists of stage, fingerprint and attempt, so a second submission of the same work finds the running job.
"""

import os
import re
import shlex
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from deploy.errors import BusyError, LostError, ProtocolError, detach_on_interrupt, keeps_running
from deploy.jobs import Dashboard, Job
from deploy.limits import check_size
from deploy.printing import PrintOnce
from deploy.retrying import POLL_SECONDS, Retrying, Say
from pipeline.artifacts import SHORT
from pipeline.config import SENT, SENT_VARIABLE, Config, load_config, preset_label, sent_text
from pipeline.errors import ConfigError, PipelineError
from pipeline.storage import open_storage
from pipeline.tracking import tracking_uri
from pipeline.workflow import (
    STAGES,
    check_expected,
    check_inputs,
    find_stage,
    resolved,
    stage_fingerprints,
    stages_until,
    whole_start_sets,
)

_OLDEST = (2, 55)  # CVE-2026-41486

_PART_SECONDS = 15.0  # between two downloads of the whole log, if it cannot be streamed
_SILENT_TRIES = 5  # of streaming it, while the job can be asked for: then it cannot be

ROOT = "dvae.root"
MODEL = "dvae.model"  # in a job's metadata: the model that it may register


@dataclass(frozen=True)
class Work:
    """What a job runs; the same for all its attempts."""

    name: str  # STAGE-FINGERPRINT or run-FINGERPRINT; with the attempt at most 47 characters, for Kubernetes
    entrypoint: str
    variables: dict[str, str]
    metadata: dict[str, str]


def stage_work(stage: str, preset: str, sets: list[str] | None, root: str | None) -> Work:
    """The work of one stage. ConfigError as `load_config`, or for a root on this machine."""
    find_stage(stage)
    return _work(stage, ["stage", stage], stage, known_config(preset, sets, root), preset, sets)


def run_work(
    preset: str,
    until: str | None,
    sets: list[str] | None,
    root: str | None,
    expect: str | None = None,
    wait: bool = False,
) -> Work:
    """The work of a whole run, or of its stages up to `until`; with `wait` it waits for stages of other jobs.

    ConfigError as `stage_work`, or if the last one's fingerprint does not begin with `expect`.
    """
    last = stages_until(until)[-1].name
    config = known_config(preset, sets, root)
    check_expected(config, last, expect)
    return _work("run", ["run", *(["--wait"] if wait else [])], last, config, preset, sets, until)


def run_work_of(config: Config, preset: str, sets: list[str] | None) -> Work:
    """The work of a whole run, for a config that is resolved already."""
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
    name = preset_label(preset)
    words = ["python", "-m", "pipeline", *command, SENT + name, *(["--until", until] if until else [])]
    # They take precedence over the site file there. By then the alias of a start may be another version's.
    given = [*(sets or []), *whole_start_sets(config)]
    words += [word for override in given for word in ("--set", override)]
    words += ["--root", open_storage(config.root).root, "--expect", fingerprint[:SHORT]]
    entrypoint, variables = shlex.join(words), {SENT_VARIABLE: sent_text(config)}
    metadata = {
        "dvae.preset": name,
        "dvae.stage": what,
        "dvae.fingerprint": fingerprint,
        ROOT: open_storage(config.root).root,
        MODEL: config.register.name,
    }
    check_size(config, entrypoint, variables, metadata)
    return Work(f"{what}-{fingerprint[:SHORT]}", entrypoint, variables, metadata)


def remote_config(preset: str, sets: list[str] | None, root: str | None) -> Config:
    """The config of a preset. ConfigError as `load_config`, or if a cluster cannot reach its root."""
    config = load_config(preset, sets, root)
    check_remote(config)
    return config


def check_remote(config: Config) -> None:
    """ConfigError for a root on this machine that a cluster cannot reach."""
    if not config.root.startswith(("s3://", "file:///", "/")):
        raise ConfigError(
            f"root {config.root} is a folder on this machine, which the cluster cannot reach",
            "Give --root s3://BUCKET/PREFIX, or set it in the site file (DVAE_SITE).",
        )


def check_tracking(config: Config) -> None:
    """ConfigError as `tracking_uri`, or if MLflow would default to a file on this machine although the root is on S3.

    Such a file has no registered models, so every candidate would look like the first.
    """
    tracking_uri(config)
    if config.root.startswith("s3://") and not (config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise ConfigError(
            "the MLflow server is not configured",
            "Set MLFLOW_TRACKING_URI, or tracking.uri in the site file (DVAE_SITE).",
        )


def known_config(preset: str, sets: list[str] | None, root: str | None) -> Config:
    """`remote_config` with the revision of its data. ConfigError if that is unknown."""
    config = resolved(remote_config(preset, sets, root), fresh=False)
    check_inputs(config, preset)
    return config


def check_runs(configs: Iterable[tuple[Config, str]]) -> None:
    """ConfigError as `known_config`, of configs that are loaded already, each with its preset."""
    for config, preset in configs:
        check_remote(config)
        check_inputs(config, preset)


def submit(dashboard: Dashboard, work: Work, attempts: int, say: Say, echo: Say) -> int:
    """Run the work: attach to its running job or start one, and follow it; returns the job's exit code.

    `echo` receives the job's output, `say` status lines. If the driver or head dies, the job is submitted again, up to
    `attempts` in all; then LostError. A job that exits with an error is not retried: it would fail again. Detached on
    an interrupt, after which the job keeps running.
    """
    check_version(dashboard)
    ask = Retrying(dashboard.address, say)
    for left in reversed(range(attempts)):
        name, how = _attach_or_start(dashboard, work, ask)
        with detach_on_interrupt(name), keeps_running(name):
            say(how)
            job = _follow(dashboard, name, say, echo, ask)
        if job is not None and job.status == "SUCCEEDED":
            return 0
        if job is not None and job.status == "STOPPED":
            say(f"{name} was stopped")
            return 130
        if job is not None and job.exit_code is not None and 0 < job.exit_code <= 128:
            return job.exit_code
        say(f"{name} died: {job.message if job else 'the cluster no longer knows it'}; {left} attempts left")
    raise LostError(
        f"{work.name} did not finish in {attempts} attempts",
        "Run the same command again to resume; give --attempts N to retry more often.",
    )


def check_version(dashboard: Dashboard) -> None:
    """ProtocolError if its Ray is too old to be used; ConnectError, DeniedError as `Dashboard`."""
    version = dashboard.version()
    known = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if known < _OLDEST:
        raise ProtocolError(
            f"{dashboard.address} runs Ray {version}, which has the vulnerability CVE-2026-41486 (remote takeover)",
            f"Update Ray to {'.'.join(map(str, _OLDEST))} or newer.",
        )


def attempt_of(name: str, work: str) -> int | None:
    """The attempt number in a job's name; None if the job belongs to other work."""
    found = re.fullmatch(re.escape(work) + r"-(\d+)", name)
    return int(found[1]) if found else None


def _attach_or_start(dashboard: Dashboard, work: Work, ask: Retrying) -> tuple[str, str]:
    """The name of the work's job, and a status line. BusyError if a running one uses another root."""
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
        time.sleep(POLL_SECONDS)  # another client submitted it first: attach to that


def check_root(name: str, root: str | None, work: Work) -> None:
    """BusyError if the running job of the same fingerprint writes to another root."""
    if root is not None and root != work.metadata[ROOT]:
        raise BusyError(
            f"{name} runs the same work for the root {root}, not {work.metadata[ROOT]}",
            "Wait for it, or use that root.",
        )


def _follow(dashboard: Dashboard, name: str, say: Say, echo: Say, ask: Retrying) -> Job | None:
    """Print the job's log until it ends; returns the ended job, None if the cluster no longer knows it."""
    print_once, live, silent = PrintOnce(echo), True, 0
    while True:
        try:
            silent = 0 if _print_live(dashboard, name, print_once, ask) else silent + 1
        except ProtocolError as error:  # a proxy in between blocks websockets
            if live:
                say(f"{error.what}: the log is downloaded every {_PART_SECONDS:.0f} s instead")
            live = False
        job = ask(lambda: dashboard.job(name))
        if job is not None and job.running and live and silent >= _SILENT_TRIES:
            say(f"no websocket shows the log: it is downloaded every {_PART_SECONDS:.0f} s instead")
            live = False
        if job is not None and not (job.running and live):
            with suppress(PipelineError):  # its node may be gone, with the log
                print_once.restart()
                print_once(dashboard.log(name))
        if job is None or not job.running:
            return job
        time.sleep(POLL_SECONDS if live else _PART_SECONDS)


def _print_live(dashboard: Dashboard, name: str, print_once: PrintOnce, ask: Retrying) -> bool:
    """Print the log as it grows until the job or the connection ends; returns whether anything came.

    ProtocolError as `Dashboard.follow`.
    """
    print_once.restart()
    any_ = False
    for piece in dashboard.follow(name):
        any_ = True
        print_once(piece)
        if not piece:  # no output for a while: the connection may be dead, or the job
            job = ask(lambda: dashboard.job(name))
            if job is None or not job.running:
                break
    return any_
