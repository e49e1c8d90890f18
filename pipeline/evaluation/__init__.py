"""Evaluation of images: features of a frozen network, distances between feature sets, and a classifier's accuracy.

The metrics are implemented in `models.metrics`. The modules need torch or scikit-learn and are imported on use.
"""

from typing import TYPE_CHECKING

from pipeline.lazy import lazy

if TYPE_CHECKING:
    from pipeline.evaluation.classifier import CLASSIFIER_IMAGES, classify_samples
    from pipeline.evaluation.comparison import reconstruction_metrics, sample_metrics
    from pipeline.evaluation.features import evaluation_device, extract, write_features
    from pipeline.evaluation.precision import tensor_cores, tokenizer_autocast
else:
    __getattr__ = lazy(
        __name__,
        classifier="CLASSIFIER_IMAGES classify_samples",
        comparison="reconstruction_metrics sample_metrics",
        features="extract evaluation_device write_features",
        precision="tensor_cores tokenizer_autocast",
    )
