"""A step of both trainers on a GPU that is not there: nothing lies elsewhere, waits for it, or differs each time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from benchmarks.vgg import RandomLPIPS
from models import objective, perceptual
from models.choices import AlignmentKind, Precision, Prediction, RegularizerKind
from models.perceptual import ConvNeXtLogits, PerceptualLoss
from models.regularizers import Draw, equivariance
from pipeline.config import Config
from pipeline.storage import open_storage
from pipeline.training.history import History
from pipeline.training.loop import global_means
from pipeline.training.tokenizer import TokenizerTrainee
from pipeline.training.worker import TRAINEES
from pipeline.training.world import World
from tests.support.fake_device import GPU, FakeGPU, Operations, fake_gpu
from tests.support.trainers import Ranks, make_trainee, ranks_of

SETS = ["cluster.compile=false", "tokenizer.precision=bf16", "sit.precision=bf16"]


@pytest.fixture(scope="module")
def gpu() -> Iterator[FakeGPU]:
    with fake_gpu() as made:
        yield made


@pytest.fixture
def deterministic() -> Iterator[None]:
    """As trainers set it; some operations are others then."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Trainer:
    """A trainer's inputs and one of its batches."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.ranks: Ranks = ranks_of(folder, stage, 1, None, *SETS)
        batches = make_trainee(self.ranks, World.alone()).batches(0, 1)
        self.batch: tuple[Tensor, ...] = next(iter(batches))
        batches.close()

    def config(self, **changes: Any) -> Config:
        config, name = self.ranks.job.config, self.ranks.loop.name
        section = self.ranks.job.section
        changed = type(section).model_validate({**section.model_dump(), **changes})
        return config.model_copy(update={name: changed})

    def train(self, gpu: FakeGPU, steps: list[int], **changes: Any) -> None:
        """Make these steps, with what the loop does around them, and find all states where they belong."""
        config, job, world = self.config(**changes), self.ranks.job, World(0, 1, GPU)
        trainee = TRAINEES[job.stage](config, open_storage(config.root), job.inputs, world)
        gpu.derivatives.clear()
        with gpu.mode, Operations() as operations:
            batch, history = tuple(gpu.put(part) for part in self.batch), History(GPU)
            for step in steps:
                history.add(global_means(trainee.step(batch, step), world))
            trainee.warm_up_ddp(batch)
        assert gpu.derivatives
        assert gpu.unrepeatable(operations.names) == []
        for name, part in trainee.states().items():
            assert {tensor.device for tensor in tensors(part.state_dict())} <= {GPU}, name


def tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (dict, list)):
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors(part)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("tokenizer"), "train-tokenizer")


@pytest.fixture(scope="module")
def sit(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("sit"), "train-sit")


ALONE, WITH_DISCRIMINATOR = 0, 20  # steps of the schedule of 24


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("kind", get_args(RegularizerKind))
def test_the_tokenizer_with_every_regularizer(gpu: FakeGPU, tokenizer: Trainer, kind: str) -> None:
    tokenizer.train(gpu, [ALONE, WITH_DISCRIMINATOR], regularizer=kind)


@pytest.mark.usefixtures("deterministic")
def test_the_tokenizer_with_a_level_per_sample_in_every_precision(gpu: FakeGPU, tokenizer: Trainer) -> None:
    for precision in get_args(Precision):
        tokenizer.train(gpu, [WITH_DISCRIMINATOR], precision=precision, level_per_sample=True)


@pytest.mark.usefixtures("deterministic")
def test_the_tokenizer_with_perceptual_networks(
    gpu: FakeGPU, tokenizer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With EQ-VAE, whose images have another size in each step."""
    import timm  # seconds, of every process that collects

    small = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    monkeypatch.setattr(perceptual, "_timm_network", lambda name, path: small)

    def networks(trainee: TokenizerTrainee) -> nn.Module:
        distances = [(RandomLPIPS(width=4), 1.0), (ConvNeXtLogits("", image_size=64), 0.1)]
        return PerceptualLoss(distances).to(trainee.world.device)

    monkeypatch.setattr(TokenizerTrainee, "_perceptual", networks)
    tokenizer.train(gpu, [ALONE], regularizer="equivariance")


SIT: list[tuple[AlignmentKind, Prediction, Precision, dict[str, str]]] = [
    ("none", "velocity", "fp32", {}),
    ("sra", "noise", "bf16", {"alignment_schedule": "constant", "alignment_loss": "l2"}),
    ("fda", "data", "fp32", {"alignment_schedule": "step", "alignment_levels": "random"}),
    ("fda", "velocity", "bf16", {"alignment_schedule": "low_noise", "alignment_head": "none"}),
    ("sra", "velocity", "bf16", {"path": "vp", "qk_norm": "true"}),
    ("fda", "noise", "fp32", {"path": "cosine", "times": "logit_normal"}),
]


def test_the_cases_of_sit_are_all_there_are() -> None:
    for index, names in enumerate((AlignmentKind, Prediction, Precision)):
        assert {case[index] for case in SIT} == set(get_args(names))


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("alignment", "prediction", "precision", "more"), SIT)
def test_sit_with_every_alignment_prediction_and_precision(
    gpu: FakeGPU, sit: Trainer, alignment: str, prediction: str, precision: str, more: dict[str, str]
) -> None:
    sit.train(gpu, [0], alignment=alignment, prediction=prediction, precision=precision, **more)


# --- what these tests would find ---


def test_a_tensor_of_the_cpu_in_a_step_is_found(gpu: FakeGPU, sit: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "interpolate", lambda path, z, noise, t: z + torch.zeros(z.shape))
    with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
        sit.train(gpu, [0])


def test_waiting_for_the_gpu_in_a_step_is_found(gpu: FakeGPU, sit: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "interpolate", lambda path, z, noise, t: z * float(t.mean()))
    with pytest.raises(DataDependentOutputException):
        sit.train(gpu, [0])


@pytest.mark.usefixtures("deterministic")
def test_an_operation_that_differs_each_time_is_found(
    gpu: FakeGPU, tokenizer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the usual antialiased resize in the place of `models/resize.py`."""

    def usual(x_BCHW: Tensor, side: int, mode: str, **_: Any) -> Tensor:
        return F.interpolate(x_BCHW, (side, side), mode=mode, antialias=True, align_corners=False)

    def scaled(*_: Any) -> Draw:
        return Draw(side=5, quarter_turns=1)

    monkeypatch.setattr(equivariance, "resize", usual)
    monkeypatch.setattr(equivariance.EquivarianceRegularizer, "draw", scaled)
    with pytest.raises(AssertionError, match="UpsampleBilinear2D"):
        tokenizer.train(gpu, [ALONE], regularizer="equivariance")
