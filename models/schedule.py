"""The learning rate of a step, as plain numbers: no torch."""

import math


def learning_rate(step: int, steps: int, peak: float, warmup: float, decay: str) -> float:
    """Linear from 0 to `peak` over the first `warmup` (a share) of the steps, then constant or a cosine to 0.

    `step` counts from 0.
    """
    rising = warmup * steps
    if step + 1 < rising:
        return peak * (step + 1) / rising
    if decay == "constant":
        return peak
    done = (step - rising) / max(1.0, steps - rising)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))


def same_rates(peak: float, steps: int, warmup: float, shorter_steps: int, shorter_warmup: float) -> bool:
    """Whether each step of the shorter of two trainings has the same rate in both, to the bit.

    For rates that are constant after the warm-up.
    """
    rising = max(warmup * steps, shorter_warmup * shorter_steps)  # from here on both are at the peak
    return all(
        learning_rate(step, steps, peak, warmup, "constant")
        == learning_rate(step, shorter_steps, peak, shorter_warmup, "constant")
        for step in range(min(shorter_steps, math.ceil(rising)))
    )
