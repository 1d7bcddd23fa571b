"""The stages of one extraction, from arrays to the published directory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from larql_duck.catalog import SCHEMAS, empty_table
from larql_duck.extraction import table_rows as tables
from larql_duck.extraction import weight_arrays as arrays
from larql_duck.extraction.context import InSide, TokenFeatures, run_layer
from larql_duck.extraction.embedding import EmbeddingInputs
from larql_duck.extraction.outputs import OutputHead
from larql_duck.files import open_replacing
from larql_duck.inference.query_vectors import NEUTRAL
from larql_duck.inference.topk import row_blocks
from larql_duck.models.source import ffn_matrix, final_norm_multiplier, head_matrix
from larql_duck.probing.publish import LABELS, feature_labels
from larql_duck.vindex import layout
from larql_duck.vindex.arrays import hash_file, write_file
from larql_duck.vindex.bands import band_of, layer_bands
from larql_duck.vindex.derive import derive_entities, derive_triples, label_features, weight_edges
from larql_duck.vindex.manifest import INDEX, SECTION
from larql_duck.vindex.publish import TABLES, publish_directory, rebuild_database, seal_manifest, write_table

if TYPE_CHECKING:
    from larql_duck.extraction.pipeline import Job
    from larql_duck.extraction.state import Staging
    from larql_duck.progress import Progress

# A checkpoint may cost this share of the time since the last one.
_CHECKPOINT_SHARE = 0.04
# Extraction asks no more than this; PROBE asks the rest.
MAX_PROMPTS = 2000


class Extraction:
    """One run: `run()` fills the staging directory stage by stage and publishes it."""

    def __init__(self, job: Job, staging: Staging, progress: Progress, notice: Callable[[str], None]) -> None:
        self.job, self.staging, self.progress, self.notice = job, staging, progress, notice
        self.source, self.sizes, self.options = job.source, job.sizes, job.options
        self.layers = job.layers
        self.bands = layer_bands(self._family_name, self.sizes.n_layers)
        self.seconds: dict[str, float] = dict(staging.done("seconds") or {})

    @property
    def _family_name(self) -> str:
        # LARQL knows one Gemma 3.
        return "gemma3" if self.source.family.name.startswith("gemma3") else self.source.family.name

    def run(self) -> None:
        """Run what is not finished yet, then publish."""
        self._arrays()
        self._out_side()
        basis = self._basis()
        self._in_side(basis)
        facts = self._facts()
        entries = self._tables(basis, facts)
        self._publish(basis, entries, facts)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        self.staging.record("seconds", self.seconds)
        self.job.release()

    def _layer_progress(self, stage: str, layer: int) -> None:
        self.progress(stage, layer + 1 - self.layers.start, len(self.layers))

    # -- arrays -------------------------------------------------------------------------------------------

    def _arrays(self) -> None:
        if self.staging.done("arrays"):
            return
        directory, dtype, n = self.staging.directory, self.job.dtype, self.sizes.n_layers
        names = self.source.names()
        total = _elements(self.source, names, self.options.level == "browse", n)
        written = 0.0

        def step(elements: float) -> None:
            nonlocal written
            written += elements
            self.progress("arrays", written, total)
            self.job.release()

        with self._stage("arrays"):
            files = arrays.write_config_files(self.source, directory)
            gates = arrays.write_gates(self.source, n, dtype, directory, step)
            files[layout.GATE] = gates["file"]
            files[layout.EMBED] = arrays.write_embeddings(self.source, dtype, directory, step)
            if self.options.level != "browse":
                files |= arrays.write_weights(self.source, n, dtype, directory, step)
            self.staging.record("arrays", {"files": files, "layers": gates["layers"]})

    # -- out side -----------------------------------------------------------------------------------------

    def _out_side(self) -> None:
        missing = [i for i in self.layers if self.staging.done(f"out-{i}") is None]
        if not missing:
            return
        with self._stage("out side"):
            words = torch.from_numpy(self.job.vocabulary.is_word)
            head = OutputHead(
                head_matrix(self.source),
                final_norm_multiplier(self.source),
                torch.from_numpy(self.job.vocabulary.candidate_ids),
                words,
            )
            for layer in missing:
                found = head.search(ffn_matrix(self.source, layer, "down"), self.options.top_k)
                gate = ffn_matrix(self.source, layer, "gate").float()
                up = ffn_matrix(self.source, layer, "up")
                up_norm = torch.full((len(gate),), torch.nan) if up is None else up.float().norm(dim=1)
                self.staging.save(
                    f"out-{layer}",
                    {
                        "out_ids": found.ids.int().numpy(),
                        "out_scores": found.scores.numpy(),
                        "out_z": found.z.numpy(),
                        "logits": found.logits.numpy(),
                        "down_norm": found.norms.numpy(),
                        "gate_norm": gate.norm(dim=1).numpy(),
                        "up_norm": up_norm.numpy(),
                    },
                )
                self.staging.record(f"out-{layer}")
                self._layer_progress("out side", layer)
                self.job.release()

    # -- in side ------------------------------------------------------------------------------------------

    def _basis(self) -> str:
        """'context' or 'embedding'; decided once a run, so that resuming cannot change it."""
        decided = self.staging.done("basis")
        if decided is None:
            decided = self.options.in_basis
            if decided == "auto":
                from larql_duck.extraction.pipeline import _estimate

                cost = _estimate(self.job)
                decided = cost.basis
                if decided == "embedding":
                    self.notice(
                        "the context pass would take more than 30 minutes here, so the in side is read off the "
                        "embedding; --in-basis context runs it all the same"
                    )
            self.staging.record("basis", decided)
        return str(decided)

    def _in_side(self, basis: str) -> None:
        if self.staging.done("in"):
            return
        ids = self.job.vocabulary.word_ids
        if basis == "context" and self.options.context_tokens is not None:
            ids = ids[: self.options.context_tokens]
        counts = [self.sizes.intermediate[i] for i in self.layers]
        features = TokenFeatures(len(ids), counts, self.layers.start)
        with self._stage("in side"):
            if basis == "context":
                self._context_pass(ids, features)
            else:
                inputs = EmbeddingInputs(self.source, ids)
                k = min(self.options.top_k, len(ids))
                for layer in self.layers:
                    self._save_in(layer, inputs.layer(layer, k, features))
                    self._layer_progress("in side", layer)
                    self.job.release()
            self.staging.save("token-features", _top_arrays(features) | {"ids": ids})
            self.staging.record("in")

    def _context_pass(self, ids: np.ndarray, features: TokenFeatures) -> None:
        from larql_duck.extraction.stream import TokenStream
        from larql_duck.models.tokenizer import load_tokenizer

        prefix = load_tokenizer(self.source).encode(NEUTRAL)
        stream = TokenStream(self.source, prefix, torch.from_numpy(ids))
        k = min(self.options.top_k, len(ids))
        first = 0
        kept = self.staging.load("context")
        if kept is not None:
            first = int(kept["next"][0])
            stream.residual.copy_(torch.from_numpy(kept["residual"]))
            stream.prefix_residual = torch.from_numpy(kept["prefix"])
            _restore_top(features, kept)
        last_saved, cost = time.perf_counter(), 0.0
        for layer in range(first, self.layers.stop):
            found = run_layer(stream, layer, ids, k, features, layer in self.layers)
            if found is not None:
                self._save_in(layer, found)
            now = time.perf_counter()
            if layer + 1 < self.layers.stop and cost <= _CHECKPOINT_SHARE * (now - last_saved):
                self.staging.save(
                    "context",
                    {
                        "next": np.array([layer + 1]),
                        "residual": stream.residual.numpy(),
                        "prefix": stream.prefix_residual.numpy(),
                        **_top_arrays(features),
                    },
                )
                last_saved = time.perf_counter()
                cost = last_saved - now
            self.progress("in side", layer + 1, self.layers.stop)
            self.job.release()

    def _save_in(self, layer: int, found: InSide) -> None:
        self.staging.save(
            f"in-{layer}",
            {
                "in_ids": found.ids,
                "in_scores": found.scores,
                "in_activations": found.activations,
                "in_mean": found.mean,
                "in_std": found.std,
            },
        )

    # -- facts --------------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        """Tables by name as probing made them, and under 'many' the names of relations with several answers."""
        if not self.options.probe:
            return {"many": []}
        from larql_duck.inference.engine import Engine
        from larql_duck.probing.facts import probe
        from larql_duck.probing.packs import load_pack

        pack = load_pack(self.options.pack, self.options.relations)
        with self._stage("facts"):
            engine = Engine.load(self.source)
            run = probe(
                engine,
                pack,
                max_prompts=MAX_PROMPTS,
                progress=lambda done, total: self.progress("facts", done, total),
                checkpoint=self.staging.work / "facts",
            )
            # Kept for later runs, whose relations may have no reference answers of their own.
            kept = {"calibration": run.calibration.as_json(), "relations": run.report["relations"]}
            found: dict[str, Any] = {**run.tables, "probe": kept}
            del engine
        return found | {"many": [r.name for r in pack.relations if r.many], "pack": pack.name}

    # -- tables -------------------------------------------------------------------------------------------

    def _measured(self, layer: int) -> dict[str, np.ndarray]:
        out, inner = self.staging.load(f"out-{layer}"), self.staging.load(f"in-{layer}")
        assert out is not None and inner is not None
        return out | inner

    def _tables(self, basis: str, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
        directory = self.staging.directory / TABLES
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        entries: dict[str, dict[str, Any]] = {}

        def put(name: str, table: pa.Table | Iterator[pa.Table]) -> None:
            entries[name] = write_table(directory / f"{name}.parquet", name, table)
            self.progress("tables", len(entries), len(SCHEMAS))

        with self._stage("tables"):
            vocabulary = self.job.vocabulary
            put("tokens", tables.tokens_table(vocabulary, self._embedding_norms()))
            done = self.staging.done("arrays")
            bands = [band_of(i, self.bands) for i in range(self.sizes.n_layers)]
            put("layers", tables.layers_table([tuple(e) for e in done["layers"]], bands))
            put(
                "feature_tokens",
                (tables.feature_tokens_layer(i, self._measured(i), vocabulary, basis) for i in self.layers),
            )
            features = pa.concat_tables(
                tables.features_layer(i, self._measured(i), vocabulary, basis) for i in self.layers
            )
            relations = facts.get("feature_relations", empty_table("feature_relations"))
            features = label_features(features, relations)
            put("features", features)
            put("token_features", self._token_features(basis))
            edges = pa.concat_tables(
                [
                    facts.get("edges", empty_table("edges")),
                    weight_edges(directory / "feature_tokens.parquet", features),
                ]
            )
            put("edges", edges)
            put("facts", facts.get("facts", empty_table("facts")))
            triples = derive_triples(directory / "facts.parquet", edges, facts["many"])
            put("triples", triples)
            put("entities", derive_entities(triples))
            put("meta", tables.meta_table(self._meta(basis)))
            for name in SCHEMAS:
                if name not in entries:
                    put(name, facts.get(name, empty_table(name)))
        return entries

    def _token_features(self, basis: str) -> Iterator[pa.Table]:
        kept = self.staging.load("token-features")
        assert kept is not None
        ids = kept.pop("ids")
        features = TokenFeatures(
            len(ids), [self.sizes.intermediate[i] for i in self.layers], self.layers.start
        )
        _restore_top(features, kept)
        yield from tables.token_features_tables(features, ids, self.job.vocabulary, basis)

    def _embedding_norms(self) -> np.ndarray:
        matrix = self.source.tensor(self.source.family.embed)
        norms = np.empty(len(matrix), np.float32)
        for start, stop in row_blocks(len(matrix), 8192):
            norms[start:stop] = matrix[start:stop].float().norm(dim=1).numpy()
        return norms

    def _meta(self, basis: str) -> dict[str, object]:
        from larql_duck._version import __version__

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
            "pack": self.options.pack if self.options.probe else None,
            "larql_duck": __version__,
            "torch": torch.__version__,
        }

    # -- publishing ---------------------------------------------------------------------------------------

    def _publish(self, basis: str, entries: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
        from larql_duck.extraction.index_json import index_json

        directory = self.staging.directory
        done = self.staging.done("arrays")
        files = dict(done["files"])
        measured: list[Any] = [
            self._measured(i) if i in self.layers else self.sizes.intermediate[i]
            for i in range(self.sizes.n_layers)
        ]
        with open_replacing(directory / layout.DOWN_META, error=None) as file:
            file.writelines(tables.down_meta_bytes(measured, self.options.top_k))
        del measured
        files[layout.DOWN_META] = hash_file(directory / layout.DOWN_META)
        if "probe" in facts:
            features = pq.read_table(directory / TABLES / "features.parquet")
            files[LABELS] = write_file(directory / LABELS, feature_labels(features))
        raw = index_json(
            self.job,
            family=self._family_name,
            bands=self.bands,
            layers=done["layers"],
            files=files,
            tables=entries,
            basis=basis,
            packs=[] if "pack" not in facts else [{"name": facts["pack"], "many": facts["many"]}],
            seconds=self.seconds,
            extracted_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        if "probe" in facts:
            raw[SECTION]["probe"] = facts["probe"]
        write_file(directory / INDEX, seal_manifest(raw))
        rebuild_database(directory)
        shutil.rmtree(self.staging.work)
        (directory / ".lock").unlink(missing_ok=True)
        publish_directory(directory, self.staging.out)


def _elements(source: Any, names: list[str], browse: bool, n_layers: int) -> float:
    """How many numbers will be written; tensors are not read for it."""
    shapes = source.family.expected(source.config)
    gates = {source.family.gate_name(i) for i in range(n_layers)} | {source.family.embed}
    return float(sum(np.prod(shape) for name, shape in shapes.items() if not browse or name in gates))


def _top_arrays(features: TokenFeatures) -> dict[str, np.ndarray]:
    top = features.top
    top.settle()
    return {
        "values": top.values,
        "columns": top.columns,
        "gate": top.companions[0],
        "activation": top.companions[1],
    }


def _restore_top(features: TokenFeatures, kept: dict[str, np.ndarray]) -> None:
    top = features.top
    top.values[:], top.columns[:] = kept["values"], kept["columns"]
    top.companions[0][:], top.companions[1][:] = kept["gate"], kept["activation"]
