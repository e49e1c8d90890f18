"""train-tokenizer: the ViT autoencoder under multi-level spectral regularization. Leaves EMA weights and history."""

from pipeline.artifacts import Outcome
from pipeline.context import StageContext
from pipeline.ray_training import run_training


def run(context: StageContext) -> Outcome:
    from pipeline.tokenizer_trainee import network_arguments

    own = context.config.tokenizer
    return run_training(context, network=network_arguments(context.config), filter={"mask": own.mask, "keep": own.keep})
