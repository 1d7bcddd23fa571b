"""AUDIT: two models asked the same questions, the tables transfer and retention, and the report of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from larql_duck.catalog.comparison_tables import comments_on
from larql_duck.catalog.ddl import quoted
from larql_duck.databases import in_memory, not_nameable
from larql_duck.distillation.audit import TeacherAudit, Transfer
from larql_duck.distillation.audit_page import audit_page
from larql_duck.distillation.parties import Party, current_party, open_party
from larql_duck.distillation.questions import audit_questions
from larql_duck.distillation.retention import retention_table
from larql_duck.errors import LarqlError
from larql_duck.files import Replaces, begins, check_output, replacing, with_parents, write_whole
from larql_duck.inference.settings import Settings
from larql_duck.lowering.types import Query, Request, fail
from larql_duck.lql import statements as st
from larql_duck.result import Result
from larql_duck.session import Session

_PAGE = begins(b"<!doctype html")


def _is_database(head: bytes) -> bool:
    return head[8:12] == b"DUCK"


# Files of an audit's directory, and what each may replace.
_FILES: dict[str, Replaces] = {
    "report.html": _PAGE,
    "report.json": begins(b'{\n "teacher":'),
    "audit.duckdb": _is_database,
}


class AuditResult(Result):
    """The table `transfer` as a Result; retention is the other table, both are names for people."""

    def __init__(self, names: tuple[str, str], transfer: Transfer) -> None:
        """names are those of teacher and student."""
        self.names, self._transfer = names, transfer
        self.retention = Result(retention_table(transfer.table))
        super().__init__(transfer.table, notices=[_summary(transfer, self.retention), *transfer.notices])

    @property
    def tables(self) -> dict[str, pa.Table]:
        """Name -> each table of the audit; with features also matched_features and layer_shares."""
        tables = {"transfer": self.arrow(), "retention": self.retention.arrow()}
        where = self._transfer.where
        if where is not None:
            tables |= {"matched_features": where.matched, "layer_shares": where.layers}
        return tables

    def page(self) -> str:
        """The report as HTML. LarqlError where the libraries that draw charts are not installed."""
        return audit_page(*self.names, self._transfer, self.retention.arrow())

    def save(self, directory: str | Path) -> Path:
        """The directory after report.html, report.json and audit.duckdb were written there: `FROM transfer` in the last."""
        folder = check_folder(directory)
        page, figures = self.page(), self._figures()
        with with_parents(folder / "report.html"):
            write_whole(folder / "report.html", page, replaces=_FILES["report.html"])
            write_whole(folder / "report.json", figures, replaces=_FILES["report.json"])
            with replacing(folder / "audit.duckdb", replaces=_is_database) as file:
                self._write_database(file)
        return folder

    def _figures(self) -> str:
        teacher, student = self.names
        figures = {
            "teacher": teacher,
            "student": student,
            "questions": len(self),
            "counts": self._transfer.counts(),
            "notices": self._transfer.notices,
            "retention": self.retention.dicts(),
        }
        return json.dumps(figures, indent=1, ensure_ascii=False)

    def _write_database(self, file: Path) -> None:
        # Attached under a name of our own: the file's may be any.
        with in_memory() as con:
            con.execute(f"ATTACH {quoted(str(file))} AS made")
            for name, rows in self.tables.items():
                con.register("rows", rows)
                con.execute(f"CREATE TABLE made.main.{name} AS FROM rows")
                con.execute(comments_on(name, "made.main"))
                con.unregister("rows")
            con.execute("DETACH made")


def check_folder(directory: str | Path) -> Path:
    """The directory of an audit's files; LarqlError where one of them may not be written."""
    folder = Path(directory).expanduser()
    if reason := not_nameable(folder):
        raise LarqlError(f"{folder}: {reason}; name another directory")
    for name, replaces in _FILES.items():
        check_output(folder / name, replaces)
    return folder


def audit(
    teacher: str | Path,
    student: str | Path,
    *,
    pack: Any = None,
    entities: Any = None,
    relations: Collection[str] | None = None,
    limit: int | None = None,
    features: bool = False,
    settings: Settings | None = None,
    checkpoint: Path | None = None,
) -> AuditResult:
    """What a student kept of what its teacher states: the table `transfer`, a row a question, with `.retention` and `.save(dir)`.

    teacher and student are vindexes or models of any family and tokenizer. Both are asked the facts that either vindex holds
    (without any those of the pack core), or those of `pack`, or about `entities` (names or a table, as in `Session.probe`);
    relations picks some by name, limit each relation's first subjects; features: also which features carry what was kept
    (`.tables` then has matched_features and layer_shares). checkpoint is a directory in which a run that is
    killed leaves finished batches. LevelError for a vindex without weights.
    """
    parties = (open_party(teacher, settings), open_party(student, settings))
    options = {"pack": pack, "entities": entities, "relations": relations, "limit": limit}
    return _audited(parties, options, features=features, checkpoint=checkpoint)


def audit_statement(session: Session, request: Request) -> Result:
    """AUDIT teacher AGAINST student: the table retention; `FROM transfer` shows every question from then on."""
    s: st.Audit = request.statement
    options = dict(request.arguments)
    if isinstance(query := options["entities"], Query):
        table = session.workspace.query(query.sql).arrow()
        if not table.num_rows:
            raise fail(s, "the query after ENTITIES gives no rows, so there is nobody to ask about", "query")
        options["entities"] = table.select([0]).rename_columns(["subject"])
    if s.into_report is not None:
        check_output(s.into_report, _PAGE)
    parties = (_party(session, s.teacher), _party(session, s.student))
    result = _audited(parties, options, features=s.features)
    show_tables(session, result.tables)
    notices = [*result.notices, "FROM transfer WHERE status = 'lost' shows what was lost"]
    if s.into_report is not None:
        write_whole(s.into_report, result.page(), replaces=_PAGE)
        notices.append(f"wrote {s.into_report}")
    return Result(result.retention.arrow(), notices=notices)


def show_tables(session: Session, tables: Mapping[str, pa.Table]) -> None:
    """Show the rows as tables of catalog/comparison.txt in the session's schema, until another vindex is opened."""
    with session.cursor() as con:
        for name, rows in tables.items():
            con.register("larql_rows", rows)
            con.execute(f"CREATE OR REPLACE TABLE {session.schema}.{name} AS FROM larql_rows")
            con.execute(comments_on(name, session.schema))
            con.unregister("larql_rows")


def _party(session: Session, path: str | None) -> Party:
    if path is None:
        return current_party(session.workspace)
    return open_party(path, session.options.settings)


def _audited(
    parties: tuple[Party, Party],
    options: dict[str, Any],
    *,
    features: bool,
    checkpoint: Path | None = None,
) -> AuditResult:
    asked = audit_questions(parties, **options)
    names = parties[0].name, parties[1].name
    run = TeacherAudit(parties[0], asked, checkpoint=checkpoint)
    return AuditResult(names, run.of(parties[1], features=features))


def _summary(transfer: Transfer, retention: Result) -> str:
    whole = retention.dicts()[0]
    counts = ", ".join(f"{count} {status}" for status, count in transfer.counts().items())
    if not whole["facts"]:
        return f"{counts}; the teacher states none of them surely"
    share = f"{whole['retention']:.1%} ({whole['low']:.1%} to {whole['high']:.1%})"
    return f"{counts}; of {whole['facts']} facts that the teacher states surely, {share} are kept"
