"""register: a version in MLflow's model registry, and the gate that makes it champion.

The model is made from artifacts by MLflow's own packer, without torch, and laid into this stage's MLflow run; the
version points there. A repeated attempt finds its version by the fingerprint and only settles the aliases again.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import Manifest, Outcome, git_sha, read_manifest
from pipeline.config import Config, GateConfig
from pipeline.errors import ContractError, PipelineError
from pipeline.inference import MODEL_FILE, copy_model_package, model_package
from pipeline.reports import all_metrics, model_card
from pipeline.tracking import CANDIDATE, CHAMPION, FINGERPRINT_TAG, MlflowWriter, TrackingError, deliver, tracking_uri
from pipeline.workflow import StageContext

_METRIC_TAG = "dvae.metric."
_FOLDER = "model"  # of the model in the run's artifacts
_WEIGHTS = "weights.safetensors"
_NEEDED = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "torch")  # to load the model


class Champion(NamedTuple):
    """The version that the alias names now, and its value of the gate's metric, None where it has none."""

    version: str
    value: float | None
    fingerprint: str | None = None  # of the register artifact that made it


def run(context: StageContext) -> Outcome:
    manifests = _manifests(context)
    gate, metrics = context.config.register.gate, all_metrics(manifests)
    if gate.metric not in metrics:
        raise PipelineError(
            f"register.gate.metric: nothing has measured '{gate.metric}'", f"There are {', '.join(metrics)}."
        )
    _write_facts(context, manifests)
    with _mlflow_needed(context.config):
        post, run_id = _own_run(context)
        version = _find_version(post.client, context) or _make_version(context, post.client, run_id, manifests, metrics)
        promoted, decision = _settle(post.client, context, version, metrics[gate.metric])
    context.outbox.tags({"dvae.model_version": version, "dvae.decision": decision})
    return context.writer.outcome(
        1,
        {gate.metric: metrics[gate.metric]},
        name=context.config.register.name,
        version=version,
        promoted=promoted,
        decision=decision,
    )


def _manifests(context: StageContext) -> dict[str, Manifest]:
    """The inputs, and the prepared data behind them."""
    fingerprint = context.inputs["encode"].inputs["prepare"]
    prepared = read_manifest(context.storage, "prepare", fingerprint)
    if prepared is None:
        raise ContractError(f"the prepare artifact {fingerprint} behind the latents is gone", "Run prepare again.")
    return {"prepare": prepared, **context.inputs}


# --- what the model is made of ---


def _write_facts(context: StageContext, manifests: dict[str, Manifest]) -> None:
    """model.json and README.md: into this artifact, and into `scratch` for the packer."""
    files = {
        "model.json": json.dumps(_facts(context.config, manifests), indent=1),
        "README.md": model_card(context.config, manifests, context.fingerprint, git_sha()),
    }
    context.scratch.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        context.writer.add_bytes(text.encode(), name)
        (context.scratch / name).write_text(text)


def _facts(config: Config, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """What `registered_model` builds the generator from, and what else one may want to know of it."""
    tokenizer, sit = manifests["train-tokenizer"].details, manifests["train-sit"].details
    return {
        "tokenizer": tokenizer["network"],
        "filter": tokenizer["filter"],
        "sit": sit["network"],
        "level": sit["level"],
        "prediction": sit["prediction"],
        "statistics": sit["statistics"],
        "sampling": config.sample.sampling(),
        "batch_size": config.sample.batch_size,
        "code": model_package(),
        "class_names": manifests["prepare"].details.get("class_names"),
    }


def _pack(context: StageContext) -> Path:
    """The MLflow model as a folder on this machine: code, weights, facts, card, signature. Runs no network."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow.pyfunc
    import pandas as pd

    target = context.scratch / _FOLDER
    shutil.rmtree(target, ignore_errors=True)
    mlflow.pyfunc.save_model(
        target,
        python_model=MODEL_FILE,
        code_paths=[str(copy_model_package(context.scratch))],
        artifacts={
            "tokenizer": _weights(context, "train-tokenizer"),
            "sit": _weights(context, "train-sit"),
            "model": str(context.scratch / "model.json"),
            "card": str(context.scratch / "README.md"),
        },
        signature=_signature(context.config),
        input_example=pd.DataFrame({"label": [0], "seed": [0]}),
        pip_requirements=[f"{name}=={installed(name).partition('+')[0]}" for name in _NEEDED],
    )
    return target


def _weights(context: StageContext, stage: str) -> str:
    """A copy of a trainer's weights, named after the stage: the packer keeps file names."""
    path = context.scratch / f"{stage}.safetensors"
    shutil.copyfile(context.input_files(stage, [_WEIGHTS])[_WEIGHTS], path)
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
def _mlflow_needed(config: Config) -> Iterator[None]:
    """One line for whatever MLflow's client raises when its server is away or refuses."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except TrackingError as error:
        raise PipelineError(f"MLflow is needed for register, and {error.what}", error.hint) from error
    except (MlflowException, OSError) as error:
        raise PipelineError(
            f"MLflow is needed for register, and {tracking_uri(config)} said: {' '.join(str(error).split())[:300]}",
            "Run again when it is up; all other stages are done.",
        ) from error


def _own_run(context: StageContext) -> tuple[MlflowWriter, str]:
    """The way into MLflow, and the id of this stage's run there, its opening delivered."""
    post = MlflowWriter(tracking_uri(context.config), context.config)
    deliver(context.storage, post, only=context.outbox.key.partition("/")[0])
    return post, post.run_of(context.outbox.key)


def _find_version(client: Any, context: StageContext) -> str | None:
    """The version that an earlier attempt made of this fingerprint, if its files are still there."""
    name = context.config.register.name
    found = client.search_model_versions(f"name='{name}' and tags.`{FINGERPRINT_TAG}`='{context.fingerprint}'")
    whole = [version for version in found if client.list_artifacts(version.run_id, _FOLDER)]
    return str(max(int(version.version) for version in whole)) if whole else None


def _make_version(
    context: StageContext, client: Any, run_id: str, manifests: dict[str, Manifest], metrics: dict[str, float]
) -> str:
    """Upload the model into the run, then name it: a version never points at a part of a model."""
    client.log_artifacts(run_id, str(_pack(context)), _FOLDER)
    name = context.config.register.name
    _ensure_model(client, name)
    context.lease.check()
    version = client.create_model_version(
        name,
        f"{client.get_run(run_id).info.artifact_uri}/{_FOLDER}",
        run_id,
        tags=_tags(context, manifests, metrics),
        description=f"Made as {context.storage.uri(context.writer.folder)}. The model's artifacts hold a card.",
    )
    return str(version.version)


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
    tags.update({f"dvae.input.{stage}": manifest.fingerprint for stage, manifest in manifests.items()})
    tags.update({f"{_METRIC_TAG}{metric}": repr(value) for metric, value in metrics.items()})
    return tags


# --- the gate ---


def _settle(client: Any, context: StageContext, version: str, value: float) -> tuple[bool, str]:
    """Give the version its aliases. Returns whether it is champion, and why or why not."""
    own = context.config.register
    champion = _champion(client, own.name, own.gate.metric)
    if champion is not None and context.fingerprint == champion.fingerprint:  # perhaps with files that were lost
        promoted, decision = True, f"version {version} is champion already"
    else:
        promoted, reason = decide(own.gate, value, champion)
        decision = f"version {version} was {'' if promoted else 'not '}promoted: {reason}"
    context.lease.check()
    client.set_model_version_tag(own.name, version, "dvae.decision", decision)
    client.set_registered_model_alias(own.name, CANDIDATE, version)
    if promoted:
        client.set_registered_model_alias(own.name, CHAMPION, version)
    return promoted, decision


def _champion(client: Any, name: str, metric: str) -> Champion | None:
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    if version is None:
        return None
    tags = client.get_model_version(name, version).tags
    value = tags.get(f"{_METRIC_TAG}{metric}")
    return Champion(str(version), None if value is None else float(value), tags.get(FINGERPRINT_TAG))


def decide(gate: GateConfig, value: float, champion: Champion | None) -> tuple[bool, str]:
    """Whether a candidate with this value of the gate's metric becomes champion, and why, in words.

    The first champion needs only the minimum. A later one must be better than the champion, and by the margin.
    """
    candidate = f"{gate.metric} {value:.6g}"
    sign = 1.0 if gate.direction == "higher" else -1.0
    if not math.isfinite(value):
        return False, f"{candidate} is no number"
    if gate.minimum is not None and sign * (value - gate.minimum) < 0:
        return False, f"{candidate} misses the minimum {gate.minimum:.6g} ({gate.direction} is better)"
    if champion is None:
        least = "no minimum is set" if gate.minimum is None else f"the minimum is {gate.minimum:.6g}"
        return True, f"{candidate}, the first champion ({least})"
    rival = f"champion version {champion.version}"
    if champion.value is None:
        return False, f"{rival} has no record of {gate.metric} to compare with; move the alias by hand if it is to go"
    gain = sign * (value - champion.value)
    if gain <= 0:
        return False, f"{candidate} is not better than {champion.value:.6g} of {rival}"
    if gain < gate.margin and not math.isclose(gain, gate.margin):
        return False, f"{candidate} beats {champion.value:.6g} of {rival} by less than the margin {gate.margin:.6g}"
    return True, f"{candidate} beats {champion.value:.6g} of {rival}"
