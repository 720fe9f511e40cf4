"""The way of one call from a harvest to the HTTP library and back, by the files that it enters."""

import sys
import threading
from itertools import groupby
from pathlib import Path

import pytest
from fake_endpoint import KEY, endpoint

import distill
from distill.core.ports import Sampling
from distill.core.records import Problem
from distill.endpoints.session import Budget
from distill.endpoints.spending import open_log
from distill.endpoints.teacher import OpenAICompatible
from distill.traces import harvest

PACKAGE = Path(distill.__file__).parent
# Records, ports and tools that any room uses.
SHARED = "core"


class Walk:
    """Records the files of distill on the stack whenever one of their functions is called."""

    def __init__(self):
        self.stacks = set()

    def __call__(self, frame, event, argument):
        if event == "call" and (name := room_file(frame)):
            files = [name]
            while frame := frame.f_back:
                if name := room_file(frame):
                    files.append(name)
            self.stacks.add(tuple(key for key, _ in groupby(reversed(files))))

    def __enter__(self):
        threading.setprofile(self)
        sys.setprofile(self)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        threading.setprofile(None)

    @property
    def files(self):
        return {file for stack in self.stacks for file in stack}


def room_file(frame):
    path = Path(frame.f_code.co_filename)
    if not path.is_relative_to(PACKAGE):
        return None
    name = path.relative_to(PACKAGE)
    return None if name.parts[0] == SHARED else str(name)


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_a_call_enters_six_files_and_leaves_none_to_enter_it_again(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    problem = Problem("s/train/0", "s", "train", "Q0?", "3")
    sampling = Sampling(temperature=0.7, max_tokens=64)
    budget = Budget(dollars=1.0, dollars_per_million=(10.0, 100.0))
    with endpoint() as server:
        generator = OpenAICompatible("m", server.url, kind, budget=budget)
        log = open_log(generator, tmp_path, "harvest")
        with Walk() as walk:
            (trace,) = harvest.harvest(
                [problem], generator, samples=1, sampling=sampling, prompt=str, log=log
            )
    assert trace.text and len(server.seen) == 1 and log.spent.tokens == 30
    assert walk.files == {
        "traces/harvest.py",
        "endpoints/teacher.py",
        "endpoints/session.py",
        "endpoints/spending.py",
        f"endpoints/shapes/{kind}.py",
        "text/completions.py",
    }
    assert all(len(stack) == len(set(stack)) for stack in walk.stacks)
