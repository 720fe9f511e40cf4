"""The one error that ends a command with a line for the user; not for faults of the program."""


class UserError(Exception):
    """Something outside the program is not as it must be.

    The command line prints it as one line and exits with 2.

    Args:
        expected: what has to be there.
        got: what is there instead.
        do: what the user can do about it.

    Example:
        >>> str(UserError("an answer in every row", "row 3 without one", "add it or drop the row"))
        'expected an answer in every row, got row 3 without one; add it or drop the row'
    """

    def __init__(self, expected: str, got: str, do: str) -> None:
        super().__init__(f"expected {expected}, got {got}; {do}")
        self.expected, self.got, self.do = expected, got, do
