"""How good images are: features of a frozen network, distances between sets of them, and a classifier's reading.

The measures themselves are those of `models.metrics`. Everything here needs torch or scikit-learn, and loads when it is
used.
"""

from typing import TYPE_CHECKING

from pipeline.lazy import lazy

if TYPE_CHECKING:
    from pipeline.evaluation.classifier import CLASSIFIER_IMAGES, read_as_asked
    from pipeline.evaluation.comparison import frechet_between, sample_metrics
    from pipeline.evaluation.features import extract, settle_device, write_features
else:
    __getattr__ = lazy(
        __name__,
        classifier="CLASSIFIER_IMAGES read_as_asked",
        comparison="frechet_between sample_metrics",
        features="extract settle_device write_features",
    )
