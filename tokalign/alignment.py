"""Two token sequences cut into chunks that cover the same text: the result of every aligner."""

import dataclasses
from collections.abc import Sequence

import numpy as np

Tokens = Sequence[str] | Sequence[bytes]


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    r"""Two token sequences cut into chunks that cover the same text.

        teacher   ' Nat' 'alia' '\n' 'She' ' sold'      chunks  0 2 0 1   Natalia
        student   ▁Natalia ▁She ▁sold                           2 3 1 1   the space, dropped
                                                                3 4 1 2   She
                                                                4 5 2 3   sold
                                                         pairs   3 1, 4 2

    Attributes:
        chunks: int32 [C, 4] teacher start and end, student start and end; together they cover
            both sides, and whitespace between chunks is a chunk of its own.
        pairs: int32 [P, 2] teacher and student token of each one-to-one chunk other than
            whitespace.
        cost: by the exact walk, the bytes in which the sides differ; by `method="dp"`, the edit
            distances along the path, in characters.
    """

    chunks: np.ndarray
    pairs: np.ndarray
    cost: float
