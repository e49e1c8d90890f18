"""The registered model: pictures for labels, wherever MLflow, torch and the `models` package that it carries are.

MLflow ships this file as it stands (models from code) and runs it to load a model, so it imports nothing of `pipeline`;
and it runs it once when a model is registered, so torch waits until a model is loaded.
"""

import io
import json
from pathlib import Path
from typing import Any, get_args

import mlflow
import pandas as pd


class PictureModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow is untyped here
    """Columns `label` and `seed` in, column `image` (PNG bytes) out, row by row.

    The picture of a seed is the one that the pipeline's `sample` stage draws for that index and label.
    """

    def load_context(self, context: Any) -> None:
        """Builds the networks from `model.json` and the weights, on the GPU if there is one."""
        import torch
        from safetensors.torch import load_file

        from models.generator import ImageGenerator, LatentStatistics
        from models.sit import SiT
        from models.tokenizer import Tokenizer

        facts = json.loads(Path(context.artifacts["model"]).read_text())
        tokenizer, sit = Tokenizer(**facts["tokenizer"]), SiT(**facts["sit"])
        tokenizer.load_state_dict(load_file(context.artifacts["tokenizer"]))
        sit.load_state_dict(load_file(context.artifacts["sit"]))
        generator = ImageGenerator(tokenizer, sit, LatentStatistics(**facts["statistics"]), facts["prediction"])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.generator = generator.eval().requires_grad_(False).to(self.device)
        self.sampling = facts["sampling"]

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """A PNG a row. ValueError for a label out of range, a negative seed or an unknown method."""
        labels, seeds = model_input["label"].tolist(), model_input["seed"].tolist()
        size = self.sampling["batch_size"]
        images: list[bytes] = []
        for start in range(0, len(labels), size):
            images += self._draw(labels[start : start + size], seeds[start : start + size], params or {})
        return pd.DataFrame({"image": images}, index=model_input.index)

    def _draw(self, labels: list[int], seeds: list[int], params: dict[str, Any]) -> list[bytes]:
        import torch

        from models.sampler import Method

        chosen = {**self.sampling, **params}
        if chosen["method"] not in get_args(Method):
            raise ValueError(f"method '{chosen['method']}' is none of {', '.join(get_args(Method))}")
        low, high = chosen["guidance_interval"]
        bf16 = self.device.type == "cuda" and chosen["precision"] == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            pixels = self.generator.generate(
                torch.tensor(labels, dtype=torch.long),
                seed=chosen["seed"],
                indices=seeds,
                method=chosen["method"],
                steps=int(chosen["steps"]),
                guidance_scale=float(chosen["guidance"]),
                guidance_interval=(float(low), float(high)),
            )
        return [_png(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def _png(pixels: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


mlflow.models.set_model(PictureModel())
