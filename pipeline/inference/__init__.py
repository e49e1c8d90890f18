"""Inference: networks loaded from artifacts, images from them, and the model that MLflow registers.

Modules that need torch are imported on use.
"""

from typing import TYPE_CHECKING

from pipeline.inference.details import milestone_place, sit_details, sit_weights, weights_names
from pipeline.inference.model_code import MODEL_FILE, copy_model_package, model_package
from pipeline.lazy import lazy

if TYPE_CHECKING:
    from pipeline.inference.drawing import draw
    from pipeline.inference.export import export_tokenizer
    from pipeline.inference.networks import load_generator, load_tokenizer, task_device
else:
    __getattr__ = lazy(
        __name__, drawing="draw", export="export_tokenizer", networks="load_generator load_tokenizer task_device"
    )
