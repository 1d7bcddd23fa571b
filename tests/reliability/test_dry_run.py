"""PROBE ... DRY RUN shows facts and leaves nothing of them."""

from __future__ import annotations

from pathlib import Path

import larql_duck as lq

PROBE = 'PROBE RELATIONS "size" TEMPLATE "The size of {} is" ENTITIES "Paris", "Rome"'
COUNT = "SELECT count(*) FROM lq.probes WHERE relation = 'size'"


def test_a_dry_run_is_neither_counted_nor_compiled(probed_vindex, tmp_path: Path) -> None:
    with lq.connect(probed_vindex("llama")) as s:
        before = s.con.sql("FROM lq.probes").fetchall()
        dry = s.lql(f"{PROBE} DRY RUN")
        assert any("would be saved" in n for n in dry.notices)
        assert s.con.sql("FROM lq.probes").fetchall() == before
        assert s.con.sql(COUNT).fetchall() == [(0,)]
        out = tmp_path / "out.vindex"
        s.lql(f'COMPILE CURRENT INTO VINDEX "{out}"')
    with lq.connect(out) as s:
        assert s.con.sql(COUNT).fetchall() == [(0,)]


def test_a_run_that_python_asked_not_to_save_stays_with_the_session(probed_vindex) -> None:
    with lq.connect(probed_vindex("llama")) as s:
        s.probe(["Paris", "Rome"], {"size": ["The size of {} is"]}, save=False)
        assert s.con.sql(COUNT).fetchall() != [(0,)]
