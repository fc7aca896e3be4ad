"""Scores that still have the items that they are means of, for whoever keeps them.

Rows are of plain values and for JSON lines, as the logs of a run are, not for parquet: training does without pyarrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Scored(dict):
    """An evaluator's scores, equal to a plain dict of them and saved as one; rows: an item each."""

    def __init__(self, scores: Mapping[str, Any], rows: list[dict[str, Any]]):
        super().__init__(scores)
        self.rows = rows
