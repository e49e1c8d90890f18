"""The registered model: images for labels, in any environment with MLflow and torch. It includes its networks' code.

MLflow stores this file unchanged (models from code) and runs it to load a model, so it must not import `pipeline`. It
also runs it once at registration, so torch is imported only on loading. The networks' code is a package whose name, in
`model.json`, is unique to the version, since MLflow adds it to sys.path, where the first package of a name wins.
"""

import importlib
import io
import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

_PARAMS = ("method", "steps", "guidance", "guidance_interval")  # may be set by `params`; the rest is fixed


class ImageModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow is untyped here
    """Maps rows with columns `label` and `seed` to rows with the column `image` (PNG bytes).

    The image of a seed equals that of the pipeline's `sample` stage for the same index and label. The pipeline's
    command `sample` draws with `generator` and `sampling_of`, which `load_context` sets.
    """

    def load_context(self, context: Any) -> None:
        """Build the networks from `model.json` and the weights, on the GPU if there is one."""
        import torch
        from safetensors.torch import load_file

        facts = json.loads(Path(context.artifacts["model"]).read_text())
        code = importlib.import_module(f"{facts['code']}.generator")
        networks = importlib.import_module(f"{facts['code']}.tokenizers")
        tokenizer = networks.build(facts["kind"], facts["tokenizer"])
        sit = importlib.import_module(f"{facts['code']}.sit").SiT(**facts["sit"])
        tokenizer.load_state_dict(load_file(context.artifacts["tokenizer"]))
        sit.load_state_dict(load_file(context.artifacts["sit"]))
        statistics = code.LatentStatistics(**facts["statistics"])
        generator = code.ImageGenerator(tokenizer, sit, statistics, facts["prediction"], facts["path"])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.generator = generator.eval().requires_grad_(False).to(self.device)
        self.sampling_of, self.sampling, self.batch_size = code.Sampling, facts["sampling"], facts["batch_size"]

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """One PNG per row. ValueError for a label out of range, a negative seed or an unknown method."""
        labels, seeds = model_input["label"].tolist(), model_input["seed"].tolist()
        chosen = {**self.sampling, **{name: value for name, value in (params or {}).items() if name in _PARAMS}}
        low, high = chosen["guidance_interval"]
        sampling = self.sampling_of(**{**chosen, "guidance_interval": (float(low), float(high))})
        images: list[bytes] = []
        for start in range(0, len(labels), self.batch_size):
            stop = start + self.batch_size
            images += self._draw(labels[start:stop], seeds[start:stop], sampling)
        return pd.DataFrame({"image": images}, index=model_input.index)

    def _draw(self, labels: list[int], seeds: list[int], sampling: Any) -> list[bytes]:
        import torch

        pixels = self.generator.draw(torch.tensor(labels, dtype=torch.long), seeds, sampling)
        return [_png(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def _png(pixels: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


mlflow.models.set_model(ImageModel())
