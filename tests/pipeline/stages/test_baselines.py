"""The stages take whatever encodes to moments and decodes: SD-VAE, trained by the same trainer, and imported DC-AE."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.metrics import from_uint8, psnr_B, to_uint8
from pipeline.artifacts import Manifest
from pipeline.config import Config
from pipeline.inference import load_tokenizer
from pipeline.stages import analyze, encode, evaluate_tokenizer
from pipeline.workflow.imported import ImportUse, import_tokenizer
from tests.support.artifacts import prepared, put
from tests.support.contexts import LocalContext, committed, local_context, real_images, untrained_tokenizer
from tests.support.encoding import Held, LocalStream, encode_config
from tests.support.tokenizers import SD_VAE_SETS, saved_tokenizer
from tests.support.trainers import Dies, final_state, history, job_of, put_lease, ranks_of, run_ranks, same_state

EVALUATION = ["evaluate.images=24", "evaluate.batch_size=25", "evaluate.network_size=32"]
BARE = SD_VAE_SETS[-4:]


@pytest.fixture(scope="module", params=["sd-vae", "dc-ae"])
def baseline(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, dict[str, Manifest]]:
    """Digits, and a tokenizer with random weights."""
    folder = tmp_path_factory.mktemp(request.param)
    sets = SD_VAE_SETS
    if request.param == "dc-ae":
        saved_tokenizer(folder / "public", "dc-ae")
        made = import_tokenizer((folder / "root").as_uri(), "dc-ae", str(folder / "public"), ImportUse(32))
        sets = ["tokenizer.kind=dc-ae", f"tokenizer.imported={made.fingerprint}", "tokenizer.latent_dim=4", *BARE]
    config = encode_config(folder / "root", *EVALUATION, *sets)
    prepare = put(config, prepared(config))
    if request.param == "sd-vae":
        made = untrained_tokenizer(config, prepare, folder / "scratch")
    return config, {"prepare": prepare, "train-tokenizer": made}


def context_of(stage: str, baseline: tuple[Config, dict[str, Manifest]], scratch: Path) -> LocalContext:
    config, inputs = baseline
    return local_context(config, stage, inputs, scratch)


def originals(context: LocalContext, most: int) -> torch.Tensor:
    prepare = context.inputs["prepare"]
    return torch.from_numpy(real_images(context.config, prepare, "validation", most)[0])


def test_its_reconstructions_are_measured(baseline: tuple[Config, dict[str, Manifest]], tmp_path: Path) -> None:
    context = context_of("evaluate-tokenizer", baseline, tmp_path)
    outcome = evaluate_tokenizer.run(context)
    images = originals(context, 24)
    tokenizer, latent_filter = load_tokenizer(context.storage, context.inputs["train-tokenizer"], torch.device("cpu"))
    latent = tokenizer.encode(from_uint8(images)).mean_BDhw
    for level in range(4):
        name = "reconstruction/psnr" + (f"_level{level}" if level else "")
        expected = float(psnr_B(to_uint8(tokenizer.decode(latent_filter(latent, level))), images).mean())
        assert outcome.metrics[name] == pytest.approx(expected, abs=1e-3)


def test_its_latents_are_analysed(baseline: tuple[Config, dict[str, Manifest]], tmp_path: Path) -> None:
    outcome = analyze.run(context_of("analyze", baseline, tmp_path))
    assert 0 < outcome.metrics["latent/high_frequency_share_level3"] < outcome.metrics["latent/high_frequency_share"]
    assert set(outcome.files) >= {"figure1a.png", "figure1b.png", "figure1c.png", "figure2.png", "spectrum.png"}


def test_its_latents_are_encoded_with_statistics(
    baseline: tuple[Config, dict[str, Manifest]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statistics normalise them, whatever their scale: no factor of a public config plays a role."""
    config, inputs = baseline
    monkeypatch.setattr(encode, "_encode", LocalStream())
    put_lease(job_of(config, "encode", inputs))
    context = context_of("encode", baseline, tmp_path)
    context.lease = Held()  # type: ignore[assignment]
    made = committed(context, encode.run(context))
    channels = config.tokenizer.latent_dim
    assert made.details["latent_shape"] == [channels, 8, 8]
    raw, filtered = (made.details["statistics"][level] for level in "03")
    assert len(raw["std"]) == channels
    assert all(low < high for low, high in zip(filtered["std"], raw["std"], strict=True))
    assert np.isfinite(made.details["canary_loss"])


@pytest.mark.slow
def test_sd_vae_trains_and_resumes_to_the_bit(tmp_path: Path) -> None:
    """In the phase of the GAN, with MLSR on its latents."""
    undisturbed = ranks_of(tmp_path / "a", "train-tokenizer", 1, None, *SD_VAE_SETS)
    run_ranks(undisturbed)
    killed = ranks_of(tmp_path / "b", "train-tokenizer", 1, 15, *SD_VAE_SETS)
    with pytest.raises(Dies):
        run_ranks(killed)
    resumed = ranks_of(tmp_path / "b", "train-tokenizer", 1, None, *SD_VAE_SETS)
    run_ranks(resumed)
    assert same_state(final_state(undisturbed), final_state(resumed))
    losses = [line["mse"] for line in history(undisturbed)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("regularizer", ["none", "equivariance"])
def test_sd_vae_trains_with_every_regularizer(tmp_path: Path, regularizer: str) -> None:
    ranks = ranks_of(
        tmp_path, "train-tokenizer", 1, None, *SD_VAE_SETS, f"tokenizer.regularizer={regularizer}",
        "cluster.checkpoint_activations=true", "cluster.accumulate=2", "tokenizer.discriminator_layers=1",
    )  # fmt: skip
    run_ranks(ranks)
    losses = [line["mse"] for line in history(ranks)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
