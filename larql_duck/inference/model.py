"""A model behind a session: loaded when first asked for, with what its vindex knows about features and relations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larql_duck.errors import LarqlError
from larql_duck.inference.feature_labels import Labels, no_labels
from larql_duck.inference.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from larql_duck.inference.causal import CausalTrace
    from larql_duck.inference.clauses import Clause
    from larql_duck.inference.engine import Engine
    from larql_duck.inference.explain import Explanation
    from larql_duck.inference.reference import Reference
    from larql_duck.inference.trace import TraceResult
    from larql_duck.models.source import WeightSource
    from larql_duck.patches.overlay import EditedFact, Overlay

Bands = Mapping[str, tuple[int, int]]


class LiveModel:
    """Forward passes on the weights of a source (a vindex or a model). Nothing is loaded before the first one.

    labels names features, probes gives {relation: prompts}; both come from a vindex's tables. clauses (Ablate, Steer,
    Patch) change one call's passes and nothing else. Usable from several threads: passes wait for each other.
    """

    def __init__(
        self,
        source: WeightSource,
        *,
        settings: Settings | None = None,
        labels: Labels = no_labels,
        probes: Callable[[], Mapping[str, Sequence[str]]] = dict,
        bands: Bands | None = None,
        overlay: Callable[[], Overlay | None] = lambda: None,
        database: Callable[[Sequence[str]], list[list[EditedFact]]] | None = None,
    ) -> None:
        """overlay gives the edits under which passes run, asked when the engine is loaded and on `edited`.

        database gives the database facts that each prompt asks for: additional answers, never the model's.
        """
        self._overlay = overlay
        self._database = database
        self.source = source
        self.settings = settings or Settings.from_environment()
        self.labels = labels
        self.bands = bands
        self._probes = probes
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._reference: Reference | None = None

    @property
    def engine(self) -> Engine:
        """The engine, loaded when first asked for. LevelError where no weights are stored."""
        with self._lock:
            if self._engine is None:
                engine = self.settings.load(self.source)
                self._patch(engine)
                self._engine = engine
            return self._engine

    def edited(self) -> None:
        """None; passes run under what `overlay` gives now, and what was measured before is forgotten."""
        with self._lock:
            self._reference = None
            if self._engine is not None:
                self._patch(self._engine)

    def _patch(self, engine: Engine) -> None:
        from larql_duck.inference.weight_overlay import patch_engine

        patch_engine(engine, self._overlay())

    @property
    def loaded(self) -> bool:
        """Whether the weights are in use already."""
        return self._engine is not None

    @property
    def reference(self) -> Reference:
        """Mean activations and relation directions, measured when first needed."""
        from larql_duck.inference.reference import Reference

        with self._lock:
            if self._reference is None:
                self._reference = Reference(self.engine, self._probes)
            return self._reference

    def reload(self, settings: Settings) -> None:
        """None; the next pass loads the weights anew, as `settings` say."""
        with self._lock:
            self.settings = settings
            self._engine = self._reference = None

    # -- what to ask --------------------------------------------------------------------------------------

    def infer(
        self,
        prompt: str,
        *,
        top: int = 5,
        compare: bool = False,
        walk_k: int | None = None,
        clauses: Sequence[Clause] = (),
    ) -> pa.Table:
        """The most probable next tokens: see predict.infer_table. Database facts come last, a row each."""
        from larql_duck.inference.predict import infer_table

        edits = self._edits(prompt, clauses)
        return infer_table(
            self.engine,
            prompt,
            top=top,
            compare=compare,
            walk_k=walk_k,
            edits=edits,
            more=[fact.target for fact in self.database([prompt])[0]],
        )

    def database(self, prompts: Sequence[str]) -> list[list[EditedFact]]:
        """The database facts that each prompt asks for."""
        return [[] for _ in prompts] if self._database is None else self._database(prompts)

    def explain(
        self,
        prompt: str,
        *,
        target: str | None = None,
        top: int = 3,
        layers: Iterable[int] | None = None,
        band: str | None = None,
        relations_only: bool = False,
        attention: bool = False,
        clauses: Sequence[Clause] = (),
    ) -> Explanation:
        """Which features and heads wrote the prediction: see explain.explain_infer; band limits the layers."""
        from larql_duck.inference.explain import explain_infer

        edits = self._edits(prompt, clauses)
        return explain_infer(
            self.engine,
            prompt,
            target=target,
            top=top,
            layers=self.layers_of(layers, band),
            labels=self.labels,
            relations_only=relations_only,
            attention=attention,
            edits=edits,
        )

    def trace(
        self,
        prompt: str,
        *,
        target: str | None = None,
        decompose: bool = False,
        layers: Iterable[int] | None = None,
        positions: str = "last",
        clauses: Sequence[Clause] = (),
    ) -> TraceResult:
        """How the residual becomes the prediction: see trace.trace."""
        from larql_duck.inference.trace import trace

        edits = self._edits(prompt, clauses)
        return trace(
            self.engine,
            prompt,
            target=target,
            decompose=decompose,
            layers=layers,
            positions=positions,
            edits=edits,
        )

    def logit_lens(self, prompt: str, *, clauses: Sequence[Clause] = (), **options: Any) -> pa.Table:
        """What every layer would predict: see lens.logit_lens."""
        from larql_duck.inference.lens import logit_lens

        return logit_lens(self.engine, prompt, edits=self._edits(prompt, clauses), **options)

    def causal_trace(self, clean: str, corrupted: str, *, target: str | None = None) -> CausalTrace:
        """Which layer and position carries the answer: see causal.causal_trace."""
        from larql_duck.inference.causal import causal_trace

        return causal_trace(self.engine, clean, corrupted, target=target)

    def residuals(self, prompts: str | Sequence[str], **options: Any) -> pa.Table:
        """Residuals and what each branch added: see captured.residual_table."""
        from larql_duck.inference.captured import residual_table

        return residual_table(self.engine, prompts, **options)

    def activations(self, prompts: str | Sequence[str], **options: Any) -> pa.Table:
        """Gate values and activations: see captured.activation_table."""
        from larql_duck.inference.captured import activation_table

        return activation_table(self.engine, prompts, **options)

    def fire(self, texts: str | Path, out: str | Path, **options: Any) -> Path:
        """The file of what fires each feature in a corpus: see activations.activations."""
        from larql_duck.inference.activations import activations

        return activations(self.engine, texts, out, **options)

    # -- inside -------------------------------------------------------------------------------------------

    def layers_of(self, layers: Iterable[int] | None, band: str | None) -> list[int] | None:
        """The layers that both clauses leave; None for all. A model without bands has every layer in each."""
        if band is None or band == "all" or self.bands is None:
            return None if layers is None else list(layers)
        if band not in self.bands:
            raise LarqlError(f"band {band!r} is not known; use one of {', '.join(self.bands)}")
        low, high = self.bands[band]
        inside = range(low, high + 1)
        return [n for n in (inside if layers is None else layers) if n in inside]

    def _edits(self, prompt: str, clauses: Sequence[Clause]) -> Sequence[Any]:
        if not clauses:
            return ()
        from larql_duck.inference.clauses import edits_of

        return edits_of(self.engine, prompt, clauses, self.reference)
