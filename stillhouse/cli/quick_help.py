"""`--help` without what cyclopts does more than once.

In: nothing. Out: while `quick_help` is open, the same help in four fifths of its time. cyclopts has
no setting for either; only `--help` runs with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cyclopts
import docstring_parser

__all__ = ["quick_help"]


@contextmanager
def quick_help() -> Iterator[None]:
    """While open, help reads a command's options once, and no docstrings but ours."""
    assemble = cyclopts.App.assemble_argument_collection
    parse = docstring_parser.parse_from_object
    known: dict[int, Any] = {}

    def assemble_once(app: cyclopts.App, *, parse_docstring: bool = False, **options: Any) -> Any:
        """For the parser, the usage line and the table: with docstrings serves all three."""
        if id(app) not in known:
            known[id(app)] = assemble(app, parse_docstring=True, **options)
        return known[id(app)]

    def parse_ours(described: Any, *args: Any, **options: Any) -> Any:
        """For a settings class the source of every class it inherits from is read: pydantic's own
        is 2,000 lines and has no options.
        """
        if getattr(described, "__module__", "").startswith("pydantic."):
            return docstring_parser.parse("")
        return parse(described, *args, **options)

    cyclopts.App.assemble_argument_collection = assemble_once  # type: ignore[method-assign]
    docstring_parser.parse_from_object = parse_ours
    try:
        yield
    finally:
        cyclopts.App.assemble_argument_collection = assemble  # type: ignore[method-assign]
        docstring_parser.parse_from_object = parse
