"""Inference: networks loaded from artifacts, images from them, and the model that MLflow registers.

Modules that need torch are imported on use.
"""

from typing import TYPE_CHECKING

from pipeline.inference.details import device_seconds, milestone_place, sit_details, sit_weights, weights_names
from pipeline.inference.model_code import MODEL_FILE, copy_model_package, model_package
from pipeline.lazy import lazy

if TYPE_CHECKING:
    from pipeline.inference.drawing import Batch, Request, Source, draw, trained_source
    from pipeline.inference.export import export_samples, export_sit, export_tokenizer
    from pipeline.inference.networks import load_generator, load_tokenizer, task_device
    from pipeline.inference.picture_files import Parts, output_errors, ready_file, ready_folder, write_pngs
    from pipeline.inference.registered import registered_source
else:
    __getattr__ = lazy(
        __name__,
        drawing="Batch Request Source draw trained_source",
        export="export_samples export_sit export_tokenizer",
        networks="load_generator load_tokenizer task_device",
        picture_files="Parts output_errors ready_file ready_folder write_pngs",
        registered="registered_source",
    )
