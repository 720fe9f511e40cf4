from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def student_vocabulary():
    return ROOT / "data" / "vocabularies" / "student.model"
