"""Every tokenizer has the one interface: ours, and diffusers' AutoencoderKL and AutoencoderDC with the same weights."""

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models.choices import TokenizerKind
from models.conv_sizes import DC_AE, SD_VAE
from models.spectral import LatentFilter
from models.tokenizers import Autoencoder, TokenizerNetwork, build, load, save
from models.tokenizers.sd_vae import KLAutoencoder
from tests.support.tokenizers import NETWORKS, random_tokenizer, saved_tokenizer, some_images

KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)
PUBLIC: tuple[TokenizerKind, ...] = ("sd-vae", "dc-ae")


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_dtypes(kind: TokenizerKind) -> None:
    tokenizer: Autoencoder = random_tokenizer(kind)
    x = some_images()
    assert tokenizer.factor == 4
    assert tokenizer.latent_shape == (tokenizer.channels, tokenizer.grid, tokenizer.grid)
    assert tokenizer.grid == 8
    with torch.autocast("cpu", torch.bfloat16):
        posterior = tokenizer.encode(x)
        image = tokenizer.decode(posterior.mean_BDhw)
    assert posterior.mean_BDhw.shape == posterior.logvar_BDhw.shape == (2, *tokenizer.latent_shape)
    assert image.shape == x.shape
    assert {image.dtype, *(part.dtype for part in posterior)} == {torch.float32}
    assert tokenizer.decode(torch.zeros(1, tokenizer.channels, 2, 3)).shape == (1, 3, 8, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_s_l_works_on_the_grid_of_each(kind: TokenizerKind) -> None:
    tokenizer = random_tokenizer(kind)
    mean = tokenizer.encode(some_images()).mean_BDhw
    filtered = LatentFilter(tokenizer.grid)(mean, 3)
    assert filtered.shape == mean.shape
    torch.testing.assert_close(filtered.mean((2, 3)), mean.mean((2, 3)), atol=1e-5, rtol=1e-4)
    assert 0 < (filtered - filtered.mean((2, 3), keepdim=True)).norm() < (mean - mean.mean((2, 3), keepdim=True)).norm()


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_a_forward(kind: TokenizerKind) -> None:
    tokenizer = random_tokenizer(kind)
    sizes = tokenizer.sizes
    assert counted(tokenizer, some_images(1)) == (
        sizes.parameters,
        pytest.approx(sizes.encode_gflops, rel=1e-12),
        pytest.approx(sizes.decode_gflops, rel=1e-12),
    )
    assert sizes.gmacs == pytest.approx((sizes.encode_gflops + sizes.decode_gflops) / 2)


def counted(tokenizer: TokenizerNetwork, x: Tensor) -> tuple[int, float, float]:
    """Parameters, and 2 x MAC in 1e9 of every Linear and Conv2d, to encode an image and to decode its latent."""
    macs = list[int]()

    def count(layer: Any, _: Any, output: Tensor) -> None:
        macs.append(output.numel() * layer.weight[0].numel())

    for layer in tokenizer.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    latent = tokenizer.encode(x).mean_BDhw
    encoded = sum(macs)
    tokenizer.decode(latent)
    parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    return parameters, 2 * encoded / 1e9, 2 * (sum(macs) - encoded) / 1e9


# ImageNet's DC-AE, dc-ae-f32c32-in-1.0, where it differs from Sana's.
IMAGENET_DC_AE: dict[str, Any] = {
    "encoder_layers_per_block": [0, 4, 8, 2, 2, 2],
    "decoder_layers_per_block": [0, 5, 10, 2, 2, 2],
    "encoder_qkv_multiscales": [[]] * 6,
    "decoder_qkv_multiscales": [[]] * 6,
    "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * 3,
    "decoder_act_fns": ["relu"] * 3 + ["silu"] * 3,
    "downsample_block_type": "pixel_unshuffle",
    "upsample_block_type": "pixel_shuffle",
}


@pytest.mark.parametrize(
    ("kind", "network", "parameters", "gmacs"),
    [
        ("sd-vae", SD_VAE, 83_653_863, 445.307),  # the paper's Table 1: 445 GFLOPs, an operation a multiply-add
        ("dc-ae", DC_AE, 312_250_275, 422.707),
        ("dc-ae", {**DC_AE, **IMAGENET_DC_AE}, 323_356_460, 606.641),  # its Table 3: 323M
    ],
)
def test_public_networks_at_full_size(
    kind: TokenizerKind, network: dict[str, Any], parameters: int, gmacs: float
) -> None:
    """Tensors without values: as on the meta device, which autocast does not know."""
    with FakeTensorMode():
        tokenizer = build(kind, {"image_size": 256, **network}).requires_grad_(False)
        found = counted(tokenizer, torch.empty(1, 3, 256, 256))
    sizes = tokenizer.sizes
    assert found == (parameters, pytest.approx(sizes.encode_gflops), pytest.approx(sizes.decode_gflops))
    assert sizes.parameters == parameters
    assert round(sizes.gmacs, 3) == gmacs


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_that_does_not_divide_is_refused(kind: TokenizerKind) -> None:
    with pytest.raises(ValueError, match="the factor 4 does not divide image_size 30"):
        build(kind, {**NETWORKS[kind], "image_size": 30})


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arguments_are_refused(kind: TokenizerKind) -> None:
    with pytest.raises(ValueError, match=r"argument"):
        build(kind, {**NETWORKS[kind], "colour": "green"})


# --- diffusers ---


def public_twin(kind: TokenizerKind) -> Any:
    """diffusers' own network, with the weights of ours."""
    import diffusers

    ours = random_tokenizer(kind)
    arguments = {name: value for name, value in ours.network.items() if name != "image_size"}
    if kind == "sd-vae":
        blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
        theirs = diffusers.AutoencoderKL(**arguments, **blocks)
    else:
        theirs = diffusers.AutoencoderDC(**arguments)
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval()


def test_sd_vae_is_diffusers_own() -> None:
    ours, theirs, x = random_tokenizer("sd-vae"), public_twin("sd-vae"), some_images()
    posterior, expected = ours.encode(x), theirs.encode(x).latent_dist
    torch.testing.assert_close(posterior.mean_BDhw, expected.mean)
    torch.testing.assert_close(posterior.logvar_BDhw, expected.logvar)
    torch.testing.assert_close(posterior.kl(), expected.kl())
    torch.testing.assert_close(ours.decode(expected.mean), theirs.decode(expected.mean).sample)


def test_dc_ae_is_diffusers_own_and_not_random() -> None:
    ours, theirs, x = random_tokenizer("dc-ae"), public_twin("dc-ae"), some_images()
    posterior, expected = ours.encode(x), theirs.encode(x).latent
    torch.testing.assert_close(posterior.mean_BDhw, expected)
    torch.testing.assert_close(ours.decode(expected), theirs.decode(expected).sample)
    assert posterior.logvar_BDhw.unique().tolist() == [-30]
    torch.testing.assert_close(posterior.sample(torch.randn_like(expected)), expected, atol=3e-6, rtol=0)


def test_recomputed_activations_change_no_gradient() -> None:
    plain = random_tokenizer("sd-vae").train().requires_grad_(True)
    saving = copy.deepcopy(plain)
    saving.recomputes = True
    for network in (plain, saving):
        output, posterior = network(some_images(), torch.ones(2, *network.latent_shape), lambda z: 0.5 * z)
        (output.square().mean() + posterior.kl().mean()).backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_without_diffusers_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for kind in PUBLIC:
        with pytest.raises(ValueError, match="of the package diffusers, which is not installed"):
            build(kind, NETWORKS[kind])
    random_tokenizer("vit")


# --- folders ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_loaded_as_it_was(kind: TokenizerKind, tmp_path: Path) -> None:
    ours = saved_tokenizer(tmp_path, kind)
    loaded, x = load(tmp_path), some_images()
    assert (loaded.kind, loaded.network) == (kind, ours.network)
    assert not loaded.training
    assert torch.equal(loaded.encode(x).mean_BDhw, ours.encode(x).mean_BDhw)
    assert torch.equal(loaded.decode(torch.ones(1, *ours.latent_shape)), ours.decode(torch.ones(1, *ours.latent_shape)))


@pytest.mark.parametrize("kind", PUBLIC)
def test_diffusers_opens_what_was_saved(kind: TokenizerKind, tmp_path: Path) -> None:
    import diffusers

    ours, x = saved_tokenizer(tmp_path, kind), some_images()
    expected = ours.encode(x).mean_BDhw
    if kind == "sd-vae":
        theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path)
        torch.testing.assert_close(theirs.encode(x).latent_dist.mean, expected)
        assert theirs.config.sample_size == 32
    else:
        theirs = diffusers.AutoencoderDC.from_pretrained(tmp_path)
        torch.testing.assert_close(theirs.encode(x).latent, expected)
    torch.testing.assert_close(theirs.decode(expected).sample, ours.decode(expected))


@pytest.mark.parametrize("kind", PUBLIC)
def test_what_diffusers_saved_is_loaded(kind: TokenizerKind, tmp_path: Path) -> None:
    theirs, x = public_twin(kind), some_images()
    theirs.save_pretrained(tmp_path)
    loaded = load(tmp_path, image_size=32)
    torch.testing.assert_close(loaded.encode(x).mean_BDhw, random_tokenizer(kind).encode(x).mean_BDhw)
    assert load(tmp_path, image_size=64).grid == 16


def test_older_names_of_the_attention_are_known(tmp_path: Path) -> None:
    """Those of the public SD-VAE files."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    ours = saved_tokenizer(tmp_path, "sd-vae")
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for name, tensor in load_file(path).items():
        for now, before in older.items():
            name = name.replace(f".{now}.", f".{before}.")
        renamed[name] = tensor
    assert sum(".query." in name for name in renamed) == 4
    save_file(renamed, path)
    x = some_images()
    assert torch.equal(load(tmp_path).encode(x).mean_BDhw, ours.encode(x).mean_BDhw)


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "it is a UNet2DConditionModel, no AutoencoderKL or AutoencoderDC"),
        ({"_class_name": None}, "it is not described"),
        ({"in_channels": 1}, "three channels"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "down_block_types are not all DownEncoderBlock2D"),
        ({"sample_size": None}, "names no image size"),
        ({"block_out_channels": None}, "lacks block_out_channels"),
        ({"sample_size": 30}, "the factor 4 does not divide image_size 30"),
        ({"latent_channels": 5}, "has shape"),
        ({"layers_per_block": 2}, "lacks"),
        ({"use_quant_conv": False}, "has 2 tensors that a sd-vae lacks, the first is quant_conv.bias"),
    ],
)
def test_what_is_no_such_tokenizer_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    saved_tokenizer(tmp_path, "sd-vae")
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=said):
        load(tmp_path)


def test_a_vit_is_of_its_image_size(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path, "vit")
    with pytest.raises(ValueError, match="a ViT for images of 32 pixels, not 64"):
        load(tmp_path, image_size=64)


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load(tmp_path)
    saved_tokenizer(tmp_path, "vit")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a file of safetensors"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="has 0 files of weights"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load(tmp_path)


def test_latents_are_not_scaled(tmp_path: Path) -> None:
    """diffusers' `scaling_factor` is the caller's affair there, and ours is the latents' own statistics."""
    ours = saved_tokenizer(tmp_path, "sd-vae")
    rewrite(tmp_path, scaling_factor=0.18215)
    assert isinstance(ours, KLAutoencoder)
    x = some_images()
    assert torch.equal(load(tmp_path).encode(x).mean_BDhw, ours.encode(x).mean_BDhw)
    assert math.isclose(json.loads((tmp_path / "config.json").read_text())["scaling_factor"], 0.18215)


def test_three_lines_without_the_pipeline(tmp_path: Path) -> None:
    import subprocess

    from tests.support import PROJECT

    network = random_tokenizer("vit")
    save(tmp_path / "tokenizer", "vit", network.network, network.state_dict())
    code = (
        "import torch, sys\nfrom models.tokenizers import load\n"
        f"tokenizer = load({str(tmp_path / 'tokenizer')!r})\n"
        "image = tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 32, 32)).mean_BDhw)\n"
        "assert image.shape == (1, 3, 32, 32)\n"
        "assert not {'pipeline', 'ray', 'mlflow', 'diffusers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
