"""The ruled box of sclite's summary reports: rows of centred columns whose widths follow their widest cell."""

from __future__ import annotations

import math

PAGE = 80


def round_half_up(value: float, digits: int) -> float:
    """sclite's rounding before it prints a number: halves go away from zero."""
    scale = 10.0**digits
    rounded = math.floor(abs(value) * scale + 0.5) / scale
    return -rounded if value < 0 and rounded else rounded


def center(text: str, width: int) -> str:
    """Odd spaces go to the right."""
    left = max(width - len(text), 0) // 2
    return " " * left + text.ljust(width - left)


class Box:
    """Collects rows of cells, then draws them. Every row but the title has the same number of columns.

    bars: the columns after which a vertical bar stands.
    """

    def __init__(self, title: str, columns: int, bars: tuple[int, ...]):
        self.title, self.columns, self.bars = title, columns, bars
        self.rows: list[tuple[str, bool, list[str]]] = []

    def add(self, cells: list[str], rule: str = "", left: bool = True) -> None:
        """rule: the character of the line above the row, or nothing. left: whether the first cell is set to the left."""
        self.rows.append((rule, left, cells))

    def draw(self) -> str:
        size = [max(len(row[2][column]) for row in self.rows) for column in range(self.columns)]
        inner = sum(size) + self.columns - 1
        title_lines = self.title.split("//")
        width = max(inner, max(len(line) for line in title_lines))
        extra, cells_wide, given = width - inner, [], 0
        for column in range(self.columns):  # a title wider than the columns spreads them
            last = column == self.columns - 1
            share = extra - given if last else int(extra / self.columns * (column + 1)) - given
            given += share
            cells_wide.append(size[column] + share)
        margin = " " * max((PAGE - width - 2) // 2, 0)
        lines = [f"{margin},{'-' * width}."]
        lines += [f"{margin}|{self._padded(center(line, max(map(len, title_lines))), width)}|" for line in title_lines]
        for number, (rule, left, cells) in enumerate(self.rows):
            if rule:
                joint = "+" if rule == "-" and number > 0 else rule
                ruled = "".join(
                    rule * cells_wide[column] + ((joint if column in self.bars else rule) if column < self.columns - 1 else "")
                    for column in range(self.columns)
                )
                lines.append(f"{margin}|{ruled}|")
            text = ""
            for column, cell in enumerate(cells):
                inside = cell.ljust(size[column]) if left and column == 0 else center(cell, size[column])
                text += self._padded(inside, cells_wide[column])
                if column < self.columns - 1:
                    text += "|" if column in self.bars else " "
            lines.append(f"{margin}|{text}|")
        lines.append(f"{margin}`{'-' * width}'")
        return "\n".join(lines) + "\n"

    @staticmethod
    def _padded(text: str, width: int) -> str:
        left = (width - len(text)) // 2
        return " " * left + text + " " * (width - len(text) - left)
