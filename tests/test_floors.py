"""The house: imports run down floors and rooms, rooms are entered by their faces, light ones stay light."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import PROJECT

FLOORS = ("models", "pipeline", "deploy")  # from the ground up
# The rooms of `pipeline` from the ground up: each imports only those above it in this list.
ROOMS = (
    "errors",
    "lazy",
    "console",
    "metrics",
    "config",
    "storage",
    "weights",
    "artifacts",
    "tracking",
    "cluster",
    "data",
    "inference",
    "evaluation",
    "workflow",
    "reports",
    "training",
    "stages",
    "suites",
    "cli",
)
BY_NAME = {("workflow", "stages")}  # the one way up: a stage's body is imported by name when it runs
HEAVY = ("torch", "ray", "mlflow", "pyarrow", "PIL", "matplotlib", "sklearn")


class Import(NamedTuple):
    path: Path
    line: int
    module: str  # what is imported, or imported from
    name: str  # of it; empty for `import module`

    def __str__(self) -> str:
        return f"{self.path.relative_to(PROJECT)}:{self.line} imports {self.name or 'all'} of {self.module}"


@cache
def nodes(path: Path) -> list[ast.AST]:
    """A file's syntax tree, as a list."""
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> Iterator[Import]:
    """What a file imports, wherever in it, by full names."""
    package = path.relative_to(PROJECT).parent.parts
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from (Import(path, node.lineno, module, alias.name) for alias in node.names)


def files(package: str) -> list[Path]:
    found = sorted((PROJECT / package).rglob("*.py"))
    assert found
    return found


ALL = [found for floor in FLOORS for path in files(floor) for found in imports(path)]


def floor_of(module: str) -> str | None:
    return module.partition(".")[0] if module.partition(".")[0] in FLOORS else None


def room_of_file(path: Path) -> str | None:
    """The room of a file of `pipeline`; None for its `__init__` and `__main__`."""
    parts = path.relative_to(PROJECT / "pipeline").with_suffix("").parts
    return parts[0] if not parts[0].startswith("__") else None


def room_imported(found: Import) -> str | None:
    """The room that something of `pipeline` is imported from."""
    parts = found.module.split(".")
    if parts[0] != "pipeline":
        return None
    return parts[1] if len(parts) > 1 else found.name


def arrows() -> set[tuple[str, str]]:
    """(room, room that it imports), of different rooms."""
    pairs = {
        (room, wanted)
        for found in ALL
        if found.path.is_relative_to(PROJECT / "pipeline")
        and (room := room_of_file(found.path))
        and (wanted := room_imported(found))
    }
    return {pair for pair in pairs if pair[0] != pair[1]}


# --- floors ---


def test_imports_run_down_the_floors():
    upward = [
        str(found)
        for found in ALL
        if (floor := floor_of(found.module))
        and FLOORS.index(floor) > FLOORS.index(found.path.relative_to(PROJECT).parts[0])
    ]
    assert upward == []


def test_models_know_nothing_of_the_world():
    strangers = {"ray", "mlflow", "pyarrow", "boto3", "botocore", "pydantic", "yaml", "requests"}
    assert [str(found) for found in ALL if _is_of("models", found) and found.module.split(".")[0] in strangers] == []


def test_models_import_each_other_relatively():
    """A registered model ships them under another name (`inference/model_code.py`)."""
    inside = [node for path in files("models") for node in nodes(path)]
    named = [node.module for node in inside if isinstance(node, ast.ImportFrom) and not node.level and node.module]
    named += [alias.name for node in inside if isinstance(node, ast.Import) for alias in node.names]
    assert [name for name in named if name.partition(".")[0] == "models"] == []


def test_the_registered_model_needs_nothing_of_this_checkout():
    """MLflow ships this one file, and the networks' code under a name of its own."""
    (path,) = [path for path in files("pipeline") if path.name == "registered_model.py"]
    assert [str(found) for found in imports(path) if floor_of(found.module) or found.module == "ray"] == []


def _is_of(floor: str, found: Import) -> bool:
    return found.path.is_relative_to(PROJECT / floor)


# --- rooms ---


def test_the_table_names_every_room():
    here = {
        path.stem
        for path in (PROJECT / "pipeline").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert here - {"__init__", "__main__"} == set(ROOMS)


def test_imports_run_down_the_rooms():
    """So there is no circle either."""
    upward = {pair for pair in arrows() if ROOMS.index(pair[0]) < ROOMS.index(pair[1])}
    assert upward == set()
    by_name = {
        (room_of_file(path), node.value.split(".")[1])
        for path in files("pipeline")
        for node in nodes(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("pipeline.stages.")
    }
    assert by_name == BY_NAME


def test_no_module_of_a_room_imports_itself_in_a_circle():
    """Within a room too: a module comes before those that import it."""
    graph: dict[str, set[str]] = {}
    for found in ALL:
        me = ".".join(found.path.relative_to(PROJECT).with_suffix("").parts)
        if not me.endswith("__init__") and floor_of(found.module):
            graph.setdefault(me, set()).update({found.module, f"{found.module}.{found.name}"} - {me})
    modules = set(graph)
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for wanted in graph[module] & modules:
                visit(wanted, (*trail, module))
            done.add(module)

    for module in modules:
        visit(module, ())


def test_rays_private_names_are_in_one_file():
    private = ("ray._", "ray.core.generated", "ray.train.v2._internal", "ray.data._internal", "ray.autoscaler.v2")
    where = {found.path.name for found in ALL if found.module.startswith(private)}
    assert where == {"ray_private.py"}


def face(room: str) -> set[str]:
    """What the `__init__` of a room gives to others."""
    path = PROJECT / "pipeline" / room / "__init__.py"
    tree = ast.parse(path.read_text())
    found = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return found - {"TYPE_CHECKING", "lazy"}


PACKAGES = [room for room in ROOMS if (PROJECT / "pipeline" / room).is_dir()]


def test_rooms_are_entered_by_their_faces():
    """From another room, or from `deploy`, only `from pipeline.ROOM import NAME`, of what its `__init__` offers."""
    faces = {room: face(room) for room in PACKAGES}
    behind = []
    for found in ALL:
        room = room_imported(found)
        inside = _is_of("pipeline", found) and room_of_file(found.path) in (room, None)
        if room not in faces or inside:
            continue
        entered = found.module == f"pipeline.{room}" and found.name in faces[room]
        whole = (found.module, found.name) == ("pipeline", room)
        if not (entered or whole):
            behind.append(str(found))
    assert behind == []


@pytest.mark.parametrize("room", PACKAGES)
def test_a_face_is_no_larger_than_it_is_used(room):
    """A name that nobody outside of the room takes does not belong in its face."""
    taken = set()
    for path in [path for floor in ("pipeline", "deploy") for path in files(floor)]:
        if path.is_relative_to(PROJECT / "pipeline") and room_of_file(path) == room:
            continue
        taken |= {found.name for found in imports(path) if found.module == f"pipeline.{room}"}
        names = {
            alias.asname or alias.name
            for node in nodes(path)
            if isinstance(node, ast.ImportFrom) and node.module == "pipeline"
            for alias in node.names
            if alias.name == room
        }
        taken |= {
            node.attr
            for node in nodes(path)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
        }
    assert face(room) - taken == set()


@pytest.mark.parametrize("room", PACKAGES)
def test_a_face_that_loads_late_gives_what_it_promises(room):
    """What type checkers are told under TYPE_CHECKING is what `lazy` finds, and each name is there."""
    tree = ast.parse((PROJECT / "pipeline" / room / "__init__.py").read_text())
    told = {
        alias.name: node.module.rpartition(".")[2]
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    found = {
        name: keyword.arg
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "lazy"
        for keyword in call.keywords
        if isinstance(keyword.value, ast.Constant)
        for name in str(keyword.value.value).split()
    }
    assert found == told
    module = importlib.import_module(f"pipeline.{room}")
    assert [name for name in face(room) if not hasattr(module, name)] == []
    with pytest.raises(AttributeError):
        _ = module.nothing_of_that_name


@pytest.mark.parametrize("room", PACKAGES)
def test_a_room_says_what_it_is_for(room):
    modules = [PROJECT / "pipeline" / room / "__init__.py", *(PROJECT / "pipeline" / room).glob("*.py")]
    assert [path.name for path in modules if not ast.get_docstring(ast.parse(path.read_text()))] == []


# --- light ---


def loaded(code: str, *names: str) -> list[str]:
    """Which of the modules `names` a fresh interpreter has loaded after running `code`."""
    ending = f"\nimport sys; print('LOADED', *[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code + ending], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1].split()[1:]


def test_importing_all_of_deploy_stays_light():
    code = (
        "import deploy, importlib, pkgutil\n"
        "for module in pkgutil.walk_packages(deploy.__path__, 'deploy.'): importlib.import_module(module.name)"
    )
    assert loaded(code, *HEAVY) == []


def test_every_face_is_light():
    """A CI runner and a login shell may look at any room; what is heavy behind a face loads when it is used."""
    assert loaded("import " + ", ".join(f"pipeline.{room}" for room in ROOMS if room != "stages"), *HEAVY) == []


def test_the_command_line_and_the_closed_forms_are_light():
    assert loaded("import models.choices, models.sizes, pipeline.cli.app", *HEAVY) == []


@pytest.mark.parametrize(
    "command", [["plan", "quickstart"], ["plan", "imagenet-f16d32", "--json"], ["config", "schema"]]
)
def test_planning_stays_light(tmp_path, command):
    root = ["--root", str(tmp_path)]
    code = (
        f"import runpy, sys\nsys.argv = ['pipeline', *{command + root!r}]\n"
        "try:\n    runpy.run_module('pipeline', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert loaded(code, *HEAVY) == []
    assert not list(tmp_path.iterdir()), "a plan starts nothing and leaves nothing"


def test_everything_can_be_imported():
    """Each module by itself, so that none lives on what another has imported before."""
    walked = [
        found.name
        for floor in FLOORS
        for found in pkgutil.walk_packages([str(PROJECT / floor)], f"{floor}.")
        if not found.name.endswith(("__main__", "registered_model"))
    ]
    code = f"import importlib\nfor name in {walked!r}: importlib.import_module(name)"
    loaded(code)
