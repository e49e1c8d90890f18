"""What `plan` says of GPUs that tasks share, and of large latents."""

import io

import pytest
from rich.console import Console

from models.sizes import tokenizer_sizes
from pipeline.config import Config, load_config
from pipeline.workflow import survey
from pipeline.workflow.planning import make_plan, print_plan, tokenizer_step_gflops

LARGE = ("data.image_size=256", "tokenizer.patch_size=16")


def told(config: Config) -> str:
    text = io.StringIO()
    print_plan(Console(file=text, width=200), config, make_plan(config, survey(config)))
    return text.getvalue()


def planned(root: str, *sets: str) -> Config:
    return load_config("quickstart", list(sets), root)


def test_plan_says_how_many_tasks_share_a_gpu(tmp_path):
    shared = planned(str(tmp_path), "cluster.gpu_shares.encode=0.5", "cluster.gpu_shares.sample=0.33")
    assert "encode: 2 tasks on a GPU at a time (cluster.gpu_shares)\n" in told(shared)
    assert "sample: 3 tasks on a GPU at a time" in told(shared)
    assert "on a GPU" not in told(planned(str(tmp_path)))


def test_and_where_there_is_none_to_share(tmp_path):
    text = told(planned(str(tmp_path), "cluster.gpu_shares.encode=0.5", "cluster.device=cpu"))
    assert "! cluster.gpu_shares of encode share no GPU: cluster.device is cpu" in text
    assert "at a time" not in text


def test_plan_tells_what_the_filter_of_a_large_latent_takes(tmp_path):
    """4 levels of (64 x 64)^2 weights in fp32, and 16 channels of as many sums in fp64."""
    large = told(load_config("imagenet-f16d16", ["data.image_size=1024"], str(tmp_path)))
    (line,) = [line for line in large.splitlines() if "matrices" in line]
    assert line.startswith("! the matrices of S_l on a 64 x 64 latent take 268 MB in each process")
    assert "sums for the statistics 2.1 GB more" in line
    assert "tokenizer.patch_size" in line
    for preset, size in (("quickstart", 32), ("imagenet-f16d16", 512)):
        assert "matrices" not in told(load_config(preset, [f"data.image_size={size}"], str(tmp_path)))


def test_plan_counts_the_passes_of_the_regularizer(tmp_path):
    """Scale equivariance decodes a half or a quarter of the side too: 5/32 of the cells."""
    none, scale, equivariance = (
        tokenizer_step_gflops(planned(str(tmp_path), *LARGE, f"tokenizer.regularizer={name}"))
        for name in ("none", "scale", "equivariance")
    )
    plain = tokenizer_sizes("vit", planned(str(tmp_path), *LARGE).tokenizer_network)
    assert none == pytest.approx(plain.gflops)
    assert scale == pytest.approx(plain.encode_gflops + plain.decode_gflops * (1 + 5 / 32))
    assert 0.7 * none < equivariance < 0.9 * none
