"""Consistency checks across config sections; they raise ValueErrors that name the fields. No schema types here."""

import difflib

from models.choices import FeatureNetwork, Mask
from models.sizes import check_mask
from pipeline import metrics


def check_workers(most: int, fewest: int, batch_sizes: dict[str, int]) -> None:
    """ValueError if a global batch is not divisible by every possible number of workers, from `fewest` to `most`."""
    if fewest > most:
        raise ValueError(f"cluster.min_workers {fewest} is more than cluster.workers {most}")
    for name, batch in batch_sizes.items():
        for workers in range(fewest, most + 1):
            if batch % workers:
                raise ValueError(f"cluster.workers: {name} {batch} is not divisible by {workers} workers")


def check_masks(grid: int, mask: Mask, keep: float) -> None:
    """ValueError if a level's mask in `models.spectral` would be empty."""
    try:
        check_mask(grid, mask, keep)
    except ValueError as error:
        raise ValueError(
            f"tokenizer.keep and tokenizer.mask: {error}; lower tokenizer.patch_size, raise keep, or use mask gain"
        ) from error


def check_metrics(gate: str, network: FeatureNetwork, network_size: int, class_accuracy: bool) -> None:
    """ValueError if no stage measures the gate's metric with this config."""
    if metrics.find_metric(gate) is None:
        close = difflib.get_close_matches(gate, [metric.key for metric in metrics.METRICS], n=1)
        raise ValueError(
            f"register.gate.metric: no stage measures '{gate}'" + (f"; did you mean '{close[0]}'?" if close else "")
        )
    if network == "inception" and network_size != 299:
        raise ValueError("evaluate.network_size must be 299 for inception")
    if gate.startswith("samples/frechet_distance/") and not gate.endswith(f"/{network}"):
        raise ValueError(f"register.gate.metric: {gate} is not measured with evaluate.network {network}")
    if gate == "samples/class_accuracy" and not class_accuracy:
        raise ValueError(f"register.gate.metric: {gate} is not measured with evaluate.class_accuracy off")
