"""tracking sync, show, retry, drop: events for MLflow that are pending, and those that it refused."""

from typing import Annotated

import typer

from pipeline.cli.options import Root, Sets, console, root_config

_Run = Annotated[str | None, typer.Argument(metavar="RUN", help="A run's key; all runs by default.")]

app = typer.Typer(no_args_is_help=True, help="Events for MLflow: pending, or refused by it.")


@app.command("sync")
def tracking_sync(name: _Run = None, set_: Sets = None, root: Root = None) -> None:
    """Deliver events to MLflow that are pending after an outage."""
    from pipeline import tracking
    from pipeline.storage import open_storage

    config = root_config(None, set_, root)
    storage, refused = open_storage(config.root), list[tracking.Refusal]()
    writer = tracking.MlflowWriter(tracking.tracking_uri(config), config)
    files = tracking.deliver(storage, writer, name, lambda _, refusal: refused.append(refusal))
    console.print(
        f"delivered {files} files of events; {len(tracking.undelivered(storage))} runs have undelivered events",
        highlight=False,
    )
    if refused:
        console.print(
            f"MLflow refused {len(refused)} events, which are set aside: see `python -m pipeline tracking show`",
            highlight=False,
            soft_wrap=True,
        )


@app.command("show")
def tracking_show(name: _Run = None, set_: Sets = None, root: Root = None) -> None:
    """List what is pending and what MLflow refused, with its reasons."""
    from pipeline import tracking
    from pipeline.storage import open_storage

    storage = open_storage(root_config(None, set_, root).root)
    pending, refused = tracking.pending_events(storage, name), tracking.refusals(storage, name)
    for key, count in pending.items():
        console.print(f"{key}  pending: {count} files of events", highlight=False, markup=False, soft_wrap=True)
    for key, reasons in refused.items():
        for reason, kinds in reasons.items():
            text = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
            console.print(f"{key}  refused: {text}. {reason}", highlight=False, markup=False, soft_wrap=True)
    if not pending and not refused:
        console.print("nothing is pending, nothing was refused", highlight=False)


@app.command("retry")
def tracking_retry(name: _Run = None, set_: Sets = None, root: Root = None) -> None:
    """Deliver once more what MLflow refused, after its cause was corrected."""
    from pipeline import tracking
    from pipeline.storage import open_storage

    tracking.put_back(open_storage(root_config(None, set_, root).root), name)
    tracking_sync(name, set_, root)


@app.command("drop")
def tracking_drop(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's key.")], set_: Sets = None, root: Root = None
) -> None:
    """Delete what MLflow refused of a run. What is pending stays."""
    from pipeline import tracking
    from pipeline.storage import open_storage

    dropped = tracking.drop_refused(open_storage(root_config(None, set_, root).root), name)
    console.print(f"dropped {dropped} events that MLflow had refused", highlight=False)
