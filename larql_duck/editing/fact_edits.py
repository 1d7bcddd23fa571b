"""What editing answers with: operations that nobody has appended yet, and what was measured of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from larql_duck.patches.operations import Operation


@dataclass(frozen=True)
class FactEdits:
    """Operations to append to the log of edits, one row a fact with what was measured, and notices for people.

    Of facts that were solved a row has entity, relation, target, layer, feature, p_before, p, paraphrase_p and
    neighbour_change, as far as they are known: p is the probability of the whole target on the relation's first
    template, paraphrase_p its mean over the others, neighbour_change the largest change of the first answer's
    probability at other subjects.
    """

    operations: Sequence[Operation] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    notices: Sequence[str] = ()

    def and_also(self, more: FactEdits) -> FactEdits:
        """These edits, then those of `more`; each notice once."""
        notices = list(dict.fromkeys((*self.notices, *more.notices)))
        return FactEdits([*self.operations, *more.operations], [*self.rows, *more.rows], notices)
