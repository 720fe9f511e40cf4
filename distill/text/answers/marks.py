r"""Find the final answer in a text: where it is marked, what belongs to it, and what denies it.

    The answer is X.   Answer: X   #### X   \boxed{X}   <answer>X</answer>

The last mark counts. What stands beside a number and may change it is kept with it, so that the
answer of `it isn't 5`, `5 or 6` and `\boxed{5} million` is never 5.
"""

import re

from distill.text.answers.dress import strip
from distill.text.answers.reading import LONGEST, read
from distill.text.answers.values import Quantity, Unread, Words
from distill.text.answers.words import NUMERIC, listed

# Marks and letters that are looked at, so that the time is linear in the text's length.
_MARKS, _WINDOW = 32, 4 * LONGEST
_DENIED = (
    r"(?:is|are|was|were|ca|wo|could|would|should|must)n['\u2019]t|cannot|never|"
    r"(?:is|are|was|were|can|could|will|would|should|must)\s+(?:not|never)|(?:might|may"
    r"|could)(?=\s+be)"
)
_MARK = re.compile(
    r"(?P<box>\\(?:boxed|fbox|framebox)\s*\{)|(?P<tag><answer>)|(?P<hashes>(?<!#)####(?!#))"
    r"|(?P<heading>^[ \t]*#{1,6}[ \t]*(?:the\s+)?(?:final\s+)?answers?\W*$)"
    r"|(?P<statement>\banswers?\b(?:\s*\([^()\n]{0,40}\))?(?:\s+(?:to|of"
    r"|for)\s[^.\n]{0,60}?)?[*_`]{0,3}"
    rf"(?:(?:\s+(?P<denied>{_DENIED})(?:\s+be\b)?|\s+(?:is|are|was|were|equals|(?:will|would"
    rf"|should|must)"
    r"\s+be)\b|\s*=(?!=))\s*:?|\s*:))",
    re.IGNORECASE | re.MULTILINE,
)
_STATED = re.compile(r"answer is\b:?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)[.!?]\s+(?=[A-Z])")
_CLAUSE = re.compile(
    r",\s+(?:so|because|since|which|in total|in all|altogether|therefore|making|leaving|giving"
    r"|as)\b.*"
)
_LEAD = re.compile(
    r"(?:that\s+)?(?:there\s+(?:are|were|is|was|will\s+be)\s+|(?:it|this)\s+(?:is|was)\s+)?"
    r"(?:(?:only|just|exactly|simply|equal\s+to|a\s+total\s+of)\s+)?(?=[-$\d])"
)
_CORRECTION = re.compile(
    r"\W*(?:wait|actually|no\b(?=\s*[,.!:;-])|correction|sorry|oops|hmm|hold on|my mistake"
    r"|scratch that|i made|"
    r"however|(?:(?:but|yet|or),?\s+)?(?:that|this|it|which)(?:['\u2019]s| is| "
    r"was)n?(?:['\u2019]t)?\s+(?:wrong|incorrect|not|"
    r"false|right\?)|let me (?:correct|fix|redo)|rather|i was wrong)",
    re.IGNORECASE,
)
_CORRECTED = re.compile(
    r".*\b(?:it|that|this|the (?:total|result|number|sum))\s+(?:is|was|should be|must be"
    r"|equals)\s+(.+)",
    re.IGNORECASE | re.DOTALL,
)
_DOUBT = re.compile(
    r"(?:\bnot\b|n['\u2019]t\b|\bnever\b|\bwhether\b|\bif\b|\bwrong\b|\bincorrect\b|\bfalse\b"
    r"|\bunlikely\b)"
    r"(?:(?!\b(?:so|then|thus|hence|therefore|and|but)\b)[^.!?,;:\n])*$",
    re.IGNORECASE,
)
# Words that, before a number, make another answer of it.
_HEDGES = frozenset(
    listed(
        "not never no isn't aren't wasn't cannot can't don't doesn't about approximately "
        "around roughly "
        "nearly almost over under above below least most than between or nor minus negative plus "
        "times "
        "half without except neither maybe perhaps possibly unless mod modulo"
    )
)
_OPERATORS = re.compile(r"(?:[-+*/^<>\u2260\u2264\u2265\u2248~\u00b1\u00d7\u00f7!]=?|\\[a-z]+)$")
# Words that, after a number, begin what is said about it.
_FOLLOWING = frozenset(
    listed(
        "is are was were in for on so because since which that when after before left "
        "remaining as with "
        "he she they we i it you will would can should has have had because while during therefore"
    )
)
_PLACEHOLDERS = frozenset(("answer", "your answer", "final answer", "x", "...", "\\ldots", "", " "))
_ELSEWHERE = re.compile(
    r"(?:as\s+)?(?:shown\s+|given\s+|stated\s+)?(?:above|below|correct|wrong|right|the same|as "
    r"follows)\W*",
    re.IGNORECASE,
)
_COMPARED = re.compile(
    r"[<>!:=\u2260\u2264\u2265\u2248~]=|=[=<>]|[<>\u2260\u2264\u2265\u2248]|\\n?(?:eq?"
    r"|[lg]eq?)(?![a-z])"
)
_VARIABLE = re.compile(
    r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z'])|(?<![A-Za-z])[A-Z]{2,3}(?![A-Za-z])|[A-Za-z]\(|\\[a-z]"
)
_BETWEEN_BOXES = re.compile(r"[\s$]*(,|;|and|or|,\s*and)[\s$]*", re.IGNORECASE)
_TAIL = re.compile(r"[\s$*]*([^.,;:!?\n)]*)")
_FU = re.compile(r"\d*\.?\d+")


def extract(text: str) -> str | None:
    r"""Return the final answer of a completion, None where it holds none.

    The last mark counts, up to the end of its sentence or line; of an equation the side that is the
    result. A mark with nothing after it, or a box that is not closed, gives None, since what stands
    before it is no answer. Without a mark the last number is the answer.

    Example:
        >>> extract("5 + 7 = 12 apples.\nThe answer is 12.")
        '12'
        >>> extract("So there are 5 + 7 = 12 apples."), extract("The answer isn't 12.")
        ('12', 'not 12')
        >>> extract("I do not know.")
    """
    is_marked, answer = _marked(text)
    return answer if is_marked else _last_number(text)


def marked(gold: str) -> str | None:
    r"""Return the answer that a gold text marks, the text itself where it has no mark.

    Example:
        >>> [marked(text) for text in ("5 + 7 = 12\n#### 12", "9 (apples)", "####")]
        ['12', '9 (apples)', None]
    """
    is_marked, answer = _marked(gold)
    return answer if is_marked else gold.strip() or None


def stated(text: str) -> str | None:
    """Return the words after the last "answer is", or the text itself, up to the end of the line.

    A full stop at the end is dropped, and nothing else, so that a strict comparison is one.

    Example:
        >>> [stated(text) for text in ("It is. So the answer is (A).", "] ] >", "")]
        ['(A)', '] ] >', None]
    """
    places = list(_STATED.finditer(text))
    lines = (text[places[-1].end() :] if places else text).strip().splitlines()
    return lines[0].strip().removesuffix(".") or None if lines else None


def fu2023(text: str) -> str | None:
    r"""Return the last `\d*\.?\d+`, the public grader of Fu et al. 2023, kept for parity alone.

    Signs, thousands commas and fractions are ignored.

    Example:
        >>> fu2023("The answer is -1,200.")
        '200'
    """
    numbers = _FU.findall(text)
    return numbers[-1] if numbers else None


def _marked(text: str) -> tuple[bool, str | None]:
    """Return whether a text marks its answer, and the answer, None where the mark holds none."""
    marks = list(_MARK.finditer(text))
    for place in range(len(marks) - 1, max(-1, len(marks) - 1 - _MARKS), -1):
        mark = marks[place]
        answer = _boxed(text, marks[: place + 1]) if mark["box"] else _after(text, mark)
        if answer != "":
            return True, answer
    return False, None


# --- After a mark ------------------------------------------------------------------------------


def _after(text: str, mark: re.Match[str]) -> str | None:
    """Return what a mark states, empty where it states nothing and None where it breaks off."""
    rest = text[mark.end() : mark.end() + _WINDOW]
    if mark["tag"]:
        return strip(rest.split("</answer>")[0]) or None
    lines = rest.strip().splitlines()
    if not lines:
        return None
    line = lines[0]
    sentence, *more = _SENTENCE_END.split(line, maxsplit=1)
    said = _LEAD.sub("", _closed(_CLAUSE.sub("", sentence).strip(), text, mark), count=1)
    if _ELSEWHERE.fullmatch(said):
        return ""
    if mark["hashes"] and len(lines) > 1 and isinstance(read(said), (Unread, Words)):
        return ""
    doubtful = mark["statement"] and _DOUBT.search(text[max(0, mark.start() - 80) : mark.start()])
    if mark["denied"] or doubtful:
        return f"not {strip(said)}"
    following = "\n".join([*more, *lines[1:]]).strip()
    if _CORRECTION.match(following):
        return _corrected(said, following)
    return _result(strip(said)) or None


def _closed(said: str, text: str, mark: re.Match[str]) -> str:
    """Take off marks of Markdown or LaTeX that open before the mark or close after the answer."""
    for sign in ("**", "__", "$"):
        if said.count(sign) % 2:
            said = said.removesuffix(".").strip()
            said = said.removesuffix(sign) if said.endswith(sign) else said
            if sign != "$":
                said = said.removeprefix(sign)
    line = text[text.rfind("\n", 0, mark.start()) + 1 : mark.start()].strip()
    if line[:1] in ("*", "_") and said.removesuffix(".").endswith(line[0]):
        said = said.removesuffix(".").removesuffix(line[0])
    return said.strip()


def _corrected(said: str, following: str) -> str:
    """Return what a correction states; without a clear one, both texts, which are no answer."""
    first = following.splitlines()[0][:LONGEST]
    match = _CORRECTED.match(first)
    return _result(strip(match[1])) if match else f"{said}. {first}"


def _result(said: str) -> str:
    """Return the side of an equation that is the result, all of it where a variable is in it."""
    if "=" not in said or _COMPARED.search(said):
        return said
    *sides, last = (side.strip() for side in said.split("="))
    if any(not side or _VARIABLE.search(side) for side in (*sides, last)):
        return said
    if said.startswith("$") and last.endswith("$"):
        last = last[:-1]
    known = {
        strip(side): value for side in (*sides, last) if isinstance(value := read(side), Quantity)
    }
    if len({value.number for value in known.values()}) > 1:
        return said
    return last if last in known else next(iter(known), said)


# --- Boxes -------------------------------------------------------------------------------------


def _boxed(text: str, marks: list[re.Match[str]]) -> str | None:
    """Return what the last box holds, with all that changes it, None where it is not closed."""
    start, end = marks[-1].start(), _closing(text, marks[-1].end())
    if end is None:
        return None
    content = text[marks[-1].end() : end].strip()
    if content.lower() in _PLACEHOLDERS:
        return ""
    before, after = _before(text, start), _behind(text[end + 1 : end + 1 + LONGEST])
    if len(marks) > 1 and marks[-2]["box"] and not before:
        content = _joined(text, marks, content)
    return f"{before}{content}{after}"


def _closing(text: str, start: int) -> int | None:
    """Return where the brace closes that opens before `start`, None where it does not."""
    depth = 1
    for place in range(start, min(len(text), start + _WINDOW)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return place
    return None


def _joined(text: str, marks: list[re.Match[str]], last: str) -> str:
    """Return the content of a row of boxes: `5, 6`, or `5 or 6`, which is no one answer."""
    joined, start = last, marks[-1].start()
    for mark in reversed(marks[:-1][-_MARKS:]):
        end = _closing(text, mark.end()) if mark["box"] else None
        between = _BETWEEN_BOXES.fullmatch(text[end + 1 : start]) if end is not None else None
        if end is None or between is None:
            break
        word = between[1].lower()
        separator = f" {word} " if word.isalpha() else f"{word[0]} "
        joined, start = f"{text[mark.end() : end].strip()}{separator}{joined}", mark.start()
    return joined


def _before(text: str, start: int) -> str:
    """Return what stands before a box and changes what is in it."""
    line = text[max(0, start - 80) : start].rpartition("\n")[2].rstrip(" $*({")
    line = re.sub(r"\\[a-z]*(?:box|boxed|text[a-z]*|math[a-z]*)$", "", line).rstrip(" $*({")
    if line.endswith(("\\(", "\\[")):
        line = line[:-2].rstrip()
    word = re.split(r"[\s$]", line)[-1].lower()
    if word in _HEDGES or word.endswith(("n't", "n\u2019t")):
        return f"{word} "
    if _OPERATORS.search(line) and not line.endswith(
        ("**", "->", "=>", "\\implies", "\\therefore")
    ):
        return f"{word} "
    if line[-1:].isdigit():
        return f"{word} "
    doubtful = _DOUBT.search(" ".join(line.split()[-4:])) and not line.endswith("=")
    return f"not {word} " if doubtful else ""


def _behind(rest: str) -> str:
    """Return what stands behind a box or a number and changes it: `%`, `million`, `or 6`."""
    rest = re.sub(r"^(?:\s*(?:\$|\\\)|\\\]|\*\*|\}))+", "", rest)
    if re.match(r"\s?(?:[%\u00b0^_!'*+/<>]|\\%|\\[a-z]|[-\u2212\u2013][\s$\d]*\d)", rest):
        return rest.split("\n")[0].split(". ")[0].rstrip(" .$")[:LONGEST]
    phrase = _TAIL.match(rest)
    if phrase is None or rest[:1] == "\n" or not phrase[1].strip():
        return ""
    words = phrase[1].split()
    if words[0].lower() in _FOLLOWING or words[0].lower() == "of" or rest[:1] in ".,;:":
        return ""
    said = read(f"5 {phrase[1].strip()}")
    if (
        isinstance(said, Quantity)
        and not said.percent
        and said.number == 5
        and not said.unit.powers
    ):
        return ""
    return f" {phrase[1].strip()}"


# --- Without a mark ----------------------------------------------------------------------------

_TOKEN_EDGES = "\"'`,;:?"


def _last_number(text: str) -> str | None:
    """Return the last number of a text with all that belongs to it."""
    place = max(text.rfind(digit) for digit in "0123456789")
    if place < 0:
        return None
    first = max(0, place - _WINDOW)
    line_start = max(first, text.rfind("\n", first, place) + 1)
    line_end = text.find("\n", place)
    line = text[line_start : len(text) if line_end < 0 else line_end][:_WINDOW]
    start, end = _token(line, min(place - line_start, len(line) - 1))
    token = _trimmed(line[start:end])
    before, after = line[:start], line[start:][len(line[start:end].rstrip(_TOKEN_EDGES + ".)*")) :]
    if hedge := _hedge(before):
        return f"{hedge} {token}"
    following = re.sub(r"^[^.!?\n]*[.!?]", "", text[line_start + start :][:_WINDOW], count=1)
    if _CORRECTION.match(following):
        return _corrected(token, following.strip())
    behind = _behind(after) if line[end - 1] not in ".,;:!?" else ""
    if isinstance(value := read(f"{token}{behind}"), Quantity) and value.unit.name() == "degree":
        return token
    return _result(f"{token}{behind}")


def _token(line: str, place: int) -> tuple[int, int]:
    """Return where the run of letters around a place without whitespace, or its formula, stands."""
    for formula in re.finditer(r"\$([^$]+)\$", line):
        if formula.start() < place < formula.end() and re.search(r"[\\^=_]", formula[1]):
            return formula.start(1), formula.end(1)
    start = max(line.rfind(" ", 0, place), line.rfind("\t", 0, place)) + 1
    ends = [end for end in (line.find(" ", place), line.find("\t", place)) if end >= 0]
    return start, min(ends, default=len(line))


def _trimmed(token: str) -> str:
    token = token.strip(_TOKEN_EDGES).rstrip(".") if not token.endswith("...") else token
    if token.count("(") < token.count(")"):
        token = token.rstrip(")")
    elif token.count("(") > token.count(")"):
        token = token.lstrip("(")
    return strip(token.strip(_TOKEN_EDGES))


def _hedge(before: str) -> str:
    """Return the end of what stands before a number where it makes another answer of it."""
    clause = re.split(r"(?:[.,;:!?]|(?<![<>!=~\u2248])=)(?:\s|$)", before)[-1].rstrip(" $*(")
    words = clause.split()[-3:]
    if _OPERATORS.search(clause) and not clause.endswith(("**", "->", "=>")):
        return " ".join(words)
    joins = words[-1:] in (["to"], ["through"], ["or"], ["and"], ["x"], ["by"])
    if joins and (words[-2:-1] and (words[-2][-1:].isdigit() or words[-2].lower() in NUMERIC)):
        return " ".join(words)
    doubtful = any(word.lower() in _HEDGES or "n't" in word.lower() for word in words)
    return " ".join(words) if doubtful else ""
