"""Globs in URIs: `*`, `?`, `[...]` within a name, `**` for any folders, `{a,b}` and `{000..146}` for alternatives.

A glob is divided into a fixed root, which is listed, and patterns of the paths below it. No file is listed here.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path
from urllib.parse import unquote

from pipeline.errors import DataError

_DEEP = re.compile("")  # stands for `**`
_MOST = 100_000  # alternatives of the braces of one glob

Part = str | re.Pattern[str]  # a name, or what it must match


@dataclass(frozen=True)
class Glob:
    """Patterns of paths below `root`; each is there once for every alternative of the braces."""

    root: str  # URI
    patterns: tuple[tuple[Part, ...], ...]
    texts: tuple[str, ...]  # the patterns as they were written
    folders_only: bool  # the glob ends with a slash

    def prefixes(self) -> list[str]:
        """The folders below `root` that have everything that can match; none is within another."""
        fixed = {"/".join(_names(pattern[:-1])) for pattern in self.patterns}
        return sorted(one for one in fixed if not any(_is_below(one, other) for other in fixed))

    def match(self, path: str) -> tuple[int, int] | None:
        """The number of a pattern that matches the path or a folder above it, and how many parts of the path match."""
        parts = path.split("/")
        for number in self._candidates(parts):
            ends = set(_ends(parts, self.patterns[number]))
            if len(parts) in ends and not self.folders_only:
                return number, len(parts)
            if above := {end for end in ends if 0 < end < len(parts)}:
                return number, min(above)
        return None

    def _candidates(self, parts: Sequence[str]) -> Iterator[int]:
        """The patterns to try: of those that consist of names only, as braces make them by the hundred, the equal."""
        names, others = self._by_name()
        for end in range(1, len(parts) + 1):
            if (number := names.get(tuple(parts[:end]))) is not None:
                yield number
        yield from others

    def _by_name(self) -> tuple[dict[tuple[Part, ...], int], list[int]]:
        found: tuple[dict[tuple[Part, ...], int], list[int]] | None = self.__dict__.get("_found")
        if found is None:
            plain = {pattern: i for i, pattern in enumerate(self.patterns) if all(map(_is_name, pattern))}
            found = plain, [i for i, pattern in enumerate(self.patterns) if pattern not in plain]
            self.__dict__["_found"] = found
        return found


def has_glob(text: str) -> bool:
    return any(sign in text for sign in "*?[") or len(_expanded(text)) > 1


def literal_path(uri: str) -> Path | None:
    """The local path that a URI is if its special characters are meant as they are; None for S3."""
    scheme, _, rest = uri.rpartition("://")
    if scheme == "file":
        return Path(unquote(rest.removeprefix("localhost")))
    return None if scheme else Path(uri).expanduser()


def parse_glob(uri: str) -> Glob:
    """The glob of a URI. DataError if the bucket has wildcards, or braces have too many alternatives."""
    scheme, _, rest = uri.rpartition("://")
    bucket, path = "", rest
    if scheme == "s3":
        bucket, _, path = rest.partition("/")
        if has_glob(bucket):
            raise DataError(f"{uri}: a bucket cannot be chosen by a glob", "Name one bucket.")
    elif scheme == "file":
        path = rest.removeprefix("localhost")
    elif path.startswith("~"):
        path = str(Path(path.partition("/")[0]).expanduser()) + path[len(path.partition("/")[0]) :]
    start = "/" if path.startswith("/") and scheme != "s3" else ""
    written = [[part for part in text.split("/") if part] for text in _expanded(path)]
    patterns = [[_part(part, scheme == "file") for part in parts] for parts in written]
    if scheme != "s3":
        _keep_existing(start, written, patterns)
    shared = _shared(patterns)
    fixed = "/".join(str(part) for part in patterns[0][:shared])
    root = f"s3://{bucket}/{fixed}".rstrip("/") if scheme == "s3" else (Path(start or ".") / fixed).absolute().as_uri()
    return Glob(
        root,
        tuple(tuple(pattern[shared:]) for pattern in patterns),
        tuple(start + "/".join(parts) for parts in written),
        uri.endswith("/"),
    )


def _part(text: str, quoted: bool) -> Part:
    if text == "**":
        return _DEEP
    if not any(sign in text for sign in "*?["):
        return unquote(text) if quoted else text
    if quoted:  # %2A is an asterisk in a name
        text = unquote(re.sub("%(2a|3f|5b)", lambda found: f"[{unquote(found[0])}]", text, flags=re.IGNORECASE))
    return re.compile(translate(text))


def _keep_existing(start: str, written: list[list[str]], patterns: list[list[Part]]) -> None:
    """Local folders whose names have special characters: a name that exists as it is written is meant so."""
    for parts, pattern in zip(written, patterns, strict=True):
        folder = Path(start or ".")
        for i, part in enumerate(parts[:-1]):
            name = pattern[i] if _is_name(pattern[i]) else part
            folder = folder / str(name)
            if not _is_name(pattern[i]) and not folder.is_dir():
                break
            pattern[i] = str(name)


def _shared(patterns: list[list[Part]]) -> int:
    """How many names all patterns begin with; the last part of each does not count."""
    shared = 0
    for parts in zip(*(pattern[:-1] for pattern in patterns), strict=False):
        if not _is_name(parts[0]) or any(part != parts[0] for part in parts):
            break
        shared += 1
    return shared


def _names(pattern: Sequence[Part]) -> list[str]:
    """The names that a pattern begins with."""
    return [part for part in itertools.takewhile(_is_name, pattern) if isinstance(part, str)]


def _is_name(part: Part) -> bool:
    return isinstance(part, str)


def _is_below(path: str, folder: str) -> bool:
    return path != folder and (not folder or path.startswith(f"{folder}/"))


def _ends(parts: Sequence[str], pattern: Sequence[Part], at: int = 0) -> Iterator[int]:
    """Every number of leading parts that the pattern matches."""
    if not pattern:
        yield at
    elif pattern[0] is _DEEP:
        for begin in range(at, len(parts) + 1):
            yield from _ends(parts, pattern[1:], begin)
    elif at < len(parts) and (len(pattern) == 1 or at + 1 < len(parts)):  # what goes on after a part is a folder
        first = pattern[0]
        if first == parts[at] if isinstance(first, str) else first.match(parts[at]):
            yield from _ends(parts, pattern[1:], at + 1)


def _expanded(text: str) -> list[str]:
    """The alternatives of the braces, as in a shell: `{a,b}`, `{000..146}`, also within each other."""
    for begin, end in _braces(text):
        choices = _choices(text[begin + 1 : end])
        if choices is None:
            continue
        tails = _expanded(text[end + 1 :])
        made = [f"{text[:begin]}{one}{tail}" for choice in choices for one in _expanded(choice) for tail in tails]
        if len(made) > _MOST:
            raise DataError(f"{text}: the braces have more than {_MOST} alternatives", "Use * instead.")
        return list(dict.fromkeys(made))
    return [text]


def _braces(text: str) -> Iterator[tuple[int, int]]:
    """Each opening brace with its closing one."""
    for begin, sign in enumerate(text):
        if sign != "{":
            continue
        depth = 0
        for end in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if not depth:
                yield begin, end
                break


def _choices(inner: str) -> list[str] | None:
    """What the content of a pair of braces stands for; None if it is to be read as it is."""
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = numbers.groups()
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        step = 1 if int(last) >= int(first) else -1
        if abs(int(last) - int(first)) >= _MOST:
            raise DataError(f"{{{inner}}}: the braces have more than {_MOST} alternatives", "Use * instead.")
        return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    choices, depth = [""], 0
    for sign in inner:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if sign == "," and not depth:
            choices.append("")
        else:
            choices[-1] += sign
    return choices if len(choices) > 1 else None
