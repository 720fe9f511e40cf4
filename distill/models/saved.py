"""A model that `weights.save` wrote, as a Generator."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from flax.traverse_util import unflatten_dict

from distill.core import paths
from distill.core.errors import UserError
from distill.core.ports import Completion, Fire, Request, Sampling
from distill.models import weights
from distill.models.rows import LONGEST
from distill.models.sampling import LocalGenerator, Tokenizer
from tokalign.tokenizers import SentencePieceTokenizer, TiktokenTokenizer


@dataclasses.dataclass(frozen=True)
class SavedModel:
    r"""A directory that `weights.save` wrote, as a Generator that is loaded at its first use.

    Args:
        path: the directory; one that does not exist here is looked up among what ships.
        batch_size: rows that run together.
        fire: hot tokens, none by default.
        tensor: devices that share a copy of the parameters, for models too large for one.
        longest: tokens that a request may have, prompt, prefix and scored text together; a longer
            one gets an empty completion that finished for "too_long".

    Raises:
        UserError: at the first use, the directory is missing or damaged, or `tensor` does not
            divide the devices.

    Example:
        >>> teacher = SavedModel("data/models/teacher", batch_size=1)
        >>> prompt = "Q: What is 4 + 4?\nLet's think step by step\n"
        >>> ((_, completion),) = teacher.generate([Request(prompt)], Sampling(max_tokens=40))
        >>> "8" in completion.text
        True
    """

    path: str
    batch_size: int = 128
    fire: Fire | None = None
    # Excluded from the run's identity: these cannot change outputs.
    tensor: int = dataclasses.field(default=1, repr=False)
    longest: int = dataclasses.field(default=LONGEST, repr=False)

    @property
    def model(self) -> str:
        """The directory's name."""
        return Path(self.path).name

    def input_files(self) -> tuple[Path, ...]:
        """Return the directory, whose files a run is known by."""
        return (Path(self.path),)

    @functools.cached_property
    def generator(self) -> LocalGenerator:
        """The loaded model."""
        loaded = local_generator(paths.find(self.path, "the directory of a model"), self.tensor)
        how = {"batch_size": self.batch_size, "fire": self.fire, "longest": self.longest}
        return dataclasses.replace(loaded, **how)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index into requests, completion), batch by batch."""
        return self.generator.generate(requests, sampling)

    def score(
        self, requests: Sequence[Request], top_logprobs: int = 5
    ) -> Iterator[tuple[int, Completion]]:
        """Yield each request's own completion, as its tokens spell it, measured."""
        return self.generator.score(requests, top_logprobs)


def local_generator(directory: Path, tensor: int = 1) -> LocalGenerator:
    """Return the model of a directory that `weights.save` wrote, ready to generate.

    Args:
        directory: the model's.
        tensor: devices that share a copy of the parameters; with more than one each parameter is
            read when it is placed.

    Raises:
        UserError: the directory is missing or damaged.
    """
    network, tensors, vocabulary = weights.read(Path(directory))
    lazy = {name: each.cast("float32") for name, each in tensors.items()}
    params = weights.in_memory(tensors) if tensor == 1 else unflatten_dict(lazy, sep="/")
    tokenizer = open_vocabulary(vocabulary.path, vocabulary.extra_ids)
    return LocalGenerator(network, params, tokenizer, Path(directory).name, tensor=tensor)


def open_vocabulary(path: Path, extra_ids: int = 100) -> Tokenizer:
    """Return the tokenizer of a `.tiktoken` file or else of a SentencePiece model.

    Args:
        path: a `.tiktoken` file may have a `.json` beside it with `pattern` and `special_tokens`.
        extra_ids: sentinels after the pieces of a SentencePiece model.

    Raises:
        UserError: the file is damaged, or there is none.
    """
    try:
        if path.suffix != ".tiktoken":
            return SentencePieceTokenizer(path, extra_ids)
        return TiktokenTokenizer(path, **weights.tiktoken_side(path))
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise UserError(f"a vocabulary in {path}", f"{error!s:.300}", "restore the file") from error
