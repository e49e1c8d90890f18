"""The gate's comparison of a shard with random rows of it: what it lets pass, and what it finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stages.encode_gate import REFERENCE_ROWS, Checks, Reference, fault, measure, priorities

ROWS = 600


def checks(mean: np.ndarray, logvar: np.ndarray, true_mean: np.ndarray, seed: int = 0) -> Checks:
    """Of stored moments, against the true ones of the rows that the gate picks."""
    rows = np.argsort(priorities(seed, len(mean)))[:REFERENCE_ROWS]
    reference = Reference(rows, true_mean[rows].astype(np.float32), np.full_like(true_mean[rows], -4, np.float32))
    return measure(mean.astype(np.float16), logvar, reference, 20.0, 20.0, "fp32")


def latents(kind: str) -> np.ndarray:
    random = np.random.default_rng(1)
    noise = random.normal(size=(ROWS, 3, 4, 4))
    row = np.arange(ROWS)[:, None, None, None]
    return {
        "independent": noise,
        "sorted": noise + 5.0 * (row // 100),
        "periodic": noise + 20.0 * (row % 16 == 0),  # an even spacing meets one kind only
        "alike": np.broadcast_to(noise[:1], noise.shape).copy(),
        "of one colour": np.broadcast_to(3 + 0.005 * noise[:1], noise.shape).copy(),  # fp16 rounds by 0.0006
        "rare": noise + 1000.0 * (row == 77),
    }[kind]


@pytest.mark.parametrize("kind", ["independent", "sorted", "periodic", "alike", "of one colour", "rare"])
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_no_order_or_distribution_is_refused(kind: str, seed: int) -> None:
    mean = latents(kind)
    assert fault(checks(mean, np.full_like(mean, -4), mean, seed), "fp32", 0.0) is None


def test_one_image_of_one_colour_is_not_refused() -> None:
    """As the last shard of a set may be: its latent hardly varies, so roundings are large against its deviation."""
    mean = latents("of one colour")[:1]
    assert fault(checks(mean, np.full_like(mean, -4), mean), "fp32", 0.0) is None
    wrong = checks(np.float16(1.01) * mean, np.full_like(mean, -4), mean)
    assert "means differ from a second encoding" in str(fault(wrong, "fp32", 0.0))


@pytest.mark.parametrize("seed", range(5))
def test_latents_that_are_wrong_beside_the_reference_are_found(seed: int) -> None:
    """As from a device that fails for most of the batches, but not for those of the reference."""
    true = latents("independent")
    chosen = np.argsort(priorities(seed, ROWS))[:REFERENCE_ROWS]
    for wrong in (np.zeros_like(true), 100 * true):
        wrong[chosen] = true[chosen]
        found = fault(checks(wrong, np.full_like(true, -4), true, seed), "fp32", 0.0)
        assert found is not None
        assert "outside of the range" in found


def test_the_canary_is_held_against_the_tokenizer_itself() -> None:
    mean = latents("independent")
    measured = checks(mean, np.full_like(mean, -4), mean)
    poor = measured.model_copy(update={"canary_psnr": 5.0, "own_psnr": 5.4})  # a poor tokenizer, but not poor latents
    assert fault(poor, "fp32", 0.5) is None
    assert "5.0 dB, of the tokenizer itself 5.4" in str(fault(poor, "fp32", 0.3))


@pytest.mark.parametrize("field", Checks.model_fields)
def test_nothing_passes_that_is_no_number(field: str) -> None:
    mean = latents("independent")
    measured = checks(mean, np.full_like(mean, -4), mean)
    assert fault(measured.model_copy(update={field: float("nan")}), "fp32", 1.0) is not None
