"""Evaluation of images: features of frozen networks, distances between feature sets, and a classifier's accuracy.

The metrics are implemented in `models.metrics`. The modules need torch or scikit-learn and are imported on use.
"""

from typing import TYPE_CHECKING

from pipeline.lazy import lazy

if TYPE_CHECKING:
    from pipeline.evaluation.anything import (
        Reading,
        Reference,
        compare,
        read_set,
        reference_of,
        reference_of_moments,
        reference_of_statistics,
    )
    from pipeline.evaluation.classifier import CLASSIFIER_IMAGES, classify_samples
    from pipeline.evaluation.comparison import (
        floor_metrics,
        reconstruction_metrics,
        resampled_frechet,
        sample_metrics,
        too_few,
    )
    from pipeline.evaluation.curves import Curve, Point, arrival_of, common_goal, ratio
    from pipeline.evaluation.features import (
        all_features,
        classes_read,
        evaluation_device,
        extract,
        read_features,
        write_features,
    )
    from pipeline.evaluation.image_sets import ImageSet, of_folder, of_npz, of_parquet, of_samples, of_split
    from pipeline.evaluation.measured import ANALYZED, MANIFOLD, REMOVALS, Measured
    from pipeline.evaluation.networks import CLASSIFIER_WEIGHTS, Network, networks_of
    from pipeline.evaluation.precision import tensor_cores, tokenizer_autocast
    from pipeline.evaluation.reference import file_of, gathered, read_statistics, to_bytes
else:
    __getattr__ = lazy(
        __name__,
        anything="Reading Reference compare read_set reference_of reference_of_moments reference_of_statistics",
        classifier="CLASSIFIER_IMAGES classify_samples",
        comparison="floor_metrics reconstruction_metrics resampled_frechet sample_metrics too_few",
        curves="Curve Point arrival_of common_goal ratio",
        features="all_features classes_read extract evaluation_device read_features write_features",
        image_sets="ImageSet of_folder of_npz of_parquet of_samples of_split",
        measured="ANALYZED MANIFOLD REMOVALS Measured",
        networks="CLASSIFIER_WEIGHTS Network networks_of",
        precision="tensor_cores tokenizer_autocast",
        reference="file_of gathered read_statistics to_bytes",
    )
