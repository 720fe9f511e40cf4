"""Which compiled programs a local model runs a request in, and compiling them ahead; no queues."""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import numpy as np

from distill.core.ports import Request, Sampling
from distill.models import decoding, stopping
from distill.models.decoding import Prompts
from distill.models.rows import bucket, room_for
from distill.models.sampling import LocalGenerator

USUAL_CANDIDATES = 5


@dataclasses.dataclass(frozen=True)
class Program:
    """The widths of arrays that a program is compiled for.

    `LocalGenerator.rows` gives the number of rows.

    Attributes:
        source: tokens that a row reads.
        forced: tokens that a row begins with.
        states: of the automaton of stop texts; 0 where given tokens are measured.
        candidates: measured for each token.
        room: tokens that a row may write, or that are measured; its program needs those of all
            smaller rooms.
    """

    source: int
    forced: int
    states: int
    candidates: int
    room: int


def usual(prompt_tokens: int, tokens: int) -> Iterator[Program]:
    """Yield the programs of prompts and completions up to so many tokens, the smaller ones first.

    They have no prefix, few stop texts and at most `USUAL_CANDIDATES` candidates.

    Example:
        >>> [(program.source, program.room) for program in usual(100, 64)]
        [(64, 32), (128, 32), (64, 64), (128, 64)]
    """
    sources = [bucket(1)] if prompt_tokens else []
    while sources and sources[-1] < prompt_tokens:
        sources.append(bucket(sources[-1] + 1))
    rooms = [room_for(1)] if tokens else []
    while rooms and rooms[-1] < tokens:
        rooms.append(2 * rooms[-1])
    states = stopping.states_of(())
    for room, source in itertools.product(rooms, sources):
        yield Program(source, 0, states, USUAL_CANDIDATES, room)


class LocalPrograms:
    """The programs of a generator, and which of them are compiled.

    A program is compiled by running it on rows that are all padding, with no token to write, so
    that JAX keeps it where `generate` and `score` look.

    Args:
        generator: what runs them; it samples and does not search.
    """

    def __init__(self, generator: LocalGenerator) -> None:
        self._generator = generator
        self._compiled: set[Program] = set()

    def program(self, request: Request, sampling: Sampling) -> Program:
        """Return the program that completes a request, with room for all it may write."""
        source, forced = self._generator.shape(request)
        states, candidates = stopping.states_of(sampling.stop), max(sampling.top_logprobs, 1)
        room = room_for(sampling.max_tokens)
        return Program(source, forced, states, candidates, room)

    def scoring_program(self, request: Request, top_logprobs: int) -> Program:
        """Return the program that measures a request's own completion."""
        source, steps = self._generator.scoring_shape(request)
        return Program(source, 0, 0, max(top_logprobs, 1), steps)

    def is_compiled(self, program: Program) -> bool:
        """Return whether a request of this program waits for no compilation."""
        return program in self._compiled

    def compile(self, program: Program) -> None:
        """Compile a program, in seconds to minutes; for any thread, one call at a time."""
        if program.states:
            self._compile_drawing(program)
        else:
            self._compile_scoring(program)

    def _compile_drawing(self, program: Program) -> None:
        rows = self._generator.rows(program.source + program.forced)
        for prompts in range(decoding.READ_TOGETHER, rows, decoding.READ_TOGETHER):
            self._draw(dataclasses.replace(program, room=1), prompts)
        self._draw(program, rows)
        room = program.room
        while room >= room_for(1):
            self._compiled.add(dataclasses.replace(program, room=room))
            room //= 2

    def _draw(self, program: Program, prompts: int) -> None:
        """Run the program on as many different prompts of padding."""
        generator = self._generator
        rows = generator.rows(program.source + program.forced)
        vocabulary = generator.vocabulary(())
        table = np.resize(vocabulary.transitions, (program.states, vocabulary.exists.shape[0]))
        decoding.decode(
            generator.network,
            generator.placed,
            Prompts(
                np.zeros((rows, program.source), np.int32),
                np.ones(rows, np.int32),
                np.minimum(np.arange(rows), prompts - 1),
                np.zeros((rows, program.forced), np.int32),
                np.full(rows, max(program.forced - 1, 0), np.int32),
                np.full(rows, stopping.INSIDE, np.int32),
            ),
            np.zeros((rows, 2), np.uint32),
            generator.settings(Sampling(), rows),
            vocabulary._replace(transitions=table),
            program.room,
            k=program.candidates,
            place=generator.place,
            compile_only=True,
        )

    def _compile_scoring(self, program: Program) -> None:
        generator = self._generator
        rows = generator.rows(program.source + program.room)
        arrays = (
            np.zeros((rows, program.source), np.int32),
            np.ones(rows, np.int32),
            np.zeros((rows, program.room), np.int32),
        )
        measured = decoding.score(
            generator.network,
            generator.placed,
            *generator.place(arrays),
            generator.vocabulary(()),
            k=program.candidates,
        )
        jax.block_until_ready(measured)
        self._compiled.add(program)
