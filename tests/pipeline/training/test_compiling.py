"""torch.compile of blocks: as many shapes as there are, no way back to eager execution, one line where it fails."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from models.compiling import compile_blocks
from models.device import set_up_cuda
from models.tokenizers import Tokenizer
from pipeline.config import load_config
from pipeline.errors import PipelineError
from pipeline.training.compiling import compile_errors, compiles
from tests.support.registration import TOKENIZER


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """One that takes no time: graphs are counted and run as they are. `fails` makes it raise."""
    state: dict[str, Any] = {"graphs": 0, "fails": False}

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        state["graphs"] += 1
        if state["fails"]:
            raise FileNotFoundError("c++: not found")
        return graph.forward

    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **named: plain(module, backend=count, **named))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        yield state
    torch._dynamo.reset()


@pytest.mark.parametrize(("value", "on_gpu", "on_cpu"), [("auto", 1, 0), ("true", 1, 1), ("false", 0, 0)])
def test_auto_is_for_gpus(value: str, on_gpu: bool, on_cpu: bool) -> None:
    settings = load_config("quickstart", [f"cluster.compile={value}"]).cluster
    assert compiles(settings, torch.device("cuda", 0)) == on_gpu
    assert compiles(settings, torch.device("cpu")) == on_cpu


def test_every_shape_has_a_graph_and_the_results_are_the_same(backend: dict[str, Any]) -> None:
    """EQ-VAE has a shape for each side: more than the eight after which PyTorch would quietly compile no more."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(**TOKENIZER).eval()
    latents = [torch.randn(2, 3, side, side) for side in range(2, 14)]
    with torch.no_grad():
        plain = [tokenizer.decode(z_BDhw) for z_BDhw in latents]
        compile_blocks(tokenizer)
        compiled = [tokenizer.decode(z_BDhw) for z_BDhw in latents]
    assert backend["graphs"] == len(latents)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b)


def test_a_failure_is_one_line(backend: dict[str, Any]) -> None:
    backend["fails"] = True
    tokenizer = Tokenizer(**TOKENIZER)
    compile_blocks(tokenizer)
    expected = r"train-sit: torch.compile failed: .*not found"
    with pytest.raises(PipelineError, match=expected) as caught, compile_errors("train-sit"):
        tokenizer.decode(torch.randn(2, 3, 4, 4))
    assert "\n" not in caught.value.what


@pytest.mark.usefixtures("backend")
def test_what_cannot_be_compiled_whole_is_refused() -> None:
    class Block(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.tolist()[0]  # a number of the data: the graph would end here

    network = nn.Sequential(Block())
    compile_blocks(network)
    with pytest.raises(PipelineError, match=r"torch.compile failed"), compile_errors("train-sit"):
        network(torch.ones(3))


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="another"), compile_errors("train-sit"):
        raise ValueError("another")


@pytest.mark.parametrize(("deterministic", "workspace"), [(True, ":4096:8"), (False, None)])
def test_deterministic_kernels_have_a_fixed_workspace(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool, workspace: str | None
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        set_up_cuda(deterministic)
        assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None) == workspace
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.backends.cudnn.benchmark != deterministic
    finally:
        torch.use_deterministic_algorithms(False)
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
