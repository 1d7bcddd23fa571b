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
from larql_duck.extraction.collecting import TokenFeatures
from larql_duck.extraction.context import collect_layer, run_layer, token_stream
from larql_duck.extraction.counts import (
    CONTEXT_LIMIT,
    MAX_PROMPTS,
    array_numbers,
    context_operations,
    usual_basis,
)
from larql_duck.extraction.embedding import EmbeddingInputs, embedding_norms
from larql_duck.extraction.embedding_pass import MERGED, REACHED, embedding_pass, save_top
from larql_duck.extraction.estimate import Estimate, learn
from larql_duck.extraction.index_json import index_json
from larql_duck.extraction.job import Job
from larql_duck.extraction.nodes import Nodes, asked_on
from larql_duck.extraction.options import ARRAYS, FACTS, NAMES, PROMOTED, TABLES, TOP_ACTIVATING
from larql_duck.extraction.precision import DTYPES, agreement
from larql_duck.extraction.promoted_tokens import OutputHead, promoted_of_layer
from larql_duck.extraction.proof import prove, stream_problem
from larql_duck.extraction.provenance import provenance
from larql_duck.extraction.scratch_weights import ScratchWeights
from larql_duck.extraction.state import Staging
from larql_duck.extraction.stream import TokenStream
from larql_duck.extraction.whole_progress import WholeProgress
from larql_duck.files import open_replacing
from larql_duck.inference.engine import Engine
from larql_duck.inference.query_vectors import NEUTRAL
from larql_duck.inference.routing import routing_of
from larql_duck.inference.settings import Settings
from larql_duck.probing.checkpoint import Checkpoint
from larql_duck.probing.choosing import Knowledge
from larql_duck.probing.entity_types import fit_types, types_table
from larql_duck.probing.facts import probe
from larql_duck.probing.learning import Lessons, with_open_world, without_taught
from larql_duck.probing.merge import merge
from larql_duck.probing.open_world import OpenWorld
from larql_duck.probing.packs import known_members, load_pack
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
from larql_duck.vindex.publish import MODEL_SQL, rebuild_database, seal_manifest, write_table
from larql_duck.vindex.publish import TABLES as TABLES_FOLDER


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

    def __init__(
        self,
        job: Job,
        staging: Staging,
        cost: Estimate,
        settings: Settings,
        progress: Progress,
        notice: Callable[[str], None],
        nodes: Nodes | None = None,
    ) -> None:
        """nodes: those of a cluster, which find promoted tokens, search the embedding and are asked."""
        self.nodes = nodes
        self.job, self.staging, self.plan, self.notice = job, staging, cost.plan, notice
        self.settings, self.device = settings, settings.torch_device()
        self.progress = WholeProgress(cost.seconds, progress)
        self.source, self.sizes, self.options = job.source, job.sizes, job.options
        self.layers = job.layers
        # Those that are measured: of a vindex that describes some already, the others.
        self.new = list(self.layers)
        self.bands = layer_bands(job.source.family.name, self.sizes.n_layers)
        self.extracted_at = timestamp()
        self.seconds: dict[str, float] = dict(staging.done("seconds") or {})

    def run(self) -> None:
        """Run what is not finished yet."""
        try:
            if self.source.family.measured is not None and self.options.level != "browse":
                prove(self.source)
            self._arrays()
            self._promoted_tokens()
            basis = self._basis()
            self._top_activating_tokens(basis)
            facts = self._facts()
            entries = self._tables(basis, facts)
            self._complete(basis, entries, facts)
        finally:
            self.progress.finish()

    @contextmanager
    def _stage(self, name: str, *, whole: bool = True) -> Iterator[None]:
        began, worked, threads = time.perf_counter(), time.process_time(), torch.get_num_threads()
        torch.set_num_threads(min(threads, self.plan[name].workers))
        try:
            yield
        finally:
            torch.set_num_threads(threads)
        if whole and self.nodes is None:
            # Seconds of a processor, shared by the threads: others that keep the machine busy do not count.
            learn(self.job, name, (time.process_time() - worked) / threads, self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        self.staging.record("seconds", self.seconds)
        self.job.release()

    def _layer_done(self, stage: str, done: int) -> None:
        """`done` of the new layers are."""
        self.progress(stage, done, len(self.new))
        self.job.release()

    # -- arrays -------------------------------------------------------------------------------------------

    def _arrays(self) -> None:
        if self.staging.done("arrays"):
            return
        directory, dtype, n = self.staging.directory, self.job.dtype, self.sizes.n_layers
        browse = self.options.level == "browse"
        total, written = float(array_numbers(self.job)), 0.0

        def step(elements: float) -> None:
            nonlocal written
            written += elements
            self.progress(ARRAYS, written, total)
            self.job.release()

        with self._stage(ARRAYS):
            origin = provenance(self.job)
            files = arrays.write_config_files(self.source, directory)
            files[layout.GATE], layers = arrays.write_gates(self.source, n, dtype, directory, step)
            files[layout.EMBED] = arrays.write_embeddings(self.source, dtype, directory, step)
            if not browse:
                files |= arrays.write_weights(self.source, n, dtype, directory, step)
            self.staging.record("arrays", {"files": files, "layers": layers, "origin": origin})

    # -- promoted tokens ----------------------------------------------------------------------------------

    def _promoted_tokens(self) -> None:
        missing = [i for i in self.new if self.staging.done(f"promoted-{i}") is None]
        if not missing:
            return
        with self._stage(PROMOTED, whole=len(missing) == len(self.layers)):
            for n, (layer, measured) in enumerate(self._promoted_of(missing), 1):
                self.staging.save(f"promoted-{layer}", measured)
                self.staging.record(f"promoted-{layer}")
                self._layer_done(PROMOTED, len(self.new) - len(missing) + n)

    def _promoted_of(self, layers: list[int]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(layer, its arrays) of each layer."""
        if self.nodes is not None:
            yield from self.nodes.promoted(layers)
            return
        keep = self.plan[PROMOTED].kept
        head = OutputHead.of(self.source, self.job.vocabulary, keep=keep, moments=True, device=self.device)
        for layer in layers:
            yield layer, promoted_of_layer(head, self.source, layer, self.options.top_k)

    # -- top activating tokens ----------------------------------------------------------------------------

    def _basis(self) -> str:
        """'context' or 'embedding'; decided once a run, so that resuming cannot change it."""
        basis = self.staging.done("basis")
        if basis is None:
            basis = self.options.in_basis
            if basis == "auto":
                basis = usual_basis(self.job)
                if basis == "embedding":
                    self.notice(
                        f"the context pass would take {context_operations(self.job):.1e} operations, more than "
                        f"{CONTEXT_LIMIT:.0e}, so top activating tokens are read off the embedding; "
                        "--in-basis context runs it all the same"
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
        return stream_problem(self.source, self.job.vocabulary.word_ids, self._scratch_weights())

    def _top_activating_tokens(self, basis: str) -> None:
        if self.staging.done("top"):
            return
        ids = self._token_ids(basis)
        features = self._token_features(len(ids))
        whole = not any(map(self.staging.has, (REACHED, MERGED))) and len(self.new) == len(self.layers)
        with self._stage(TOP_ACTIVATING, whole=whole):
            if basis == "context":
                self._context_pass(ids, features)
            else:
                k = min(self.options.top_k, len(ids))
                done = partial(self._layer_done, TOP_ACTIVATING)
                inputs = partial(self._embedding_inputs, ids)
                embedding_pass(self.staging, self.new, k, features, inputs, self.nodes, done)
            self.staging.save("token-features", features.state() | {"ids": ids})
            self.staging.record("top")
        for pattern in ("residual-*", "pairs-*", "*.scratch"):
            self.staging.drop(pattern)

    def _embedding_inputs(self, ids: np.ndarray) -> EmbeddingInputs:
        room = self._token_room(len(ids))
        return EmbeddingInputs(self.source, ids, room=room, device=self.device)

    def _context_pass(self, ids: np.ndarray, features: TokenFeatures) -> None:
        precision, whole = self.options.precision, len(self.new) == len(self.layers)
        if precision != "f32" and whole and self.staging.done("agreement") is None:
            measured = agreement(self.source, ids, self.new, self.options.top_k, precision, self.device)
            self.staging.record("agreement", measured)
        stream = token_stream(
            self.source,
            ids,
            DTYPES[precision],
            prefix=self.job.context,
            room=self._token_room(len(ids)),
            device=self.device,
        )
        k = min(self.options.top_k, len(ids))
        first, prefix = self._reached(features)
        if prefix is not None:
            stream.prefix_residual = torch.from_numpy(prefix).to(self.device)
            stream.residual.numpy()[:] = self.staging.rows(f"residual-{first}")
        stop = max(self.new) + 1
        for layer in range(first, stop):
            if layer in self.new:
                last = layer + 1 == stop
                save_top(self.staging, layer, vars(collect_layer(stream, layer, ids, k, features, last=last)))
            else:
                run_layer(stream, layer)
            if layer + 1 < stop:
                self._checkpoint(layer + 1, stream, features)
            self.progress(TOP_ACTIVATING, layer + 1, stop)
            self.job.release()

    def _checkpoint(self, layer: int, stream: TokenStream, features: TokenFeatures) -> None:
        """Keep what the pass needs to go on at `layer`: a run that is killed loses one layer."""
        self.staging.save_rows(f"residual-{layer}", stream.residual.numpy())
        prefix = stream.prefix_residual.cpu().numpy()
        self.staging.save(REACHED, {"next": np.array([layer]), "prefix": prefix} | features.state())
        self.staging.drop(f"residual-{layer - 1}.npy")

    def _reached(self, features: TokenFeatures) -> tuple[int, np.ndarray | None]:
        """The layer at which an interrupted context pass goes on, and the stream's constant positions.

        `features` become what they were by then. 0 and None where none was interrupted.
        """
        if not self.staging.has(REACHED):
            return 0, None
        with self.staging.opened(REACHED) as checkpoint:
            features.restore(checkpoint)
            return int(checkpoint["next"][0]), checkpoint["prefix"]

    def _token_room(self, n_tokens: int) -> torch.Tensor | None:
        """Where the tokens' vectors lie, f32 [tokens, hidden]: in a scratch file where memory is too small; None: there."""
        if self.plan[TOP_ACTIVATING].kept:
            return None
        return torch.from_numpy(self.staging.scratch("tokens", (n_tokens, self.sizes.hidden)))

    def _token_ids(self, basis: str) -> np.ndarray:
        """Ids of the tokens whose activations are measured, ascending."""
        ids = self.job.vocabulary.word_ids
        return ids[: self.options.context_tokens] if basis == "context" else ids

    def _token_features(self, n_tokens: int) -> TokenFeatures:
        counts = [self.sizes.intermediate[i] for i in self.layers]
        return TokenFeatures(n_tokens, counts, self.layers.start)

    # -- facts --------------------------------------------------------------------------------------------

    def _facts(self) -> _Facts:
        if not self.options.probe:
            return _Facts()
        pack = load_pack(self.options.pack, self.options.relations)
        with self._stage(FACTS):
            engine = self._engine()
            said, kept = partial(self.progress, "facts"), self.staging.work / "facts"
            own = {r.name for r in pack.relations}
            n_names = self.options.n_names(self.sizes.parameters)
            types = fit_types(engine, known_members()) if n_names else None
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
                nodes=asked_on(self.nodes, engine),
            )
            for notice in run.notices:
                if notice not in self.job.notices:
                    self.notice(notice)
            # For later runs, whose relations may have no reference answers of their own.
            record = {"calibration": run.calibration.as_json()}
            tables = without_taught(run.tables, further)
            tables["routing"] = routing_of(engine, tables["probes"]["prompt"].unique().to_pylist())
        many = {r.name for r in whole.relations if r.many}
        if n_names:
            with self._stage(NAMES):
                known = knowledge_in(tables, run.calibration, types)
                tables, more = self._names(OpenWorld(engine, known, told=run.told), tables, n_names)
                many |= more
        return _Facts(tables, sorted(many), pack.name, record)

    def _engine(self) -> Engine:
        """The model, with weights and batches as the plan of memory has them."""
        plan = self.plan[FACTS]
        weights = None if plan.kept else self._scratch_weights()
        engine = Engine.load(self.source, self.settings, weights=weights, room=plan.copies)
        engine.share = plan.share
        return engine

    def _scratch_weights(self) -> ScratchWeights | None:
        """The weights in f32 in a scratch file; None where the model's own file has them so."""
        if self.job.stored == "f32":
            return None
        return ScratchWeights(self.source, self.staging.work / "weights.f32", self.job.release)

    def _names(
        self, world: OpenWorld, tables: dict[str, pa.Table], n: int
    ) -> tuple[dict[str, pa.Table], set[str]]:
        """The tables with what types names are and the facts about n names of the vocabulary; relations of many answers."""
        engine, known = world.engine, world.known
        subjects = list(dict.fromkeys(tables["facts"]["subject"].to_pylist()))
        context = [engine.fingerprint, str(engine.model.dtype)]
        store = Checkpoint(self.staging.work / "names", context, asked_on(self.nodes, engine))
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
        directory = self.staging.directory / TABLES_FOLDER
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        entries: dict[str, dict[str, Any]] = {}

        def put(name: str, table: pa.Table | Iterator[pa.Table]) -> None:
            entries[name] = write_table(directory / f"{name}.parquet", name, table)
            self.progress(TABLES, len(entries), len(FILES))

        with self._stage(TABLES):
            vocabulary = self.job.vocabulary
            put("tokens", rows.tokens_table(vocabulary, embedding_norms(self.source)))
            bands = [band_of(i, self.bands) for i in range(self.sizes.n_layers)]
            put("layers", rows.layers_table(self.staging.done("arrays")["layers"], bands, self.source.family))
            experts = self.source.family.experts
            put(
                "experts",
                pa.concat_tables(
                    rows.experts_layer(i, self._measured(i), vocabulary, experts) for i in self.layers
                ),
            )
            layers = (rows.feature_tokens_layer(i, self._measured(i), vocabulary, basis) for i in self.layers)
            put("feature_tokens", layers)
            features = pa.concat_tables(
                rows.features_layer(i, self._measured(i), vocabulary, basis, experts) for i in self.layers
            )
            features = label_features(features, facts.table("feature_relations"))
            put("features", features)
            with self.staging.opened("token-features") as checkpoint:
                ids = checkpoint["ids"]
                token_features = self._token_features(len(ids))
                token_features.restore(checkpoint)
            put("token_features", rows.token_features_tables(token_features, ids, vocabulary, basis))
            del token_features, checkpoint
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
        # One layer after another: memory does not grow with the model's depth.
        measured = (self._measured(i) if i in self.layers else n for i, n in enumerate(counts))
        with open_replacing(directory / layout.DOWN_META, error=None) as file:
            file.writelines(rows.down_meta_bytes(measured, len(counts), self.options.top_k))
        files[layout.DOWN_META] = hash_file(directory / layout.DOWN_META)
        files[MODEL_SQL] = write_file(directory / MODEL_SQL, model_sql().encode())
        if facts.record is not None:
            features = pq.read_table(directory / TABLES_FOLDER / "features.parquet")
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
            agreement=self.staging.done("agreement"),
            extracted_at=self.extracted_at,
        )
        if facts.record is not None:
            raw[SECTION]["probe"] = facts.record
        write_file(directory / INDEX, seal_manifest(raw))
        rebuild_database(directory)
