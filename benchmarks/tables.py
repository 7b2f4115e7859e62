"""Tables of measurements in pages of docs. The prose around them is written by hand.

A table stands between two marks, of which the first says which one it is. In the page of benchmark `study`:

    <!-- study: bleu en fine_tuned -->
    <!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.errors import UserError
from stages.files import replacing

Make = Callable[[str, list[str]], list[str]]
"""The lines of a table by its name and arguments; raises a UserError if there is none of that name."""
ABSENT = "–"


def rewrite(page: Path, benchmark: str, make: Make) -> None:
    """Make the tables of a page anew.

    Raises:
        UserError: the page is missing, or asks for a table there is none of.
    """
    if not page.is_file():
        raise UserError(f"{page} is missing: it has the prose, and marks where tables go")
    text = page.read_text(encoding="utf-8")
    with replacing(page) as partial:
        partial.write_text(filled(text, benchmark, make), encoding="utf-8")


def filled(text: str, benchmark: str, make: Make) -> str:
    """A page with its tables made anew.

    Raises:
        UserError: it asks for a table there is none of.
    """

    def fill(match: re.Match[str]) -> str:
        name, *arguments = match[2].split()
        try:
            lines = make(name, arguments)
        except UserError as error:
            raise UserError(f"{match[1].strip()}: {error}") from None
        return match[1] + "".join(f"{line}\n" for line in lines) + match[3]

    return re.sub(rf"(<!-- {benchmark}: (\S.*?) -->\n).*?(<!-- end -->)", fill, text, flags=re.DOTALL)


def header(names: Sequence[str], left: int = 1) -> list[str]:
    """The first two lines of a table, `left` of its columns aligned to the left."""
    return [line(names), "|" + "---|" * left + "--:|" * (len(names) - left)]


def line(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def percent(share: float) -> str:
    """As in `97.5 %`."""
    return f"{100 * share:g} %"
