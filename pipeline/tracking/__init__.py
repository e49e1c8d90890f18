"""MLflow: an outbox of events at the root, the courier that delivers them, and what the model registry holds.

Training never waits for MLflow, and an outage loses nothing; mlflow itself is imported when something is delivered.
"""

from pipeline.tracking.courier import Courier, deliver, undelivered
from pipeline.tracking.errors import TrackingError
from pipeline.tracking.mlflow import Post, tracking_uri
from pipeline.tracking.outbox import Outbox, metric_event
from pipeline.tracking.registry import CANDIDATE, CHAMPION, FINGERPRINT_TAG, champion, has_version
