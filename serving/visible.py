"""Text for a terminal or a log: names of photos and classes may hold what moves the cursor."""

import re

# Controls, ends of lines, and marks that turn the direction of all that follows.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: object) -> str:
    """One line, with each such character as Python writes it in a literal."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], str(text))
