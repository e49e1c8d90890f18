"""The config: a tree of typed, described fields, and how it is loaded. No torch, ray or mlflow."""

from pipeline.config.fields import Shuffle, WeightFile
from pipeline.config.flat import flattened, unflattened, values_as_before
from pipeline.config.loading import (
    PRESETS,
    SENT,
    SENT_VARIABLE,
    fields_changed_here,
    load_config,
    preset_names,
    site_root,
)
from pipeline.config.schema import (
    ClusterConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    GateConfig,
    SampleConfig,
    SitConfig,
    TokenizerConfig,
)
