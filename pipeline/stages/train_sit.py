"""train-sit: SiT on the denoised latents, with feature alignment. Leaves EMA weights and history."""

from pipeline.artifacts import Outcome
from pipeline.context import StageContext
from pipeline.ray_training import run_training


def run(context: StageContext) -> Outcome:
    from pipeline.sit_trainee import check_contract, network_arguments

    check_contract(context.config, context.inputs)
    own = context.config.sit
    return run_training(
        context,
        network=network_arguments(context.config),
        level=own.level,
        prediction=own.prediction,
        statistics=context.inputs["encode"].details["statistics"][str(own.level)],
    )
