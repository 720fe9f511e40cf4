"""Show one trace in the teacher's and the student's tokens, for people."""

import tokalign
from distill.core.records import Trace
from tokalign.report import alignment_text


def inspect(
    trace: Trace, vocabulary: tokalign.Tokenizer, *, rule: str = "marginal", k: int = 5
) -> str:
    r"""Return a trace's tokens on both sides and the targets of each student token, in colour.

    Args:
        trace: with log-probabilities.
        vocabulary: the student's.
        rule: "marginal" or "paper", as in `tokalign.project`.
        k: candidates shown for each position.

    Returns:
        Lines for a terminal: the teacher's tokens, the student's, then for each position of the
        student its candidates with their probabilities and the lost mass.

    Raises:
        ValueError: a token of the trace has no log-probability, or an unknown rule.

    Example:
        >>> from distill.core.ports import Request, Sampling
        >>> from distill.models.saved import SavedModel
        >>> teacher = SavedModel("data/models/teacher", batch_size=1)
        >>> requests = [Request("Q: What is 4 + 4?\n")]
        >>> ((_, completion),) = teacher.generate(requests, Sampling(max_tokens=8))
        >>> student = tokalign.SentencePieceTokenizer("data/vocabularies/student.model")
        >>> inspect(completion, student).startswith("teacher")
        True
    """
    teacher = tokalign.TeacherTrace.of(trace)
    projection = tokalign.project(teacher, vocabulary, rule=rule, k=k)
    return alignment_text(teacher, projection, vocabulary)
