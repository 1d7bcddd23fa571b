"""Dictionaries from outside, added to the open vindex."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from larql_duck.atlas.collecting import WINDOW
from larql_duck.atlas.dictionary import CONFIG, WEIGHTS, Dictionary, checked_name, kept_files, read_dictionary
from larql_duck.atlas.dictionary_tables import TOP, dictionary_tables, measure_dictionary
from larql_duck.atlas.texts import SHIPPED, open_corpus
from larql_duck.catalog import SCHEMAS
from larql_duck.commands.storing import check_storable, store
from larql_duck.extraction.promoted_tokens import OutputHead
from larql_duck.extraction.vocabulary import vocabulary_of
from larql_duck.inference.engine import Engine
from larql_duck.progress import report
from larql_duck.result import Result

if TYPE_CHECKING:
    from larql_duck.session import Session
    from larql_duck.vindex.store import Vindex

TABLES = ("dictionaries", "dictionary_features", "dictionary_firings")
# Promoted and suppressed tokens of a feature.
_TOKENS = 10
# Features whose tokens are sought at once.
_ROWS = 512


def add_dictionary(
    session: Session,
    directory: str | Path,
    name: str | None = None,
    *,
    texts: str | Path | None = None,
    column: str | None = None,
    top: int = TOP,
    window: int = WINDOW,
) -> Result:
    """The row of table dictionaries, after a sparse dictionary was copied into the open vindex and its features measured.

    directory holds sae_weights.safetensors and cfg.json as SAELens writes them; name (default: the directory's) is what it
    is called here, and what it replaces. The texts are those of `Session.collect_examples`, of which the `top` strongest
    tokens of each feature are kept.
    """
    workspace = session.workspace
    vindex = workspace.vindex
    directory = Path(directory).expanduser()
    name = checked_name(name or directory.resolve().name.lower())
    corpus = open_corpus(texts or SHIPPED, column)
    check_storable(workspace, "measuring a dictionary")
    weights, config = directory / WEIGHTS, directory / CONFIG
    dictionary = read_dictionary(weights, config, hidden=vindex.hidden, n_layers=vindex.n_layers)
    engine = workspace.engine()
    notices: list[str] = []
    measured, firings = measure_dictionary(
        engine, dictionary, corpus, top=top, window=window, notice=notices.append, progress=report
    )
    kept, kept_config = kept_files(name)
    made = dictionary_tables(
        name, dictionary, measured, firings, _promoted(vindex, engine, dictionary), source=directory.resolve().name, file=kept
    )  # fmt: skip
    tables = {}
    for table in TABLES:
        others = workspace.query(
            f"SELECT * FROM {workspace.schema}.{table} WHERE dictionary <> $1", [name]
        ).arrow()
        tables[table] = pa.concat_tables([others.cast(SCHEMAS[table]), made[table]])
    store(workspace, tables, files={kept: weights, kept_config: config})
    workspace.cache.pop(("dictionary", name), None)
    said = (
        f"{measured.error:.1%} of the variance is not reconstructed, over {measured.n_tokens} tokens; saved in "
        f"{vindex.path}; ask: FROM dictionary_features WHERE dictionary = '{name}'"
    )
    return Result(made["dictionaries"], notices=[*notices, said])


def _promoted(vindex: Vindex, engine: Engine, dictionary: Dictionary) -> list[tuple[list[str], list[str]]]:
    """For each feature the tokens that its decoder row promotes and suppresses most; none where it writes no residual."""
    if not dictionary.out.direct:
        return [([], [])] * dictionary.n_features
    vocabulary = vocabulary_of(engine.tokenizer)
    head = OutputHead.of(vindex, vocabulary, keep=dictionary.n_features > 256)
    promoted: list[tuple[list[str], list[str]]] = []
    for rows in dictionary.decoder.split(_ROWS):
        for found in head.search(rows.t(), _TOKENS).rows():
            up, down = (vocabulary.tokens.take(pa.array(ids)).to_pylist() for ids in found.ids)
            promoted.append((up, down))
        report("tokens", len(promoted), dictionary.n_features)
    return promoted
