"""`--class`: from names, numbers and ranges to labels."""

import difflib
import re
from collections.abc import Sequence

from pipeline.errors import ConfigError

_NAMED = 10  # classes that a message names
_RANGE = re.compile(r"([0-9]+)-([0-9]+)")


def labels_of(given: str, names: Sequence[str], classes: int) -> list[int]:
    """The labels of a list such as `0-9,207,cat`, in its order. A name may have commas in it, or look like a range.

    `names`: of the classes by label, empty if they are not known. ConfigError for a class that there is not, one that
    is asked for twice, and a range that ends before it begins.
    """
    parts, found = given.split(","), list[int]()
    while parts:
        ends = range(len(parts), 0, -1)  # the longest name first
        end = next((end for end in ends if ",".join(parts[:end]).strip() in names), None)
        if end is not None:
            found.append(names.index(",".join(parts[:end]).strip()))
        else:
            found += _labels_of_part(parts[0].strip(), names, classes)
        parts = parts[end or 1 :]
    twice = next((label for place, label in enumerate(found) if label in found[:place]), None)
    if twice is not None:
        named = f"'{names[twice]}'" if names else twice
        raise ConfigError(f"--class {given}: class {named} is asked for twice", "Name each class once.")
    return found


def _labels_of_part(part: str, names: Sequence[str], classes: int) -> list[int]:
    bounds = _RANGE.fullmatch(part)
    if not bounds:
        return [label_of(part, names, classes)]
    first, last = int(bounds[1]), int(bounds[2])
    if last < first:
        raise ConfigError(f"--class {part}: the range ends before it begins", f"Write {last}-{first}.")
    return [label_of(str(number), names, classes) for number in range(first, last + 1)]


def label_of(given: str, names: Sequence[str], classes: int) -> int:
    """The label of the class of this name, or with this number. ConfigError if there is none.

    Of classes that are all named by numbers, a number is the name, also with other zeros in front: never a label.
    """
    if given in names:
        return names.index(given)
    is_number, by_number = _is_number(given), bool(names) and all(map(_is_number, names))
    if is_number and by_number:
        same = [label for label, name in enumerate(names) if int(name) == int(given)]
        if len(same) == 1:
            return same[0]
    elif is_number:
        if int(given) < classes:
            return int(given)
        raise ConfigError(f"--class {given} is out of range", f"Choose a class from 0 to {classes - 1}.")
    close = [] if by_number else difflib.get_close_matches(given, names, n=1)
    if close:
        hint = f"Did you mean '{close[0]}'?"
    elif names:
        hint = f"Choose one of {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}."
    else:
        hint = f"Choose a class from 0 to {classes - 1}: no names are known."
    raise ConfigError(f"--class {given or 'with nothing between commas'}: there is no class of this name", hint)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
