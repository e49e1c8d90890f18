"""train-sit: SiT on the denoised latents, with feature alignment. Writes EMA weights and history."""

from pipeline.artifacts import Outcome
from pipeline.training import check_contract, run_training
from pipeline.workflow import StageContext


def run(context: StageContext) -> Outcome:
    check_contract(context.config, context.inputs)
    own = context.config.sit
    return run_training(
        context,
        network=context.config.sit_network,
        level=own.level,
        path=own.path,
        prediction=own.prediction,
        averages=own.averages,
        statistics=context.inputs["encode"].details["statistics"][str(own.level)],
    )
