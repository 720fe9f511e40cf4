"""The error that ends a command with one line for the user; not for faults of the program."""


class UserError(Exception):
    """An input from outside the program is wrong.

    The command line prints it as one line and exits with 2.

    Args:
        expected: the required state.
        got: the actual state.
        do: the user's remedy.

    Example:
        >>> str(UserError("an answer in every row", "row 3 without one", "add it or drop the row"))
        'expected an answer in every row, got row 3 without one; add it or drop the row'
    """

    def __init__(self, expected: str, got: str, do: str) -> None:
        super().__init__(f"expected {expected}, got {got}; {do}")
        self.expected, self.got, self.do = expected, got, do
