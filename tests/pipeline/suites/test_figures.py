"""The figures of a suite's report, from artifacts of known content: which there are, in which forms, of what."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts import Manifest
from pipeline.reports.analysis import files_of
from pipeline.storage import open_storage
from pipeline.suites import Asked, Run, Suite, figures, load_suite, measured, runs_of
from pipeline.suites.figures import Picture, pictures_of
from pipeline.workflow import Node, find_stage
from tests.pipeline.reports.test_panels import analysis
from tests.pipeline.suites.user import record

Files = dict[str, bytes]


def drawn(suite: Suite, folder: Path, monkeypatch: pytest.MonkeyPatch, **stages: Any) -> list[Picture]:
    """The pictures of a suite on digits whose runs have these stages' artifacts: `stage(run) -> (files, details)`."""
    runs = runs_of(suite, Asked("digits", 1, (), (), str(folder / "runs")), fresh=True)

    def nodes(run: Run) -> dict[str, Node]:
        return {name: node(run, name, *make(run)) for name, make in made.items()}

    made = {name.replace("_", "-"): make for name, make in stages.items()}
    monkeypatch.setattr(figures, "nodes_of", nodes)
    records = {str(run.fingerprint): record(run) for run in runs}
    return pictures_of(suite, "digits", measured(runs, records))


def node(run: Run, stage: str, files: Files, details: dict[str, Any]) -> Node:
    manifest = Manifest.model_validate(
        {
            "stage": stage, "fingerprint": run.identities[stage], "inputs": {"prepare": "ab"}, "input_contents": {},
            "config": {}, "rows": 1, "metrics": {}, "details": details, "seconds": 1.0, "git_sha": None,
            "image_digest": None, "created": "2026",
            "files": {
                name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
            },
        }
    )  # fmt: skip
    for name, data in files.items():
        open_storage(run.config.root).write(f"{manifest.name}/{name}", data)
    return Node(find_stage(stage), run.identities[stage], "cached", None, manifest)


def in_both_forms(picture: Picture) -> bool:
    return picture.files["png"].startswith(b"\x89PNG") and picture.files["svg"].startswith(b"<?xml")


def test_figures_1_and_2_have_a_row_for_each_tokenizer(tmp_path, monkeypatch):
    suite = load_suite("figure1")
    pictures = drawn(suite, tmp_path, monkeypatch, analyze=lambda run: (files_of(analysis(seed=1)), {}))
    assert [one.name for one in pictures] == ["figure1a", "figure1b", "figure1c", "figure2", "spectrum"]
    assert all(map(in_both_forms, pictures))
    assert b"SD-VAE" in pictures[2].files["svg"]
    assert b"ViT, d of f16d64" in pictures[2].files["svg"]


def curve(run: Run) -> tuple[Files, dict[str, Any]]:
    """Distances that fall the faster the later the row: FDA reaches 50 in half of the steps of raw latents."""
    rate = 1 + ["f16d32-mlsr", "f16d32-denoised", "f16d32-fda"].index(run.row.name) / 2
    points = [
        {"step": step, "distance": 100 - rate * step, "resampled": [100 - rate * step + by for by in (-1, 0, 1)]}
        for step in (10, 20, 30, 40)
    ]
    about = {
        "distance": "frechet_distance/efficientnet_lite0", "images": 500, "batch_size": 48, "training_images": 1000,
        "device_seconds_per_step": 1.0, "points": points, "sampling": {}, "data": "abc", "reference": "the digits",
    }  # fmt: skip
    return {"curve-efficientnet_lite0.json": json.dumps(about).encode()}, {"networks": ["efficientnet_lite0"]}


def test_figure_3_says_who_is_how_many_times_as_fast(tmp_path, monkeypatch):
    (picture,) = drawn(load_suite("figure3"), tmp_path, monkeypatch, convergence=curve)
    assert in_both_forms(picture)
    assert picture.caption.startswith(
        "Figure 3: distance over training steps, seed 0. To a distance of 60.95. Beside MLSR"
    )
    assert "MLSR + Denoising + FDA (f16d32): 2.00 (" in picture.caption


def history(run: Run) -> tuple[Files, dict[str, Any]]:
    lines = [json.dumps({"step": step, "loss": 2.0, "diffusion": 1.0 / step}) for step in range(1, 20)]
    return {"history.jsonl": "\n".join(lines).encode()}, {}


def test_figure_4_has_every_training(tmp_path, monkeypatch):
    (picture,) = drawn(load_suite("figure4"), tmp_path, monkeypatch, train_sit=history)
    assert in_both_forms(picture)
    for name in (b"MLSR (f16d16)", b"MLSR + Denoising (f16d64)"):
        assert name in picture.files["svg"]


def samples(run: Run) -> tuple[Files, dict[str, Any]]:
    buffer = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 255, (30, 3, 8, 8), np.uint8)
    np.savez(buffer, images=images, labels=np.arange(30) % 10)
    return {"images/000000.npz": buffer.getvalue()}, {"shards": [{"path": "images/000000.npz", "rows": 30}]}


def test_figure_5_has_the_classes_that_are_asked_for(tmp_path, monkeypatch):
    suite = load_suite("figure5")
    (picture,) = drawn(suite, tmp_path, monkeypatch, sample=samples)
    assert in_both_forms(picture)
    assert picture.files["svg"].count(b">class ") == 10
    assert picture.caption == "Figure 5: samples of SiT-XL + Ours. Guidance 1.8."
    chosen = {"digits": suite.scales["digits"].model_copy(update={"classes": (3, 7)})}
    (picture,) = drawn(suite.model_copy(update={"scales": chosen}), tmp_path, monkeypatch, sample=samples)
    assert picture.files["svg"].count(b">class ") == 2


def test_without_artifacts_there_are_no_pictures(tmp_path, monkeypatch):
    """As where only results are."""
    for name in ("figure1", "figure3", "figure4", "figure5", "table2", "table5"):
        assert drawn(load_suite(name), tmp_path, monkeypatch) == []
