import json
import os

import pytest
from texts import SHARED, T5

import tokalign


@pytest.fixture(scope="session", autouse=True)
def tiktoken_cache():
    os.environ["TIKTOKEN_CACHE_DIR"] = str(SHARED / "tokenizers" / "tiktoken_cache")


@pytest.fixture(scope="session")
def shared():
    if not T5.is_file():
        pytest.skip("the shared vocabularies are absent")
    return SHARED


@pytest.fixture(scope="session")
def t5(shared):
    return tokalign.SentencePieceTokenizer(T5)


@pytest.fixture(scope="session")
def p50k(shared):
    return tokalign.TiktokenTokenizer("p50k_base")


@pytest.fixture(scope="session", params=["p50k_base", "cl100k_base", "o200k_base"])
def teacher(request, shared):
    return tokalign.TiktokenTokenizer(request.param)


@pytest.fixture(scope="session")
def solutions(shared):
    lines = (shared / "datasets" / "gsm8k" / "train.jsonl").read_text().splitlines()
    return [json.loads(line)["answer"] for line in lines[:300]]
