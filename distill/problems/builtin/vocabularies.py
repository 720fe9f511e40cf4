"""Train the two built-in vocabularies: the teacher's byte-level BPE and the student's unigram.

They cut numbers differently, as GPT and T5 do: a teacher token holds a whole number with the blank
before it, a student piece holds one digit.

    question     There are 48 cups.
    teacher      There| are| 48| cups|.
    student      ▁There|▁are|▁|4|8|▁cups|.
"""

import base64
import collections
import hashlib
import io
import itertools
import json
import logging
import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import regex
import sentencepiece
import tiktoken

from distill.core import paths, store
from distill.problems.builtin import arithmetic

logger = logging.getLogger(__name__)

# Letters with the blank before them, up to three digits likewise, marks, blanks; a newline alone.
TEACHER_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\n|[^\S\n]+(?!\S)|[^\S\n]+"
)
END_OF_TEXT = "<|endoftext|>"
EXTRA_IDS = 100
LARGEST_NUMBER = 120

Ranks = dict[bytes, int]
Pair = tuple[bytes, bytes]


def corpus(n: int, seed: int = 0) -> Iterator[str]:
    """Yield n texts, question and chain, of what the built-in models may be trained on."""
    families = (*12 * ("gsm",), *3 * (arithmetic.SINGLE_STEP,), *arithmetic.GENERAL)
    for number in range(n):
        family = families[number % len(families)]
        problem = arithmetic.problem(family, "train", seed * n + number)
        yield f"Q: {problem.question}\nLet's think step by step\n{problem.chain}\n"
        yield f"Q: {problem.question} A: The answer is {problem.answer}"


def number_tokens() -> list[bytes]:
    """Return the numbers that are one token each, shorter before longer, then with a blank."""
    numbers = [str(number) for number in range(LARGEST_NUMBER + 1)]
    return [text.encode() for text in numbers[10:]] + [f" {text}".encode() for text in numbers]


def train_bpe(texts: Iterable[str], size: int) -> Ranks:
    """Return the ranks of a byte-level BPE: the bytes, the numbers, then merges by frequency.

    Ties go to the pair that sorts last, so equal texts give equal ranks.

    Args:
        texts: what to learn the merges from.
        size: tokens in all, at least 256 and the numbers.

    Raises:
        ValueError: there are fewer merges in the texts than asked for.

    Source: Sennrich et al. 2016, algorithm 1, on bytes.
    """
    ranks: Ranks = {bytes([byte]): byte for byte in range(256)}
    for token in number_tokens():
        ranks[token] = len(ranks)
    words = _word_counts(texts)
    while len(ranks) < size:
        pairs = collections.Counter[Pair]()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        if not pairs:
            raise ValueError(f"expected texts with {size} tokens, got {len(ranks)}")
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks[best[0] + best[1]] = len(ranks)
        words = {_merged(word, best): count for word, count in words.items()}
    return ranks


def _word_counts(texts: Iterable[str]) -> Mapping[tuple[bytes, ...], int]:
    """Count the words of the pattern, cut into bytes; numbers have their tokens already."""
    counts = collections.Counter(
        word for text in texts for word in regex.findall(TEACHER_PATTERN, text)
    )
    return {
        tuple(bytes([byte]) for byte in word.encode()): count
        for word, count in counts.items()
        if not word.strip().isdigit()
    }


def _merged(word: tuple[bytes, ...], pair: Pair) -> tuple[bytes, ...]:
    if pair[0] not in word:
        return word
    merged: list[bytes] = []
    for token in word:
        # A run such as "aaa" merges from the left, each token once.
        if merged and (merged[-1], token) == pair:
            merged[-1] = pair[0] + pair[1]
        else:
            merged.append(token)
    return tuple(merged)


def train_unigram(texts: Iterable[str], size: int) -> bytes:
    """Return a SentencePiece unigram model with T5's habits, without its sentinels.

    Pad is 0, EOS 1, unknown 2, no BOS; NFKC, blanks collapsed, a blank before the first word, no
    piece with a newline, no bytes. All of printable ASCII is known; digits stand alone.

    Args:
        texts: what to learn the pieces from; a newline ends a sentence.
        size: pieces in all; the EXTRA_IDS sentinels come on top, as in T5.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=_wordy_lines(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=size,
        character_coverage=1.0,
        required_chars=string.digits + string.ascii_letters + string.punctuation,
        split_digits=True,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _wordy_lines(texts: Iterable[str]) -> Iterator[str]:
    """Yield the lines without their numbers, and once each word with a mark after it.

    Digits stand alone whatever is learnt; with them the bare blank before a number would be the
    likeliest piece of all and the commonest words would be spelt with it, as `▁` and `is`. The
    marks are there because the trainer starts from strings that it meets in two different words.
    """
    seen: set[str] = set()
    for text in texts:
        for line in regex.sub(r"\d+", "", text).split("\n"):
            words = line.split()
            yield from (f"{word}~" for word in words if word not in seen)
            seen.update(words)
            if words:
                yield line


def tiktoken_file(ranks: Ranks) -> bytes:
    """Return the ranks as tiktoken stores them: a line each, base64 of the bytes and the rank."""
    return b"".join(
        base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items()
    )


def read_ranks(content: bytes) -> Ranks:
    """Return the ranks in a tiktoken file; tiktoken's own reader would keep a copy elsewhere."""
    rows = (line.split() for line in content.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in rows}


def load_teacher(path: Path | None = None) -> tiktoken.Encoding:
    """Return the teacher's encoding; the file's `.json` neighbour holds pattern and special tokens.

    Args:
        path: a `.tiktoken` file, by default the shipped one.
    """
    path = path or paths.shipped("data/vocabularies/teacher.tiktoken")
    side = json.loads(path.with_suffix(".json").read_text())
    return tiktoken.Encoding(
        path.stem,
        pat_str=side["pattern"],
        mergeable_ranks=read_ranks(path.read_bytes()),
        special_tokens=side["special_tokens"],
    )


def load_student(path: Path | None = None) -> sentencepiece.SentencePieceProcessor:
    """Return the student's pieces; EXTRA_IDS sentinels follow them, `<extra_id_0>` the last."""
    path = path or paths.shipped("data/vocabularies/student.model")
    return sentencepiece.SentencePieceProcessor(model_file=str(path))  # pyright: ignore[reportCallIssue]


def run(
    *, out_dir: Path, n: int = 30_000, teacher_size: int = 1279, student_size: int = 1000
) -> dict[str, str]:
    """Train both vocabularies and write them; return the sha256 of each file.

    Args:
        out_dir: receives teacher.tiktoken, teacher.json and student.model.
        n: problems to learn from.
        teacher_size: tokens without `<|endoftext|>`.
        student_size: pieces without sentinels.
    """
    texts = list(corpus(n))
    special = {"pattern": TEACHER_PATTERN, "special_tokens": {END_OF_TEXT: teacher_size}}
    files = {
        "teacher.tiktoken": tiktoken_file(train_bpe(texts, teacher_size)),
        "teacher.json": json.dumps(special, indent=2).encode() + b"\n",
        "student.model": train_unigram(texts, student_size),
    }
    for name, content in files.items():
        with store.atomic_path(out_dir / name) as temporary:
            temporary.write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for name, digest in sums.items():
        logger.info("%s %s", digest, name)
    return sums
