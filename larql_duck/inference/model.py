"""A model behind a session: loaded when first asked for, with what its vindex knows about features and relations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from larql_duck.errors import LarqlError
from larql_duck.inference.batch import EMPTY
from larql_duck.inference.capture_tables import activation_table, residual_table
from larql_duck.inference.causal import CausalTrace, causal_trace
from larql_duck.inference.chat import chat_prompt, stop_ids
from larql_duck.inference.clauses import Intervention, edits_of
from larql_duck.inference.engine import Engine
from larql_duck.inference.explain import Explanation, explain_infer
from larql_duck.inference.feature_labels import Labels, labels_of, no_labels
from larql_duck.inference.generate import stream
from larql_duck.inference.interventions import Edit
from larql_duck.inference.logit_lens import logit_lens
from larql_duck.inference.predict import infer_table
from larql_duck.inference.reference import Reference
from larql_duck.inference.settings import Settings
from larql_duck.inference.trace import TraceResult, trace
from larql_duck.inference.trace_diff import TraceDiff, trace_diff
from larql_duck.models.opening import open_model
from larql_duck.models.source import WeightSource
from larql_duck.models.tokenizer import load_tokenizer
from larql_duck.patches.edit_log import EditLog
from larql_duck.patches.overlay import EditedFact, Overlay
from larql_duck.vindex.manifest import INDEX
from larql_duck.vindex.store import Vindex

Bands = Mapping[str, tuple[int, int]]

Lender = Callable[[WeightSource, Settings, Overlay | None], Engine]
"""Gives an engine on these weights, under this overlay, to one of several that share it."""


def open_source(path: str | Path) -> WeightSource:
    """The vindex (of level inference or all) or model at `path`; the error names what to do."""
    if (Path(path).expanduser() / INDEX).is_file():
        vindex = Vindex.open(Path(path).expanduser())
        vindex.require("inference", "a forward pass")
        return vindex
    source = open_model(path)
    source.validate()
    return source


class Model:
    """Forward passes on the weights of a source (a vindex or a model). Nothing is loaded before the first one.

    labels names features, probes gives {relation: prompts}; both come from a vindex's tables. interventions (Ablate,
    Steer, Patch) change one call's passes and nothing else. Usable from several threads: passes wait for each other.
    """

    def __init__(
        self,
        source: WeightSource,
        *,
        settings: Settings | None = None,
        labels: Labels = no_labels,
        probes: Callable[[], Mapping[str, Sequence[str]]] = dict,
        bands: Bands | None = None,
        edits: EditLog | None = None,
        database: Callable[[Sequence[str]], list[list[EditedFact]]] = lambda prompts: [[] for _ in prompts],
        lender: Lender | None = None,
    ) -> None:
        """edits are those under which passes run: looked at when the engine is loaded, and on `refresh_overlay`.

        database gives the database facts that each prompt asks for: additional answers, never the model's. lender gives
        the engine, each time it is needed, where others use it too.
        """
        self.source = source
        self.settings = settings or Settings.from_environment()
        self.labels = labels
        self.bands = bands
        self.database = database
        self._edits = edits
        self._lender, self._lent = lender, False
        self._probes = probes
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._reference: Reference | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        dtype: str | None = None,
        device: str | None = None,
        patches: Sequence[str | Path] = (),
    ) -> Model:
        """The Model of the vindex or model at `path`, with feature labels where it has them.

        dtype and device (None: as the environment says) are those of Settings. patches are .vlp files under which the
        passes run, in order; LarqlError where there are some and the path is no vindex.
        """
        defaults = Settings.from_environment()
        settings = Settings(dtype or defaults.compute_dtype, device or defaults.device, defaults.threads)
        source = open_source(path)
        if isinstance(source, Vindex):
            edits = EditLog(source)
            for patch in patches:
                edits.apply(patch)
            return cls(source, settings=settings, labels=labels_of(source), bands=source.bands, edits=edits)
        if patches:
            raise LarqlError(
                f"{path}: patches belong to a vindex; make one with: larql-duck extract {path} -o OUT.vindex"
            )
        return cls(source, settings=settings)

    @property
    def engine(self) -> Engine:
        """The engine, loaded when first asked for. LevelError where no weights are stored."""
        with self._lock:
            if self._lender is not None:
                overlay = None if self._edits is None else self._edits.overlay
                lent = self._lender(self.source, self.settings, overlay)
                self._lent = True
                return lent
            if self._engine is None:
                engine = Engine.load(self.source, self.settings)
                if self._edits is not None:
                    engine.apply_overlay(self._edits.overlay)
                self._engine = engine
            return self._engine

    def refresh_overlay(self) -> None:
        """Run later passes under what `overlay` gives now, and forget what was measured before."""
        with self._lock:
            self._reference = None
            if self._lender is not None and self._lent:
                _ = self.engine
            if self._engine is not None and self._edits is not None:
                self._engine.apply_overlay(self._edits.overlay)

    @property
    def loaded(self) -> bool:
        """Whether the weights are in use already."""
        return self._engine is not None

    @property
    def reference(self) -> Reference:
        """Mean activations and relation directions, measured when first needed."""
        with self._lock:
            if self._reference is None:
                self._reference = Reference(self.engine, self._probes)
            return self._reference

    def reload(self, settings: Settings) -> None:
        """Load the weights anew for the next pass, as `settings` say."""
        with self._lock:
            self.settings = settings
            self._engine = self._reference = None

    # -- what to ask --------------------------------------------------------------------------------------

    def infer(self, prompt: str, *, interventions: Sequence[Intervention] = (), **options: Any) -> pa.Table:
        """The most probable next tokens; options as of predict.infer_table. Database facts come last, a row each."""
        self.check_prompt(prompt)
        facts = [fact.target for fact in self.database([prompt])[0]]
        edits = self._interventions(prompt, interventions)
        return infer_table(self.engine, prompt, edits=edits, more=facts, **options)

    def explain(
        self,
        prompt: str,
        *,
        layers: Iterable[int] | None = None,
        band: str | None = None,
        interventions: Sequence[Intervention] = (),
        **options: Any,
    ) -> Explanation:
        """Which features and heads wrote the prediction; options as of explain.explain_infer, band limits the layers."""
        self.check_prompt(prompt)
        edits = self._interventions(prompt, interventions)
        layers = self.layers_of(layers, band)
        return explain_infer(self.engine, prompt, layers=layers, labels=self.labels, edits=edits, **options)

    def trace(
        self, prompt: str, *, interventions: Sequence[Intervention] = (), **options: Any
    ) -> TraceResult:
        """How the residual becomes the prediction; options as of trace.trace."""
        self.check_prompt(prompt)
        return trace(self.engine, prompt, edits=self._interventions(prompt, interventions), **options)

    def trace_diff(self, prompt: str, other: str | None = None, **options: Any) -> TraceDiff:
        """Two prompts layer by layer, or one without and with the edits; options as of trace_diff.trace_diff."""
        for text in (prompt,) if other is None else (prompt, other):
            self.check_prompt(text)
        return trace_diff(self.engine, prompt, other, labels=self.labels, **options)

    def logit_lens(
        self, prompt: str, *, interventions: Sequence[Intervention] = (), **options: Any
    ) -> pa.Table:
        """What every layer would predict; options as of logit_lens.logit_lens."""
        self.check_prompt(prompt)
        return logit_lens(self.engine, prompt, edits=self._interventions(prompt, interventions), **options)

    def causal_trace(self, clean: str, corrupted: str, *, target: str | None = None) -> CausalTrace:
        """Which layer and position carries the answer: see causal.causal_trace."""
        return causal_trace(self.engine, clean, corrupted, target=target)

    def residuals(self, prompts: str | Sequence[str], **options: Any) -> pa.Table:
        """Residuals and what each branch added; options as of capture_tables.residual_table."""
        return residual_table(self.engine, prompts, **options)

    def activations(self, prompts: str | Sequence[str], **options: Any) -> pa.Table:
        """Gate values and activations; options as of capture_tables.activation_table."""
        return activation_table(self.engine, prompts, **options)

    def generate(
        self,
        prompt: str,
        *,
        tokens: int = 64,
        chat: bool = False,
        system: str | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The text that the model writes after the prompt, piece by piece, at most `tokens` tokens.

        chat puts the prompt into the model's own chat template (`system` before it), whose end of turn ends the
        answer. temperature 0 takes the most probable token each time; above 0 it samples, reproducibly by seed.
        """
        if tokens < 0:
            raise LarqlError(f"{tokens} tokens is out of range; it must be at least 0")
        if temperature < 0:
            raise LarqlError(f"temperature {temperature} is out of range; it must be at least 0")
        if system is not None and not chat:
            raise LarqlError("a system message belongs to a chat; add --chat")
        files = self.source.tokenizer_files()
        if not chat:
            self.check_prompt(prompt)
        engine = self.engine
        start: str | list[int] = prompt
        if chat:
            start = engine.tokenizer.encode(chat_prompt(files, prompt, system), special=False)
        stops = stop_ids(files, self.source.config, engine.tokenizer)
        pieces = stream(engine, start, max_tokens=tokens, temperature=temperature, seed=seed, stop_ids=stops)
        return (piece.text for piece in pieces if piece.text)

    def check_prompt(self, prompt: str) -> None:
        """Raise LarqlError for a prompt without a token, before weights are loaded for it."""
        if not prompt and not load_tokenizer(self.source).encode(prompt):
            raise LarqlError(EMPTY)

    # -- inside -------------------------------------------------------------------------------------------

    def layers_of(self, layers: Iterable[int] | None, band: str | None) -> list[int] | None:
        """The layers that both `layers` and `band` leave; None for all. A model without bands has every layer in each."""
        if band is None or band == "all" or self.bands is None:
            return None if layers is None else list(layers)
        if band not in self.bands:
            raise LarqlError(f"band {band!r} is not known; use one of {', '.join(self.bands)}")
        low, high = self.bands[band]
        inside = range(low, high + 1)
        return [n for n in (inside if layers is None else layers) if n in inside]

    def _interventions(self, prompt: str, interventions: Sequence[Intervention]) -> Sequence[Edit]:
        return edits_of(self.engine, prompt, interventions, self.reference)
