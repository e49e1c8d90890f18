"""The config: a tree of typed, described fields, and how it is loaded. No torch, ray or mlflow."""

from pipeline.config.checks import check_tracking_uri, floor_keys, judging_metrics
from pipeline.config.fields import Shuffle, WeightFile
from pipeline.config.flat import flattened, unflattened, values_as_before
from pipeline.config.generator import SitConfig
from pipeline.config.loading import (
    PRESETS,
    fields_changed_here,
    load_config,
    parse_yaml,
    preset_label,
    preset_names,
    site_root,
)
from pipeline.config.schema import (
    ClusterConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    GateConfig,
)
from pipeline.config.sent import SENT, SENT_VARIABLE, sent_text
from pipeline.config.tokenizer import TokenizerConfig
