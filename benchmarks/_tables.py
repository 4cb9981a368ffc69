"""Tables that are printed in a terminal and written as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.filesize import decimal
from rich.table import Table as RichTable

__all__ = ["Table", "in_bytes", "in_ms", "spread"]


@dataclass(slots=True)
class Table:
    """Some rows of text under headings; the first column is what a row is about.

    Examples
    --------
    >>> table = Table("Time", ["", "ms"], note="Median of 3.")
    >>> table.rows.append(["training alone", "15"])
    >>> print(table.to_markdown())
    **Time**
    <BLANKLINE>
    | | ms |
    |---|---:|
    | training alone | 15 |
    <BLANKLINE>
    Median of 3.
    """

    title: str
    headings: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    def to_rich(self) -> RichTable:
        """For a terminal."""
        out = RichTable(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            title=self.title or None,
            title_justify="left",
            caption=self.note or None,
            caption_justify="left",
        )
        out.add_column(self.headings[0], no_wrap=True)
        for heading in self.headings[1:]:
            out.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            out.add_row(*row)
        return out

    def to_markdown(self) -> str:
        """For a page."""
        lines = [f"**{self.title}**", ""] if self.title else []
        lines.append("|" + "|".join(f" {h} " if h else " " for h in self.headings) + "|")
        lines.append("|---|" + "---:|" * (len(self.headings) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines)


def spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Write the least and the greatest of some values.

    Examples
    --------
    >>> spread([0.002, 0.0015], 1e3), spread([1234.5, 20.0])
    ('1.5 to 2', '20 to 1,234')
    """
    ends = (min(values) * scale, max(values) * scale)
    return " to ".join(f"{end:,.0f}" if end >= 1000 else f"{end:.3g}" for end in ends)


def in_ms(seconds: float) -> str:
    """Write a time in milliseconds, to three digits at most and to 0.01 ms.

    Examples
    --------
    >>> in_ms(0.01234), in_ms(1.8), in_ms(0.00000123)
    ('12.3', '1,800', '0')
    """
    ms = round(seconds * 1e3, 2)
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def in_bytes(nbytes: float | None) -> str:
    """Write a number of bytes; a dash for none.

    Examples
    --------
    >>> in_bytes(6_713_000_000), in_bytes(None)
    ('6.7 GB', '-')
    """
    return "-" if nbytes is None else decimal(int(nbytes))
