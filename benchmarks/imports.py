"""Directories that three versions of transformers saved, imported, exported and loaded by each.

    python benchmarks/imports.py [--folder FOLDER] [--record tests/models/recorded] [--json]

Installs transformers 4.46, 4.57 and the newest beside this environment, which lends them its torch.
Each saves a T5 of v1.0 and v1.1, an mT5 and variants, with their logits; the newest saves those of
the others again. Each directory is imported and its logits compared, exported, and loaded by each
version again. Exits with 1 where a logit differs by more than 1e-4 of the largest, or an id of the
tokenizer. Needs the extra `hf` and a package index; about three minutes on two CPU cores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
STUDENT = ROOT / "data" / "vocabularies" / "student.model"
VERSIONS = {
    "4.46": ["transformers==4.46.3", "tokenizers==0.20.3", "huggingface-hub==0.36.0"],
    "4.57": ["transformers==4.57.1", "tokenizers==0.22.1", "huggingface-hub==0.36.0"],
    "5": [],  # of this environment
}
TOLERANCE = 1e-4
ROWS = 1152
SOURCE, TARGET = [[5, 6, 7, 8, 9, 10, 11, 1]], [[0, 20, 21, 22]]
TEXTS = ["", "Tom has 12 apples.", " a  b\n\tc ", "½ of ﬁve é e\u0301 \u3000\u032f", "<a> {b} 中😀"]
RECORDED = ("config.json", "generation_config.json", "tokenizer_config.json", "added_tokens.json")


# --- In the environment of one version ---------------------------------------------------------


def save(folder: Path, earlier: list[Path]) -> None:
    """Save random models with logits, then those of earlier versions again."""
    import transformers as hf

    small: dict[str, Any] = dict(
        vocab_size=ROWS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4
    )
    small["decoder_start_token_id"] = 0
    gated: dict[str, Any] = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    t5, mt5 = hf.T5ForConditionalGeneration, hf.MT5ForConditionalGeneration
    save_one(folder / "t5_v1_0", t5(hf.T5Config(**small)))
    save_one(folder / "t5_v1_1", t5(hf.T5Config(**small, **gated)), own_head=True)
    save_one(folder / "t5_v1_1_tied", t5(hf.T5Config(**small, feed_forward_proj="gated-gelu")))
    save_one(folder / "flan_t5", t5(hf.T5Config(**small, **gated)), own_head=True, shards="60KB")
    save_one(folder / "flan_t5_bf16", t5(hf.T5Config(**small, **gated)), own_head=True, half=True)
    save_one(folder / "mt5", mt5(hf.MT5Config(**small, **gated)), own_head=True)
    tied = {**gated, "tie_word_embeddings": True}
    save_one(folder / "mt5_tied", mt5(hf.MT5Config(**small, **tied)))
    uneven = {**small, "num_decoder_layers": 1}
    save_one(folder / "uneven", t5(hf.T5Config(**uneven, **gated)), own_head=True)
    for directory in earlier:
        model = model_of(directory)
        save_one(folder / f"{directory.name}_of_{directory.parent.name}", model, fresh=False)


def save_one(directory: Path, model: Any, **options: Any) -> None:
    """Save a model, with a tokenizer as this version writes it, and its logits when loaded."""
    import torch
    import transformers

    torch.manual_seed(1)
    with torch.no_grad():
        if options.get("own_head"):
            rows = torch.randn_like(model.shared.weight) * 0.5
            model.lm_head.weight = torch.nn.Parameter(rows)
        for parameter in model.parameters() if options.get("fresh", True) else ():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model = model.to(torch.bfloat16) if options.get("half") else model
    model.save_pretrained(directory, max_shard_size=options.get("shards", "1GB"))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(STUDENT, Path(folder) / "spiece.model")
        transformers.T5Tokenizer.from_pretrained(folder).save_pretrained(directory)
    np.save(directory / "logits.npy", logits_of(model_of(directory)))


def model_of(directory: Path) -> Any:
    """Load a directory as a user of transformers does."""
    import torch
    import transformers

    kind = json.loads((directory / "config.json").read_text())["model_type"]
    name = f"{kind.upper()}ForConditionalGeneration"
    return getattr(transformers, name).from_pretrained(directory).to(torch.float32).eval()


def logits_of(model: Any) -> np.ndarray:
    """Return the logits of one pair of ids."""
    import torch

    with torch.no_grad():
        source, target = torch.tensor(SOURCE), torch.tensor(TARGET)
        return model(input_ids=source, decoder_input_ids=target).logits.float().numpy()


def load(directories: list[Path], answers: Path) -> None:
    """Write the logits and ids of exported directories."""
    from transformers import AutoTokenizer

    found = {}
    for directory in directories:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        ids = [tokenizer(text).input_ids for text in TEXTS]
        found[str(directory)] = {"logits": logits_of(model_of(directory)).tolist(), "ids": ids}
    answers.write_text(json.dumps(found))


# --- Here --------------------------------------------------------------------------------------


def environment(folder: Path, version: str) -> dict[str, str]:
    """Return the environment of a version, installed beside this one where it is not yet."""
    place = folder / "transformers" / version
    if VERSIONS[version] and not place.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", place, *VERSIONS[version]], check=True)
    path = [str(place)] if VERSIONS[version] else []
    silent = {"TF_CPP_MIN_LOG_LEVEL": "3", "TRANSFORMERS_VERBOSITY": "error", "USE_TF": "0"}
    return {**os.environ, **silent, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(path)}


def in_version(folder: Path, version: str, *arguments: object) -> None:
    """Run this file in the environment of a version."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *map(str, arguments)]
    subprocess.run(command, check=True, env=environment(folder, version), cwd=folder)


def compare(folder: Path) -> list[dict[str, Any]]:
    """Return one row for each directory: by whom it was saved, and the differences."""
    shutil.rmtree(folder / "work", ignore_errors=True)
    saved: list[Path] = []
    for version in VERSIONS:
        place = folder / "work" / "saved" / version
        place.mkdir(parents=True)
        again = [d for d in saved if d.name in ("t5_v1_0", "t5_v1_1", "mt5", "mt5_tied")]
        in_version(folder, version, "save", place, *(again if version == "5" else []))
        saved += sorted(place.iterdir())
    rows = [_imported(directory, folder / "work") for directory in saved]
    exported = [row["export"] for row in rows if "export" in row]
    for version in VERSIONS:
        answers = folder / "work" / f"{version}.json"
        in_version(folder, version, "load", answers, *exported)
        found = json.loads(answers.read_text())
        for row in rows:
            if "export" in row:
                row[f"in {version}"] = _difference(np.load(row["logits"]), found[row["export"]])
    return rows


def _imported(directory: Path, work: Path) -> dict[str, Any]:
    from distill.core.errors import UserError
    from distill.interop import export, importing
    from distill.models import weights

    name = f"{directory.parent.name}/{directory.name}"
    ours, theirs = work / "ours" / name, work / "exported" / name
    row: dict[str, Any] = {"saved": name}
    try:
        importing.convert(str(directory), ours)
    except UserError as error:
        return {**row, "refused": str(error)}
    model, params, vocabulary = weights.load(ours)
    batch = {"encoder_input_tokens": np.array(SOURCE), "decoder_input_tokens": np.array(TARGET)}
    wanted = np.load(directory / "logits.npy")
    found = {"logits": np.asarray(model.logits(params, batch)), "ids": _ids(vocabulary)}
    export.export(theirs, model, params, vocabulary.path, card="", extra_ids=vocabulary.extra_ids)
    row |= {"tied": model.config.logits_via_embedding, "imported": _difference(wanted, found)}
    return {**row, "export": str(theirs), "logits": str(directory / "logits.npy")}


def _ids(vocabulary: Any) -> list[list[int]]:
    from tokalign.tokenizers import SentencePieceTokenizer

    tokenizer = SentencePieceTokenizer(vocabulary.path, vocabulary.extra_ids)
    return [[*tokenizer.encode(text), 1] for text in TEXTS]


def _difference(wanted: np.ndarray, found: dict[str, Any]) -> float:
    """Return the largest difference of a logit by the largest; NaN where the ids differ."""
    from tokalign.tokenizers import SentencePieceTokenizer

    tokenizer = SentencePieceTokenizer(STUDENT, 100)
    if found["ids"] != [[*tokenizer.encode(text), 1] for text in TEXTS]:
        return float("nan")
    return float(np.abs(np.asarray(found["logits"]) - wanted).max() / np.abs(wanted).max())


def record(folder: Path, place: Path) -> None:
    """Keep what each version wrote, but for the weights: documents, and names with shapes."""
    from distill.models import tensors

    for directory in sorted((folder / "work" / "saved").glob("*/*")):
        files = {
            path.name: json.loads(path.read_text())
            for path in (directory / name for name in RECORDED)
            if path.is_file()
        }
        shapes = {
            name: list(tensor.shape)
            for path in sorted(directory.glob("*.safetensors"))
            for name, tensor in tensors.read(path).items()
        }
        document = {
            "files": files,
            "tensors": shapes,
            "names": sorted(path.name for path in directory.iterdir()),
        }
        path = place / directory.parent.name / f"{directory.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, separators=(",", ":")) + "\n")


def main() -> int:
    """Compare and print a table; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="kept, with what was installed and saved")
    parser.add_argument("--record", type=Path, help="write the documents of each directory there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        rows = compare(folder)
        if options.record:
            record(folder, options.record)
    columns = ("imported", *(f"in {version}" for version in VERSIONS))
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{'saved by / model':28}{'tied':6}" + "".join(f"{c:>10}" for c in columns))
        for row in rows:
            cells = "".join(f"{row[column]:10.1e}" for column in columns if column in row)
            print(f"{row['saved']:28}{row.get('tied', '')!s:6}{cells or row['refused']}")
    wrong = [row for row in rows for c in columns if "tied" in row and not row[c] <= TOLERANCE]
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        verb, place, *others = sys.argv[2:]
        if verb == "save":
            save(Path(place), [Path(other) for other in others])
        else:
            load([Path(other) for other in others], Path(place))
    else:
        sys.exit(main())
