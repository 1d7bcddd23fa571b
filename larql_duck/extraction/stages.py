"""The stages of one extraction, from arrays to the published directory."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from larql_duck._version import __version__
from larql_duck.catalog import FILES, empty_table, rows_as_table
from larql_duck.catalog.ddl import model_sql
from larql_duck.extraction import table_rows as rows
from larql_duck.extraction import weight_arrays as arrays
from larql_duck.extraction.context import TokenFeatures, collect_layer, run_layer, token_stream
from larql_duck.extraction.embedding import EmbeddingInputs
from larql_duck.extraction.estimate import estimate_cost, matrix_speed
from larql_duck.extraction.index_json import index_json
from larql_duck.extraction.job import Job
from larql_duck.extraction.options import PROMOTED, TOP_ACTIVATING
from larql_duck.extraction.promoted_tokens import OutputHead
from larql_duck.extraction.proof import prove, stream_problem
from larql_duck.extraction.provenance import provenance
from larql_duck.extraction.state import Staging
from larql_duck.files import open_replacing
from larql_duck.inference.engine import Engine
from larql_duck.inference.query_vectors import NEUTRAL
from larql_duck.inference.topk import row_blocks
from larql_duck.knowledge.entities import members
from larql_duck.models.source import ffn_matrix
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.choosing import Knowledge
from larql_duck.probing.entity_types import fit_types, types_table
from larql_duck.probing.facts import probe
from larql_duck.probing.learning import Lessons, with_open_world, without_taught
from larql_duck.probing.merge import merge
from larql_duck.probing.open_world import OpenWorld
from larql_duck.probing.packs import known_relations, load_pack
from larql_duck.probing.publish import LABELS, feature_labels
from larql_duck.probing.stored import knowledge_in
from larql_duck.probing.vocabulary_names import ask_vocabulary
from larql_duck.progress import Progress
from larql_duck.vindex import layout
from larql_duck.vindex.arrays import hash_file, write_file
from larql_duck.vindex.bands import band_of, layer_bands
from larql_duck.vindex.derive import (
    derive_entities,
    derive_triples,
    label_features,
    model_graph,
    weight_edges,
)
from larql_duck.vindex.manifest import INDEX, SECTION, timestamp
from larql_duck.vindex.publish import MODEL_SQL, TABLES, rebuild_database, seal_manifest, write_table

# A checkpoint may cost this share of the time since the last one.
_CHECKPOINT_SHARE = 0.04
# Extraction asks no more than this; PROBE asks the rest.
MAX_PROMPTS = 2000


@dataclass(frozen=True)
class _Facts:
    """Tables by name as probing made them, the relations with several answers, and what index.json keeps of the run."""

    tables: dict[str, pa.Table] = field(default_factory=dict)
    many: list[str] = field(default_factory=list)
    pack: str | None = None
    record: dict[str, Any] | None = None

    def table(self, name: str) -> pa.Table:
        """The table as probing made it, an empty one where it made none."""
        return self.tables.get(name, empty_table(name))


class Extraction:
    """One run: `run()` fills the staging directory stage by stage."""

    def __init__(self, job: Job, staging: Staging, progress: Progress, notice: Callable[[str], None]) -> None:
        self.job, self.staging, self.progress, self.notice = job, staging, progress, notice
        self.source, self.sizes, self.options = job.source, job.sizes, job.options
        self.layers = job.layers
        self.bands = layer_bands(job.source.family.name, self.sizes.n_layers)
        self.extracted_at = timestamp()
        self.seconds: dict[str, float] = dict(staging.done("seconds") or {})

    def run(self) -> None:
        """Run what is not finished yet."""
        if self.source.family.measured is not None and self.options.level != "browse":
            prove(self.source)
        self._arrays()
        self._promoted_tokens()
        basis = self._basis()
        self._top_activating_tokens(basis)
        facts = self._facts()
        entries = self._tables(basis, facts)
        self._complete(basis, entries, facts)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        self.staging.record("seconds", self.seconds)
        self.job.release()

    def _layer_done(self, stage: str, layer: int) -> None:
        self.progress(stage, layer + 1 - self.layers.start, len(self.layers))
        self.job.release()

    # -- arrays -------------------------------------------------------------------------------------------

    def _arrays(self) -> None:
        if self.staging.done("arrays"):
            return
        directory, dtype, n = self.staging.directory, self.job.dtype, self.sizes.n_layers
        browse = self.options.level == "browse"
        total, written = _elements(self.job, browse), 0.0

        def step(elements: float) -> None:
            nonlocal written
            written += elements
            self.progress("arrays", written, total)
            self.job.release()

        with self._stage("arrays"):
            origin = provenance(self.job)
            files = arrays.write_config_files(self.source, directory)
            files[layout.GATE], layers = arrays.write_gates(self.source, n, dtype, directory, step)
            files[layout.EMBED] = arrays.write_embeddings(self.source, dtype, directory, step)
            if not browse:
                files |= arrays.write_weights(self.source, n, dtype, directory, step)
            self.staging.record("arrays", {"files": files, "layers": layers, "origin": origin})

    # -- promoted tokens ----------------------------------------------------------------------------------

    def _promoted_tokens(self) -> None:
        missing = [i for i in self.layers if self.staging.done(f"promoted-{i}") is None]
        if not missing:
            return
        with self._stage(PROMOTED):
            head = OutputHead.of(self.source, self.job.vocabulary)
            for layer in missing:
                promoted = head.search(ffn_matrix(self.source, layer, "down"), self.options.top_k)
                gate = ffn_matrix(self.source, layer, "gate").float()
                up = ffn_matrix(self.source, layer, "up")
                up_norm = torch.full((len(gate),), torch.nan) if up is None else up.float().norm(dim=1)
                measured = {f"promoted_{name}": values.numpy() for name, values in vars(promoted).items()}
                measured["promoted_ids"] = measured["promoted_ids"].astype(np.int32)
                norms = {"gate_norm": gate.norm(dim=1).numpy(), "up_norm": up_norm.numpy()}
                self.staging.save(f"promoted-{layer}", measured | norms)
                self.staging.record(f"promoted-{layer}")
                self._layer_done(PROMOTED, layer)

    # -- top activating tokens ----------------------------------------------------------------------------

    def _basis(self) -> str:
        """'context' or 'embedding'; decided once a run, so that resuming cannot change it."""
        basis = self.staging.done("basis")
        if basis is None:
            basis = self.options.in_basis
            if basis == "auto":
                basis = estimate_cost(self.job, matrix_speed(self.sizes.hidden)).basis
                if basis == "embedding":
                    self.notice(
                        "the context pass would take more than 30 minutes here, so top activating tokens are read off "
                        "the embedding; --in-basis context runs it all the same"
                    )
            if basis == "context" and (problem := self._stream_problem()):
                self.notice(
                    f"{problem}, so the context pass would not see what the model's layers see: top activating tokens "
                    "are read off the embedding"
                )
                basis = "embedding"
            self.staging.record("basis", basis)
        return str(basis)

    def _stream_problem(self) -> str | None:
        """Why the context pass, which adds a layer's branches up itself, is not the model's own; None where it is."""
        # Tests hold the listed families to transformers' own passes.
        if self.source.family.listed:
            return None
        return stream_problem(self.source, self.job.vocabulary.word_ids)

    def _top_activating_tokens(self, basis: str) -> None:
        if self.staging.done("top"):
            return
        ids = self.job.vocabulary.word_ids
        if basis == "context":
            ids = ids[: self.options.context_tokens]
        features = self._token_features(len(ids))
        with self._stage(TOP_ACTIVATING):
            if basis == "context":
                self._context_pass(ids, features)
            else:
                inputs = EmbeddingInputs(self.source, ids)
                k = min(self.options.top_k, len(ids))
                for layer in self.layers:
                    self._save_top(layer, vars(inputs.layer(layer, k, features)))
                    self._layer_done(TOP_ACTIVATING, layer)
            self.staging.save("token-features", features.state() | {"ids": ids})
            self.staging.record("top")

    def _context_pass(self, ids: np.ndarray, features: TokenFeatures) -> None:
        stream = token_stream(self.source, ids)
        k = min(self.options.top_k, len(ids))
        first = 0
        if self.staging.has("context"):
            checkpoint = self.staging.load("context")
            first = int(checkpoint["next"][0])
            stream.residual.copy_(torch.from_numpy(checkpoint["residual"]))
            stream.prefix_residual = torch.from_numpy(checkpoint["prefix"])
            features.restore(checkpoint)
        last_saved, cost = time.perf_counter(), 0.0
        for layer in range(first, self.layers.stop):
            if layer in self.layers:
                self._save_top(layer, vars(collect_layer(stream, layer, ids, k, features)))
            else:
                run_layer(stream, layer)
            now = time.perf_counter()
            if layer + 1 < self.layers.stop and cost <= _CHECKPOINT_SHARE * (now - last_saved):
                reached = {"residual": stream.residual.numpy(), "prefix": stream.prefix_residual.numpy()}
                self.staging.save("context", {"next": np.array([layer + 1])} | reached | features.state())
                last_saved = time.perf_counter()
                cost = last_saved - now
            self.progress(TOP_ACTIVATING, layer + 1, self.layers.stop)
            self.job.release()

    def _save_top(self, layer: int, measured: dict[str, np.ndarray]) -> None:
        self.staging.save(f"top-{layer}", {f"top_{name}": values for name, values in measured.items()})

    def _token_features(self, n_tokens: int) -> TokenFeatures:
        counts = [self.sizes.intermediate[i] for i in self.layers]
        return TokenFeatures(n_tokens, counts, self.layers.start)

    # -- facts --------------------------------------------------------------------------------------------

    def _facts(self) -> _Facts:
        if not self.options.probe:
            return _Facts()
        pack = load_pack(self.options.pack, self.options.relations)
        with self._stage("facts"):
            engine = Engine.load(self.source)
            said, kept = partial(self.progress, "facts"), self.staging.work / "facts"
            own = {r.name for r in pack.relations}
            n_names = self.options.n_names(self.sizes.parameters)
            types = fit_types(engine, members(known_relations().values())) if n_names else None
            lessons = with_open_world(pack) if n_names else Lessons(pack, Knowledge(), {})
            whole = lessons.pack
            further = {r.name: len(r.entities) for r in whole.relations if r.name not in own}
            run = probe(
                engine,
                whole,
                max_prompts=MAX_PROMPTS + sum(further.values()),
                known=replace(lessons.usual, types=types),
                unmeasured=further,
                nobody=lessons.nobody,
                progress=said,
                checkpoint=kept,
            )
            for notice in run.notices:
                if notice not in self.job.notices:
                    self.notice(notice)
            # For later runs, whose relations may have no reference answers of their own.
            record = {"calibration": run.calibration.as_json()}
            tables = without_taught(run.tables, further)
        many = {r.name for r in whole.relations if r.many}
        if n_names:
            with self._stage("names"):
                known = knowledge_in(tables, run.calibration, types)
                tables, more = self._names(engine, tables, known, n_names)
                many |= more
        return _Facts(tables, sorted(many), pack.name, record)

    def _names(
        self, engine: Engine, tables: dict[str, pa.Table], known: Knowledge, n: int
    ) -> tuple[dict[str, pa.Table], set[str]]:
        """The tables with what types names are and the facts about n names of the vocabulary; relations of many answers."""
        world = OpenWorld(engine, known)
        subjects = list(dict.fromkeys(tables["facts"]["subject"].to_pylist()))
        store = Checkpoint(self.staging.work / "names", [engine.fingerprint, str(engine.model.dtype)])
        asked = ask_vocabulary(
            world, n, set(subjects), checkpoint=store, done=partial(self.progress, "names")
        )
        merged = dict(merge(tables, asked.tables))
        merged["type_probe"] = rows_as_table("type_probe", [] if known.types is None else known.types.rows())
        of_subjects = types_table(subjects, world.types(subjects), {})
        merged["entity_types"] = pa.concat_tables([of_subjects, asked.tables["entity_types"]])
        return merged, asked.many

    # -- tables -------------------------------------------------------------------------------------------

    def _measured(self, layer: int) -> dict[str, np.ndarray]:
        """Everything that was measured of a layer's features, under the names that `table_rows` uses."""
        return self.staging.load(f"promoted-{layer}") | self.staging.load(f"top-{layer}")

    def _tables(self, basis: str, facts: _Facts) -> dict[str, dict[str, Any]]:
        """The manifest entries of all tables, after they were written."""
        directory = self.staging.directory / TABLES
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        entries: dict[str, dict[str, Any]] = {}

        def put(name: str, table: pa.Table | Iterator[pa.Table]) -> None:
            entries[name] = write_table(directory / f"{name}.parquet", name, table)
            self.progress("tables", len(entries), len(FILES))

        with self._stage("tables"):
            vocabulary = self.job.vocabulary
            put("tokens", rows.tokens_table(vocabulary, self._embedding_norms()))
            bands = [band_of(i, self.bands) for i in range(self.sizes.n_layers)]
            put("layers", rows.layers_table(self.staging.done("arrays")["layers"], bands))
            layers = (rows.feature_tokens_layer(i, self._measured(i), vocabulary, basis) for i in self.layers)
            put("feature_tokens", layers)
            features = pa.concat_tables(
                rows.features_layer(i, self._measured(i), vocabulary, basis) for i in self.layers
            )
            features = label_features(features, facts.table("feature_relations"))
            put("features", features)
            checkpoint = self.staging.load("token-features")
            ids = checkpoint["ids"]
            token_features = self._token_features(len(ids))
            token_features.restore(checkpoint)
            put("token_features", rows.token_features_tables(token_features, ids, vocabulary, basis))
            weights = weight_edges(directory / "feature_tokens.parquet")
            edges = pa.concat_tables([facts.table("edges"), weights])
            put("edges", edges)
            put("facts", facts.table("facts"))
            triples = derive_triples(directory / "facts.parquet", edges, facts.many)
            put("triples", triples)
            put("model_graph", model_graph(triples))
            put("entities", derive_entities(triples))
            put("meta", rows.meta_table(self._meta(basis)))
            for name in FILES:
                if name not in entries:
                    put(name, facts.table(name))
        return entries

    def _embedding_norms(self) -> np.ndarray:
        matrix = self.source.tensor(self.source.family.embed)
        norms = np.empty(len(matrix), np.float32)
        for start, stop in row_blocks(len(matrix), 8192):
            norms[start:stop] = matrix[start:stop].float().norm(dim=1).numpy()
        return norms

    def _meta(self, basis: str) -> dict[str, object]:
        return {
            "model": self.job.name,
            "family": self.source.family.name,
            "layers": self.sizes.n_layers,
            "hidden": self.sizes.hidden,
            "features": sum(self.sizes.intermediate),
            "vocab": self.sizes.vocab,
            "level": self.options.level,
            "dtype": self.job.dtype,
            "in_basis": basis,
            "context": NEUTRAL if basis == "context" else None,
            "pack": self.options.as_dict()["pack"] if self.options.probe else None,
            **(self.staging.done("arrays").get("origin") or {}),
            "extracted_at": self.extracted_at,
            "options": json.dumps(self.options.as_dict()),
            "larql_duck": __version__,
            "torch": torch.__version__,
        }

    # -- manifest and database ----------------------------------------------------------------------------

    def _complete(self, basis: str, entries: dict[str, dict[str, Any]], facts: _Facts) -> None:
        directory = self.staging.directory
        done = self.staging.done("arrays")
        files = dict(done["files"])
        counts = self.sizes.intermediate
        measured = [self._measured(i) if i in self.layers else n for i, n in enumerate(counts)]
        with open_replacing(directory / layout.DOWN_META, error=None) as file:
            file.writelines(rows.down_meta_bytes(measured, self.options.top_k))
        del measured
        files[layout.DOWN_META] = hash_file(directory / layout.DOWN_META)
        files[MODEL_SQL] = write_file(directory / MODEL_SQL, model_sql().encode())
        if facts.record is not None:
            features = pq.read_table(directory / TABLES / "features.parquet")
            files[LABELS] = write_file(directory / LABELS, feature_labels(features))
        raw = index_json(
            self.job,
            bands=self.bands,
            layers=done["layers"],
            files=files,
            tables=entries,
            basis=basis,
            packs=[] if facts.pack is None else [{"name": facts.pack, "many": facts.many}],
            seconds=self.seconds,
            extracted_at=self.extracted_at,
        )
        if facts.record is not None:
            raw[SECTION]["probe"] = facts.record
        write_file(directory / INDEX, seal_manifest(raw))
        rebuild_database(directory)


def _elements(job: Job, browse: bool) -> float:
    """How many numbers will be written; tensors are not read for it."""
    family = job.source.family
    gates = {family.gate_name(i) for i in range(job.sizes.n_layers)} | {family.embed}
    shapes = family.expected(job.source.config)
    return float(sum(np.prod(shape) for name, shape in shapes.items() if not browse or name in gates))
