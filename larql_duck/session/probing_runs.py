"""What a session has probed without saving it in the vindex."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from larql_duck.probing.merge import PROBED
from larql_duck.probing.publish import many_relations, merged_tables
from larql_duck.vindex.store import Vindex


class UnsavedRuns:
    """The probing runs on a vindex that are shown in front of its stored tables as long as it is open."""

    def __init__(self, vindex: Vindex) -> None:
        self._vindex = vindex
        self._runs: list[tuple[Mapping[str, pa.Table], str | None]] = []
        self._published: dict[str, pa.Table] = {}
        self._many: set[str] = set()

    def add(self, tables: Mapping[str, pa.Table], many: set[str], edits: str | None = None) -> None:
        """Keep a run that is not to be saved; edits is the fingerprint of those that it was made under."""
        self._runs.append((tables, edits))
        self._many |= many

    def saved(self, tables: Mapping[str, pa.Table]) -> None:
        """Note a run that was saved: what it asked again is no longer shown as the unsaved runs answered it."""
        if self._runs:
            self._runs.append((tables, None))

    def published(self, tables: Mapping[str, pa.Table]) -> None:
        """Keep what was just published: the database that is attached is older."""
        self._published = dict(tables)

    def tables(self, edits: str | None = None) -> dict[str, pa.Table]:
        """The tables that differ from those of the attached database, unsaved runs merged in; the edits are not.

        Runs under other edits than `edits` are left out: the model no longer is the one that answered.
        """
        tables = dict(self._published)
        runs = [run for run, under in self._runs if under in (None, edits)]
        if runs:
            vindex = self._vindex
            known = {name: tables.get(name, vindex.table(name)) for name in PROBED}
            for run in runs:
                tables = merged_tables(vindex, known, run, many_relations(vindex) | self._many)
                known = {name: tables[name] for name in PROBED}
        return tables

    def hidden(self, edits: str | None) -> int:
        """How many unsaved runs were made under other edits."""
        return sum(under not in (None, edits) for _, under in self._runs)

    @property
    def many(self) -> set[str]:
        """Relations with many answers among the unsaved runs."""
        return set(self._many)
