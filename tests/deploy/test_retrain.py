"""`deploy retrain` against a real Ray head, S3 and MLflow: nothing new, something new, a worse one, one at a time."""

import io
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from PIL import Image

from deploy.jobs import Dashboard
from pipeline.config.loading import load_config
from pipeline.data.index import read_index
from pipeline.storage.uri import open_storage
from pipeline.tracking.registry import champion
from tests.support import PROJECT
from tests.support.ray_head import Head
from tests.support.trainers import SETS

TINY = [*SETS, "sample.count=20", "sample.steps=4"]
MADE_OF_SIT = ["train-sit", "sample", "evaluate-samples", "register"]


def retrain(
    address: str, root: str, *sets: str, options: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy", "retrain", "quickstart", "--address", address, "--root", root, *options]
    command += [word for one in (*TINY, *sets) for word in ("--set", one)]
    return subprocess.run(
        command, cwd=PROJECT, env={**os.environ, **environment}, text=True, capture_output=True, timeout=500
    )


def put_images(uri: str, count: int) -> None:
    """Two classes of pictures of one colour each."""
    storage = open_storage(uri)
    for i in range(count):
        picture = io.BytesIO()
        Image.new("RGB", (32, 32), (i, 0, 255 - i)).save(picture, "PNG")
        storage.write(f"{'ab'[i % 2]}/{i}.png", picture.getvalue())


def of_folder(uri: str) -> tuple[str, ...]:
    """Overrides for pictures, and for a gate that needs no classifier of digits."""
    return (
        "data.format=folder", f"data.uri={uri}", "evaluate.class_accuracy=false",
        "register.gate.metric=samples/frechet_distance/efficientnet_lite0", "register.gate.direction=lower",
        "register.gate.minimum=null",
    )  # fmt: skip


NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def test_the_source_is_listed_every_time(s3_root, tracked):
    """New images under an old URI are new data; here the dashboard is away, which is found after that.

    What is not read is said before that.
    """
    source = f"{s3_root}/images"
    open_storage(source).write("a/notes.txt", b"no image")
    sets = of_folder(source)
    config = load_config("quickstart", list(sets), s3_root)
    put_images(source, 4)
    done = retrain(NOBODY, s3_root, *sets)
    assert done.returncode == 69
    assert done.stdout.startswith("## Retraining `quickstart` was not possible")
    assert "not read: 1 .txt" in done.stderr.partition("prepare: new")[0]
    first = read_index(open_storage(s3_root), config.data)
    put_images(source, 6)
    assert retrain(NOBODY, s3_root, *sets).returncode == 69
    second = read_index(open_storage(s3_root), config.data)
    assert first is not None
    assert second is not None
    assert (first.files, second.files) == (4, 6)
    assert first.revision != second.revision


def test_without_mlflow_nothing_would_seem_registered(s3_root, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = retrain(NOBODY, s3_root)
    assert done.returncode == 2
    assert "the MLflow server is not configured. Set MLFLOW_TRACKING_URI" in done.stderr


def test_what_was_not_possible_is_in_the_summary_too(s3_root, tmp_path, tracked):
    done = retrain(NOBODY, s3_root, GITHUB_STEP_SUMMARY=str(tmp_path / "page.md"))
    assert done.returncode == 69
    assert "no dashboard answers" in (tmp_path / "page.md").read_text()
    assert done.stdout == (tmp_path / "page.md").read_text()
    assert done.stderr.splitlines()[-1].startswith("error: no dashboard answers")


def names(head: Head) -> list[str]:
    return sorted(job.id for job in Dashboard(head.address, head.token).jobs())


def stages(summary: str) -> dict[str, tuple[str, str]]:
    """Stage to (was, is), from the summary's table."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in summary.splitlines() if line[:1] == "|"]
    return {row[0]: (row[1], row[2]) for row in rows if len(row) == 5 and row[0] not in ("stage", "---")}


@pytest.mark.slow
@pytest.mark.ray
def test_retraining(platform, tmp_path):
    """One story: a first champion, nothing new, a better setting missing the gate, and the memory of it."""
    head, uri, s3_root = platform.head, platform.tracking, f"s3://dvae/{uuid.uuid4().hex}"
    page, model = tmp_path / "page.md", f"retraining-{uuid.uuid4().hex[:6]}"
    named = f"register.name={model}"
    easy = "register.gate.minimum=0"
    first = retrain(head.address, s3_root, named, easy, GITHUB_STEP_SUMMARY=str(page))
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.startswith("## A new champion")
    assert page.read_text() == first.stdout
    assert set(stages(first.stdout).values()) == {("new", "created")}
    assert champion(uri, model) == "1"
    assert f"champion of `{model}`: version 1" in first.stdout
    jobs = names(head)

    again = retrain(head.address, s3_root, named, easy)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("## Nothing to do")
    assert names(head) == jobs, "nothing was submitted"

    # Two steps are no training: whatever the first candidate reached, a gate of 1.1 better is out of reach.
    worse = (easy, "sit.steps=2", "sit.checkpoint_every=1", "register.gate.margin=1.1")
    second = retrain(head.address, s3_root, named, *worse)
    assert second.returncode == 3, second.stdout + second.stderr
    assert second.stdout.startswith("## The champion is kept")
    made = [stage for stage, (_, state) in stages(second.stdout).items() if state == "created"]
    assert made == MADE_OF_SIT
    assert champion(uri, model) == "1"
    jobs = names(head)

    remembered = retrain(head.address, s3_root, named, *worse)
    assert remembered.returncode == 0, remembered.stderr
    assert remembered.stdout.startswith("## Nothing to do: this candidate was rejected before")
    assert names(head) == jobs

    # Its memory is the decision, not what it was made from.
    config = load_config("quickstart", None, s3_root)
    storage = open_storage(config.root)
    (sit,) = [name for name in storage.folders("train-sit")
              if json.loads(storage.read(f"train-sit/{name}/manifest.json"))["config"]["sit.steps"] == 2]  # fmt: skip
    storage.delete_folder(f"train-sit/{sit}")
    assert retrain(head.address, s3_root, named, *worse).stdout == remembered.stdout.replace(
        "| train-sit | cached | cached", "| train-sit | new | new"
    )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)  # two whole runs on a cluster
def test_from_the_champion(platform):
    """New images train SiT alone, from the champion's weights; then there is nothing to do, promoted or not."""
    head, s3_root = platform.head, f"s3://dvae/{uuid.uuid4().hex}"
    source, model = f"{s3_root}/images", f"warm-{uuid.uuid4().hex[:6]}"
    put_images(source, 40)
    few = ("evaluate.images=32", "evaluate.reference_images=32")
    sets = (*of_folder(source), *few, "data.classes=2", f"register.name={model}")
    warm = ("--from-champion", "--steps", "3")
    first = retrain(head.address, s3_root, *sets, options=warm)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"no version of {model} is champion: the training is from nothing" in first.stderr
    assert champion(platform.tracking, model) == "1"
    assert retrain(head.address, s3_root, *sets, options=warm).stdout.startswith("## Nothing to do")

    put_images(source, 44)
    second = retrain(head.address, s3_root, *sets, options=warm)
    assert second.returncode in (0, 3), second.stdout + second.stderr
    assert "of the champion; changed: data.revision" in second.stderr
    assert stages(second.stdout)["train-tokenizer"] == ("cached", "cached")
    assert stages(second.stdout)["train-sit"] == ("new", "created")
    storage = open_storage(s3_root)
    sits = [json.loads(storage.read(f"train-sit/{name}/manifest.json")) for name in storage.folders("train-sit")]
    (start,) = [made["fingerprint"] for made in sits if "sit.start_from" not in made["config"]]
    assert [made["config"]["sit.steps"] for made in sits if made["config"].get("sit.start_from") == start] == [3]
    jobs = names(head)
    third = retrain(head.address, s3_root, *sets, options=warm)
    assert third.returncode == 0, third.stdout + third.stderr
    assert third.stdout.startswith("## Nothing to do")
    assert names(head) == jobs, "nothing was submitted"


@pytest.mark.slow
@pytest.mark.ray
def test_one_candidate_at_a_time(platform):
    head, s3_root = platform.head, f"s3://dvae/{uuid.uuid4().hex}"
    dashboard = Dashboard(head.address, head.token)
    assert dashboard.submit("run-000000000000-1", "sleep 120", {}, {"dvae.model": "denoising-vae"})
    try:
        done = retrain(head.address, s3_root)
        assert done.returncode == 73, done.stdout + done.stderr
        assert "run-000000000000-1 is" in done.stderr
        assert "ray job stop run-000000000000-1" in done.stderr
        other = ("register.name=other", "evaluate.network_weights.uri=file:///nowhere/weights",
                 f"evaluate.network_weights.sha256={'a' * 64}")  # fmt: skip
        failed = retrain(head.address, s3_root, *other)
        assert failed.returncode == 2, failed.stderr
        assert failed.stdout.startswith("## The run failed")
        assert "/nowhere/weights" in failed.stdout, "the last line of its log"
    finally:
        import requests

        requests.post(
            f"{head.address}/api/jobs/run-000000000000-1/stop",
            headers={"Authorization": f"Bearer {head.token}"}, timeout=10,
        )  # fmt: skip
