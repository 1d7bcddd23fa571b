"""Engine: one loaded model. Every forward pass of extraction, probing, inference and tracing goes through it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from larql_duck.aliases import Slot
from larql_duck.errors import LarqlError
from larql_duck.inference import interventions, loading
from larql_duck.inference.batch import Batch, pad, prompt_ids, unfit
from larql_duck.inference.capture import FOR_ATTRIBUTION, Capture, recording
from larql_duck.inference.modules import find_modules, skipped_layers
from larql_duck.inference.products import quicken, usual_room
from larql_duck.inference.rope import RopeByLength
from larql_duck.inference.settings import DEFAULT, Settings
from larql_duck.inference.weight_overlay import WeightOverlay
from larql_duck.models.source import WeightSource
from larql_duck.models.tokenizer import Tokenizer, load_tokenizer
from larql_duck.patches.overlay import Overlay
from larql_duck.progress import doing
from larql_duck.vindex.arrays import torch_dtype

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

Prompts = Batch | str | Sequence[str]
# Among how many of a prompt's positions the memory of its states is shared out.
_STATE_TOKENS = 32


class Engine:
    """A transformers model on the weights of a source: forward passes, captures of them, interventions in them.

    Public attributes: model, modules (where its layers' parts are), tokenizer, config (the source's, a dict), family,
    n_layers, n_features (one a layer), hidden, vocab, context (longest prompt in tokens, None where the config sets
    none, or where rotary frequencies follow the length), rope (which ones a length has), window (sliding window or None), device, fingerprint (names the weights), overlay (the edits that they are
    under, None where there are none), share (which part of the usual memory batches may take). Safe to use from several threads: passes wait for each other.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, source: WeightSource, *, fingerprint: str = ""
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = source.config
        self.family = source.family
        self.path = source.path
        self.modules = find_modules(model, source.family)
        self.n_layers = len(self.modules.layers)
        self.n_features = self._feature_counts()
        embeddings = model.get_input_embeddings().weight
        self.vocab, self.hidden = int(embeddings.shape[0]), int(embeddings.shape[1])
        self.device = embeddings.device
        self.rope = RopeByLength(model)
        context = None if self.rope.endless else getattr(model.config, "max_position_embeddings", None)
        self.context: int | None = int(context) if context else None
        window = getattr(model.config, "sliding_window", None)
        self.window: int | None = int(window) if window else None
        self.fingerprint = self._loaded_fingerprint = fingerprint
        self.share = 1.0
        # Called before every pass, where somebody wants to end long work between two of them.
        self.before_pass: Callable[[], None] | None = None
        self._starts: torch.Tensor | None = None
        self._weights = WeightOverlay(self.modules)

    @classmethod
    def load(
        cls,
        source: WeightSource,
        settings: Settings | None = None,
        *,
        weights: WeightSource | None = None,
        room: int | None = None,
    ) -> Engine:
        """An Engine on the weights of `source` (a model, or a vindex of level inference or all); `weights` are the same in
        another form, where they are read from that. room: bytes that copies of matrices may take, so that they are multiplied
        faster (None: a part of what is free).

        Tensors that are stored in the settings' dtype are used where they lie, others are converted one by one. Raises
        LevelError for a vindex without weights, ModelError for weights that do not make a model.
        """
        settings = settings or DEFAULT
        require = getattr(source, "require", None)
        if callable(require):
            require("inference", "a forward pass")
        device = settings.torch_device()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        with doing("loading the model"):
            model = loading.build_model(
                weights or source, dtype=torch_dtype(settings.compute_dtype), device=device
            )
            quicken(model, usual_room() if room is None else room)
            return cls(model, load_tokenizer(source), source, fingerprint=loading.fingerprint(source))

    def __del__(self) -> None:
        # The weights go first, then what they leave behind is handed back. At the interpreter's end, both may fail.
        with contextlib.suppress(Exception):
            self.__dict__.clear()
            loading.return_memory()

    # -- passes ------------------------------------------------------------------------------------------

    def encode(self, prompts: str | Sequence[str]) -> Batch:
        """The prompts as a left-padded Batch; LarqlError for one on which the model cannot run."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise LarqlError("no prompt was given; give at least one")
        rows = [prompt_ids(self.tokenizer, text) if text else [] for text in texts]
        for ids, text in zip(rows, texts, strict=True):
            if problem := self.unfit(ids):
                raise LarqlError(problem if len(texts) == 1 else f"{problem}: {text[:40]!r}")
        return pad(rows, device=self.device)

    def pad(self, ids: Sequence[int]) -> Batch:
        """The token ids of one prompt as a Batch; LarqlError for ids on which the model cannot run."""
        if problem := self.unfit(ids):
            raise LarqlError(problem)
        return pad([ids], device=self.device)

    def unfit(self, ids: Sequence[int], room: int = 0) -> str | None:
        """Why the model cannot run on these token ids with `room` more behind them; None where it can."""
        return unfit(ids, tokenizer=self.tokenizer, context=self.context, vocab=self.vocab, room=room)

    def select_layers(self, layers: Iterable[int] | None, *, embedding: bool = False) -> list[int]:
        """The layers, ascending, each once (None: all); with `embedding`, -1 stands for it and counts among all.

        LarqlError for a layer that the model does not have.
        """
        every = range(-1 if embedding else 0, self.n_layers)
        selected = list(every) if layers is None else sorted(set(layers))
        for layer in selected:
            if layer not in every:
                known = f"layers 0 to {self.n_layers - 1}" + (" and -1, the embedding" if embedding else "")
                raise LarqlError(f"layer {layer} is out of range; this model has {known}")
        return selected

    def batch(self, prompts: Prompts) -> Batch:
        """`prompts` itself when it is a Batch, else the encoded prompts."""
        return prompts if isinstance(prompts, Batch) else self.encode(prompts)

    def logits(self, prompts: Prompts) -> torch.Tensor:
        """Next-token logits, f32 [n, vocab], after soft-caps; only the last position goes through the head."""
        batch = self.batch(prompts)
        return self.run(batch.ids, batch.mask if batch.padded else None, batch.positions)

    @torch.inference_mode()
    def run(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: DynamicCache | None = None,
        *,
        keep: int = 1,
    ) -> torch.Tensor:
        """Logits of the last position, f32 [n, vocab] (keep=0: of all, [n, t, vocab]), from token ids [n, t].

        mask bool [n, cached + t], None where nothing is padded. The cache, if any, grows by t positions.
        """
        out = self._forward(self.model, ids, mask, positions, cache, logits_to_keep=keep)
        logits: torch.Tensor = out.logits.float()
        return logits[:, -1] if keep == 1 else logits

    @torch.inference_mode()
    def run_body(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: DynamicCache | None,
        *,
        lengths: torch.Tensor | None = None,
    ) -> None:
        """Run the layers over the t positions of ids [n, t], by which the cache grows if there is one; the head is not computed.

        lengths int64 [n] are those of the whole prompts, where these are their beginnings.
        """
        with self.modules.pass_lock:
            self.rope.lengths = lengths
            try:
                self._forward(self.model.base_model, ids, mask, positions, cache)
            finally:
                self.rope.lengths = None

    def _forward(
        self,
        module: torch.nn.Module,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: DynamicCache | None,
        **options: Any,
    ) -> Any:
        if self.before_pass is not None:
            self.before_pass()
        # Where each row's own tokens start in this pass, for edits that name a position.
        starts = None if mask is None else mask[:, -ids.shape[1] :].long().argmax(dim=1)
        with self.modules.pass_lock, loading.quiet():
            outer, self._starts = self._starts, starts
            # Families whose attention knows distances alone take no positions.
            options |= {"position_ids": positions, "past_key_values": cache, "use_cache": cache is not None}
            accepted = loading.accepted(module, options)
            try:
                return module(input_ids=ids, attention_mask=None if mask is None else mask.long(), **accepted)
            finally:
                self._starts = outer

    @functools.cached_property
    def cache_bytes(self) -> int:
        """Bytes that a cache holds for one position of one prompt: keys and values, and a part of the prompt's states."""
        from larql_duck.inference.kv_cache import bytes_of

        cache = self.new_cache()
        one = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        self.run_body(one, None, one, cache)
        keys, states = bytes_of(cache)
        return keys + states // _STATE_TOKENS

    @functools.cached_property
    def stateful(self) -> bool:
        """Whether layers keep states, which are of all tokens that were read: padding must not be among them."""
        from larql_duck.inference.kv_cache import keeps_states

        return keeps_states(self.model.config)

    def room(self, usual: int) -> int:
        """What a batch may take where `usual` is the usual limit, in whatever unit: the engine's share of it, at least 1."""
        return max(1, int(usual * self.share))

    def new_cache(self) -> DynamicCache:
        """An empty cache. It keeps every position, so that the mask alone decides what a sliding window hides."""
        from larql_duck.inference.kv_cache import new_cache

        return new_cache(self.model.config)

    # -- looking inside ----------------------------------------------------------------------------------

    def capture(
        self, prompts: Prompts, parts: Iterable[str] = FOR_ATTRIBUTION, *, positions: str = "last"
    ) -> Capture:
        """One forward pass with its insides recorded: see Capture for parts, shapes and positions ('last', 'all')."""
        batch = self.batch(prompts)
        # Where only the last position's logits are asked for, some families run late layers on that position alone.
        keep = 0 if positions == "all" and self.family.measured is not None else 1
        with self.recording(parts, positions=positions) as capture:
            logits = self.run(batch.ids, batch.mask if batch.padded else None, batch.positions, keep=keep)
            capture.values["logits"] = logits if keep else logits[:, -1]
        return capture

    @contextlib.contextmanager
    def recording(
        self, parts: Iterable[str] = FOR_ATTRIBUTION, *, positions: str = "last"
    ) -> Iterator[Capture]:
        """A context whose Capture holds the last forward pass run inside, once it has ended."""
        names = set(parts)
        eager = self._eager() if "attention" in names else contextlib.nullcontext()
        with self.modules.pass_lock, eager, recording(self.modules, names, positions=positions) as capture:
            yield capture

    @contextlib.contextmanager
    def _eager(self) -> Iterator[None]:
        """Attention computed step by step, which hands out its weights."""
        before = self.model.config._attn_implementation
        with loading.quiet():
            self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            with loading.quiet():
                self.model.set_attn_implementation(before)

    @torch.inference_mode()
    def unembed(self, residual: torch.Tensor) -> torch.Tensor:
        """The logits that a residual [..., hidden] would give as the final one: norm, head, scaling, soft-cap; f32."""
        hidden = self.modules.final_norm(residual.to(self.model.dtype))
        return self.capped(self.modules.head(hidden).float() * self.logit_scale)

    def capped(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits behind the soft-cap that the config has, if any."""
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @functools.cached_property
    def logit_scale(self) -> float:
        """What the model multiplies its head's products by before any soft-cap.

        Measured, in a pass of one token without layers: families call such a factor by several names, and one divides
        where another multiplies.
        """
        found: list[torch.Tensor] = []
        one = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        hook = self.modules.head.register_forward_hook(lambda _, __, out: found.append(out[0, -1].float()))
        with hook, skipped_layers(self.modules, range(self.n_layers)):
            logits = self.run(one, None, one)[0]
        # Where they are small, a soft-cap leaves them as they are.
        small = logits.abs() <= logits.abs().quantile(0.1) if len(logits) < 1 << 24 else slice(1 << 20)
        products, logits = found[-1][small].double(), logits[small].double()
        scale = float((products * logits).sum() / products.square().sum().clamp_min(1e-30))
        return 1.0 if abs(scale - 1) < 1e-3 else scale

    @functools.cached_property
    def head_mean(self) -> torch.Tensor:
        """The mean output embedding, f32 [hidden]."""
        weight = self.head_weight
        total = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
        for chunk in weight.split(8192):
            total += chunk.float().sum(0, dtype=torch.float64)
        return (total / weight.shape[0]).float()

    @property
    def head_weight(self) -> torch.Tensor:
        """The output head [vocab, hidden] in the compute dtype."""
        weight = self.modules.head.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    # -- changing a pass ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def intervene(self, *edits: interventions.Edit) -> Iterator[None]:
        """A context in which every forward pass carries the edits; LarqlError for a layer or feature out of range."""
        if not edits:
            with self.modules.pass_lock:
                yield
            return
        interventions.check(edits, self.n_features)
        with self.modules.pass_lock, interventions.applied(self.modules, edits, lambda: self._starts):
            yield

    def zeroed(self, features: Iterable[Slot]) -> contextlib.AbstractContextManager[None]:
        """A context in which these (layer, feature) activations are zero at every position."""
        return self.intervene(*interventions.feature_edits(features))

    @property
    def overlay(self) -> Overlay | None:
        """The edits that the weights are under; None where the model runs on its own."""
        return self._weights.overlay

    def apply_overlay(self, overlay: Overlay | None) -> None:
        """Run every later pass on the weights that `overlay` makes of the model's own (None: on those alone).

        n_features then counts appended features, and fingerprint names the edits.
        """
        with self.modules.pass_lock:
            self._weights.apply(overlay)
            self.n_features[:] = self._feature_counts()
            edits = "" if self.overlay is None else f"-{self.overlay.fingerprint()[:16]}"
            self.fingerprint = self._loaded_fingerprint + edits

    @contextlib.contextmanager
    def under(self, overlay: Overlay | None) -> Iterator[Engine]:
        """A context in which the engine runs under another overlay; afterwards it is under its own again."""
        with self.modules.pass_lock:
            before = self.overlay
            self.apply_overlay(overlay)
            try:
                yield self
            finally:
                self.apply_overlay(before)

    def _feature_counts(self) -> list[int]:
        return [parts.features for parts in self.modules.layers]
