"""Engine: one loaded model. Every forward pass of extraction, probing, inference and tracing goes through it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from larql_duck.errors import LarqlError
from larql_duck.inference import attribution, effects, generate, interventions, loading, prefix
from larql_duck.inference.batch import Batch, checked, encode, pad
from larql_duck.inference.capture import FOR_ATTRIBUTION, Capture, recording
from larql_duck.inference.modules import find_parts

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

    from larql_duck.inference.weight_overlay import Patched
    from larql_duck.models.source import WeightSource
    from larql_duck.models.tokenizer import Tokenizer

Prompts = Batch | str | Sequence[str]


class Engine:
    """A transformers model on the weights of a source, with the operations that this package needs of it.

    Public attributes: model, tokenizer, config (the source's, a dict), family, n_layers, n_features (one a layer),
    hidden, vocab, context (longest prompt in tokens, None where the config sets none), window (sliding window or
    None), device, fingerprint (names the weights), patched (see infer.patched). Safe to use from several threads:
    passes wait for each other.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, source: WeightSource, *, fingerprint: str = ""
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = source.config
        self.family = source.family
        self.path = source.path
        self.anatomy = find_parts(model, source.family)
        self.n_layers = len(self.anatomy.layers)
        self.n_features = [parts.down_rows().shape[0] for parts in self.anatomy.layers]
        embeddings = model.get_input_embeddings().weight
        self.vocab, self.hidden = int(embeddings.shape[0]), int(embeddings.shape[1])
        self.device = embeddings.device
        context = getattr(model.config, "max_position_embeddings", None)
        self.context: int | None = int(context) if context else None
        window = getattr(model.config, "sliding_window", None)
        self.window: int | None = int(window) if window else None
        self.fingerprint = fingerprint
        self._starts: torch.Tensor | None = None
        self.patched: Patched | None = None

    @classmethod
    def load(
        cls,
        source: WeightSource,
        *,
        compute_dtype: str = "f32",
        device: str = "cpu",
        threads: int | None = None,
    ) -> Engine:
        """An Engine on the weights of `source` (a model, or a vindex of level inference or all).

        compute_dtype is 'f32', 'f16' or 'bf16': tensors stored in it are used where they lie, others are converted
        one by one. device is 'cpu' or a torch device such as 'cuda'. threads sets torch's thread count. Raises
        LevelError for a vindex without weights, ModelError for weights that do not make a model.
        """
        require = getattr(source, "require", None)
        if callable(require):
            require("inference", "a forward pass")
        if device != "cpu" and device.startswith("cuda") and not torch.cuda.is_available():
            raise LarqlError(f"device {device!r} is not available here; use device 'cpu'")
        if threads is not None:
            torch.set_num_threads(threads)
        from larql_duck.models.tokenizer import load_tokenizer

        model = loading.build_model(source, dtype=loading.torch_dtype(compute_dtype), device=device)
        return cls(model, load_tokenizer(source), source, fingerprint=loading.fingerprint(source))

    def __del__(self) -> None:
        # The weights go first, then what they leave behind is handed back. At the interpreter's end, both may fail.
        with contextlib.suppress(Exception):
            self.__dict__.clear()
            loading.return_memory()

    # -- passes ------------------------------------------------------------------------------------------

    def encode(self, prompts: str | Sequence[str]) -> Batch:
        """The prompts as a left-padded Batch; LarqlError for an empty prompt or one beyond the context."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return encode(self.tokenizer, texts, context=self.context, vocab=self.vocab, device=self.device)

    def pad(self, ids: Sequence[int]) -> Batch:
        """The token ids of one prompt as a Batch; LarqlError for none, or for more than the context holds."""
        checked([list(ids)], context=self.context, vocab=self.vocab)
        return pad([ids], device=self.device)

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
        with self._frame(ids, mask):
            out = self.model(
                input_ids=ids,
                attention_mask=None if mask is None else mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=keep,
            )
        logits: torch.Tensor = out.logits.float()
        return logits[:, -1] if keep == 1 else logits

    @torch.inference_mode()
    def run_body(
        self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: DynamicCache
    ) -> None:
        """None; the cache grows by the t positions of ids [n, t]. The head is not computed."""
        with self._frame(ids, mask):
            self.model.base_model(
                input_ids=ids,
                attention_mask=None if mask is None else mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )

    @contextlib.contextmanager
    def _frame(self, ids: torch.Tensor, mask: torch.Tensor | None) -> Iterator[None]:
        # Where each row's own tokens start in this pass, for edits that name a position.
        own = None if mask is None else mask[:, -ids.shape[1] :]
        with self.anatomy.passing, loading.quiet():
            outer = self._starts
            self._starts = None if own is None else own.long().argmax(dim=1)
            try:
                yield
            finally:
                self._starts = outer

    @functools.cached_property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that a cache holds for one position of one prompt."""
        cache = self.new_cache()
        one = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        self.run_body(one, None, one, cache)
        return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))

    def new_cache(self) -> DynamicCache:
        """An empty cache. It keeps every position, so that the mask alone decides what a sliding window hides."""
        from transformers import DynamicCache

        return DynamicCache()

    def prefix(self, prompts: Prompts) -> prefix.Prefix:
        """The prompts run up to their last token; tokens shared at the start of all of them run once."""
        return prefix.prefill(self, self.batch(prompts))

    # -- looking inside ----------------------------------------------------------------------------------

    def capture(
        self, prompts: Prompts, parts: Iterable[str] = FOR_ATTRIBUTION, *, positions: str = "last"
    ) -> Capture:
        """One forward pass with its insides recorded: see Capture for parts, shapes and positions ('last', 'all')."""
        batch = self.batch(prompts)
        with self.recording(parts, positions=positions) as capture:
            capture.logits = self.logits(batch)
        return capture

    @contextlib.contextmanager
    def recording(
        self, parts: Iterable[str] = FOR_ATTRIBUTION, *, positions: str = "last"
    ) -> Iterator[Capture]:
        """A context whose Capture holds the last forward pass run inside, once it has ended."""
        wanted = set(parts)
        with self.anatomy.passing, contextlib.ExitStack() as stack:
            if "attention" in wanted:
                stack.enter_context(self._eager())
            yield stack.enter_context(recording(self.anatomy, wanted, positions=positions))

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
        hidden = self.anatomy.final_norm(residual.to(self.model.dtype))
        logits = self.anatomy.head(hidden).float() * self.anatomy.logit_scale
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

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
        weight = self.anatomy.head.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def attribute(
        self,
        capture: Capture,
        token_ids: Sequence[int] | torch.Tensor,
        *,
        rows: Sequence[int] | torch.Tensor | None = None,
        heads: bool = False,
    ) -> attribution.Attribution:
        """Each part's direct contribution to the centred logit of token_ids [k], before any soft-cap.

        rows [k] says which prompt of the capture each token belongs to (default: one token a prompt). The parts add
        up to the centred logit; see Attribution.
        """
        return attribution.attribute(self, capture, token_ids, rows=rows, heads=heads)

    # -- changing a pass ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def intervene(self, *edits: interventions.Edit) -> Iterator[None]:
        """A context in which every forward pass carries the edits; LarqlError for a layer or feature out of range."""
        interventions.check(edits, self.n_features)
        with self.anatomy.passing, interventions.applied(self.anatomy, edits, lambda: self._starts):
            yield

    def zeroed(self, features: Iterable[interventions.Slot]) -> contextlib.AbstractContextManager[None]:
        """A context in which these (layer, feature) activations are zero at every position."""
        return self.intervene(*interventions.feature_edits(features))

    def effects(
        self,
        prompts: Prompts,
        token_ids: Sequence[int],
        features: Sequence[Sequence[interventions.Slot]],
        *,
        single: int | None = None,
        replacement: torch.Tensor | None = None,
    ) -> effects.Effects:
        """How far log p (nats) of each prompt's token falls when its features are zeroed at the last position.

        features[i] lists prompt i's (layer, feature) slots; the first `single` of them (None: all) are zeroed one at
        a time, and all of them together. replacement [layers, features] replaces activations instead of zero.
        """
        return effects.effects(self, prompts, token_ids, features, single=single, replacement=replacement)

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Iterator[generate.Piece]:
        """The continuation of a prompt, token by token; options as in generate.stream."""
        return generate.stream(self, prompt, **options)
