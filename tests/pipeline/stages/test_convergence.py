"""convergence: its curve over milestones of known weights, of untrained networks and real digits."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from models.sit import SiT
from pipeline.artifacts import Manifest, Outcome
from pipeline.errors import ConfigError
from pipeline.inference import milestone_place
from pipeline.stages import convergence
from pipeline.workflow import NAMES, stage_fingerprints, stages_until
from pipeline.workflow.graph import ALL_STAGES
from pipeline.workflow.preflight import check_start
from tests.support.artifacts import artifact_writer, manifest, prepared, put
from tests.support.contexts import LocalContext, local_context, reference_of, untrained_generator, untrained_tokenizer
from tests.support.trainers import small_config

SETS = [
    "evaluate.network_size=32", "evaluate.reference_images=60", "evaluate.batch_size=32", "convergence.images=24",
    "sample.batch_size=10", "sample.method=euler", "sample.steps=3", "sample.guidance=1", "sample.precision=fp32",
    "sit.milestones=[1,2]",
]  # fmt: skip


def with_milestones(context: LocalContext, sit: Manifest, seeds: dict[int, int], scratch: Path) -> Manifest:
    """The artifact with random weights of these seeds as its milestones."""
    writer = artifact_writer(context.config, "train-sit")
    for step, seed in seeds.items():
        torch.manual_seed(seed)
        network = SiT(**context.config.sit_network)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        save_file(network.state_dict(), scratch / "milestone.safetensors")
        writer.add(scratch / "milestone.safetensors", f"{milestone_place(step)}.safetensors")
    files = {**sit.files, **writer.files}
    return put(context.config, sit.model_copy(update={"files": files, "seconds": 72.0}))


def made(folder: Path, seeds: dict[int, int], *sets: str) -> LocalContext:
    config = small_config(folder, *SETS, *sets)
    prepare = prepared(config)
    scratch = folder / "scratch"
    tokenizer = untrained_tokenizer(config, prepare, scratch)
    encode = put(config, manifest(config, "encode", artifact_writer(config, "encode"), {"prepare": prepare}))
    encode = encode.model_copy(update={"rows": 1000})
    inputs = {**reference_of(config, prepare, scratch), "encode": encode}
    del inputs["floor"]
    del inputs["prepare"]
    sit = untrained_generator(config, {"train-tokenizer": tokenizer, "encode": encode}, scratch)
    context = local_context(config, "convergence", inputs, scratch)
    inputs["train-sit"] = with_milestones(context, sit, seeds, scratch)
    return context


def curve_of(context: LocalContext, outcome: Outcome) -> dict[str, Any]:
    folder = context.writer.folder
    name = "curve-efficientnet_lite0.json"
    assert {name, "milestones.png"} <= set(outcome.files)
    curve: dict[str, Any] = json.loads(context.storage.read(f"{folder}/{name}"))
    return curve


def test_a_curve_has_a_point_for_each_milestone(tmp_path):
    said = list[str]()
    context = replace(made(tmp_path, {1: 5, 2: 5}), say=said.append)
    outcome = convergence.run(context)
    assert outcome.details["notes"] == said
    assert [line.partition(":")[0] for line in said] == ["24 images for the 1,280 features of efficientnet_lite0"]
    curve = curve_of(context, outcome)
    first, second = curve["points"]
    assert first.keys() == second.keys() == {"step", "distance", "resampled"}
    assert (first["step"], second["step"]) == (1, 2)
    assert first["distance"] == pytest.approx(second["distance"]), "the same weights, labels and noise"
    assert len(first["resampled"]) == 100
    assert np.mean(first["resampled"]) > first["distance"], "a resample holds fewer different images"
    key = "convergence/frechet_distance/efficientnet_lite0"
    assert outcome.metrics == {key: second["distance"]}
    assert outcome.details["curves"] == {"efficientnet_lite0": [(1, first["distance"]), (2, second["distance"])]}
    assert outcome.rows == 48
    assert curve["images"] == 24
    assert curve["reference"] == "60 images of the training split"
    assert (curve["batch_size"], curve["training_images"]) == (context.config.sit.batch_size, 1000)
    assert curve["device_seconds_per_step"] == 72.0 / context.config.sit.steps
    picture = Image.open(io.BytesIO(context.storage.read(f"{context.writer.folder}/milestones.png")))
    assert picture.width > 500


def test_other_weights_have_another_distance(tmp_path):
    context = made(tmp_path, {1: 5, 2: 6})
    first, second = curve_of(context, convergence.run(context))["points"]
    assert first["distance"] != pytest.approx(second["distance"], rel=1e-3)


def test_without_milestones_it_is_refused_before_anything_is_trained(tmp_path):
    config = small_config(tmp_path, "sit.milestones=[]")
    with pytest.raises(ConfigError, match=r"sit.milestones is empty"):
        check_start(config, ["convergence"])
    check_start(config, NAMES)


def test_it_is_made_when_it_is_asked_for(tmp_path):
    assert "convergence" not in NAMES
    names = [stage.name for stage in stages_until("convergence")]
    assert names == ["prepare", "train-tokenizer", "classifier", "encode", "reference", "train-sit", "convergence"]
    assert [stage.name for stage in stages_until(None)] == list(NAMES)
    prints = stage_fingerprints(small_config(tmp_path, *SETS))
    assert set(prints) == {stage.name for stage in ALL_STAGES} - {"classifier"}
    more = stage_fingerprints(small_config(tmp_path, *SETS, "convergence.images=30"))
    assert [name for name in prints if prints[name] != more[name]] == ["convergence"]
