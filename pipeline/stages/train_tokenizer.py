"""train-tokenizer: the autoencoder under multi-level spectral regularization. Writes EMA weights and history."""

from pipeline.artifacts import Outcome
from pipeline.training import run_training
from pipeline.workflow import StageContext


def run(context: StageContext) -> Outcome:
    config = context.config
    return run_training(
        context,
        kind=config.tokenizer.kind,
        network=config.tokenizer_network,
        filter={"mask": config.tokenizer.mask, "keep": config.tokenizer.keep},
    )
