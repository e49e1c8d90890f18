"""Retraining for CI: detect new data or config, run the missing stages on the cluster, and summarise the result.

The work is one `run` job on the cluster, which continues if this process ends; a second call attaches to it. Earlier
decisions are stored at the root: a `register` artifact of the same fingerprint means that the gate has decided.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from deploy.errors import BusyError
from deploy.jobs import Dashboard
from deploy.retrying import Say
from deploy.submit import MODEL, Work, attempt_of, check_tracking, remote_config, run_work_of, submit
from pipeline.artifacts import SHORT, Manifest, read_manifest
from pipeline.config import Config
from pipeline.console import Display, duration
from pipeline.errors import PipelineError
from pipeline.metrics import find_metric, value_text
from pipeline.storage import open_storage
from pipeline.tracking import CHAMPION, champion, tracking_uri
from pipeline.workflow import Node, check_inputs, from_champion, index_now, resolved, stage_fingerprints, survey

Outcome = Literal["unchanged", "remembered", "promoted", "rejected", "failed"]
REJECTED = 3  # the exit code of a candidate that the gate did not promote
_STARTED = ("tokenizer", "sit")  # of these sections the job's config has what goes on from the champion
_HEADLINES = {
    "unchanged": "Nothing to do",
    "remembered": "Nothing to do: this candidate was rejected before",
    "promoted": "A new champion",
    "rejected": "The champion is kept",
    "failed": "The run failed",
}


@dataclass(frozen=True)
class Retraining:
    """The result of one call of `retrain`, for the summary."""

    preset: str
    config: Config
    outcome: Outcome
    before: list[Node]
    after: list[Node]
    text: str  # the reason, in one sentence
    exit_code: int


@dataclass(frozen=True)
class Warm:
    """Retraining that starts from the champion."""

    steps: int | None  # of SiT; None: those of the config


def retrain(
    dashboard: Dashboard,
    preset: str,
    sets: list[str] | None,
    root: str | None,
    attempts: int,
    say: Say,
    echo: Say,
    warm: Warm | None = None,
) -> Retraining:
    """List the source, plan, run what is new or resumable, wait, and read the gate's decision.

    `warm`: go on from the champion that there is now, as `pipeline.workflow.from_champion`; the job carries its
    fingerprints. Raises ConfigError, ContractError, DataError or StorageError for problems on this machine, BusyError
    while another candidate for the same model is in training, and the errors of `submit`. A run that fails is an
    outcome, not an error.
    """
    config = remote_config(preset, sets, root)
    check_tracking(config)
    if config.data.uri is not None:  # new images under the same URI are new data
        with Display(Console(stderr=True)) as display:
            index_now(config, display)
    config = resolved(config, fresh=False)
    check_inputs(config, preset)
    if warm is not None:
        config, text = from_champion(config, warm.steps)
        say(text)
        sets = [override for override in sets or [] if re.split("[.=]", override)[0] not in _STARTED]
    decided = _decision(config)
    before = survey(config)
    if decided is not None and not decided.details["promoted"]:
        return Retraining(preset, config, "remembered", before, before, _earlier_decision(decided), 0)
    if decided is not None and all(node.status == "cached" for node in before):
        return Retraining(preset, config, "unchanged", before, before, decided.details["decision"], 0)
    for node in before:
        say(f"{node.stage.name}: {node.status}")
    work = run_work_of(config, preset, sets)
    _check_alone(dashboard, work)
    tail = Tail(echo)
    code = submit(dashboard, work, attempts, say, tail)
    after = survey(config)
    decided = _decision(config)
    if code != 0 or decided is None:
        text = f"{work.name} ended with exit code {code}: {tail.line}"
        return Retraining(preset, config, "failed", before, after, text, code or 1)
    outcome: Outcome = "promoted" if decided.details["promoted"] else "rejected"
    code = 0 if decided.details["promoted"] else REJECTED
    return Retraining(preset, config, outcome, before, after, decided.details["decision"], code)


class Tail:
    """Passes on a job's output and keeps its last line."""

    def __init__(self, echo: Say) -> None:
        self._echo, self._text = echo, ""

    def __call__(self, text: str) -> None:
        self._echo(text)
        self._text = (self._text + text)[-2000:]

    @property
    def line(self) -> str:
        lines = [line.strip() for line in self._text.splitlines() if line.strip()]
        return lines[-1] if lines else "no output"


def _decision(config: Config) -> Manifest | None:
    """The manifest of the gate's decision on this candidate, even if its input artifacts are gone; None without one."""
    fingerprint = stage_fingerprints(config)["register"]
    assert fingerprint is not None
    return read_manifest(open_storage(config.root), "register", fingerprint)


def _earlier_decision(decided: Manifest) -> str:
    where = decided.name
    return f"{decided.details['decision']} (on {decided.created[:10]}; delete {where} at the root to repeat it)"


def _check_alone(dashboard: Dashboard, work: Work) -> None:
    """BusyError while another candidate for the same model is in training: it may replace the champion in between."""
    for job in dashboard.jobs():
        same_model = job.metadata.get(MODEL) == work.metadata[MODEL]
        if job.running and same_model and attempt_of(job.id, work.name) is None:
            raise BusyError(
                f"{job.id} is {job.status.lower()} and trains another candidate for the model {work.metadata[MODEL]}",
                f"Wait for it, or stop it: `ray job stop {job.id} --address {dashboard.address}`.",
            )


# --- the summary ---


def summary(done: Retraining) -> str:
    """Markdown: the outcome, each stage's state before and after, the metrics, the champion."""
    lines = [f"## {_HEADLINES[done.outcome]}", "", f"{done.text[:1].upper()}{done.text[1:]}.", ""]
    lines += [f"* preset `{done.preset}`, root `{done.config.root}`"]
    if done.config.data.uri is not None:
        lines += [f"* data `{done.config.data.uri}`, revision `{(done.config.data.revision or '')[:SHORT]}`"]
    lines += [f"* {_champion(done.config)}", ""]
    lines += _table(("stage", "before", "after", "fingerprint", "time"), [_stage_row(*pair) for pair in _pairs(done)])
    metrics = {name: value for node in done.after if node.manifest for name, value in node.manifest.metrics.items()}
    shown = [(f"`{name}`", value_text(name, value)) for name, value in metrics.items() if _is_judged(name)]
    if shown:
        lines += ["", *_table(("metric", "value"), shown)]
    return "\n".join(lines) + "\n"


def _is_judged(key: str) -> bool:
    """Whether higher or lower values of this metric are better."""
    metric = find_metric(key)
    return metric is not None and bool(metric.better)


def _champion(config: Config) -> str:
    name = config.register.name
    try:
        version = champion(tracking_uri(config), name)
    except PipelineError as error:
        return f"champion of `{name}`: unknown ({error.what})"
    if version is None:
        return f"no version of `{name}` has the alias `{CHAMPION}`"
    return f"champion of `{name}`: version {version}"


def _pairs(done: Retraining) -> list[tuple[Node, Node]]:
    return list(zip(done.before, done.after, strict=True))


def _stage_row(before: Node, after: Node) -> tuple[str, ...]:
    created = after.manifest is not None and before.manifest is None
    time = duration(after.manifest.seconds) if created and after.manifest else ""
    state = "created" if created else after.status
    return (after.stage.name, before.status, state, f"`{(after.fingerprint or '')[:SHORT]}`", time)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows)]


def publish(text: str, say: Say) -> None:
    """Append the summary to the page of the GitHub job, if this is one."""
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if not page:
        return
    try:
        with Path(page).open("a") as file:
            file.write(text)
    except OSError as error:  # the outcome matters more than its page
        say(f"the summary cannot be written to {page} ({error.strerror})")
