"""Tasks in the manner of BIG-Bench Hard with a short chain of thought; no word problems."""

from distill.problems.builtin.storytelling import HE, NAMES, SHE, Draw, Exercise, words

_KINDS = {
    "fruits": ("apple", "pear", "plum", "banana", "orange", "peach", "lemon"),
    "animals": ("dog", "cat", "bird", "horse", "cow", "rabbit", "duck"),
    "instruments": ("flute", "drum", "piano", "guitar", "violin", "horn", "harp"),
    "vegetables": ("carrot", "pepper", "tomato", "onion", "bean", "potato", "cabbage"),
    "things to wear": ("hat", "coat", "shirt", "ring", "scarf", "belt", "dress"),
}
_AMOUNTS = ("", "a", "two", "three", "four")
_WORDS = words(
    "apple arm bag ball band bean bell bird book box bread bus cake camp car card cat chair "
    "city cloud coat coin cow cup day desk dog door dress drum duck ear east egg eye farm "
    "fish flag foot game gate girl goat hall hand hat hill home horn house ice iron jar jug "
    "king kite lake lamp leaf lemon line lion map milk moon name nest net night north oak "
    "ocean onion orange page park pear pen piano plate pond queen quiet rain ring river road "
    "room sail salt sand school seed ship shoe song star stone sun table tent tiger town "
    "train tree uncle van voice wall water week west wind wolf yard year zebra"
)
_OBJECTS = (
    "book",
    "ball",
    "hat",
    "coin",
    "card",
    "ring",
    "pen",
    "cup",
    "key",
    "toy",
    "shell",
    "flag",
)
_COLORS = ("red", "blue", "green", "white", "black", "pink", "brown")
# True, ("not", x) or (x, "and" | "or", y).
Expression = bool | tuple["Expression | str", ...]


def object_counting(draw: Draw) -> Exercise:
    """Count the things of one kind among others."""
    counted, other = draw.distinct(tuple(_KINDS), 2)
    items = [
        (thing, draw.between(1, 4), counted)
        for thing in draw.distinct(_KINDS[counted], draw.between(2, 4))
    ]
    items += [
        (thing, draw.between(1, 4), other)
        for thing in draw.distinct(_KINDS[other], draw.between(0, 2))
    ]
    items = draw.distinct(items, len(items))
    listing = _listing([_amount(thing, n) for thing, n, _ in items])
    who = draw.pick(NAMES)
    opening = draw.pick(("I have", f"{who} has", "On the table there are", f"{who} can see"))
    chain, total = [], 0
    for thing, n, kind in items:
        if kind != counted:
            continue
        step = f"Counting the {thing} gives" if n == 1 else f"Counting the {_plural(thing)} gives"
        chain.append(f"{step} {total} + {n} = {total + n}." if chain else f"{step} {n}.")
        total += n
    return _exercise(f"{opening} {listing}. How many {counted} are there?", chain, str(total))


def boolean_expressions(draw: Draw) -> Exercise:
    """Reduce an expression of True, False, and, or, not from the inside out."""
    left = _expression(draw, draw.between(2, 4))
    text, chain = _spell(left), []
    while not isinstance(left, bool):
        before, value, left = _reduce(left)
        chain.append(f"{before} is {value}.")
    return _exercise(f"What is the value of {text}?", chain, str(left))


def word_sorting(draw: Draw) -> Exercise:
    """Put words in alphabetical order."""
    drawn = draw.distinct(_WORDS, draw.between(2, 5))
    verb = draw.pick(
        (
            "Sort these words by the alphabet",
            "Put these words in alphabetical order",
            "Sort the words",
        )
    )
    ordered = sorted(drawn)
    chain = [f"{word} {draw.pick(('starts with', 'begins with'))} {word[0]}." for word in ordered]
    return _exercise(f"{verb}: {' '.join(drawn)}", chain, " ".join(ordered))


def last_letters(draw: Draw) -> Exercise:
    """Join the last letters of some words."""
    drawn = draw.distinct((*_WORDS, *NAMES), draw.between(2, 4))
    verb = draw.pick(
        (
            "Take the last letters of the words",
            "Join the last letters of",
            "Write the last letter of each word in",
        )
    )
    chain = [f"The last letter of {word} is {word[-1]}." for word in drawn]
    return _exercise(f"{verb}: {' '.join(drawn)}", chain, "".join(word[-1] for word in drawn))


def tracking(draw: Draw) -> Exercise:
    """Follow objects through swaps between people."""
    people = draw.distinct(HE if draw.uniform() < 0.5 else SHE, 3)
    thing = draw.pick(_OBJECTS)
    holds = dict(
        zip(people, (f"{color} {thing}" for color in draw.distinct(_COLORS, 3)), strict=True)
    )
    listing = _listing([f"{who} has the {what}" for who, what in holds.items()])
    swaps, chain = [], []
    for number in range(draw.between(1, 3)):
        one, other = draw.distinct(people, 2)
        holds[one], holds[other] = holds[other], holds[one]
        swaps.append(f"{'First' if not number else 'Then'} {one} and {other} swap.")
        chain.append(f"Now {one} has the {holds[one]} and {other} has the {holds[other]}.")
    who = draw.pick(people)
    return _exercise(
        f"{listing}. {' '.join(swaps)} What does {who} have?", chain, f"the {holds[who]}"
    )


GENERAL = {
    "object_counting": object_counting,
    "boolean_expressions": boolean_expressions,
    "word_sorting": word_sorting,
    "last_letters": last_letters,
    "tracking": tracking,
}


def _exercise(question: str, chain: list[str], answer: str) -> Exercise:
    return Exercise(question, "\n".join((*chain, f"The answer is {answer}")), answer)


def _listing(items: list[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _plural(thing: str) -> str:
    return (
        f"{thing}es"
        if (thing[-1] == "o" and thing != "piano") or thing[-2:] in ("ch", "ss")
        else f"{thing}s"
    )


def _amount(thing: str, n: int) -> str:
    if n == 1:
        return f"an {thing}" if thing[0] in "aeiou" else f"a {thing}"
    return f"{_AMOUNTS[n]} {_plural(thing)}"


def _expression(draw: Draw, size: int) -> Expression:
    if size == 1:
        value = draw.uniform() < 0.5
        return ("not", value) if draw.uniform() < 0.4 else value
    left = draw.between(1, size - 1)
    word = "and" if draw.uniform() < 0.5 else "or"
    whole = (_expression(draw, left), word, _expression(draw, size - left))
    return ("not", whole) if draw.uniform() < 0.2 else whole


def _spell(expression: Expression) -> str:
    if isinstance(expression, bool):
        return str(expression)
    return " ".join(part if isinstance(part, str) else _bracketed(part) for part in expression)


def _bracketed(expression: Expression) -> str:
    return str(expression) if isinstance(expression, bool) else f"( {_spell(expression)} )"


def _reduce(expression: tuple[Expression | str, ...]) -> tuple[str, bool, Expression]:
    """Work out the innermost part on the left: its text, its value, what then remains."""
    for place, part in enumerate(expression):
        if isinstance(part, tuple):
            text, value, rest = _reduce(part)
            return text, value, (*expression[:place], rest, *expression[place + 1 :])
    value = _value(expression)
    return _spell(expression), value, value


def _value(flat: tuple[Expression | str, ...]) -> bool:
    if flat[0] == "not":
        return not flat[1]
    return bool(flat[0] and flat[2]) if flat[1] == "and" else bool(flat[0] or flat[2])
