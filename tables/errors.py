"""The one error a user sees without a traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from the user: names the argument, the value given and the fix.

    Entry points print it as one line and exit with code 2.
    """

    def __init__(self, argument: str, value: object, fix: str) -> None:
        super().__init__(f"{argument}={value!s}: {fix}")
        self.argument, self.value, self.fix = argument, value, fix

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str]]:
        return type(self), (self.argument, str(self.value), self.fix)
