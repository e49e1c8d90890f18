"""Evaluation of images: features of a frozen network, distances between feature sets, and a classifier's accuracy.

The metrics are implemented in `models.metrics`. The modules need torch or scikit-learn and are imported on use.
"""

from typing import TYPE_CHECKING

from pipeline.lazy import lazy

if TYPE_CHECKING:
    from pipeline.evaluation.classifier import CLASSIFIER_IMAGES, classify_samples
    from pipeline.evaluation.comparison import reconstruction_metrics, resampled_frechet, sample_metrics
    from pipeline.evaluation.curves import Curve, Point, arrival_of, common_goal, ratio
    from pipeline.evaluation.features import evaluation_device, extract, read_features, write_features
    from pipeline.evaluation.precision import tensor_cores, tokenizer_autocast
else:
    __getattr__ = lazy(
        __name__,
        classifier="CLASSIFIER_IMAGES classify_samples",
        comparison="reconstruction_metrics resampled_frechet sample_metrics",
        curves="Curve Point arrival_of common_goal ratio",
        features="extract evaluation_device read_features write_features",
        precision="tensor_cores tokenizer_autocast",
    )
