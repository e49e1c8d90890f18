"""tracking sync: deliver pending events to MLflow."""

from typing import Annotated

import typer

from pipeline.cli.options import Root, Sets, console, root_config

app = typer.Typer(no_args_is_help=True, help="Events that are pending for MLflow.")


@app.command("sync")
def tracking_sync(
    name: Annotated[str | None, typer.Argument(metavar="RUN", help="A run's key; all runs by default.")] = None,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Deliver events to MLflow that are pending after an outage."""
    from pipeline import tracking
    from pipeline.storage import open_storage

    config = root_config(None, set_, root)
    storage = open_storage(config.root)
    files = tracking.deliver(storage, tracking.MlflowWriter(tracking.tracking_uri(config), config), name)
    console.print(
        f"delivered {files} files of events; {len(tracking.undelivered(storage))} runs have undelivered events",
        highlight=False,
    )
