"""Parameters on disk with their vocabulary, in directories of our own; no training checkpoints."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import re
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from distill.core import files
from distill.core.errors import UserError
from distill.core.store import sync
from distill.core.vocabulary_digest import VocabularyRecord, require_same
from distill.models import tensors as safetensors
from distill.models.decoder import DecoderConfig, DecoderModel
from distill.models.layers import Params, by_path
from distill.models.t5 import T5Config, T5Model
from distill.models.tensors import Tensor, Tensors
from tokalign import digests
from tokalign.tokenizers import TiktokenTokenizer

Model = T5Model | DecoderModel
KINDS: dict[str, tuple[type[Model], type[T5Config] | type[DecoderConfig]]] = {
    "t5": (T5Model, T5Config),
    "decoder": (DecoderModel, DecoderConfig),
}
DTYPES = ("float32", "float16", "bfloat16")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_EXTRA_IDS = 10_000
MAX_LAYERS = 256  # of a tower; the largest public T5 has 24
LARGEST_SIZE = 2**31  # beyond any axis of a tensor that JAX computes with
# Of a Hugging Face directory; an export of ours has the vocabulary's digest in the first.
TOKENIZER_CONFIG, TOKENIZER, DIGEST = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocabulary_sha256",
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A vocabulary's file and the sentinels that follow its pieces."""

    path: Path
    extra_ids: int

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the content, sentinels apart; see `tokalign.digests`.

        Raises:
            UserError: the file is no vocabulary.
        """
        try:
            if self.path.suffix != ".tiktoken":
                return digests.of_sentencepiece(self.path.read_bytes())
            return TiktokenTokenizer(self.path, **tiktoken_side(self.path)).digest
        except (ValueError, TypeError) as error:
            raise UserError(
                f"a SentencePiece model or a .tiktoken file in {self.path}",
                str(error),
                "restore the file, or give another",
            ) from error

    def recorded(self, holder: str | Path) -> VocabularyRecord:
        """Return what identifies the vocabulary of `holder`, for `core.vocabulary_digest`."""
        return VocabularyRecord(str(holder), self.digest)


def tiktoken_side(path: Path) -> dict[str, Any]:
    """Return `pattern` and `special_tokens` from the .json beside a `.tiktoken` file, if any."""
    side = path.with_suffix(".json")
    return files.read_document(side) if side.is_file() else {}


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a directory beside `path` that takes its place, synced, when the block ends well.

    Where `path` exists its files of the same names are replaced one by one, others are left alone.
    What a start that was killed has left is removed by the next.

    Raises:
        UserError: another process writes there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.mkdir(exist_ok=True)
    with _alone(temporary):
        _clear(temporary)
        try:
            yield temporary
            for file in temporary.rglob("*"):
                sync(file)
            sync(temporary)
            if path.exists():
                for file in temporary.iterdir():
                    file.replace(path / file.name)
            else:
                temporary.rename(path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold a directory for one process; refuse one that another holds, or has renamed since."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        if not _locked(descriptor, directory):
            wanted = f"one process that writes {directory.parent / directory.stem[1:]}"
            raise UserError(wanted, "another that is running", "wait for it")
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int, directory: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), directory.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _clear(directory: Path) -> None:
    for left in directory.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def save(
    directory: Path,
    model: Model,
    params: Params,
    tokenizer_path: Path,
    *,
    dtype: str = "float32",
    extra_ids: int = 100,
) -> None:
    """Write a model with its vocabulary so that `load` needs nothing else.

    ```
    DIRECTORY/config.json        kind, shape, vocabulary
    DIRECTORY/model.safetensors  parameters by their path, encoder/layers_0/attention/...
    DIRECTORY/student.model      the vocabulary, and the .json beside it where there is one
    ```

    Args:
        directory: made; where it exists its files of these names are replaced.
        model: of `params`.
        params: float32.
        tokenizer_path: a SentencePiece `.model`, or a `.tiktoken` file with its `.json`.
        dtype: that the parameters are kept in; half of float32's size loses digits.
        extra_ids: sentinels after a SentencePiece model's pieces.

    Raises:
        UserError: there is no such vocabulary.
    """
    tensors = {name: Tensor.of(array) for name, array in by_path(params).items()}
    write(directory, model, tensors, Vocabulary(tokenizer_path, extra_ids), dtype=dtype)


def write(
    directory: Path, model: Model, tensors: Tensors, vocabulary: Vocabulary, *, dtype: str
) -> None:
    """Write what `save` writes, one tensor in memory at a time.

    Args:
        directory: made; where it exists its files of these names are replaced.
        model: of the tensors.
        tensors: by the path of the parameter.
        vocabulary: copied, with the .json beside it where there is one.
        dtype: that the parameters are kept in.

    Raises:
        UserError: there is no such vocabulary, or the tensors are not those of the model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"expected a dtype of {DTYPES}, got {dtype!r}")
    path = vocabulary.path
    if not path.is_file():
        raise UserError("a vocabulary", f"no file {path}", "give the path of one")
    kind = next(name for name, (of_kind, _) in KINDS.items() if isinstance(model, of_kind))
    config = {
        "kind": kind,
        "config": dataclasses.asdict(model.config),
        "vocabulary": {
            "file": path.name,
            "extra_ids": vocabulary.extra_ids,
            "sha256": vocabulary.digest,
        },
    }
    with whole_directory(directory) as temporary:
        for file in (path, path.with_suffix(".json")):
            if file.is_file():
                shutil.copyfile(file, temporary / file.name)
        cast = {name: tensor.cast(dtype) for name, tensor in tensors.items()}
        safetensors.write(temporary / WEIGHTS, cast)
        (temporary / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def load(directory: Path) -> tuple[Model, Params, Vocabulary]:
    """Return what `save` wrote, the parameters in float32.

    Raises:
        UserError: a file is missing or damaged, or the weights have not the shapes of the config.
    """
    model, tensors, vocabulary = read(directory)
    return model, in_memory(tensors), vocabulary


def read(directory: Path) -> tuple[Model, Tensors, Vocabulary]:
    """Return what `save` wrote, the tensors still on disk.

    Raises:
        UserError: a file is missing or damaged, the weights have not the shapes of the config, or
            the vocabulary is not the one that they were saved with.
    """
    config = directory / CONFIG
    found = files.read_document(config)
    try:
        of_kind, of_config = KINDS[found["kind"]]
        model = of_kind(_config(of_config, found["config"]))  # type: ignore[arg-type]
        named = found["vocabulary"]
        file, extra_ids, digest = named["file"], named["extra_ids"], named.get("sha256")
        if type(extra_ids) is not int or not 0 <= extra_ids <= MAX_EXTRA_IDS:
            raise ValueError(f"expected extra_ids up to {MAX_EXTRA_IDS:,}, got {extra_ids!r:.50}")
    except (KeyError, TypeError, ValueError) as error:
        wanted = f"the config of a model in {config}"
        raise UserError(wanted, f"{error!r:.300}", "restore the directory") from error
    path = files.beside(directory, file)
    tensors = safetensors.read(directory / WEIGHTS)
    require_shapes(model, tensors, directory)
    with files.open_regular(path):
        tensors = {
            name: tensor.finite(f"{name} of {directory}") for name, tensor in tensors.items()
        }
    vocabulary = Vocabulary(path, extra_ids)
    if digest is not None:
        require_same(
            VocabularyRecord(f"the weights in {directory}", str(digest)),
            vocabulary.recorded(vocabulary.path),
            "restore the vocabulary that these weights were saved with",
        )
    return model, tensors, vocabulary


def require_exported(directory: Path, vocabulary: Vocabulary) -> None:
    """Refuse a vocabulary that is not the one of a Hugging Face directory.

    An export of ours records its digest; any directory's `tokenizer.json` has its pieces, in order.
    What is not there says nothing.

    Args:
        directory: of transformers.
        vocabulary: in the directory, or given beside it.

    Raises:
        UserError: the digest is another, or a piece of `tokenizer.json` is.
    """
    do = "restore the vocabulary that the weights in the directory were saved with"
    side = directory / TOKENIZER_CONFIG
    recorded = files.read_document(side) if side.is_file() else {}
    digest = recorded.get(DIGEST) if isinstance(recorded, dict) else None
    if digest is not None:
        expected = VocabularyRecord(f"the export in {directory}", str(digest))
        require_same(expected, vocabulary.recorded(vocabulary.path), do)
    texts = _unigram_pieces(directory / TOKENIZER)
    if texts is not None and vocabulary.path.suffix != ".tiktoken":
        ours = digests.pieces(vocabulary.path.read_bytes())
        for number, (theirs, mine) in enumerate(zip(texts, ours, strict=False)):
            if theirs != mine:
                raise UserError(
                    f"token {number} {theirs!r}, as {directory / TOKENIZER} has it",
                    f"{mine!r} in {vocabulary.path}",
                    do,
                )


def _unigram_pieces(path: Path) -> list[Any] | None:
    """Return the texts of the pieces of a unigram `tokenizer.json`, None where it is another."""
    found = files.read_document(path) if path.is_file() else None
    model = found.get("model") if isinstance(found, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, list) or not all(isinstance(row, list) and row for row in vocab):
        return None
    return [row[0] for row in vocab]


def _config(of_config: type[T5Config] | type[DecoderConfig], found: Any) -> Any:
    """Return the configuration of a model, after checking that each field has its type."""
    fields = {**found, "mlp_activations": tuple(found["mlp_activations"])}
    for field in dataclasses.fields(of_config):
        if field.name in fields:
            _require_type(field.name, field.type, fields[field.name])
    return of_config(**fields)


def _require_type(name: str, kind: Any, value: object) -> None:
    allowed = (int, float) if kind is float else (typing.get_origin(kind) or kind,)
    if type(value) not in allowed or (kind is int and not 0 <= value < LARGEST_SIZE):  # type: ignore[operator]
        raise ValueError(f"expected {name} as {allowed[-1].__name__}, got {value!r:.50}")


def in_memory(tensors: Tensors) -> Params:
    """Return the parameters as a tree of float32 arrays."""
    flat = {name: jnp.asarray(tensor.read(), jnp.float32) for name, tensor in tensors.items()}
    return unflatten_dict(flat, sep="/")


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter by its path, nothing computed."""
    tree = jax.eval_shape(model.init, jax.random.key(0))
    return {name: leaf.shape for name, leaf in by_path(tree).items()}


def require_shapes(model: Model, found: Params | Tensors, source: Path | str) -> None:
    """Refuse parameters that are not those of the model.

    Args:
        model: whose parameters they should be.
        found: a tree of arrays, or tensors by path.
        source: where they come from, for the error.

    Raises:
        UserError: names or shapes differ; the first that do are named.
    """
    require_layers(model, found, source)
    wanted = shapes(model)
    got = {name: tuple(x.shape) for name, x in by_path(dict(found)).items()}
    for name in sorted({*wanted, *got}):
        if wanted.get(name) != got.get(name):
            raise UserError(
                f"{name} of shape {wanted.get(name)} in {source}",
                f"{got.get(name)}",
                "use the weights of the same configuration",
            )


def require_layers(model: Model, found: Params | Tensors, source: Path | str) -> None:
    """Refuse another number of layers than there are weights of, before a model is made of them.

    Raises:
        UserError: a tower has more or fewer layers, or more than `MAX_LAYERS`.
    """
    present: dict[str, set[str]] = {}
    for name in by_path(dict(found)):
        if layer := re.match(r"(.*?)layers_(\d+)/", name):
            present.setdefault(layer[1], set()).add(layer[2])
    config = model.config
    wanted = (
        {"encoder/": config.num_encoder_layers, "decoder/": config.num_decoder_layers}
        if isinstance(config, T5Config)
        else {"decoder/": config.num_layers}
    )
    for tower, count in wanted.items():
        got = len(present.get(tower, ()))
        if got != count or count > MAX_LAYERS:
            layers = f"the weights of {count:,} layers, of at most {MAX_LAYERS}, in {source}"
            raise UserError(layers, f"{got:,}", "use the weights of the same configuration")
