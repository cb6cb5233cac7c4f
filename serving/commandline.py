"""How our commands take a user's mistake: one line on stderr that says what to do, and status 2."""

import argparse
import sys
from typing import NoReturn

USER_ERROR = 2


class Parser(argparse.ArgumentParser):
    """argparse without the usage text before the error."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)")


def fail(message: str, status: int = USER_ERROR) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
