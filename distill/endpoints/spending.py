"""Prices and counts of tokens, and the files in which each start of a harvest logs them."""

import dataclasses
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from distill.core import files
from distill.core.errors import UserError
from distill.core.ports import Generator, Usage
from distill.core.store import write_json

# The folder of a run directory.
SPENT = "spent"


@dataclasses.dataclass(frozen=True)
class Price:
    """The price of a model's tokens.

    Attributes:
        model: its name.
        prompt: dollars per million tokens read.
        completion: dollars per million tokens drawn.
        source: where it was published.
        date: when it held.

    Example:
        >>> Price("m", 2.0, 8.0).cost(1_000_000, 500_000)
        6.0
    """

    model: str
    prompt: float
    completion: float
    source: str = "the user"
    date: str | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return dollars."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


def usage_of(answer: Mapping[str, Any]) -> Usage:
    """Return the counts in an answer's `usage`, None for each that it does not report.

    Example:
        >>> usage_of({"usage": {"prompt_tokens": 10}})
        Usage(prompt_tokens=10, completion_tokens=None)
    """
    usage = answer.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    prompt, completion = (counts.get(f"{what}_tokens") for what in ("prompt", "completion"))
    return Usage(
        prompt if isinstance(prompt, int) else None,
        completion if isinstance(completion, int) else None,
    )


@dataclasses.dataclass(frozen=True)
class Spent:
    """The tokens and dollars of some completions; the one place where they are summed.

    Attributes:
        completions: number of them.
        untold: number of those without a count of prompt or completion tokens.
        prompt_tokens: tokens read.
        completion_tokens: tokens drawn.
        dollars: None where a price is not known.

    Example:
        >>> Spent().plus(Usage(10, 20), Price("m", 1.0, 2.0))
        Spent(completions=1, untold=0, prompt_tokens=10, completion_tokens=20, dollars=5e-05)
    """

    completions: int = 0
    untold: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float | None = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        known = self.dollars is not None and other.dollars is not None
        return Spent(
            self.completions + other.completions,
            self.untold + other.untold,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            (self.dollars or 0.0) + (other.dollars or 0.0) if known else None,
        )

    def plus(self, usage: Usage, price: Price | None) -> "Spent":
        """Return the sum with one completion more; an absent count adds nothing but to `untold`."""
        absent = None in (usage.prompt_tokens, usage.completion_tokens)
        prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
        dollars = price.cost(prompt, completion) if price else None
        return self + Spent(1, int(absent), prompt, completion, dollars)

    @property
    def tokens(self) -> int:
        """Tokens read or drawn."""
        return self.prompt_tokens + self.completion_tokens


class SpendingLog:
    """A file in `RUN_DIR/spent` with what one start of a harvest spends.

    It is written after the traces that it counts, so a kill loses as much of it as of them. The
    files of other parts and machines lie beside it.

    Args:
        directory: the run directory's `spent`.
        stage: of the start.
        price: of the tokens, None where it is not known.
    """

    def __init__(self, directory: Path, stage: str, price: Price | None) -> None:
        self._path = directory / f"{stage}-{secrets.token_hex(8)}.json"
        self._price = price
        self.spent = Spent(dollars=0.0 if price else None)

    def add(self, usage: Usage) -> None:
        """Count a completion."""
        self.spent = self.spent.plus(usage, self._price)

    def write(self) -> None:
        """Write the file, unless nothing is counted."""
        if self.spent.completions:
            price = dataclasses.asdict(self._price) if self._price else None
            write_json(self._path, {**dataclasses.asdict(self.spent), "price": price})


def read_logs(directory: Path) -> list[dict[str, Any]]:
    """Return the files of all starts, of all parts and merged machines.

    Raises:
        UserError: a file is damaged.
    """
    return [read_log(path) for path in sorted(Path(directory).glob("*.json"))]


def read_log(path: Path) -> dict[str, Any]:
    """Return what a start wrote down, with counts that can be summed; raises as `read_logs`."""
    found = files.read_object(path, follow=False)
    counts = ("completions", "untold", "prompt_tokens", "completion_tokens")
    right = all(_is_count(found.get(name)) for name in counts)
    dollars, price = found.get("dollars"), found.get("price")
    right &= dollars is None or (isinstance(dollars, int | float) and dollars >= 0)
    right &= price is None or isinstance(price, dict)
    if not right or "dollars" not in found or "price" not in found:
        raise UserError(f"what a harvest spent in {path}", "something else", "restore the file")
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def spent_in(directory: Path) -> Spent:
    """Return what all starts of a harvest have spent together; raises as `read_logs`."""
    names = [field.name for field in dataclasses.fields(Spent)]
    starts = [Spent(**{name: row[name] for name in names}) for row in read_logs(directory)]
    return sum(starts, Spent())


@runtime_checkable
class PricedGenerator(Protocol):
    """A generator whose tokens cost money, and that may have a budget."""

    @property
    def price(self) -> Price | None:
        """The price of a token, None where it is not known."""
        ...

    def after(self, spent: Spent) -> Generator:
        """Return the generator with a budget from which earlier starts have spent."""
        ...


def open_log(generator: Generator, run_dir: Path, stage: str) -> SpendingLog:
    """Return the log of a start, at the generator's price where it has one."""
    price = generator.price if isinstance(generator, PricedGenerator) else None
    return SpendingLog(run_dir / SPENT, stage, price)


def after_earlier_starts(generator: Generator, run_dir: Path) -> Generator:
    """Return the generator, its budget less earlier starts' spending; raises as `read_logs`."""
    if not isinstance(generator, PricedGenerator):
        return generator
    return generator.after(spent_in(run_dir / SPENT))


def summary(run_dir: Path) -> dict[str, Any]:
    """Return what all starts spent and at which prices; {} where no tokens were reported."""
    logs, spent = read_logs(run_dir / SPENT), spent_in(run_dir / SPENT)
    if spent.untold == spent.completions:
        return {}
    prices = {json.dumps(log["price"], sort_keys=True) for log in logs if log["price"]}
    total = {"starts": len(logs), **dataclasses.asdict(spent)}
    return {"spent": {**total, "prices": [json.loads(price) for price in sorted(prices)]}}
