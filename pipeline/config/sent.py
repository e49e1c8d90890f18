"""A submitted job's config on its way: as text in an environment variable there, and back.

Ray and Kubernetes expand `$X`, `${X}` and `$(X)` in a variable's value and know no way to write them literally, so the
text holds no dollar sign, and nothing but ASCII.
"""

import json
import os
from typing import Any

from pipeline.config.schema import Config
from pipeline.errors import ConfigError

SENT = "sent:"  # prefix of a submitted job's preset
SENT_VARIABLE = "DVAE_SENT_CONFIG"


def sent_text(config: Config) -> str:
    """The config as the value of SENT_VARIABLE. In JSON, a dollar sign can only stand in a string."""
    return json.dumps(config.model_dump(mode="json")).replace("$", r"\u0024")


def sent_tree() -> dict[str, Any]:
    """The tree that a submitter has put into SENT_VARIABLE. ConfigError if there is none."""
    text = os.environ.get(SENT_VARIABLE)
    hint = "Submit the job with `python -m deploy submit`, which sets it."
    if text is None:
        raise ConfigError(f"{SENT_VARIABLE} is not set, which holds the config of the preset {SENT}...", hint)
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{SENT_VARIABLE}: not the JSON of a config ({error})", hint) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{SENT_VARIABLE}: not the JSON of a config", hint)
    return tree
