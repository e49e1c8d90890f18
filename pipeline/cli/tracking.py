"""tracking sync: what waits to be delivered to MLflow."""

from typing import Annotated

import typer

from pipeline.cli.options import Root, Sets, console, root_config

app = typer.Typer(no_args_is_help=True, help="What waits to be delivered to MLflow.")


@app.command("sync")
def tracking_sync(
    name: Annotated[str | None, typer.Argument(metavar="RUN", help="A run's key; all that wait when left out.")] = None,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Deliver to MLflow what could not be delivered while it was away."""
    from pipeline import tracking
    from pipeline.storage import open_storage

    config = root_config(None, set_, root)
    storage = open_storage(config.root)
    files = tracking.deliver(storage, tracking.MlflowWriter(tracking.tracking_uri(config), config), name)
    console.print(f"{files} files of events delivered, {len(tracking.undelivered(storage))} runs wait", highlight=False)
