"""convergence: trainings side by side, by the distance of their samples over steps."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Debug, Root, Sets, console, local_folder
from pipeline.config import load_config
from pipeline.errors import ContractError

app = typer.Typer()

_STAGE = "convergence"


@app.command()
def convergence(
    presets: Annotated[list[str], typer.Argument(metavar="PRESET...", help="Presets' names or YAML files.")],
    to: Annotated[
        Path,
        typer.Option(
            "--to",
            parser=local_folder,
            metavar="FOLDER",
            help="Folder for the figure, the table and every number as JSON; those of an earlier call are replaced.",
        ),
    ],
    distance: Annotated[
        float | None,
        typer.Option(
            "--distance",
            min=0.0,
            help="At which trainings are compared. By default the smallest that all surely reach.",
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option("--network", help="Whose distance, such as self-digits. By default the gate's."),
    ] = None,
    set_: Sets = None,
    root: Root = None,
    debug: Debug = False,
) -> None:
    """Draw the paper's Figure 3: the distance of samples over training steps, and who is how many times as fast.

    What is missing is trained and sampled first, a preset after the other; cut, the same command goes on. The first
    preset is the one that the others are compared with. --set holds for all presets.
    """
    from pipeline import reports
    from pipeline.artifacts import read_manifest
    from pipeline.console import Display, own_console
    from pipeline.storage import open_storage
    from pipeline.workflow import Runner, resolved, stage_fingerprints

    names = _labels(presets)
    found: dict[str, tuple[str, reports.Training]] = {}
    for preset in presets:
        with Display(own_console()) as display:
            config = resolved(load_config(preset, set_, root), fresh=True, display=display)
            fingerprint = stage_fingerprints(config)[_STAGE]
            Runner(config, display, preset, debug).run(_STAGE)
        assert fingerprint is not None  # it has run
        if fingerprint in found:
            raise ContractError(f"{found[fingerprint][0]} and {preset} are the same training", "Name each one once.")
        storage = open_storage(config.root)
        manifest = read_manifest(storage, _STAGE, fingerprint)
        assert manifest is not None
        found[fingerprint] = preset, reports.read_training(storage, manifest, names[preset], network)
    trainings = [training for _, training in found.values()]
    reports.check_comparable(trainings)
    reports.render_convergence(console, trainings, distance)
    for path in reports.write_convergence(to, trainings, distance):
        console.print(str(path), highlight=False, soft_wrap=True)


def _labels(presets: list[str]) -> dict[str, str]:
    """What presets are called in the figure: their last words, or all of them where these are the same."""
    stems = {preset: Path(preset).stem for preset in presets}
    return stems if len(set(stems.values())) == len(stems) else {preset: preset for preset in presets}
