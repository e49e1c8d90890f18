"""artifact ls, show, verify, repair, gc: manage the artifacts of stages."""

import sys
from typing import Annotated, Any

import typer

from pipeline.cli.options import Debug, Root, Sets, SomePreset, console, root_config
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, ContractError

_LISTED = 20  # broken files of an artifact that are named

app = typer.Typer(no_args_is_help=True, help="Manage the artifacts of stages.")


@app.command("ls")
def artifact_ls(preset: SomePreset = None, set_: Sets = None, root: Root = None) -> None:
    """List every committed artifact at the root."""
    from pipeline.artifacts import all_manifests
    from pipeline.storage import open_storage

    for manifest in all_manifests(open_storage(root_config(preset, set_, root).root)):
        size = sum(record.bytes for record in manifest.files.values()) / 1e6
        name = manifest.name
        console.print(f"{name:<34} {size:10.1f} MB  {manifest.rows:>9} rows  {manifest.created}", highlight=False)


@app.command("show")
def artifact_show(
    name: Annotated[str, typer.Argument(help="STAGE/FINGERPRINT")],
    preset: SomePreset = None,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Print an artifact's manifest. NAME is STAGE/FINGERPRINT."""
    sys.stdout.write(_artifact(root_config(preset, set_, root), name).model_dump_json(indent=1) + "\n")


@app.command("verify")
def artifact_verify(
    name: Annotated[str | None, typer.Argument(help="STAGE/FINGERPRINT; all by default.")] = None,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Verify files against the hashes in the manifests. Exit code 1 if an artifact is broken."""
    from pipeline.artifacts import all_manifests, broken_files
    from pipeline.storage import open_storage

    config = root_config(None, set_, root)
    storage = open_storage(config.root)
    broken = False
    for manifest in [_artifact(config, name)] if name else all_manifests(storage):
        files = broken_files(storage, manifest)
        broken |= bool(files)
        more = f" and {len(files) - _LISTED} more" if len(files) > _LISTED else ""
        state = f"broken: {', '.join(files[:_LISTED])}{more}" if files else "ok"
        console.print(f"{manifest.name}  {state}", highlight=False, soft_wrap=True)
    if broken:
        raise ContractError("some artifacts are broken", "Run `python -m pipeline artifact repair STAGE/FINGERPRINT`.")


@app.command("repair")
def artifact_repair(
    name: Annotated[str, typer.Argument(help="STAGE/FINGERPRINT")],
    set_: Sets = None,
    root: Root = None,
    debug: Debug = False,
) -> None:
    """Make what is broken of an artifact again, with its own config and inputs. A moved source: --set data.uri=URI."""
    from pipeline.artifacts import broken_files
    from pipeline.console import Display, own_console
    from pipeline.storage import open_storage
    from pipeline.workflow import Runner, check_not_imported, config_of, repair

    config = root_config(None, set_, root)
    storage = open_storage(config.root)
    manifest = _artifact(config, name)
    broken = broken_files(storage, manifest)
    if not broken:
        console.print("ok: nothing to repair")
        return
    check_not_imported(manifest, config.root)
    given = [".".join(override.partition("=")[0].split(".")[:2]) for override in set_ or []]
    with Display(own_console()) as display:
        runner = Runner(config_of(storage, manifest, config, given), display, "repair", debug)
        repair(runner, manifest, broken, display.say)


@app.command("gc")
def artifact_gc(
    presets: Annotated[list[str] | None, typer.Argument(help="Presets whose artifacts are kept.")] = None,
    set_: Sets = None,
    root: Root = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete them; without it, only list them.")] = False,
) -> None:
    """Delete artifacts that no registered model, none of the PRESETS and no start of an unfinished training needs."""
    from pipeline.artifacts import check_idle, remove_artifact
    from pipeline.storage import open_storage
    from pipeline.workflow import resolved, stage_fingerprints, unneeded

    config = root_config(None, set_, root)
    storage = open_storage(config.root)
    kept: set[str] = set()
    for preset in presets or []:
        resolved_config = resolved(load_config(preset, set_, root), fresh=False)
        prints = stage_fingerprints(resolved_config)
        if None in prints.values():
            raise ConfigError(
                f"{preset} is unresolved, so the artifacts it needs are unknown: its source is not set, or not listed",
                "Give the --set data.uri=... of the run, or run `python -m pipeline data index`.",
            )
        starts = (resolved_config.tokenizer.start_from, resolved_config.sit.start_from)
        kept |= {print_ for print_ in (*prints.values(), *starts) if print_}
    check_idle(storage)
    freed = 0
    for manifest in unneeded(storage, kept):
        freed += sum(record.bytes for record in manifest.files.values())
        console.print(f"{'deleted' if yes else 'would delete'}: {manifest.name}", highlight=False)
        if yes:
            remove_artifact(storage, manifest.stage, manifest.fingerprint)
    console.print(f"{freed / 1e6:.1f} MB{'' if yes else ' (delete with --yes)'}", highlight=False)


def _artifact(config: Config, name: str) -> Any:
    from pipeline.storage import open_storage
    from pipeline.workflow import find_artifact

    return find_artifact(open_storage(config.root), name)
