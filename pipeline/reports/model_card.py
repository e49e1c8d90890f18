"""The model card of a registered model: description, metrics, lineage, how to load it, licence, limitations.

It is created from manifests only, without times, so that the same artifacts give the same card.
"""

from typing import Any

from models.sizes import sit_parameters, tokenizer_sizes
from pipeline.artifacts import Manifest
from pipeline.config import Config

_CARD = """\
---
license: other
library_name: mlflow
pipeline_tag: unconditional-image-generation
---
# {name}

Images of {classes} classes at {size} x {size} pixels: a SiT generator ({sit_millions:.2f}M parameters) on latents of
{channels} x {grid} x {grid} from a tokenizer of kind {kind} ({tokenizer_millions:.2f}M parameters), at level {level}.

## Metrics

| metric | value |
|---|---|
{metrics}

Reconstruction is measured on the validation split. Samples are compared with {reference}.
The key of a distance contains the name of the feature network. Values of different networks, or against other images,
are not comparable.

## Lineage

| stage | fingerprint |
|---|---|
{lineage}

Images: {source}, listing {revision}. Code: git {git_sha}.{imported}

## How to load

```python
import mlflow, pandas

mlflow.set_tracking_uri("...")  # where this model is registered
model = mlflow.pyfunc.load_model("models:/{name}@champion")
rows = pandas.DataFrame({{"label": [0, 0, {last_label}], "seed": [0, 1, 2]}})
images = model.predict(rows, params={{"guidance": {guidance}, "steps": {steps}}})["image"]  # PNG bytes
```

`label` is from 0 to {last_label}. The same label and seed give the same image, independent of the other rows.
Params: `guidance`, `guidance_interval`, `steps`, `method` (euler, heun, ddim, dopri5, sde). The model includes its own
code (a package in `code/`) and needs the packages in `requirements.txt`. Weights are safetensors; nothing is unpickled.

## Licence

The code is under Apache-2.0. The weights were trained on the images named above and are subject to the terms of
those images.

## Limitations

It generates only the classes and the image size that it was trained on, with the gaps and biases of its training
images. It may reproduce training images. It was not tested for any use beyond the metrics above.
"""


def model_card(config: Config, manifests: dict[str, Manifest], fingerprint: str, git_sha: str | None) -> str:
    """The card in Markdown. `manifests` are the register stage's inputs and `prepare`."""
    details, sit = manifests["train-tokenizer"].details, manifests["train-sit"].details["network"]
    tokenizer = details["network"]
    prints = {stage: manifest.fingerprint for stage, manifest in manifests.items()} | {"register": fingerprint}
    prepared = manifests["prepare"].config
    return _CARD.format(
        name=config.register.name,
        classes=sit["classes"],
        last_label=sit["classes"] - 1,
        kind=details["kind"],
        size=tokenizer["image_size"],
        grid=sit["grid"],
        channels=sit["latent_dim"],
        level=manifests["train-sit"].details["level"],
        tokenizer_millions=tokenizer_sizes(details["kind"], tokenizer).parameters / 1e6,
        sit_millions=sit_parameters(**sit) / 1e6,
        metrics=_rows({name: f"{value:.6g}" for name, value in all_metrics(manifests).items()}),
        reference=manifests["evaluate-samples"].details["reference"],
        lineage=_rows(prints),
        source=prepared.get("data.uri") or prepared.get("data.format"),
        revision=prepared.get("data.revision"),
        git_sha=git_sha or "unknown",
        imported=_imported("tokenizer", details) + _imported("generator", manifests["train-sit"].details),
        guidance=config.sample.guidance,
        steps=config.sample.steps,
    )


def _imported(what: str, details: dict[str, Any]) -> str:
    """A sentence on a network that was not trained here."""
    if "source" not in details:
        return ""
    uri, sha256 = details["source"]["uri"], details["source"]["sha256"]
    return (
        f"\n\nThe {what} was not trained here but imported from {uri} (sha256 {sha256}), whose terms hold for its "
        "weights."
    )


def all_metrics(manifests: dict[str, Manifest]) -> dict[str, float]:
    """The metrics of all stages, by key."""
    found = {name: value for manifest in manifests.values() for name, value in manifest.metrics.items()}
    return dict(sorted(found.items()))


def _rows(cells: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in cells.items())
