"""A classifier that knows only real images, and how it reads others: an SVC, for small sets such as digits."""

from typing import NamedTuple

import numpy as np

from pipeline.data import Labels, Pixels

CLASSIFIER_IMAGES = 10_000  # an SVC's time grows with their square
_SIDE = 16
_TRUSTED = 0.97  # below this accuracy on real images the classifier's word about samples means little

Labelled = tuple[Pixels, Labels]
"""uint8 images (N, 3, H, W) and their labels (N,)."""


class Reading(NamedTuple):
    """Shares in [0, 1] that were read right, and what the classifier is, in words."""

    samples: float
    held_out: float
    words: str


def read_as_asked(train: Labelled, held_out: Labelled, samples: Labelled) -> Reading:
    """Train on real training images alone; how held-out real ones are read, and samples as what was asked for."""
    from sklearn.svm import SVC

    classifier = SVC(C=10.0).fit(classifier_inputs(train[0]), train[1])
    accuracy = float(classifier.score(classifier_inputs(held_out[0]), held_out[1]))
    words = (
        f"SVC (RBF, C 10) on grey values of {_SIDE} x {_SIDE}, trained on {len(train[1])} real "
        f"images of the training split; reads {accuracy:.1%} of {len(held_out[1])} held-out real ones right"
    )
    if accuracy < _TRUSTED:
        words += f": less than {_TRUSTED:.0%}, so that class_accuracy says little"
    return Reading(float(classifier.score(classifier_inputs(samples[0]), samples[1])), accuracy, words)


def classifier_inputs(images_NCHW: Pixels) -> np.ndarray:
    """uint8 images to rows of grey values in [0, 1], of at most 16 x 16 areas each: (N, F) fp32."""
    side = images_NCHW.shape[-1]
    edges = np.arange(min(side, _SIDE)) * side // min(side, _SIDE)
    lengths = np.diff(np.append(edges, side)).astype(np.float32)
    grey_NHW = images_NCHW.mean(axis=1, dtype=np.float32) / 255
    summed = np.add.reduceat(np.add.reduceat(grey_NHW, edges, axis=1), edges, axis=2)
    means: np.ndarray = summed / (lengths[:, None] * lengths[None, :])
    return means.reshape(len(means), -1)
