"""The commands that exchange facts and features with other tools: export, add-dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from larql_duck.cli.errors import UsageError, note, say
from larql_duck.cli.options import OutputOptions, SessionOptions, VindexArgument, command

if TYPE_CHECKING:
    from larql_duck.lql.statements import Statement
    from larql_duck.session import Session

app = typer.Typer()

# What is counted in a file of each format.
_RECORDS = {
    **dict.fromkeys(("turtle", "nquads", "jsonld"), "RDF statements"),
    "graphml": "nodes and edges",
    **dict.fromkeys(("neo4j", "csv", "parquet"), "rows"),
}


@dataclass(frozen=True)
class FactOptions:
    """Which facts a file has, and how they are called."""

    query: Annotated[
        str | None, Option(help="An LQL query whose rows are written; default: the facts of the vindex.")
    ] = None
    base: Annotated[
        str | None, Option(help="RDF: what the IRIs of names begin with, as https://example.org/.")
    ] = None
    reifiers: Annotated[
        bool, Option("--reifiers", help="turtle, nquads: RDF 1.2 reifiers instead of rdf:Statements.")
    ] = False

    def statement(self, out: Path, form: str) -> Statement:
        """The EXPORT that writes them."""
        from larql_duck.lql import parse_one
        from larql_duck.lql.statements import Export, Select

        query = None
        if self.query is not None:
            parsed = parse_one(self.query)
            if not isinstance(parsed, Select):
                raise UsageError("--query takes one query: SELECT, WITH or FROM")
            query = parsed.query
        return Export(str(out), form, query, self.reifiers, self.base)


@dataclass(frozen=True)
class NeuronpediaOptions:
    """What Neuronpedia's files are called by, and how many examples they have."""

    model_id: Annotated[
        str | None, Option(help="neuronpedia: modelId in the files; default: made of the model's name.")
    ] = None
    source_set: Annotated[
        str | None,
        Option(help="neuronpedia: sources are named LAYER for neurons (default), else LAYER-NAME."),
    ] = None
    top: Annotated[
        int | None, Option(min=1, help="neuronpedia: examples a feature and sign; default: 5.")
    ] = None

    def write(self, session: Session, out: Path) -> None:
        """Write features.jsonl, activations.jsonl and explanations.jsonl into the directory `out`."""
        from larql_duck.atlas.neuronpedia import NEURONS, TOP, model_id_of, write_export

        model_id, vindex = self.model_id, session.workspace.vindex
        if model_id is None:
            names = session.sql("SELECT value FROM meta WHERE key = 'model'").rows()
            model_id = model_id_of(names[0][0] if names else vindex.path.stem)
        written = write_export(
            session.cursor(), session.schema, vindex, out,
            model_id=model_id, source_set=self.source_set or NEURONS, top=self.top or TOP,
        )  # fmt: skip
        for file in written:
            say(f"made {file.path}: {file.lines} lines, {file.bytes / 1e6:.1f} MB")


@dataclass(frozen=True)
class TableOptions:
    """Whether all tables are written, and how they are cut."""

    tables: Annotated[
        bool, Option("--tables", help="parquet: every table into a new directory, not the facts into a file.")
    ] = False
    partition_by: Annotated[
        Literal["layer"] | None,
        Option(help="Tables of many rows in parts: parquet (with --tables), delta, iceberg."),
    ] = None
    partition_above: Annotated[
        int | None, Option(min=0, help="Rows from which a table is partitioned; default: 1000000.")
    ] = None

    def write(self, session: Session, out: Path, form: str) -> None:
        """Write every table into the new directory `out`."""
        from larql_duck.exporting.warehouse import PARTITION_ABOVE, write_tables

        above = PARTITION_ABOVE if self.partition_above is None else self.partition_above
        by_layer = self.partition_by is not None
        workspace = session.workspace
        written = write_tables(
            workspace, workspace.schema, out.expanduser(), form, by_layer=by_layer, above=above
        )
        n_rows, n_bytes = sum(t.rows for t in written), sum(t.bytes for t in written)
        say(f"made {out}: {len(written)} tables, {n_rows} rows, {n_bytes / 1e6:.1f} MB")
        if parts := [t.name for t in written if t.partitioned]:
            note(f"partitioned by layer: {', '.join(parts)}")


_LAKES = ("delta", "iceberg")


@command(
    app,
    "export X.vindex --format turtle -o facts.ttl",
    "export X.vindex --format csv -o best.csv --query 'SELECT * FROM FACTS WHERE p > 0.5'",
    "export X.vindex --format parquet --tables --partition-by layer -o warehouse/",
    "export X.vindex --format delta -o lake/",
    "export X.vindex --format neuronpedia -o exported/ --model-id gpt2-small --top 20",
)
def export(
    vindex: VindexArgument,
    out: Annotated[
        Path, Option("-o", "--out", help="The file, or the directory of tables or of neuronpedia, to write.")
    ],
    form: Annotated[
        Literal[
            "turtle",
            "nquads",
            "jsonld",
            "graphml",
            "neo4j",
            "csv",
            "parquet",
            "delta",
            "iceberg",
            "neuronpedia",
        ],
        Option("--format", help="Whose shape the files have."),
    ],
    facts: FactOptions,
    tables: TableOptions,
    neuronpedia: NeuronpediaOptions,
    options: SessionOptions,
) -> None:
    """Write facts for other tools, all tables for other engines, or features as Neuronpedia has them.

    Facts as by EXPORT ... INTO ... FORMAT ... of LQL; delta and iceberg write tables.
    """
    all_tables = tables.tables or form in _LAKES
    if (form == "neuronpedia" or all_tables) and facts != FactOptions():
        raise UsageError("--query, --base and --reifiers are for facts, not for tables or neuronpedia")
    if form != "neuronpedia" and neuronpedia != NeuronpediaOptions():
        raise UsageError("--model-id, --source-set and --top are for --format neuronpedia")
    if not (all_tables and form in ("parquet", *_LAKES)) and tables != TableOptions():
        raise UsageError("--tables and --partition-by are for --format parquet --tables, delta and iceberg")
    with options.session(vindex) as session:
        if form == "neuronpedia":
            neuronpedia.write(session, out)
        elif all_tables:
            tables.write(session, out, form)
        else:
            [result] = session.run(facts.statement(out, form))
            for file, _, records, size in result.rows():
                say(f"made {file}: {records} {_RECORDS[form]}, {size / 1e6:.1f} MB")
            for notice in result.notices:
                note(notice)


@command(
    app,
    "add-dictionary X.vindex sae/blocks.12.hook_resid_post/ --name res-12",
    "add-dictionary X.vindex transcoder/ texts.parquet",
    name="add-dictionary",
)
def add_dictionary(
    vindex: VindexArgument,
    directory: Annotated[
        Path, Argument(metavar="DIR", help="A dictionary: sae_weights.safetensors and cfg.json of SAELens.")
    ],
    options: SessionOptions,
    output: OutputOptions,
    corpus: Annotated[
        Path | None,
        Argument(metavar="TEXTS", help="Texts that it is measured on; default: texts of our own."),
    ] = None,
    name: Annotated[str | None, Option(help="What it is called; default: the directory's name.")] = None,
    top: Annotated[int, Option(min=1, help="Examples a feature.")] = 20,
    window: Annotated[int, Option(min=2, help="Tokens that are read together.")] = 256,
    column: Annotated[str | None, Option(help="The column or field of texts.")] = None,
) -> None:
    """Add a sparse autoencoder or a transcoder to a vindex.

    Its features get tables, examples and the functions lq_dictionary_features and lq_dictionary_walk.
    """
    from larql_duck.atlas.dictionary import WEIGHTS
    from larql_duck.commands.dictionaries import add_dictionary as add

    weights = directory.expanduser() / WEIGHTS
    if weights.is_file():
        note(f"{weights.stat().st_size / 1e6:.1f} MB are copied into {vindex}")
    with options.session(vindex) as session:
        added = add(session, directory, name, texts=corpus, top=top, window=window, column=column)
        output.write([added])
