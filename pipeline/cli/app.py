"""The application with all groups of commands: `python -m pipeline`, or `dvae`."""

import typer

from pipeline.cli import (
    artifact,
    config,
    convergence,
    data,
    evaluate,
    exchange,
    running,
    sample,
    suite,
    tracking,
    weights,
)
from pipeline.cli.options import run_app

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Denoising-VAE: from images to a generator in a model registry, stage by stage.",
)
app.add_typer(running.app)
app.add_typer(sample.app)
app.add_typer(convergence.app)
app.add_typer(suite.app, name="suite")
app.add_typer(evaluate.app)
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.add_typer(artifact.app, name="artifact")
app.add_typer(exchange.importing, name="import")
app.add_typer(exchange.exporting, name="export")
app.add_typer(tracking.app, name="tracking")


def main() -> None:
    """The console script `dvae`."""
    run_app(app)
