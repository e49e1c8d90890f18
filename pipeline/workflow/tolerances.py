"""Tolerances at use: an artifact that was made under a wider one is refused by a run with a narrower one.

They do not count in fingerprints, so that changing one trains nothing anew. A run with a given config is refused or not
whatever is cached.
"""

from collections.abc import Iterable

from pipeline.artifacts import Manifest
from pipeline.config import Config
from pipeline.errors import DataError


def check_tolerances(manifests: Iterable[Manifest | None], config: Config) -> None:
    """DataError if one of these artifacts is not within the config's tolerances."""
    for manifest in manifests:
        if manifest is not None and manifest.stage == "prepare":
            _check_quarantine(manifest, manifest.metrics.get("data/quarantined", 0), config)
        if manifest is not None and manifest.stage == "encode":
            _check_quarantine(manifest, manifest.metrics.get("latents/quarantined", 0), config)
            _check_canary(manifest, config)


def _check_quarantine(manifest: Manifest, quarantined: float, config: Config) -> None:
    total, budget = manifest.rows + quarantined, config.data.quarantine_budget
    if quarantined > budget * total:
        raise DataError(
            f"{manifest.name} was made with {quarantined:.0f} of {total:.0f} images unreadable, which exceeds "
            f"data.quarantine_budget {budget:g}",
            "Repair or remove these images, or raise data.quarantine_budget: nothing is made anew by that.",
        )


def _check_canary(manifest: Manifest, config: Config) -> None:
    lost, margin = manifest.details.get("canary_loss"), config.encode.canary_margin
    if lost is not None and lost > margin:
        raise DataError(
            f"the latents of {manifest.name} decode with {lost:.2g} dB less than the tokenizer's own PSNR, more than "
            f"encode.canary_margin {margin:g}",
            "Raise encode.canary_margin: nothing is made anew by that. Or use encode.precision=fp32.",
        )
