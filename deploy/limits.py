"""What fits into a job: its size is checked before anything is sent, since one that is too large would never start."""

import json
from collections.abc import Mapping

from pipeline.config import Config, flattened
from pipeline.errors import ConfigError

# Linux starts no process with a longer argument or environment variable than 128 KiB, and neither Ray nor Kubernetes
# says so: the job stays PENDING. Ray hands the variables and the metadata on as one JSON, with things of its own.
_BYTES = 120_000


def check_size(config: Config, entrypoint: str, variables: Mapping[str, str], metadata: Mapping[str, str]) -> None:
    """ConfigError for a config or a command that is too long for a job."""
    sent = len(json.dumps({"env_vars": dict(variables), "metadata": dict(metadata)}))
    if sent > _BYTES:
        name, size = _longest(config)
        raise ConfigError(
            f"the config is too large to be sent with a job: {sent:,} bytes, and {_BYTES:,} is what fits; {name} alone "
            f"has {size:,}",
            f"Shorten {name}" + (": give a glob instead of a list." if name.endswith("uri") else "."),
        )
    size = len(entrypoint.encode())
    if size > _BYTES:
        raise ConfigError(
            f"the job's command is too long: {size:,} bytes, and {_BYTES:,} is what fits",
            "Set long values in a preset file instead of --set.",
        )


def _longest(config: Config) -> tuple[str, int]:
    """The field with the longest value, and its size as it is sent."""
    sizes = {name: len(json.dumps(value, default=str)) for name, value in flattened(config).items()}
    name = max(sizes, key=lambda one: sizes[one])
    return name, sizes[name]
