"""What stages compute on a GPU, on one that is not there: nothing meets a tensor that lies elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast, get_args

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.vgg import RandomLPIPS
from models import metrics, perceptual
from models.choices import LEVELS, EvaluationPrecision, PathKind, Prediction, SamplerMethod
from models.generator import ImageGenerator, LatentStatistics, Sampling
from models.inception import Inception
from models.perceptual import ImageNetFeatures
from pipeline import inference
from pipeline.config import WeightFile
from pipeline.evaluation import features
from pipeline.inference import load_tokenizer
from pipeline.inference.registered_model import ImageModel
from pipeline.stages import analyze, encode_shard, evaluate_tokenizer
from pipeline.workflow import Work
from tests.support.artifacts import prepared
from tests.support.contexts import LocalContext, local_context, untrained_tokenizer
from tests.support.fake_device import GPU, FakeGPU, Reading, fake_gpu
from tests.support.registration import SIT, STATISTICS, TOKENIZER, random_networks
from tests.support.trainers import small_config


@pytest.fixture(scope="module")
def gpu() -> Iterator[FakeGPU]:
    with fake_gpu() as made:
        yield made


@pytest.fixture(scope="module")
def context(gpu: FakeGPU, tmp_path_factory: pytest.TempPathFactory) -> LocalContext:
    """With a tokenizer of random weights, at 32 pixels. This process keeps it: under the mode none can be drawn."""
    folder = tmp_path_factory.mktemp("stage")
    config = small_config(folder)
    prepare = prepared(config)
    inputs = {"prepare": prepare, "train-tokenizer": untrained_tokenizer(config, prepare, folder / "scratch")}
    context = local_context(config, "evaluate-tokenizer", inputs, folder / "scratch")
    load_tokenizer(context.storage, inputs["train-tokenizer"], GPU)
    return context


def pixels(size: int = 32) -> Tensor:
    return torch.zeros(3, 3, size, size, dtype=torch.uint8)


def test_encoding(gpu: FakeGPU, context: LocalContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an encoder asks of its device: moments, the decoded ones of the gate, the statistics of every level."""
    tokenizer = context.inputs["train-tokenizer"]
    plan = SimpleNamespace(root=context.storage.root, tokenizer=tokenizer, batch_size=2)
    monkeypatch.setattr(inference, "task_device", lambda: GPU)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # it sees that there is no GPU
    monkeypatch.setattr(encode_shard, "_tensor", lambda array: gpu.mode.from_tensor(torch.from_numpy(array)))
    encoder = encode_shard.Encoder(cast(encode_shard.Plan, plan))
    images, left = pixels().permute(0, 2, 3, 1).numpy(), list[torch.device]()

    def values(tensor: Tensor) -> np.ndarray:
        left.append(tensor.device)
        return np.zeros(tensor.shape, np.float16)

    with gpu.mode, Reading(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "numpy", values)
        patch.setattr(Tensor, "tolist", values)
        mean, logvar = encoder._encode(images, "bf16")
        encoder._psnr(mean, images)
        encoder._sums(mean, logvar)
    assert mean.shape == logvar.shape == (3, *load_tokenizer(context.storage, tokenizer, GPU)[0].latent_shape)
    assert {device.type for device in left} == {"cpu"}


@pytest.mark.parametrize("precision", get_args(EvaluationPrecision))
def test_evaluating_a_tokenizer(
    gpu: FakeGPU, context: LocalContext, monkeypatch: pytest.MonkeyPatch, precision: EvaluationPrecision
) -> None:
    weights = WeightFile(uri="file:///no", sha256="0" * 64)
    evaluate = context.config.evaluate.model_copy(update={"precision": precision, "lpips": weights})
    config = context.config.model_copy(update={"evaluate": evaluate})
    work = Work(context.storage.root, context.inputs, "", "", config)
    lpips = RandomLPIPS(width=2).to(GPU)
    monkeypatch.setattr(evaluate_tokenizer, "_lpips", lambda weights, device: lpips)
    with gpu.mode:
        x_BCHW = gpu.put(pixels())
        levels = evaluate_tokenizer._reconstructions(work, x_BCHW)
        measured = evaluate_tokenizer._measures(config, x_BCHW, levels[1])
    assert set(measured) == {"psnr", "ssim", "lpips"}
    assert {values.device for values in (*levels, *measured.values())} == {GPU}


def test_analyzing(gpu: FakeGPU, context: LocalContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "task_device", lambda: GPU)
    spec = analyze.Spec(
        context.storage.root,
        context.inputs["prepare"],
        context.inputs["train-tokenizer"],
        "",
        context.config.data,
        "bf16",
    )
    with gpu.mode:
        images = np.zeros((3, 3, 32, 32), np.uint8)
        z_LBDhw = analyze._latents(spec, images)
        psnr_B = analyze._psnr_B(spec, images, z_LBDhw[0], torch.ones(8, 8, dtype=torch.bool))
    assert z_LBDhw.device.type == psnr_B.device.type == "cpu"
    assert psnr_B.shape == (3,)
    assert z_LBDhw.shape[:2] == (LEVELS, 3)


@pytest.mark.parametrize("path", get_args(PathKind))
@pytest.mark.parametrize(
    ("method", "prediction"),
    [("euler", "velocity"), ("heun", "noise"), ("ddim", "data"), ("sde", "velocity")],  # dopri5 asks for its error
)
def test_sampling(gpu: FakeGPU, method: SamplerMethod, prediction: Prediction, path: PathKind) -> None:
    generator = ImageGenerator(*random_networks(), LatentStatistics(**STATISTICS), prediction, path).to(GPU).eval()
    sampling = Sampling(method, 3, guidance=1.5, guidance_interval=(0.0, 0.7), precision="bf16")
    with gpu.mode, Reading():
        images_BCHW = generator.draw(torch.arange(2), [0, 1], sampling)
    assert images_BCHW.device == GPU


@pytest.mark.slow
def test_feature_networks(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm  # seconds, of every process that collects

    monkeypatch.setattr(safetensors.torch, "load_file", lambda path: {})
    with gpu.mode:
        inception = Inception("no file").to(GPU)
        found = inception(gpu.put(pixels(64)))
        classifier = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        monkeypatch.setattr(perceptual, "_efficientnet_lite0", lambda path: classifier)
        lite = ImageNetFeatures("efficientnet_lite0", None, 32).to(GPU)(gpu.put(pixels()))
    assert {part.device for part in (*found, lite)} == {GPU}


def test_distances_of_features(gpu: FakeGPU) -> None:
    with gpu.mode, Reading():
        moments = metrics.FeatureMoments(8, GPU)
        real_NF, fake_NF = gpu.put(torch.zeros(20, 8)), gpu.put(torch.zeros(20, 8))
        moments.update(real_NF)
        metrics.frechet_distance(*moments.result(), *moments.result())
        metrics.precision_recall(real_NF, fake_NF)
        metrics.inception_score(real_NF)


def test_the_registered_model(gpu: FakeGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, sit = random_networks()
    sampling = {"method": "euler", "steps": 2, "guidance": 1.5, "guidance_interval": [0.0, 1.0], "seed": 0}
    facts = {
        "code": "models",
        "kind": "vit",
        "tokenizer": TOKENIZER,
        "sit": SIT,
        "statistics": STATISTICS,
        "prediction": "velocity",
        "path": "linear",
    }
    (tmp_path / "model.json").write_text(json.dumps({**facts, "sampling": sampling, "batch_size": 2}))
    save_file(tokenizer.state_dict(), tmp_path / "tokenizer")
    save_file(sit.state_dict(), tmp_path / "sit")
    names = {"model": "model.json", "tokenizer": "tokenizer", "sit": "sit"}
    model = ImageModel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        model.load_context(SimpleNamespace(artifacts={name: str(tmp_path / file) for name, file in names.items()}))
    assert model.device.type == "cuda"
    monkeypatch.setattr(Tensor, "numpy", lambda tensor: np.zeros(tensor.shape, np.uint8))
    with gpu.mode, Reading():
        table = model.predict(None, pd.DataFrame({"label": [1, 2, 3], "seed": [0, 1, 2]}))
    assert [picture[:4] for picture in table["image"]] == [b"\x89PNG"] * 3
