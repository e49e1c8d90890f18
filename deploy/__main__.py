"""The pipeline on a Ray cluster: submit work to it, drain a node of it.

Exit codes: those of the job; else 2 for a wrong config or option, 69 nobody answers, 75 the job's driver or head died
and no attempt is left, 76 what answers cannot be used (TLS, another service, too old a Ray), 77 no token, a wrong one
or no permission, 130 interrupted or stopped.
"""

import sys
from typing import Annotated

import typer
from rich.console import Console

from deploy.jobs import Dashboard, token
from deploy.submit import Work, run_work, stage_work, submit
from pipeline.command_line import Debug, Preset, Root, Sets, run_app

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
submit_app = typer.Typer(no_args_is_help=True, help="Run a stage, or all, on a Ray cluster.")
app.add_typer(submit_app, name="submit")

Address = Annotated[
    str,
    typer.Option(
        "--address", envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"], help="The dashboard: http(s)://HOST[:PORT]."
    ),
]
Attempts = Annotated[
    int, typer.Option("--attempts", min=1, help="How often to submit, should a driver or head have died.")
]

console = Console(stderr=True)


@submit_app.command("stage")
def submit_stage(
    name: str,
    preset: Preset,
    address: Address,
    attempts: Attempts = 1,
    set_: Sets = None,
    root: Root = None,
    debug: Debug = False,  # noqa: ARG001  # read by run_app
) -> None:
    """Run one stage there; its inputs are found by fingerprint."""
    _submit(stage_work(name, preset, set_, root), address, attempts)


@submit_app.command("run")
def submit_run(
    preset: Preset,
    address: Address,
    attempts: Attempts = 1,
    set_: Sets = None,
    root: Root = None,
    until: Annotated[str | None, typer.Option("--until", help="The last stage to run.")] = None,
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Run there every stage that is not there yet."""
    _submit(run_work(preset, until, set_, root), address, attempts)


@app.command()
def drain(
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Until the pod's end.")],
    debug: Debug = False,  # noqa: ARG001
) -> None:
    """Tell Ray that this pod's node goes away, and wait until it is free of work: a pod's preStop hook."""
    from deploy.drain import drain as drain_node

    drain_node(seconds, _say)


def _submit(work: Work, address: str, attempts: int) -> None:
    dashboard = Dashboard(address, token())
    try:
        code = submit(dashboard, work, attempts, _say, _echo)
    except KeyboardInterrupt:
        _say(
            f"detached: {work.name}-* goes on at {dashboard.address}. The same command attaches to it again; "
            f"`ray job stop {work.name}-N --address {dashboard.address}` ends it."
        )
        code = 130
    raise SystemExit(code)


def _say(text: str) -> None:
    console.print(text, style="dim", highlight=False, soft_wrap=True, markup=False)


def _echo(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> None:
    """`python -m deploy`."""
    run_app(app)


if __name__ == "__main__":
    main()
