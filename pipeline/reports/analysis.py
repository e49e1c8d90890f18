"""What `analyze` found of one tokenizer: the numbers of its figures, as they lie in its artifact.

The stage makes the content and draws it, the command `analyze` reads several and draws them side by side; both draw
what is written, so that the numbers beside a figure are those in it. No figure is drawn here. Needs numpy and Pillow.
Legend: B images shown, C components, h w latent grid, L levels, R radius bins, S shares.
"""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.artifacts import Manifest, read_checked
from pipeline.reports.principal import Array, Scale
from pipeline.storage import Storage

NUMBERS, PROJECTIONS = "metrics.json", "projections.json"
_DIGITS = 5  # significant ones of a projection


@dataclass(frozen=True)
class Analysis:
    """One tokenizer's numbers.

    Attributes:
        name: of the tokenizer in figures; empty where there is one only.
        numbers: `images` (count), `images_sha256` (of the analysed pixels), `image_size`, `latent_shape`, `metrics`;
            `spectra`: `radius` (R,) in cycles per side, `power` (L, R), and `white`, that of white noise with the
            variance of level 0; `removal` (Figure 1c), lists of S: `asked` and `share`, the share of the frequencies to
            remove and of those removed in whole shells, `energy`, the share of the latents' energy without DC in them,
            and `psnr` in dB.
        projections: principal components, `images` (L, B, h, w, C) of the images shown, of level 0 to 3; of images of
            one `colour` (B, 3), RGB, at level 0: `uniform` (B, h, w, C), and `structure`, their deviation from each
            image's mean in components of their own. The scales of both kinds: `scale` and `structure_scale`, (2, C).
        images_BCHW: the images shown, uint8.
    """

    name: str
    numbers: dict[str, Any]
    projections: dict[str, Any]
    images_BCHW: Array

    @property
    def shape_text(self) -> str:
        """Latent channels and side of a patch, in the field's letters."""
        channels, grid, _ = self.numbers["latent_shape"]
        return f"d {channels}, f {self.numbers['image_size'] / grid:g}"

    def projected(self, kind: str) -> Array:
        """The projections of this kind as an array."""
        return np.asarray(self.projections[kind], np.float64)

    def scale(self, kind: str) -> Scale:
        low_C, high_C = self.projected(kind)
        return Scale(low_C, high_C)


def rounded(projected: Array) -> list[Any]:
    """Nested lists of a few significant digits, for JSON."""
    values = [float(f"{value:.{_DIGITS}g}") for value in projected.ravel().tolist()]
    nested: list[Any] = np.array(values).reshape(projected.shape).tolist()
    return nested


def files_of(analysis: Analysis) -> dict[str, bytes]:
    """The files of the artifact that `read_analysis` reads."""
    files = {
        NUMBERS: json.dumps(analysis.numbers, indent=1).encode(),
        PROJECTIONS: json.dumps(analysis.projections).encode(),
    }
    return files | {f"images/{i}.png": _png(image) for i, image in enumerate(analysis.images_BCHW)}


def read_analysis(storage: Storage, manifest: Manifest, name: str) -> Analysis:
    """The analysis of an artifact. ContractError if a file is missing or does not match the manifest."""
    numbers, projections = (json.loads(read_checked(storage, manifest, file)) for file in (NUMBERS, PROJECTIONS))
    pictures = [path for path in manifest.files if path.startswith("images/")]
    images = [_pixels(read_checked(storage, manifest, f"images/{i}.png")) for i in range(len(pictures))]
    return Analysis(name, numbers, projections, np.stack(images))


def _png(image_CHW: Array) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.moveaxis(image_CHW, 0, -1))).save(buffer, "png")
    return buffer.getvalue()


def _pixels(png: bytes) -> Array:
    from PIL import Image

    return np.moveaxis(np.asarray(Image.open(io.BytesIO(png))), -1, 0)
