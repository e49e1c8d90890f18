"""The paper's golden values; closed forms against modules on the meta device and against a counted forward."""

import subprocess
import sys
from collections import defaultdict
from typing import Any

import pytest
import torch

from models import sizes
from models.regularizers import REGULARIZERS, RegularizerOptions
from models.sit import SIT_SIZES, SiT
from models.tokenizers.vit import Tokenizer
from tests.support.counting import counted_gflops

PAPER: dict[str, Any] = {"image_size": 256, "patch_size": 16, "width": 768, "depth": 12, "hidden": 2048}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("latent_dim", "millions", "gflops"), [(16, 171.71, 87.607), (32, 171.75, 87.625), (64, 171.82, 87.663)]
)
def test_the_papers_tokenizers(latent_dim, millions, gflops):
    with torch.device("meta"):
        module = Tokenizer(heads=12, latent_dim=latent_dim, **PAPER)
    assert parameters(module) == sizes.tokenizer_parameters(latent_dim=latent_dim, **PAPER)
    assert round(parameters(module) / 1e6, 2) == millions
    assert round(sizes.tokenizer_gflops(latent_dim=latent_dim, **PAPER), 3) == gflops


@pytest.mark.parametrize(("size", "millions"), [("S", 32.9), ("B", 130.3), ("L", 457.9), ("XL", 674.9)])
def test_the_papers_generators(size, millions):
    width, depth, heads = SIT_SIZES[size]
    with torch.device("meta"):
        module = SiT(grid=16, latent_dim=32, classes=1000, width=width, depth=depth, heads=heads)
    assert parameters(module) == sizes.sit_parameters(grid=16, latent_dim=32, classes=1000, width=width, depth=depth)
    assert round(parameters(module) / 1e6, 1) == millions


@pytest.mark.parametrize("channels", [1, 3])
def test_tokenizer_gflops_are_those_of_a_forward(channels):
    size: dict[str, Any] = {"image_size": 16, "patch_size": 4, "latent_dim": 3, "width": 16, "depth": 2, "hidden": 24}
    module = Tokenizer(heads=2, channels=channels, **size)
    counted = counted_gflops(module, torch.zeros(1, channels, 16, 16), torch.zeros(1, 3, 4, 4), lambda z: z)
    assert counted == pytest.approx(sizes.tokenizer_gflops(channels=channels, **size), rel=1e-12)
    assert parameters(module) == sizes.tokenizer_parameters(channels=channels, **size)
    attention = sizes.tokenizer_gflops(channels=channels, **size, attention=True) - counted
    assert attention * 1e9 == pytest.approx(4 * (2 * 2 * 16 * 16 * 16))  # 4 blocks, QK^T and AV, 2 FLOPs a MAC


@pytest.mark.parametrize(("patch_size", "qk_norm"), [(1, False), (2, False), (1, True)])
def test_sit_gflops_are_those_of_a_forward(patch_size, qk_norm):
    size: dict[str, Any] = {"grid": 4, "latent_dim": 3, "width": 16, "depth": 2, "heads": 2}
    size |= {"patch_size": patch_size, "qk_norm": qk_norm}
    module = SiT(classes=10, **size)
    counted = counted_gflops(module, torch.zeros(1, 3, 4, 4), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert counted == pytest.approx(sizes.sit_gflops(**size), rel=1e-12)
    assert parameters(module) == sizes.sit_parameters(classes=10, **size)
    tokens = (4 // patch_size) ** 2
    attention = sizes.sit_gflops(**size, attention=True) - counted
    assert attention * 1e9 == pytest.approx(2 * (2 * 2 * tokens * tokens * 16))


def test_a_patch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="patch_size 3"):
        sizes.sit_gflops(grid=4, latent_dim=3, width=16, depth=2, patch_size=3)


def test_sizes_need_no_torch():
    code = "import sys, models.sizes; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", list(REGULARIZERS))
def test_expected_passes_are_those_that_a_regularizer_draws(kind):
    regularizer = REGULARIZERS[kind](RegularizerOptions(8, smallest_side=3, smallest_perceptual_side=4))
    steps, generator = 2000, torch.Generator().manual_seed(0)
    encoded, decoded = defaultdict[int, float](float), defaultdict[int, float](float)
    for _ in range(steps):
        draw = regularizer.draw(generator, 4)
        encoded[(draw.side or 8) if draw.encodes_small else 8] += 1 / steps
        for one in (draw, draw.added):
            if one is not None:
                decoded[one.side or 8] += 1 / steps
    for expected, drawn in zip(sizes.expected_passes(kind, 8, 3, 4), (encoded, decoded), strict=True):
        assert expected.keys() == drawn.keys()
        assert all(drawn[side] == pytest.approx(number, abs=0.04) for side, number in expected.items())
