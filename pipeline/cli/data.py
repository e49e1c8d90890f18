"""data index: list a source of images and record its index."""

import typer

from pipeline.cli.options import Preset, Root, Sets
from pipeline.config import load_config

app = typer.Typer(no_args_is_help=True, help="The source of images.")


@app.command("index")
def data_index(preset: Preset, set_: Sets = None, root: Root = None) -> None:
    """List the source and record its index, from which plans and fingerprints take its revision."""
    from pipeline.console import Display, own_console
    from pipeline.workflow import index_now

    with Display(own_console()) as display:
        index_now(load_config(preset, set_, root), display)
