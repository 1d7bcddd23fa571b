"""Asking the model from a session: what is asked, the run, and the new rows shown and saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from larql_duck.errors import PackError
from larql_duck.result import Result

if TYPE_CHECKING:
    from larql_duck.knowledge.relations import Pack
    from larql_duck.probing.facts import Probed
    from larql_duck.session.session import Session

COLUMNS = ("subject", "relation", "object", "p", "confidence", "n_features", "effect")


def probe(
    session: Session,
    entities: object = None,
    relations: object = None,
    *,
    pack: str | Path | Pack | None = None,
    limit: int | None = None,
    save: bool = True,
    specific: bool = False,
    ablation: Literal["zero", "mean"] = "zero",
    top_n: int = 3,
    checkpoint: Path | None = None,
) -> Result:
    """One row per fact found (COLUMNS): the best answers, and further ones of relations with many.

    See `Session.probe`. The new rows are shown by the session at once; with save they are published first.
    """
    from larql_duck.probing.facts import probe as run
    from larql_duck.probing.publish import publish, require_tables
    from larql_duck.session.overlay_views import show_tables

    vindex = session.need()
    require_tables(vindex)
    vindex.require("inference", "PROBE")
    asked = pack_of(session, entities, relations, pack)
    many = {r.name for r in asked.relations if r.many}

    def progress(done: int, total: int) -> None:
        if session.progress is not None:
            session.progress("probe", done, total)

    found = run(
        session.engine(),
        asked,
        limit=limit,
        top_n=top_n,
        specific=specific,
        ablation=ablation,
        calibration=_calibration(vindex.manifest.raw),
        progress=progress,
        checkpoint=checkpoint,
    )
    notices = list(found.notices)
    edits = session.edited.fingerprint()
    if save and edits is not None:
        save = False
        notices.append(
            "the answers are those of the edited model, so they are not saved in the vindex: "
            "COMPILE CURRENT INTO VINDEX and probe that to keep them"
        )
    if save:
        published = publish(vindex, found.tables, name=asked.name, many=many, statistics=_statistics(found))
        session.unsaved.saved(found.tables)
        session.unsaved.published(published)
        notices.append(f"saved in {vindex.path}")
    else:
        session.unsaved.add(found.tables, many, edits)
        notices.append("not saved: this session alone shows these facts")
    notices += show_tables(session)
    return Result(_rows(found.tables["facts"], many), notices=notices)


def pack_of(session: Session, entities: object, relations: object, pack: str | Path | Pack | None) -> Pack:
    """The pack to ask: of these entities (a text is SQL) and relations, or of a pack narrowed to them; else 'core'."""
    from larql_duck.knowledge.frames import entities_of
    from larql_duck.knowledge.relations import Pack
    from larql_duck.probing.packs import load_pack, pack_from_frames

    if isinstance(entities, str):
        entities = session.sql(entities).arrow()
    if pack is None and entities is None and relations is None:
        pack = "core"
    if pack is None:
        return pack_from_frames(entities, relations)
    if isinstance(relations, Mapping):
        raise PackError("templates go with a relation of your own, without a pack", field="templates")
    whole = pack if isinstance(pack, Pack) else load_pack(pack)
    chosen = whole.select(relations)  # type: ignore[arg-type]
    rows = entities_of(entities)
    if rows is None:
        return chosen
    return Pack(chosen.name, tuple(r.over_rows(rows) for r in chosen.relations), chosen.path)


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


def _rows(facts: pa.Table, many: set[str]) -> pa.Table:
    from larql_duck.probing.facts import MANY_P

    columns = facts.select(["relation", "rank", "p"]).to_pydict()
    kept = [
        rank == 1 or (relation in many and p >= MANY_P)
        for relation, rank, p in zip(*columns.values(), strict=True)
    ]
    return facts.filter(pa.array(kept, pa.bool_())).select(list(COLUMNS))


def _calibration(raw: Mapping[str, Any]) -> Any:
    from larql_duck.probing.calibrate import Calibration
    from larql_duck.vindex.manifest import SECTION

    kept = raw.get(SECTION, {}).get("probe", {}).get("calibration")
    return None if not kept else Calibration.from_json(kept)


def _statistics(found: Probed) -> dict[str, Any]:
    return {"calibration": found.calibration.as_json(), "relations": found.report.get("relations", {})}
