"""MLflow: an outbox of events at the root, the courier that delivers them, and queries of the model registry.

Training never waits for MLflow, an outage loses no events, and what MLflow refuses is set aside. mlflow itself is
imported on the first delivery.
"""

from pipeline.tracking.courier import Courier, deliver, pending_events, undelivered
from pipeline.tracking.errors import TrackingError, file_errors
from pipeline.tracking.mlflow import MlflowWriter, tracking_uri
from pipeline.tracking.models import MODELS, fetch_model
from pipeline.tracking.outbox import Outbox, metric_event, root_id
from pipeline.tracking.refused import Refusal, drop_refused, put_back, refusals
from pipeline.tracking.registry import (
    CANDIDATE,
    CHAMPION,
    FINGERPRINT_TAG,
    INTERVAL_TAG,
    METRIC_TAG,
    aliased_tags,
    champion,
    has_version,
    input_tag,
    runs_page,
)
from pipeline.tracking.upload import RunFiles
