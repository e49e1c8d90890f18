"""register: creates a version in MLflow's model registry, and the gate decides whether it becomes champion.

The model is packed from artifacts by MLflow, without torch, and uploaded to this stage's MLflow run, to which the
version points. A repeated attempt finds its version by fingerprint and only sets the aliases again.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from models.choices import TOKENIZER_PACKAGES
from models.intervals import Interval
from pipeline.artifacts import Manifest, Outcome, git_sha, read_manifest
from pipeline.config import Config
from pipeline.errors import ContractError, PipelineError
from pipeline.inference import MODEL_FILE, copy_model_package, model_package, sit_details, sit_weights
from pipeline.reports import all_metrics, model_card
from pipeline.stages.register_gate import Champion, decide
from pipeline.tracking import (
    CANDIDATE,
    CHAMPION,
    FINGERPRINT_TAG,
    INTERVAL_TAG,
    METRIC_TAG,
    MlflowWriter,
    RunFiles,
    TrackingError,
    deliver,
    file_errors,
    input_tag,
    tracking_uri,
)
from pipeline.workflow import StageContext

_DECISION_TAG = "dvae.decision"
_GATE_SECONDS = 60.0  # a gate takes seconds
_FOLDER = "model"  # of the model, in the run's artifacts
_AGAIN = "Run again when that is mended; all other stages are done."
# Packages that loading the model, and drawing from it, requires.
_NEEDED = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "torch", "torchdiffeq")


def run(context: StageContext) -> Outcome:
    manifests = _manifests(context)
    gate, metrics = context.config.register.gate, all_metrics(manifests)
    if gate.metric not in metrics:
        raise PipelineError(
            f"register.gate.metric: there is no metric '{gate.metric}'", f"Use one of {', '.join(metrics)}."
        )
    _write_facts(context, manifests)
    with _required_mlflow(context.config):
        writer, run_id = _own_run(context)
        version = _find_version(writer.client, context) or _create_version(
            context, writer.client, run_id, manifests, metrics
        )
        promoted, decision = _apply_gate(writer.client, context, version, manifests)
    context.outbox.tags({"dvae.model_version": version, _DECISION_TAG: decision})
    return context.writer.outcome(
        1,
        {gate.metric: metrics[gate.metric]},
        name=context.config.register.name,
        version=version,
        promoted=promoted,
        decision=decision,
    )


def _manifests(context: StageContext) -> dict[str, Manifest]:
    """The inputs, and the prepare artifact of the latents."""
    fingerprint = context.inputs["encode"].inputs["prepare"]
    prepared = read_manifest(context.storage, "prepare", fingerprint)
    if prepared is None:
        raise ContractError(f"the prepare artifact {fingerprint} of the latents is missing", "Run prepare again.")
    return {"prepare": prepared, **context.inputs}


def _intervals(manifests: dict[str, Manifest]) -> dict[str, Interval]:
    """95% intervals of the metrics that have one."""
    return {key: interval for manifest in manifests.values() for key, interval in manifest.intervals.items()}


def _reference(manifests: dict[str, Manifest]) -> str | None:
    """The fingerprint of the images that samples were measured against; of early artifacts it is not known."""
    return manifests["evaluate-samples"].inputs.get("reference")


# --- the model ---


def _write_facts(context: StageContext, manifests: dict[str, Manifest]) -> None:
    """Write model.json and README.md to this artifact, and to `scratch` for the packer."""
    files = {
        "model.json": json.dumps(_facts(context.config, manifests), indent=1),
        "README.md": model_card(context.config, manifests, context.fingerprint, git_sha()),
    }
    context.scratch.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        context.writer.add_bytes(text.encode(), name)
        (context.scratch / name).write_text(text)


def _facts(config: Config, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """The content of model.json: what `registered_model` builds the generator from, and further information."""
    tokenizer, sit = manifests["train-tokenizer"].details, sit_details(manifests["train-sit"])
    return {
        "kind": tokenizer["kind"],
        "tokenizer": tokenizer["network"],
        "filter": tokenizer["filter"],
        "sit": sit["network"],
        "level": sit["level"],
        "prediction": sit["prediction"],
        "path": sit["path"],
        "statistics": sit["statistics"],
        "sampling": config.sampling(),
        "batch_size": config.sample.batch_size,
        "code": model_package(),
        "class_names": manifests["prepare"].details.get("class_names"),
    }


def _pack(context: StageContext) -> Path:
    """The MLflow model as a local folder: code, weights, model.json, card, signature. Runs no network."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow.pyfunc
    import pandas as pd

    target = context.scratch / _FOLDER
    shutil.rmtree(target, ignore_errors=True)
    packages = (*_NEEDED, *TOKENIZER_PACKAGES[context.inputs["train-tokenizer"].details["kind"]])
    mlflow.pyfunc.save_model(
        target,
        python_model=MODEL_FILE,
        code_paths=[str(copy_model_package(context.scratch))],
        artifacts={
            "tokenizer": _weights(context, "train-tokenizer", "weights.safetensors"),
            "sit": _weights(context, "train-sit", _sit_weights(context)),
            "model": str(context.scratch / "model.json"),
            "card": str(context.scratch / "README.md"),
        },
        signature=_signature(context.config),
        input_example=pd.DataFrame({"label": [0], "seed": [0]}),
        pip_requirements=[f"{name}=={installed(name).partition('+')[0]}" for name in packages],
    )
    return target


def _sit_weights(context: StageContext) -> str:
    """The average that the samples, and so the metrics, are of."""
    return sit_weights(context.inputs["train-sit"], context.config.sample.ema_decay)


def _weights(context: StageContext, stage: str, name: str) -> str:
    """A copy of a trainer's weights named after the stage, since the packer keeps file names."""
    path = context.scratch / f"{stage}.safetensors"
    shutil.copyfile(context.input_files(stage, [name])[name], path)
    return str(path)


def _signature(config: Config) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

    own = config.sample
    return ModelSignature(
        Schema([ColSpec("long", "label"), ColSpec("long", "seed")]),
        Schema([ColSpec("binary", "image")]),
        ParamSchema(
            [
                ParamSpec("guidance", "double", own.guidance),
                ParamSpec("guidance_interval", "double", list(own.guidance_interval), (-1,)),
                ParamSpec("steps", "long", own.steps),
                ParamSpec("method", "string", own.method),
            ]
        ),
    )


# --- MLflow ---


@contextmanager
def _required_mlflow(config: Config) -> Iterator[None]:
    """Turn errors of MLflow's client into PipelineErrors: unlike other stages, register needs the server."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except TrackingError as error:
        raise PipelineError(f"register needs MLflow, and {error.what}", error.hint) from error
    except (MlflowException, RequestException) as error:
        raise PipelineError(
            f"register needs MLflow, and {tracking_uri(config)} failed: {' '.join(str(error).split())[:300]}",
            _AGAIN,
        ) from error


def _own_run(context: StageContext) -> tuple[MlflowWriter, str]:
    """A writer to MLflow, and the id of this stage's run, after delivery of its pending events."""
    writer = MlflowWriter(tracking_uri(context.config), context.config)
    deliver(context.storage, writer, only=context.outbox.key.partition("/")[0])
    return writer, writer.run_of(context.outbox.key)


def _find_version(client: Any, context: StageContext) -> str | None:
    """The version that an earlier attempt created for this fingerprint, if its files still exist."""
    name = context.config.register.name
    found = client.search_model_versions(f"name='{name}' and tags.`{FINGERPRINT_TAG}`='{context.fingerprint}'")
    complete = [version for version in found if _has_files(client, version)]
    return str(max(int(version.version) for version in complete)) if complete else None


def _has_files(client: Any, version: Any) -> bool:
    """Whether a version's files exist. Not if its run was purged. PipelineError if their place cannot be looked at."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.list_artifacts(version.run_id, _FOLDER))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    except OSError:
        raise
    except Exception as error:  # of any client of any store that MLflow knows, or the lack of one
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise PipelineError(
            f"register needs MLflow, and the files of version {version.version} cannot be looked at ({why})", _AGAIN
        ) from error


def _create_version(
    context: StageContext, client: Any, run_id: str, manifests: dict[str, Manifest], metrics: dict[str, float]
) -> str:
    """Upload the model to the run, then create the version, so that it never points to a partial model."""
    files = RunFiles(client, run_id, context.say)
    _upload(context, files, _pack(context))
    name = context.config.register.name
    _ensure_model(client, name)
    context.lease.check()
    version = client.create_model_version(
        name,
        f"{files.place}/{_FOLDER}",
        run_id,
        tags=_tags(context, manifests, metrics),
        description=f"Created from {context.storage.uri(context.writer.folder)}. See the model card in its artifacts.",
    )
    return str(version.version)


def _upload(context: StageContext, files: RunFiles, model: Path) -> None:
    """Upload a local folder, the largest files first: what fails for its size fails at once."""
    paths = sorted((path for path in model.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    total, before = sum(path.stat().st_size for path in paths), 0
    for path in paths:
        folder = f"{_FOLDER}/{path.parent.relative_to(model)}".removesuffix("/.")
        with file_errors(tracking_uri(context.config), path, f"{folder}/{path.name}", files.place, _AGAIN):
            files.upload(path, folder, partial(_show_sent, context, before, total))
        before += path.stat().st_size


def _show_sent(context: StageContext, before: int, total: int, sent: int) -> None:
    context.progress((before + sent) // 10**6, total // 10**6, unit="MB")


def _ensure_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _tags(context: StageContext, manifests: dict[str, Manifest], metrics: dict[str, float]) -> dict[str, str]:
    """Fingerprint, lineage and metrics, as the version's tags."""
    tags = {FINGERPRINT_TAG: context.fingerprint, "dvae.git_sha": git_sha() or "unknown"}
    tags.update({input_tag(stage): manifest.fingerprint for stage, manifest in manifests.items()})
    if reference := _reference(manifests):  # by which others can tell what compares
        tags[input_tag("reference")] = reference
    tags.update({f"{METRIC_TAG}{metric}": repr(value) for metric, value in metrics.items()})
    tags.update({f"{INTERVAL_TAG}{key}": json.dumps(interval) for key, interval in _intervals(manifests).items()})
    return tags


# --- the gate ---


def _apply_gate(client: Any, context: StageContext, version: str, manifests: dict[str, Manifest]) -> tuple[bool, str]:
    """Set the version's aliases according to the gate. Returns whether it is champion, and the reason.

    The decision is recorded last: whoever waits for it finds the champion that it made.
    """
    own = context.config.register
    _await_earlier(client, own.name, version, context.say)
    champion = _champion(client, own.name, own.gate.metric)
    if champion is not None and context.fingerprint == champion.fingerprint:  # its files may have been lost
        promoted, decision = True, f"version {version} is already champion"
    else:
        value, interval = all_metrics(manifests)[own.gate.metric], _intervals(manifests).get(own.gate.metric)
        promoted, reason = decide(own.gate, value, champion, interval, _reference(manifests))
        decision = f"version {version} was {'' if promoted else 'not '}promoted: {reason}"
    context.lease.check()
    client.set_registered_model_alias(own.name, CANDIDATE, version)
    if promoted:
        client.set_registered_model_alias(own.name, CHAMPION, version)
    client.set_model_version_tag(own.name, version, _DECISION_TAG, decision)
    return promoted, decision


def _await_earlier(client: Any, name: str, version: str, say: Callable[[str], None]) -> None:
    """Wait until the gates of the versions just before this one have decided, a minute at most.

    The registry compares nothing when it sets an alias, but numbers its versions: of two candidates at the same moment,
    the later is so compared with the earlier, and not both with the champion before them.
    """
    end, said = time.monotonic() + _GATE_SECONDS, False
    while waiting := _undecided(client, name, int(version)):
        if time.monotonic() > end:
            say(f"version {waiting[0]} of {name} has no decision after {_GATE_SECONDS:.0f} s: its register was ended")
            return
        if not said:
            say(f"waiting for the decision on version {waiting[0]} of {name}, which was created just before")
        said = True
        time.sleep(1)


def _undecided(client: Any, name: str, version: int) -> list[int]:
    """The versions of the minute before this one that no gate has decided on yet. All times are the registry's."""
    found = {int(one.version): one for one in client.search_model_versions(f"name='{name}'")}
    since = found[version].creation_timestamp - 1000 * _GATE_SECONDS
    return sorted(
        number
        for number, one in found.items()
        if number < version and one.creation_timestamp > since and FINGERPRINT_TAG in one.tags
        and _DECISION_TAG not in one.tags
    )  # fmt: skip


def _champion(client: Any, name: str, metric: str) -> Champion | None:
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    if version is None:
        return None
    tags = client.get_model_version(name, version).tags
    value, interval = tags.get(f"{METRIC_TAG}{metric}"), tags.get(f"{INTERVAL_TAG}{metric}")
    return Champion(
        str(version),
        None if value is None else float(value),
        tags.get(FINGERPRINT_TAG),
        None if interval is None else tuple(json.loads(interval)),
        tags.get(input_tag("reference")),
    )
