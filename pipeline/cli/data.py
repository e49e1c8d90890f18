"""data index: list a source of images and record its index."""

import typer
from rich.markup import escape

from pipeline.cli.options import Preset, Root, Sets, console
from pipeline.config import load_config

app = typer.Typer(no_args_is_help=True, help="The source of images.")


@app.command("index")
def data_index(preset: Preset, set_: Sets = None, root: Root = None) -> None:
    """List the source and record its index, from which plans and fingerprints take its revision."""
    from pipeline.data import list_source, write_index
    from pipeline.storage import open_storage

    config = load_config(preset, set_, root)
    where = config.data.uri or config.data.format
    with console.status(f"listing {where}") as status:
        listing = list_source(config.data, lambda files: status.update(f"listing {where}: {files} files"))
        index = write_index(open_storage(config.root), config.data, listing)
    console.print(f"{index.files} files, {index.bytes / 1e6:.1f} MB, revision {index.digest[:12]}", highlight=False)
    for remark in listing.remarks:
        console.print(escape(remark), highlight=False, soft_wrap=True)
