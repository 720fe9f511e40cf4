"""What the starts of a harvest spend, in tokens and dollars; each writes a file of its own."""

import dataclasses
import json
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from distill.core import files
from distill.core.errors import UserError
from distill.core.ports import Completion, Generator, Request, Sampling
from distill.core.store import write_json
from distill.endpoints.prices import Price

# Where the files lie in a run directory.
SPENT = "spent"


@dataclasses.dataclass(frozen=True)
class Spent:
    """What some completions took.

    Attributes:
        completions: number of them.
        untold: how many of them came without counts of tokens.
        prompt_tokens: tokens that were read.
        completion_tokens: tokens that were written.
        dollars: None where a price is not known.
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

    @property
    def tokens(self) -> int:
        """Tokens that were read or written."""
        return self.prompt_tokens + self.completion_tokens


class Ledger:
    """What one start of a harvest spends, in a file of its own in `RUN_DIR/spent`.

    It is written after the traces that it counts, so a kill loses as much of it as of them. Those
    of other parts and machines lie beside it.

    Args:
        directory: the run directory's `spent`.
        stage: of the start.
        price: of the tokens, None where it is not known.
    """

    def __init__(self, directory: Path, stage: str, price: Price | None) -> None:
        self._path = directory / f"{stage}-{secrets.token_hex(8)}.json"
        self._price = price
        self.spent = Spent(dollars=0.0 if price else None)

    def add(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Count a completion."""
        untold = prompt_tokens is None or completion_tokens is None
        prompt, written = prompt_tokens or 0, completion_tokens or 0
        dollars = self._price.cost(prompt, written) if self._price else None
        self.spent += Spent(1, int(untold), prompt, written, dollars)

    def write(self) -> None:
        """Put it on disk, unless nothing is counted."""
        if self.spent.completions:
            price = dataclasses.asdict(self._price) if self._price else None
            write_json(self._path, {**dataclasses.asdict(self.spent), "price": price})


def ledgers(directory: Path) -> list[dict[str, Any]]:
    """Return what every start wrote down, of all parts and merged machines.

    Raises:
        UserError: a file is damaged.
    """
    return [ledger(path) for path in sorted(Path(directory).glob("*.json"))]


def ledger(path: Path) -> dict[str, Any]:
    """Return what a start wrote down, with counts that can be summed; raises as `ledgers`."""
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
    """Return what all starts of a harvest have spent together; raises as `ledgers`."""
    names = [field.name for field in dataclasses.fields(Spent)]
    starts = [Spent(**{name: row[name] for name in names}) for row in ledgers(directory)]
    return sum(starts, Spent())


@runtime_checkable
class Priced(Protocol):
    """A generator whose tokens cost money, and that may have a budget."""

    @property
    def price(self) -> Price | None:
        """What a token costs, None where it is not known."""
        ...

    def after(self, spent: Spent) -> Generator:
        """Return the generator, told what earlier starts have spent."""
        ...


@dataclasses.dataclass(frozen=True)
class Counted:
    """A generator whose completions are counted in a ledger."""

    generator: Generator
    ledger: Ledger

    @property
    def model(self) -> str:
        """What the generator calls itself."""
        return self.generator.model

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Yield what the generator writes."""
        return self._counted(self.generator.generate(requests, sampling))

    def score(
        self, requests: Sequence[Request], top_logprobs: int = 5
    ) -> Iterator[tuple[int, Completion]]:
        """Yield what the generator measures."""
        return self._counted(self.generator.score(requests, top_logprobs))

    def _counted(
        self, finished: Iterator[tuple[int, Completion]]
    ) -> Iterator[tuple[int, Completion]]:
        for index, completion in finished:
            self.ledger.add(completion.prompt_tokens, completion.completion_tokens)
            yield index, completion


def counted(generator: Generator, run_dir: Path, name: str) -> tuple[Generator, Ledger]:
    """Return the generator with its budget told and its completions counted, and the ledger."""
    directory = run_dir / SPENT
    price = generator.price if isinstance(generator, Priced) else None
    ledger = Ledger(directory, name, price)
    if isinstance(generator, Priced):
        generator = generator.after(spent_in(directory))
    return Counted(generator, ledger), ledger


def summary(run_dir: Path) -> dict[str, Any]:
    """Return what all starts spent and at which prices; nothing where no completion told."""
    starts = ledgers(run_dir / SPENT)
    spent = spent_in(run_dir / SPENT)
    if spent.untold == spent.completions:
        return {}
    prices = {json.dumps(start["price"], sort_keys=True) for start in starts if start["price"]}
    found = {"starts": len(starts), **dataclasses.asdict(spent)}
    return {"spent": {**found, "prices": [json.loads(price) for price in sorted(prices)]}}
