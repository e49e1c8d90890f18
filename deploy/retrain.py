"""What CI calls: look whether data or config have changed, have what is missing made, and say what came of it.

The work itself is one `run` on the cluster, which goes on when this process ends; calling again attaches to it. The
memory of earlier candidates is the root's: a `register` artifact of the same fingerprint is a decision already made.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.errors import BusyError
from deploy.jobs import Dashboard
from deploy.retrying import Say
from deploy.submit import MODEL, Work, attempt_of, check_tracking, remote_config, run_work_of, submit
from pipeline.artifacts import SHORT, Manifest, read_manifest
from pipeline.config import Config
from pipeline.console import duration
from pipeline.data import list_source, write_index
from pipeline.errors import PipelineError
from pipeline.metrics import find_metric, value_text
from pipeline.storage import open_storage
from pipeline.tracking import CHAMPION, champion, tracking_uri
from pipeline.workflow import Node, check_source, resolved, stage_fingerprints, survey

Outcome = Literal["unchanged", "remembered", "promoted", "rejected", "failed"]
REJECTED = 3  # the exit code of a candidate that the gate did not promote
_HEADLINES = {
    "unchanged": "Nothing to do",
    "remembered": "Nothing to do: this candidate was rejected before",
    "promoted": "A new champion",
    "rejected": "The champion stays",
    "failed": "The run did not come to its end",
}


@dataclass(frozen=True)
class Retraining:
    """One call of `retrain`, for the summary."""

    preset: str
    config: Config
    outcome: Outcome
    before: list[Node]
    after: list[Node]
    text: str  # why, in a sentence
    exit_code: int


def retrain(
    dashboard: Dashboard, preset: str, sets: list[str] | None, root: str | None, attempts: int, say: Say, echo: Say
) -> Retraining:
    """List the source, plan, run what is new or resumable, wait, and read the gate's decision.

    ConfigError, DataError or StorageError for what is wrong on this side, BusyError while another candidate for the
    same model is being made, and what `submit` raises. A run that fails is an outcome.
    """
    config = remote_config(preset, sets, root)
    check_tracking(config)
    _index(config, say)
    config = resolved(config, fresh=False)
    check_source(config, preset)
    decided = _decided(config)
    before = survey(config)
    if decided is not None and not decided.details["promoted"]:
        return Retraining(preset, config, "remembered", before, before, _again(decided), 0)
    if decided is not None and all(node.status == "cached" for node in before):
        return Retraining(preset, config, "unchanged", before, before, decided.details["decision"], 0)
    for node in before:
        say(f"{node.stage.name}: {node.status}")
    work = run_work_of(config, preset, sets)
    _check_alone(dashboard, work)
    tail = Tail(echo)
    code = submit(dashboard, work, attempts, say, tail)
    after = survey(config)
    decided = _decided(config)
    if code != 0 or decided is None:
        text = f"{work.name} ended with exit code {code}: {tail.line}"
        return Retraining(preset, config, "failed", before, after, text, code or 1)
    outcome: Outcome = "promoted" if decided.details["promoted"] else "rejected"
    code = 0 if decided.details["promoted"] else REJECTED
    return Retraining(preset, config, outcome, before, after, decided.details["decision"], code)


class Tail:
    """Hands on what a job prints, and remembers its last line."""

    def __init__(self, echo: Say) -> None:
        self._echo, self._text = echo, ""

    def __call__(self, text: str) -> None:
        self._echo(text)
        self._text = (self._text + text)[-2000:]

    @property
    def line(self) -> str:
        lines = [line.strip() for line in self._text.splitlines() if line.strip()]
        return lines[-1] if lines else "it printed nothing"


def _index(config: Config, say: Say) -> None:
    """Record what the source holds now: new images under an old URI are new data."""
    if config.data.uri is None:
        return
    listing = list_source(config.data)
    index = write_index(open_storage(config.root), config.data, listing)
    say(f"{config.data.uri}: {index.files} files, {index.bytes / 1e6:.1f} MB, revision {index.digest[:SHORT]}")


def _decided(config: Config) -> Manifest | None:
    """The gate's earlier decision on this very candidate, whatever has become of what it was made from."""
    fingerprint = stage_fingerprints(config)["register"]
    assert fingerprint is not None
    return read_manifest(open_storage(config.root), "register", fingerprint)


def _again(decided: Manifest) -> str:
    where = decided.name
    return (
        f"{decided.details['decision']} (on {decided.created[:10]}; remove {where} at the root to have it tried again)"
    )


def _check_alone(dashboard: Dashboard, work: Work) -> None:
    """BusyError while somebody makes another candidate for the same model: the gate would compare with a moving one."""
    for job in dashboard.jobs():
        same_model = job.metadata.get(MODEL) == work.metadata[MODEL]
        if job.running and same_model and attempt_of(job.id, work.name) is None:
            raise BusyError(
                f"{job.id} is {job.status.lower()}, which is at work for the model {work.metadata[MODEL]} too",
                f"Wait for it, or end it: `ray job stop {job.id} --address {dashboard.address}`.",
            )


# --- the summary ---


def summary(done: Retraining) -> str:
    """Markdown: the outcome, each stage's state before and after, the metrics, the champion."""
    lines = [f"## {_HEADLINES[done.outcome]}", "", f"{done.text[:1].upper()}{done.text[1:]}.", ""]
    lines += [f"* preset `{done.preset}`, root `{done.config.root}`"]
    if done.config.data.uri is not None:
        lines += [f"* data `{done.config.data.uri}`, revision `{(done.config.data.revision or '')[:SHORT]}`"]
    lines += [f"* {_champion(done.config)}", ""]
    lines += _table(("stage", "was", "is", "fingerprint", "time"), [_stage_row(*pair) for pair in _pairs(done)])
    metrics = {name: value for node in done.after if node.manifest for name, value in node.manifest.metrics.items()}
    shown = [(f"`{name}`", value_text(name, value)) for name, value in metrics.items() if _is_judged(name)]
    if shown:
        lines += ["", *_table(("metric", "value"), shown)]
    return "\n".join(lines) + "\n"


def _is_judged(key: str) -> bool:
    """Is there a better and a worse of this metric?"""
    metric = find_metric(key)
    return metric is not None and bool(metric.better)


def _champion(config: Config) -> str:
    name = config.register.name
    try:
        version = champion(tracking_uri(config), name)
    except PipelineError as error:
        return f"champion of `{name}`: not known from here ({error.what})"
    if version is None:
        return f"no version of `{name}` has the alias `{CHAMPION}`"
    return f"champion of `{name}`: version {version}"


def _pairs(done: Retraining) -> list[tuple[Node, Node]]:
    return list(zip(done.before, done.after, strict=True))


def _stage_row(before: Node, after: Node) -> tuple[str, ...]:
    made = after.manifest is not None and before.manifest is None
    time = duration(after.manifest.seconds) if made and after.manifest else ""
    state = "made" if made else after.status
    return (after.stage.name, before.status, state, f"`{(after.fingerprint or '')[:SHORT]}`", time)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows)]


def publish(text: str, say: Say) -> None:
    """Append the summary to the page of a GitHub job, where this is one."""
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if not page:
        return
    try:
        with Path(page).open("a") as file:
            file.write(text)
    except OSError as error:  # the outcome is worth more than its page
        say(f"the summary cannot be written to {page} ({error.strerror})")
