"""An SVC trained on real images, and its accuracy on samples' requested classes; for small sets such as digits."""

from typing import NamedTuple

import numpy as np

from pipeline.data import Labels, Pixels

CLASSIFIER_IMAGES = 10_000  # maximum per set: an SVC's time grows with the square
_SIDE = 16
_RELIABLE = 0.97  # below this accuracy on real images, the accuracy on samples is unreliable

Labelled = tuple[Pixels, Labels]
"""uint8 images (N, 3, H, W) and their labels (N,)."""


class ClassifierResult(NamedTuple):
    """Accuracies in [0, 1] on samples and held-out real images, and a description of the classifier."""

    samples: float
    held_out: float
    description: str


def classify_samples(train: Labelled, held_out: Labelled, samples: Labelled) -> ClassifierResult:
    """Train an SVC on real training images; its accuracy on held-out real images and on the samples' labels."""
    from sklearn.svm import SVC

    classifier = SVC(C=10.0).fit(classifier_inputs(train[0]), train[1])
    accuracy = float(classifier.score(classifier_inputs(held_out[0]), held_out[1]))
    description = (
        f"SVC (RBF, C 10) on grey values of {_SIDE} x {_SIDE}, trained on {len(train[1])} real "
        f"images of the training split; accuracy {accuracy:.1%} on {len(held_out[1])} held-out real images"
    )
    if accuracy < _RELIABLE:
        description += f": less than {_RELIABLE:.0%}, so class_accuracy is unreliable"
    return ClassifierResult(float(classifier.score(classifier_inputs(samples[0]), samples[1])), accuracy, description)


def classifier_inputs(images_NCHW: Pixels) -> np.ndarray:
    """Grey values of uint8 images, averaged over a grid of at most 16 x 16: (N, F) fp32 in [0, 1]."""
    side = images_NCHW.shape[-1]
    edges = np.arange(min(side, _SIDE)) * side // min(side, _SIDE)
    lengths = np.diff(np.append(edges, side)).astype(np.float32)
    grey_NHW = images_NCHW.mean(axis=1, dtype=np.float32) / 255
    summed = np.add.reduceat(np.add.reduceat(grey_NHW, edges, axis=1), edges, axis=2)
    means: np.ndarray = summed / (lengths[:, None] * lengths[None, :])
    return means.reshape(len(means), -1)
