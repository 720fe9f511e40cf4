"""Alignment on all of GSM8K, three teachers to T5: speed, agreement, coverage, quality.

    TIKTOKEN_CACHE_DIR=../shared/tokenizers/tiktoken_cache python benchmarks/alignment.py \
        --texts ../shared/datasets/gsm8k/train.jsonl --student ../shared/tokenizers/t5.spiece.model

About seven minutes a teacher on one core. Each text is a worked solution as the pipeline's teachers
write it: without the calculator marks `<<48/2=24>>`, the last line `The answer is 72` in place of
`#### 72`; `--raw` keeps both.
"""

import argparse
import json
import pathlib
import re
import time
import tracemalloc

import tokalign
from tokalign.align import align_batch, align_segmentations
from tokalign.bench import known_quality, measure, spellings, table, true_pairs
from tokalign.simulate import NgramTeacher


def solutions(path: pathlib.Path, *, raw: bool) -> list[str]:
    """Read the solutions of GSM8K."""
    texts = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    if raw:
        return texts
    return [re.sub("<<.*?>>", "", t).replace("\n#### ", "\nThe answer is ") for t in texts]


def everywhere(folder: pathlib.Path) -> dict[str, list[str]]:
    """Read every set that agreement is counted on."""

    def lines(path: str, field: str) -> list[str]:
        return [json.loads(line)[field] for line in (folder / path).read_text().splitlines()]

    prompts = sorted((folder / "bbh" / "cot-prompts").iterdir())
    return {
        "GSM8K solutions, raw": lines("gsm8k/train.jsonl", "answer"),
        "BBH prompts": [path.read_text() for path in prompts],
        "MATH-500 problems": lines("math500/math500.jsonl", "prompt"),
        "MBPP code": lines("mbpp/mbpp.jsonl", "code"),
    }


def agreement(
    texts: list[str], teacher: tokalign.Tokenizer, student: tokalign.Tokenizer
) -> dict[str, float]:
    """Count true pairs, found ones, and those that are both."""
    counts = [0, 0, 0]
    for text in texts:
        segmentation = student.segment(text)
        ends = teacher.segment(text).byte_ends
        truth = true_pairs(ends.tolist(), segmentation)
        found = {*map(tuple, align_segmentations(ends, segmentation).pairs.tolist())}
        for n, pairs in enumerate((truth, found, truth & found)):
            counts[n] += len(pairs)
    return {
        "texts": len(texts),
        "true_pairs": counts[0],
        "recall": counts[2] / counts[0],
        "precision": counts[2] / counts[1],
    }


def long_trace(
    texts: list[str], teacher: tokalign.Tokenizer, student: tokalign.Tokenizer
) -> dict[str, float]:
    """Measure one trace of up to 8,192 teacher tokens, alone and end to end.

    Times are milliseconds of processor time; memory is the most that was allocated, in MB.
    """
    found = {}
    simulated = NgramTeacher(texts[:400], teacher)
    for length in (1024, 2048, 4096, 8192):
        ids = teacher.segment("\n".join(texts[:400])).ids[:length]
        tokens = [teacher.token_bytes(int(i)) for i in ids]
        text = b"".join(tokens).decode(errors="ignore")
        pieces = spellings(student.segment(text), student)
        trace = simulated.trace(text)
        for name, run in (
            ("align", lambda: align_batch([(tokens, pieces)])),  # noqa: B023
            ("end_to_end", lambda: tokalign.project(trace, student)),  # noqa: B023
        ):
            times = []
            for _ in range(7):
                begin = time.process_time()
                run()
                times.append(time.process_time() - begin)
            found[f"{name}_{length}_tokens_ms"] = 1000 * min(times)
            tracemalloc.start()
            run()
            found[f"{name}_{length}_tokens_mb"] = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=pathlib.Path)
    parser.add_argument("--student", required=True)
    parser.add_argument("--teachers", nargs="+", default=["p50k_base", "cl100k_base", "o200k_base"])
    parser.add_argument("--plain", type=int, default=1 << 30, help="texts for the plain DTW")
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--datasets", type=pathlib.Path, help="only count agreement on these sets")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    student = tokalign.SentencePieceTokenizer(options.student)
    if options.datasets:
        rows = [
            {"teacher": name, "set": set_name}
            | agreement(texts, tokalign.TiktokenTokenizer(name), student)
            for set_name, texts in everywhere(options.datasets).items()
            for name in options.teachers
        ]
        print(json.dumps(rows, indent=1) if options.json else "\n".join(map(str, rows)))
        return
    texts = solutions(options.texts, raw=options.raw)
    results = []
    for name in options.teachers:
        teacher = tokalign.TiktokenTokenizer(name)
        found = measure(texts, teacher, student, plain=options.plain)
        found["quality"] = known_quality(teacher, student)
        found["long"] = long_trace(texts, teacher, student)
        results.append(found)
        if not options.json:
            print(table(found))
            print("\n".join(f"{name:28}{x:8.2f}" for name, x in found["long"].items()), "\n")
    if options.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
