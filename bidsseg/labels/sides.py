"""Left and right in the names of regions, in the spellings of common atlases and tools."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

LEFT, RIGHT = "L", "R"
SPELLINGS = (("left", "right"), ("lh", "rh"), ("l", "r"))
"""Words for sides, the clearest first: in FreeSurfer's ``Left-L-Sg``, the L is a nucleus."""
SWAPPED = {word: other for pair in SPELLINGS for word, other in (pair, pair[::-1])}
WORDS = re.compile(r"[A-Za-z]+|\d+")
JOINED = re.compile(r"(?<![A-Za-z])([Ll]eft|[Rr]ight|lh|rh)(?=[A-Z])|(?<=[a-z])(Left|Right)(?![a-z])")
"""A side written together with the name: LeftHippocampus, lhCortex, hippocampusRight."""
NO_SIDE = re.compile(r"left[ _-]?overs?|(?<![^\W_])[lr] ?[/+&] ?[lr](?![^\W_])", re.IGNORECASE)
"""Words that look like a side but are not: "left over", and L/R."""
MARKED = {"hemi", "hemisphere", "ctx", "wm"}
"""A single L or R after one of these words is a side, wherever it is in the name."""


def partners(names: Sequence[str], hemispheres: Sequence[str]) -> tuple[int | None, ...]:
    """Return for each name the position of the same region on the other side.

    A region on the midline is its own partner. A region of one side without a partner, or with several, has None.

    Args:
        hemispheres: L, R or empty, for regions whose side is known from another source than their names.
    """
    exact = _by_key(zip(hemispheres, names, strict=True))
    loose = _by_key((hemi, _plain(name)) for hemi, name in zip(hemispheres, names, strict=True))
    found = []
    for i, (name, hemi) in enumerate(zip(names, hemispheres, strict=True)):
        other = {LEFT: RIGHT, RIGHT: LEFT}.get(hemi, "")
        spelled = [*_mirrored(name), *([name] if hemi else [])]
        partner = next((each for spelling in spelled if (each := exact.get((other, spelling), i)) != i), None)
        if partner is None:
            plain = (_plain(spelling) for spelling in spelled)
            partner = next((each for spelling in plain if (each := loose.get((other, spelling), i)) != i), None)
        found.append(partner if partner is not None or hemi or _is_sided(name) else i)
    return mutual(found)


def mutual(found: Sequence[int | None]) -> tuple[int | None, ...]:
    """Return the partners, None for a region whose partner has another partner."""
    return tuple(j if j is not None and found[j] == i else None for i, j in enumerate(found))


def side(word: str) -> str:
    """Return L or R for a cell of a table that names a side, otherwise an empty string."""
    word = word.strip().lower()
    return next((LEFT if word == left else RIGHT for left, right in SPELLINGS if word in (left, right)), "")


def side_of(name: str) -> str:
    """Return L or R for the name of a region on one side, otherwise an empty string.

    >>> side_of("Left-Hippocampus"), side_of("ctx-rh-insula"), side_of("Brain Stem")
    ('L', 'R', '')
    """
    if not _is_sided(name):
        return ""
    found = [word.lower() for _, _, word in _words(name)]
    words = next(named for level in SPELLINGS if (named := [word for word in found if word in level]))
    return side(words[0])


def without_side(name: str) -> str:
    """Return a name without the word for its side and the sign beside it.

    >>> without_side("Left-Hippocampus"), without_side("ctx-rh-insula"), without_side("HippocampusLeft")
    ('Hippocampus', 'ctx-insula', 'Hippocampus')
    """
    if not _is_sided(name):
        return name
    found = _words(name)
    words = next(named for level in SPELLINGS if (named := [word for word in found if word[2].lower() in level]))
    begin, end, _ = words[0]
    before, after = name[:begin], name[end:]
    return before + after.lstrip(" _-.") if after else before.rstrip(" _-.")


def _by_key(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int | None]:
    """Return the position of each key, None for keys that occur more than once."""
    positions: dict[tuple[str, str], int | None] = {}
    for i, key in enumerate(keys):
        positions[key] = None if key in positions else i
    return positions


def _plain(name: str) -> str:
    """Return the words of a name, without case and without the signs between them."""
    return " ".join(word.lower() for word in WORDS.findall(JOINED.sub(r" \g<0> ", name)))


def _words(name: str) -> list[tuple[int, int, str]]:
    """Return begin, end and spelling of every word of a name that may be a side."""
    apart = NO_SIDE.sub(lambda found: "_" * len(found[0]), name)
    words = {(found.start(), found.end()) for found in WORDS.finditer(apart) if _stands_alone(apart, *found.span())}
    words |= {found.span() for found in JOINED.finditer(apart)}
    return [(*span, apart[slice(*span)]) for span in sorted(words) if apart[slice(*span)].lower() in SWAPPED]


def _stands_alone(name: str, begin: int, end: int) -> bool:
    """Return whether a word is not adjacent to a letter or digit."""
    return not (name[begin - 1 : begin].isalnum() or name[end : end + 1].isalnum())


def _mirrored(name: str) -> Iterator[str]:
    """Yield the names that the region on the other side may have, the most probable first."""
    words = _words(name)
    for level in SPELLINGS:
        of_level = [word for word in words if word[2].lower() in level]
        if of_level:
            yield _swapped(name, of_level)
            yield _swapped(name, words)
            if len(of_level) > 1:
                yield _swapped(name, of_level[:1])
                yield _swapped(name, of_level[-1:])


def _swapped(name: str, words: Sequence[tuple[int, int, str]]) -> str:
    """Return the name with the given words replaced by those of the other side, in the same case."""
    for begin, end, word in reversed(words):
        other = SWAPPED[word.lower()]
        cased = other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
        name = name[:begin] + cased + name[end:]
    return name


def _is_sided(name: str) -> bool:
    """Return whether a name without a partner in its table belongs to a region on one side.

    Names with the words of both sides belong to neither side. A single L or R must be the first or last word, or follow
    a word for hemispheres; elsewhere it may mean anything.
    """
    found = {word.lower() for _, _, word in _words(name)}
    for level in SPELLINGS[:-1]:
        if found & set(level):
            return len(found & set(level)) == 1
    return bool(found) and _is_at_an_end(name)


def _is_at_an_end(name: str) -> bool:
    """Return whether a single L or R is the first or last word of a name or follows a word for hemispheres."""
    words = re.findall(r"[^\W_]+", name.lower())
    marked = any(before in MARKED and word in ("l", "r") for before, word in pairwise(words))
    return marked or words[0] in ("l", "r") or words[-1] in ("l", "r")
