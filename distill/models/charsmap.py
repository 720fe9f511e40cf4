"""SentencePiece's map of characters, and the steps with which the tokenizers library follows it.

SentencePiece replaces the longest source that begins at each place. The library's `Precompiled`
looks up whole clusters of a base and its marks: it replaces a cluster by what its shortest prefix
maps to and drops the rest, and it looks at no more than five bytes. So the steps here part the text
where SentencePiece parts it, and replace by rules of their own what `Precompiled` cannot.
"""

import base64
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

# A code point that no text should hold, that is no mark and joins no cluster, and its substitute.
SEPARATOR, SUBSTITUTE = "\ufff0", "\ufff1"
LONGEST_CLUSTER = 5  # bytes that Precompiled looks up
MOST_SOURCES = 20_000  # that a regular expression may hold
MOST_TARGETS = 200  # that may have a step of their own
LONGEST_SOURCE, MOST_STEPS = 64, 2**22  # bytes; the map of NFKC has 225,000 rules
_LEAF, _VALUE = 1 << 8, (1 << 31) - 1


@functools.lru_cache(maxsize=2)  # nearly all vocabularies have one of two maps
def rules(charsmap: bytes) -> Mapping[str, str]:
    """Return the sources and targets of a compiled map, empty where there is none.

    ```
    size of the trie, 4 bytes | double-array trie, 4 bytes a unit | targets, each ending in NUL
    ```

    Raises:
        ValueError: it is no such map.
    """
    if not charsmap:
        return {}
    size = int.from_bytes(charsmap[:4], "little")
    units = np.frombuffer(charsmap[4 : 4 + size], "<u4").astype(np.int64)
    targets = charsmap[4 + size :]
    if not units.size:
        raise ValueError("expected a trie, got none")
    labels = units & ((1 << 31) | 0xFF)  # a unit with a value has the highest bit, and no label
    children: dict[int, list[int]] = {}
    for place in np.flatnonzero((labels > 0) & (labels < 256)).tolist():
        children.setdefault(place ^ int(labels[place]), []).append(place)
    found: dict[str, str] = {}
    left, steps = [(b"", _offset(int(units[0])))], 0
    while left:
        source, base = left.pop()
        steps += 1
        beyond = (base | 0xFF) >= units.size  # SentencePiece would read there
        if beyond or len(source) > LONGEST_SOURCE or steps > MOST_STEPS:
            raise ValueError("expected a trie of short sources, got another graph")
        for place in children.get(base, ()):
            unit, longer = int(units[place]), source + bytes([int(labels[place])])
            after = place ^ _offset(unit)
            if unit & _LEAF:
                begin = int(units[after]) & _VALUE
                found[longer.decode()] = targets[begin : targets.index(b"\0", begin)].decode()
            left.append((longer, after))
    return found


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & (1 << 9)) >> 6)


def steps(charsmap: bytes, alphabet: frozenset[str]) -> list[dict[str, Any]]:
    """Return normalizers that give SentencePiece's ids.

    Characters outside the alphabet are unknown to the vocabulary, one as the other, so that rules
    among them alone are left out.

    Args:
        charsmap: compiled.
        alphabet: characters of the vocabulary's pieces, and the space.

    Raises:
        ValueError: the map is damaged.
    """
    if not charsmap:
        return []
    of = rules(charsmap)
    precompiled = {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(charsmap).decode("ascii"),
    }
    # Ids depend on whether a source is replaced as a whole where it, what its characters are
    # replaced by alone, or its target is in the alphabet.
    alone = {source for source, target in of.items() if alphabet.intersection(target)}
    touching = alphabet | {source for source in alone if len(source) == 1}
    several = {
        source: target
        for source, target in of.items()
        if len(source) > 1
        and (not target or not touching.isdisjoint(source) or not alphabet.isdisjoint(target))
    }
    own = _own_steps(several, of, alphabet)
    if len(several) > MOST_SOURCES or len(own) > MOST_TARGETS:
        return [precompiled]
    return [
        _replace(SUBSTITUTE, String=SEPARATOR),
        _replace(SEPARATOR, Regex=_ends(several)),
        *own,
        precompiled,
        _replace("", String=SEPARATOR),
    ]


def _replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _ends(several: Iterable[str]) -> str:
    r"""Return what matches the end of each source of several characters and before each non-ASCII.

    `\K` makes the match empty, and `(?>` keeps a source whole.
    """
    single = r"[\s\S](?=[^\x00-\x7f])"
    if not several:
        return rf"(?>{single})\K"
    seconds = "".join(sorted({_escaped(source[1]) for source in several}))
    return rf"(?>(?=[\s\S][{seconds}])(?:{_trie(several)})|{single})\K"


def _own_steps(
    several: Mapping[str, str], of: Mapping[str, str], alphabet: frozenset[str]
) -> list[dict[str, Any]]:
    """Return a step for each target of the sources that Precompiled cannot replace."""
    groups: dict[str, tuple[str, list[str]]] = {}
    for source, target in several.items():
        prefixes = (source[:end] for end in range(1, len(source)))
        if len(source.encode()) > LONGEST_CLUSTER or any(prefix in of for prefix in prefixes):
            seen = "".join(c if c in alphabet else SUBSTITUTE for c in target)
            groups.setdefault(seen, (target, []))[1].append(source)
    return [
        _replace(target, Regex=f"(?:{_trie(sources)})(?={_escaped(SEPARATOR)})")
        for target, sources in groups.values()
    ]


def _trie(sources: Iterable[str]) -> str:
    """Return a regular expression of sources, the longest first, that shares their beginnings."""
    tails: dict[str, list[str]] = {}
    for source in sources:
        tails.setdefault(source[0], []).append(source[1:])
    branches = []
    for first, rest in sorted(tails.items()):
        longer = [tail for tail in rest if tail]
        optional = "?" if len(longer) < len(rest) else ""
        branches.append(_escaped(first) + (f"(?:{_trie(longer)}){optional}" if longer else ""))
    return "|".join(branches)


def _escaped(character: str) -> str:
    return rf"\x{{{ord(character):x}}}"
