"""Divides the files of one URI into its splits, if it has several: folders such as `train/`, or files named so.

The names are recognised in `split_names.py`, the files found in `find.py`.
"""

from collections import Counter
from dataclasses import dataclass, replace

from pipeline.data.endings import NO_ENDING, ending_of
from pipeline.data.find import HOLDING, OUTSIDE, Found
from pipeline.data.split_names import Kind, ambiguous, choose, file_split, folder_kind, remark, validation_part
from pipeline.errors import DataError
from pipeline.storage import Entry, open_storage


@dataclass(frozen=True)
class Parts:
    """What trains and what validates, and a line for each choice."""

    train: Found
    validation: Found | None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Divided:
    """The splits of one URI, by name; none if it has no splits. `examples` has a URI that names each alone."""

    kinds: dict[str, Kind]
    found: dict[str, Found]
    examples: dict[str, str]
    left_out: tuple[str, ...] = ()  # parts that cannot be used


_NOT_DIVIDED = _Divided({}, {}, {})


def training_parts(found: Found, uri: str, share: float | None) -> Parts:
    """What of `data.uri` trains, and what validates unless `share` is None: then data.validation_uri is set.

    DataError if that is ambiguous.
    """
    where = f"data.uri {uri}"
    divided = _divide(found, where, uri)
    if not divided.kinds:
        return Parts(found, None)
    chosen = choose(where, divided.kinds, share is None, divided.examples)
    chosen = chosen._replace(left_out=(*chosen.left_out, *divided.left_out))
    validation = divided.found[chosen.validation] if chosen.validation is not None else None
    return Parts(divided.found[chosen.train], validation, (remark(where, chosen, share),))


def validation_files(found: Found, uri: str) -> tuple[Found, tuple[str, ...]]:
    """What of `data.validation_uri` validates, and a line if it has several splits."""
    where = f"data.validation_uri {uri}"
    divided = _divide(found, where, uri)
    name = validation_part(where, divided.kinds, divided.examples)
    if name is None or len(divided.kinds) == 1:
        return (found, ()) if len(divided.kinds) != 1 else (next(iter(divided.found.values())), ())
    return divided.found[name], (f"{where}: {name} validates",)


def _divide(found: Found, where: str, uri: str) -> _Divided:
    if found.layout != "folder":
        return _divided_files(found, where, uri)
    if found.class_level == 0:
        return _divided_folders(found, where, uri)
    return _divided_matches(found, where)


# --- files, named as on the Hugging Face Hub ---


def _divided_files(found: Found, where: str, uri: str) -> _Divided:
    entries: dict[str, list[Entry]] = {}
    kinds: dict[str, Kind] = {}
    others = []
    for entry in found.entries:
        split = file_split(entry.path)
        if split is None:
            others.append(entry)
        else:
            kinds[split[0]] = split[1]
            entries.setdefault(split[0], []).append(entry)
    if not kinds or (found.explicit and _is_one_set(kinds, bool(others))):
        return _NOT_DIVIDED
    root = found.storage.root if found.explicit else uri.rstrip("/")
    examples = {name: f"{root}/{_glob_of(name, own, found.entries)}" for name, own in entries.items()}
    if others:
        train = next((name for name, kind in kinds.items() if kind == "train"), None)
        use = examples[train] if train else f"{root}/{_glob_of('', others, found.entries)}"
        hint = f"Name what to train on by a glob, such as data.uri={use}, and what validates by data.validation_uri"
        raise ambiguous(where, [own[0].path for own in entries.values()], [entry.path for entry in others], hint)
    parts = {name: replace(found, entries=own) for name, own in entries.items()}
    for name, part in parts.items():
        if kinds[name] != "train":
            part.skipped, part.others = Counter(), []  # counted once
    return _Divided(kinds, parts, examples)


def _glob_of(word: str, entries: list[Entry], among: list[Entry]) -> str:
    """A glob below the root that matches these files and no others."""
    own = {entry.path for entry in entries}
    if len(own) == 1:
        return own.pop()
    ending = ending_of(entries[0].path)
    first, last = min(own), max(own)
    start = first[: next((i for i in range(len(first)) if first[i] != last[i : i + 1]), len(first))]
    if any("/" in path[len(start) :] for path in own):
        start = start[: start.rfind("/") + 1] + "**/"
    if start.rstrip("*/") and not any(
        entry.path.startswith(start.rstrip("*")) for entry in among if entry.path not in own
    ):
        return f"{start}*{ending}"
    return f"**/*{word}*{ending}"


# --- folders ---


def _divided_folders(found: Found, where: str, uri: str) -> _Divided:
    """Folders that are named as splits and have class folders; one with images directly in it is a class."""
    nested, direct = set[str](), set[str]()
    for entry in found.entries:
        name, _, rest = entry.path.partition("/")
        (nested if "/" in rest else direct).add(name)
    kinds: dict[str, Kind] = {name: kind for name in sorted(nested | direct) if (kind := folder_kind(name))}
    others = sorted((nested | direct) - set(kinds))
    flat = [name for name in kinds if name not in nested]
    root = found.storage.root if found.explicit else uri.rstrip("/")
    if len(nested | direct) == 1:
        _check_not_deeper(found, where, root)
    if not any(name in nested for name in kinds):
        if not others and len({*kinds.values()} - {"train"}) > 0 and "train" in kinds.values():
            raise _flat(where, flat[0], root)
        return _NOT_DIVIDED
    if others:
        train = next((name for name, kind in kinds.items() if kind == "train"), next(iter(kinds)))
        hint = f"Name the training images alone, such as data.uri={root}/{train}; rename '{train}' if it is a class"
        raise ambiguous(where, [f"{name}/" for name in kinds], [f"{name}/" for name in others], hint)
    for name in flat:
        if kinds[name] != "test":
            raise _flat(where, name, root)
    usable = {f"{name}/": kind for name, kind in kinds.items() if name not in flat}
    parts = {name: _below(found, name.rstrip("/")) for name in usable}
    examples = {name: f"{root}/{name.rstrip('/')}" for name in usable}
    return _Divided(usable, parts, examples, tuple(f"{name}/ (it has no class folders)" for name in flat))


def _check_not_deeper(found: Found, where: str, root: str) -> None:
    """DataError if the splits lie in a folder that holds everything, such as archive/train and archive/val."""
    folders = [entry.path.split("/")[:-1] for entry in found.entries]
    first, last = min(folders), max(folders)
    depth = next((i for i, part in enumerate(first) if last[i : i + 1] != [part]), len(first))
    names = sorted({folder[depth] if len(folder) > depth else "" for folder in folders})
    kinds = {folder_kind(name) for name in names}
    if "train" in kinds and len(kinds) > 1 and None not in kinds:
        above = "/".join(first[:depth])
        raise DataError(
            f"{where}: its splits {', '.join(f'{name}/' for name in names)} lie in {above}/",
            f"Name that folder: data.uri={root}/{above}",
        )


def _flat(where: str, name: str, root: str) -> DataError:
    return DataError(
        f"{where}: {name}/ looks like a split, but its images are not in class folders",
        f"Put them into {name}/CLASS/, a folder for each class; or name the folder of those that are, under {root}",
    )


def _below(found: Found, folder: str) -> Found:
    """The files in one folder, with paths relative to it."""

    def inside(paths: list[str]) -> list[str]:
        return [path[len(folder) + 1 :] for path in paths if path.startswith(f"{folder}/")]

    entries = [entry._replace(path=path) for entry in found.entries for path in inside([entry.path])]
    others = inside(found.others)
    kept = [entry for entry in entries if "/" in entry.path]
    skipped = Counter(ending_of(path) or NO_ENDING for path in others)
    if len(kept) < len(entries):
        skipped[OUTSIDE] = len(entries) - len(kept)
    return replace(
        found,
        storage=open_storage(found.storage.uri(folder)),
        entries=kept,
        skipped=skipped,
        others=others,
        broken={name: reason for path, reason in found.broken.items() for name in inside([path])},
        heif=inside(found.heif),
    )


def _divided_matches(found: Found, where: str) -> _Divided:
    """A glob that matches folders named as splits, with what it matches below them, such as {train,val}/*."""
    if found.class_level == HOLDING and any(entry.path.count("/") < 2 for entry in found.entries):
        return _NOT_DIVIDED
    names = sorted({entry.path.partition("/")[0] for entry in found.entries})
    kinds: dict[str, Kind] = {name: kind for name in names if (kind := folder_kind(name))}
    others = [name for name in names if name not in kinds]
    if not kinds or _is_one_set(kinds, bool(others)):
        return _NOT_DIVIDED
    if others:
        hint = "Name what to train on by data.uri, and what validates by data.validation_uri"
        raise ambiguous(where, [f"{name}/" for name in kinds], [f"{name}/" for name in others], hint)
    parts = {}
    for name in names:
        mine = f"{name}/"
        parts[name] = replace(
            found,
            entries=[entry for entry in found.entries if entry.path.startswith(mine)],
            skipped=Counter(ending_of(path) or NO_ENDING for path in found.others if path.startswith(mine)),
            others=[path for path in found.others if path.startswith(mine)],
            broken={path: reason for path, reason in found.broken.items() if path.startswith(mine)},
            heif=[path for path in found.heif if path.startswith(mine)],
        )
    return _Divided(kinds, parts, {name: f"{found.storage.root}/{name}" for name in names})


def _is_one_set(kinds: dict[str, Kind], others: bool) -> bool:
    """Whether a glob, by which a person chose the files, has chosen files of one purpose."""
    held_out = set(kinds.values()) - {"train"}
    return not held_out or (len(set(kinds.values())) == 1 and not others)
