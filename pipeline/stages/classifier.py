"""classifier: the network `self`, a small classifier of the data's own classes, trained on the real training split.

Its features give distances where ImageNet's networks see mostly blur; they are named `self-` and `data.name`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.intervals import share_interval
from pipeline.artifacts import ArtifactWriter, FileRecord, Manifest, Outcome
from pipeline.config import Config
from pipeline.data import Labels, Pixels, Split, choose_rows, read_images
from pipeline.storage import open_storage
from pipeline.workflow import StageContext, check_labelled

_TRAINED = 50_000  # images, at most: it takes about 200 MB with their pixels
_HELD_OUT = 10_000


@dataclass(frozen=True)
class Spec:
    """The only task."""

    root: str
    prepare: Manifest
    fingerprint: str
    config: Config


def run(context: StageContext) -> Outcome:
    prepare = context.inputs["prepare"]
    check_labelled(context.config, prepare)
    spec = Spec(context.storage.root, prepare, context.fingerprint, context.config)
    (record,) = context.map(train, [spec], [1], unit="classifier")
    context.writer.add_stored(record["path"], FileRecord.model_validate(record["file"]))
    accuracy, images, held_out = record["accuracy"], record["images"], record["held_out"]
    (name,) = [one for one in context.config.network_names if one.startswith("self-")]
    return context.writer.outcome(
        images,
        {"classifier/accuracy": accuracy},
        intervals={"classifier/accuracy": share_interval(accuracy, held_out)},
        classes=context.config.data.class_count,
        network=name,
        classifier=f"{name} was trained on {images:,} images of the training split; it reads {accuracy:.1%} of "
        f"{held_out:,} held-out ones as what they are",
    )


def train(spec: Spec) -> dict[str, Any]:
    """Train it on this task's CPU, on any cluster to the same bits of a kind of CPU; write its weights."""
    import torch
    from safetensors.torch import save

    from models.classifier import train_classifier
    from pipeline.evaluation import CLASSIFIER_WEIGHTS

    torch.set_num_threads(1)
    config = spec.config
    images, labels = (torch.from_numpy(array) for array in _real(spec, "train", _TRAINED))
    classifier = train_classifier(images, labels, config.data.class_count, config.data.horizontal_flip, config.seed)
    held_out, answers = (torch.from_numpy(array) for array in _real(spec, "validation", _HELD_OUT))
    right = [
        classifier(part).logits_BK.argmax(1) == answer
        for part, answer in zip(torch.split(held_out, 256), torch.split(answers, 256), strict=True)
    ]
    writer = ArtifactWriter(open_storage(spec.root), "classifier", spec.fingerprint)
    writer.add_bytes(save(classifier.state_dict()), CLASSIFIER_WEIGHTS)
    return {
        "path": CLASSIFIER_WEIGHTS,
        "file": writer.files[CLASSIFIER_WEIGHTS].model_dump(),
        "images": len(images),
        "held_out": len(held_out),
        "accuracy": float(torch.cat(right).double().mean()),
    }


def _real(spec: Spec, split: Split, most: int) -> tuple[Pixels, Labels]:
    storage, units = open_storage(spec.root), choose_rows(spec.prepare, split, most)
    parts = [read_images(storage, spec.prepare, unit, spec.config.data) for unit in units]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])
