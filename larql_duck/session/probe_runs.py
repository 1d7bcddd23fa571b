"""What a session has probed without saving it in the vindex."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from larql_duck.session.session import Session


class Unsaved:
    """What a session has probed without saving: shown in front of the stored tables until the session ends."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.clear()

    def clear(self) -> None:
        """Forgets everything; the tables shown stay as they are."""
        self._found: list[tuple[Mapping[str, pa.Table], str | None]] = []
        self._published: dict[str, pa.Table] = {}
        self._many: set[str] = set()

    def add(self, found: Mapping[str, pa.Table], many: set[str], edits: str | None = None) -> None:
        """Keeps a run that is not to be saved; edits is the fingerprint of those that it was made under."""
        self._found.append((found, edits))
        self._many |= many

    def saved(self, found: Mapping[str, pa.Table]) -> None:
        """A run was saved: what it asked again is no longer shown as the unsaved runs answered it."""
        if self._found:
            self._found.append((found, None))

    def published(self, tables: Mapping[str, pa.Table]) -> None:
        """Keeps what was just published: the database that is attached is older."""
        self._published = dict(tables)

    def tables(self, edits: str | None = None) -> dict[str, pa.Table]:
        """The tables that differ from those of the attached database, unsaved runs merged in; the edits are not.

        Runs under other edits than `edits` are left out: the model no longer is the one that answered.
        """
        from larql_duck.probing.merge import PROBED
        from larql_duck.probing.publish import many_relations, merged_tables

        tables = dict(self._published)
        runs = [found for found, under in self._found if under in (None, edits)]
        if runs:
            vindex = self._session.need()
            known = {name: tables.get(name, vindex.table(name)) for name in PROBED}
            for found in runs:
                tables = merged_tables(vindex, known, found, many_relations(vindex) | self._many)
                known = {name: tables[name] for name in PROBED}
        return tables

    def hidden(self, edits: str | None) -> int:
        """How many unsaved runs were made under other edits."""
        return sum(under not in (None, edits) for _, under in self._found)

    @property
    def many(self) -> set[str]:
        """Relations with many answers among the unsaved runs."""
        return set(self._many)
