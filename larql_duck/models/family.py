"""A model family: its tensor names and traits, and what follows from them and a config."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

from larql_duck.errors import ModelError
from larql_duck.models.experts import Experts
from larql_duck.models.sizes import MeasuredModel, ModelSizes

Config = Mapping[str, Any]
FfnMatrix: TypeAlias = Literal["gate", "up", "down"]

# Sizes above these are a damaged or lying config; the bounds keep loops and allocations finite.
_MAX_LAYERS = 10_000
_MAX_DIM = 1 << 28

# Prefixes that the names of a text model have inside one of images or sound, in both layouts -> the text model's own.
WRAPPED = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("model.text_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)

_ALIASES = {"swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh"}
_KNOWN = (
    "silu", "gelu", "gelu_new", "gelu_tanh", "relu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_python", "laplace",
    "hardswish", "leaky_relu", "linear", "mish", "quick_gelu", "relu2", "relu6", "sigmoid", "sqrtsoftplus", "tanh",
)  # fmt: skip
_ACTIVATIONS = _ALIASES | {name: name for name in _KNOWN}


@dataclass(frozen=True)
class Family:
    """What a family's tensors are called and how its layers work: a section of families.toml, or read off modules.

    Names are Hugging Face state-dict names; per-layer ones are relative to `layer`. Where gate and up are halves of one
    stored matrix, `fused` is its name, and theirs are that name with `.gate` and `.up` in it. attn and act are paths of
    modules ('' where they are what o's name begins with, and the FFN's act_fn or act); parallel: the FFN reads what
    attention reads; between: down reads more than activation(gate) times up, a norm of it for instance; tuples: a layer
    gives a tuple, the hidden states first; flat: it runs its FFN on rows of one axis, so that the matrix that is stored
    without `.inner` in its name is inside of one that makes them. experts: where layers choose among experts, which do.
    called: the activation's name where no module is all of it, and what it multiplies before and behind (`models.called`).
    mixer is what mixes positions: 'attention', or transformers' class, '' for nothing. absent: layers without an FFN. by_layer: where layers are unlike, what each has that
    the family's fields do not say.
    """

    name: str
    embed: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    final_norm: str = "model.norm.weight"
    final_norm_bias: str = ""
    positions: str = ""
    layer: str = "model.layers.{i}."
    gate: str = "mlp.gate_proj.weight"
    up: str = "mlp.up_proj.weight"
    down: str = "mlp.down_proj.weight"
    attn_norm: str = "input_layernorm.weight"
    ffn_norm: str = "post_attention_layernorm.weight"
    post_attn_norm: str = ""
    post_ffn_norm: str = ""
    q: str = "self_attn.q_proj.weight"
    k: str = "self_attn.k_proj.weight"
    v: str = "self_attn.v_proj.weight"
    qkv: str = ""
    o: str = "self_attn.o_proj.weight"
    q_norm: str = ""
    k_norm: str = ""
    attn: str = ""
    mixer: str = "attention"
    by_layer: tuple[Mapping[str, str], ...] = ()
    absent: tuple[int, ...] = ()
    act: str = ""
    fused: str = ""
    parallel: bool = False
    between: bool = False
    tuples: bool = False
    flat: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    norm_biases: bool = False
    transposed: bool = False
    attn_bias: Literal["never", "config", "qkv", "always"] = "never"
    ffn_bias: Literal["never", "config", "always"] = "never"
    scaled_embedding: bool = False
    act_key: str = "hidden_act"
    # A value that the architecture reads as another one: Gemma's "gelu" has always meant the tanh form.
    act_aliases: Mapping[str, str] = field(default_factory=dict)
    eps_key: str = "rms_norm_eps"
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # Historical and base-model prefixes -> the prefix of the causal model's state dict, tried in this order.
    prefixes: tuple[tuple[str, str], ...] = (
        ("layers.", "model.layers."),
        ("embed_tokens.", "model.embed_tokens."),
        ("norm.", "model.norm."),
    )
    ignored: str = r".*\.rotary_emb\.inv_freq"
    gguf_arch: str = ""
    gguf_permuted: bool = False
    listed: bool = True
    called: tuple[str, float, float] | None = None
    measured: MeasuredModel | None = None
    experts: Experts | None = None

    # -- names -------------------------------------------------------------------------------------------

    def at(self, i: int) -> Family:
        """The family as layer i has it."""
        own: dict[str, Any] = dict(self.by_layer[i]) if i < len(self.by_layer) else {}
        return replace(self, by_layer=(), **own) if own else self

    def layer_prefix(self, i: int) -> str:
        """The prefix of layer i's tensors (0-based), e.g. 'model.layers.0.'."""
        return self.layer.format(i=i)

    def key_of(self, name: str) -> str:
        """LARQL's key for a state-dict name: the name without the base model's prefix ('model.', 'transformer.')."""
        return name.removeprefix(self._prefix)

    def name_of(self, key: str) -> str:
        """The state-dict name for one of LARQL's keys."""
        own = self.measured
        if key == self.head or (own is not None and (key in own.shapes or key in own.buffers)):
            return key
        return self._prefix + key

    @property
    def _prefix(self) -> str:
        return self.layer.split(".")[0] + "."

    def gate_name(self, i: int) -> str:
        """The name of layer i's gate matrix (the input matrix where the FFN is plain)."""
        return self.layer_prefix(i) + self.gate

    def up_name(self, i: int) -> str | None:
        """The name of layer i's up matrix, None where the FFN is plain."""
        return self.layer_prefix(i) + self.up if self.up else None

    def down_name(self, i: int) -> str:
        """The name of layer i's down matrix."""
        return self.layer_prefix(i) + self.down

    def ffn_names(self, n_layers: int) -> dict[str, tuple[int, FfnMatrix]]:
        """Name -> layer and kind of the FFN matrices of layers 0 to n_layers - 1."""
        kinds: dict[FfnMatrix, str] = {"gate": self.gate, "up": self.up, "down": self.down}
        return {self.layer_prefix(i) + n: (i, k) for i in range(n_layers) for k, n in kinds.items() if n}

    def halves(self, name: str) -> tuple[str, ...]:
        """The names of gate and up for the matrix (or its bias) that holds both, and that of down for one that is stored
        under another name; none for any other."""
        i, relative = self.relative(name)
        if self.flat and i is not None:
            own = {outside(n): n for n in (self.down, bias_of(self.down))}
            return (self.layer_prefix(i) + own[relative],) if relative in own else ()
        if not self.fused or i is None or relative not in (self.fused, bias_of(self.fused)):
            return ()
        parts = (self.gate, self.up) if relative == self.fused else (bias_of(self.gate), bias_of(self.up))
        return tuple(self.layer_prefix(i) + part for part in parts)

    def relative(self, name: str) -> tuple[int | None, str]:
        """Layer and name without the layer's prefix for a layer's tensor; None and the name itself for any other."""
        head = self.layer.partition("{i}")[0]
        number, dot, rest = name.removeprefix(head).partition(".")
        return (int(number), rest) if name.startswith(head) and dot and number.isdecimal() else (None, name)

    def matrices(self) -> tuple[str, ...]:
        """Relative names of a layer's matrices: attention in the order q, k, v (or fused), o, then gate, up, down."""
        names = (self.qkv,) if self.qkv else (self.q, self.k, self.v)
        return tuple(n for n in (*names, self.o, self.gate, self.up, self.down) if n)

    def norms(self) -> tuple[str, ...]:
        """Relative names of a layer's norm weights, in the order in which a forward pass meets them."""
        attention = (self.attn_norm, self.q_norm, self.k_norm, self.post_attn_norm)
        return tuple(n for n in (*attention, self.ffn_norm, self.post_ffn_norm) if n)

    def canonical(self, name: str) -> str | None:
        """The state-dict name for a checkpoint's tensor name, None for buffers and parts of other modalities."""
        for old, new in self.prefixes:
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        return None if re.fullmatch(self.ignored, name) else name

    # -- what a vindex keeps of a family that was read off modules ---------------------------------------

    def record(self) -> dict[str, Any] | None:
        """What `from_record` makes the family from, as JSON has it; None for a section of families.toml."""
        if self.measured is None:
            return None
        plain = Family(self.name)
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("measured", "experts")}
        changed = {k: v for k, v in own.items() if v != getattr(plain, k)}
        mixed = {"experts": asdict(self.experts)} if self.experts else {}
        return {"name": self.name, **changed, **mixed, "measured": asdict(self.measured)}

    @classmethod
    def from_record(cls, name: str, record: Mapping[str, Any]) -> Family:
        """The family that `record` gave; ModelError where the record is none."""
        try:
            values = dict(record)
            measured = dict(values.pop("measured"))
            measured["shapes"] = {n: tuple(shape) for n, shape in measured["shapes"].items()}
            measured["buffers"] = tuple(measured.get("buffers", ()))
            if mixed := values.pop("experts", None):
                values["experts"] = Experts(**{**mixed, "layers": tuple(mixed["layers"])})
            if called := values.get("called"):
                values["called"] = (str(called[0]), float(called[1]), float(called[2]))
            values["absent"] = tuple(values.get("absent", ()))
            values["by_layer"] = tuple(dict(own) for own in values.get("by_layer", ()))
            values["prefixes"] = tuple((old, new) for old, new in values.get("prefixes", ()))
            return cls(**{"name": name, **values, "measured": MeasuredModel(**measured)})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"the record of family {name!r} cannot be read: {error}") from None

    # -- what a config says ------------------------------------------------------------------------------

    def get(self, config: Config, key: str) -> Any:
        """The config's value under the common key (the family's own spelling first), else the family's default.

        An explicit null is None, not the default: transformers then derives the value (kv heads, head size).
        """
        for k in (self.keys.get(key, key), key):
            if k in config:
                return config[k]
        return self.defaults.get(key)

    def sizes(self, config: Config) -> ModelSizes:
        """The model's sizes as the config states them; ModelError when a value is missing or impossible."""
        if self.measured is not None:
            return self._measured_sizes(config, self.measured)
        hidden = self._int(config, "hidden_size")
        n_layers = self._int(config, "num_hidden_layers", _MAX_LAYERS)
        n_heads = self._int(config, "num_attention_heads")
        n_kv = self._int(config, "num_key_value_heads", default=n_heads)
        if n_heads % n_kv:
            raise ModelError(
                f"config.json: num_attention_heads {n_heads} is no multiple of num_key_value_heads {n_kv}"
            )
        if self.get(config, "head_dim") is None and hidden % n_heads:
            raise ModelError(
                f"config.json: hidden size {hidden} is no multiple of the {n_heads} attention heads"
            )
        head_dim = self._int(config, "head_dim", default=hidden // n_heads)
        value = self.get(config, "intermediate_size")
        if isinstance(value, list):
            if len(value) != n_layers or not all(_is_size(v) for v in value):
                raise ModelError(f"config.json: intermediate_size must be {n_layers} positive numbers")
            intermediate = list(value)
        else:
            default = 4 * hidden if not self.up else None
            intermediate = [self._int(config, "intermediate_size", default=default)] * n_layers
        vocab = self._int(config, "vocab_size")
        return ModelSizes(n_layers, hidden, intermediate, vocab, n_heads, n_kv, head_dim)

    def _measured_sizes(self, config: Config, measured: MeasuredModel) -> ModelSizes:
        gates = (measured.shapes[self.gate_name(i)] for i in range(measured.n_layers))
        intermediate = [shape[1 if self.transposed else 0] for shape in gates]
        # An edited model's config says another number than the model did that was measured.
        value = config.get(self.keys.get("intermediate_size", ""))
        if isinstance(value, list) and len(value) == measured.n_layers:
            intermediate = list(value)
        elif isinstance(value, int) and _is_size(value):
            intermediate = [0 if i in self.absent else value for i in range(measured.n_layers)]
        return ModelSizes(
            measured.n_layers, measured.hidden, intermediate, measured.vocab, measured.n_heads,
            measured.n_kv_heads, measured.head_dim, self.experts.running(intermediate) if self.experts else None,
        )  # fmt: skip

    def _int(self, config: Config, key: str, limit: int = _MAX_DIM, default: int | None = None) -> int:
        value = self.get(config, key)
        value = default if value is None else value
        spelling = self.keys.get(key, key)
        if value is None:
            raise ModelError(f"config.json: {spelling} is missing (model_type {self.name})")
        if not _is_size(value) or value > limit:
            raise ModelError(f"config.json: {spelling} must be a number from 1 to {limit}, found {value!r}")
        return int(value)

    def embed_scale(self, config: Config) -> float:
        """The factor between the stored embedding and the residual stream: sqrt(hidden) for Gemma, else 1."""
        return math.sqrt(self.sizes(config).hidden) if self.scaled_embedding else 1.0

    def norm_eps(self, config: Config) -> float:
        """The epsilon of the norms; 0 where the modules alone know it."""
        if self.measured is not None:
            return 0.0
        value = self.get(config, self.eps_key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            raise ModelError(f"config.json: {self.eps_key} must be a small number, found {value!r}")
        return float(value)

    def rope(self, config: Config, layers: str = "full_attention") -> dict[str, Any]:
        """The rotary parameters of layers of that type as the forward pass takes them, under the names of newer configs.

        Where keys contradict each other, what transformers reads counts. rope_theta is None where no key says it.
        """
        stated, scaling = as_mapping(config.get("rope_parameters")), as_mapping(config.get("rope_scaling"))
        key = "rope_theta"
        if self.name == "gemma3_text":
            own = {**as_mapping(stated.get(layers)), **(scaling if layers == "full_attention" else {})}
            key = "rope_theta" if layers == "full_attention" else "rope_local_base_freq"
        else:
            own = dict(scaling or as_mapping(stated.get(layers, stated)))
        kind = own.pop("type", None)
        own.setdefault("rope_type", kind or "default")
        own.setdefault("rope_theta", config.get(key))
        return own

    def rope_theta(self, config: Config) -> float | None:
        """The base of the rotary embedding (full attention where layers differ); None where there is none."""
        value = self.rope(config)["rope_theta"]
        return float(value) if isinstance(value, int | float) else None

    def settled(self, config: Config) -> dict[str, Any]:
        """The config, with what `rope` says under each rotary key that it has."""
        if self.measured is not None:
            return dict(config)
        out, full = dict(config), self.rope(config)
        if "rope_theta" in out:
            out["rope_theta"] = full["rope_theta"]
        if self.name == "gemma3_text":
            local = self.rope(config, "sliding_attention")
            if "rope_local_base_freq" in out:
                out["rope_local_base_freq"] = local["rope_theta"]
            if config.get("rope_parameters"):
                out["rope_parameters"] = {"full_attention": full, "sliding_attention": local}
        elif config.get("rope_parameters") and config.get("rope_scaling"):
            out["rope_parameters"] = full
        return out

    def activation(self, config: Config) -> str:
        """The FFN's activation by transformers' name ('gelu_tanh' for gelu_pytorch_tanh); ModelError for another one.

        '' for a function with numbers of its own, which the model's modules alone compute.
        """
        if self.measured is not None:
            return self.measured.activation
        value = self.get(config, self.act_key)
        value = self.act_aliases.get(value, value) if isinstance(value, str) else value
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            spelling = self.keys.get(self.act_key, self.act_key)
            raise ModelError(
                f"config.json: {spelling} {value!r} is not known; known: {', '.join(sorted(_ACTIVATIONS))}"
            )
        return _ACTIVATIONS[value]

    @property
    def opens(self) -> bool:
        """Whether a feature's activation follows from its gate and up values alone, by a function that has a name."""
        return self.measured is None or self.measured.activation != ""

    def tied(self, config: Config, names: Collection[str]) -> bool:
        """True when the output head is the embedding: no head is stored. (A stored head counts, whatever the config says.)"""
        return self.head not in names

    def ties(self, config: Config) -> bool | None:
        """What the config says about tied embeddings; None when it says nothing and the family has no default."""
        value = self.get(config, "tie_word_embeddings")
        return None if value is None else bool(value)

    # -- the tensors a config calls for ------------------------------------------------------------------

    def expected(self, config: Config) -> dict[str, tuple[int, ...]]:
        """Name -> shape (Hugging Face layout) of every tensor that this config calls for; the head is left out."""
        size = self.sizes(config)
        if self.measured is not None:
            return self._measured_shapes(self.measured, size.intermediate)
        out: dict[str, tuple[int, ...]] = {self.embed: (size.vocab, size.hidden)}
        if self.positions:
            out[self.positions] = (self._int(config, "max_position_embeddings"), size.hidden)
        for i in range(size.n_layers):
            prefix = self.layer_prefix(i)
            out.update((prefix + n, shape) for n, shape in self._layer(config, size, i))
        out[self.final_norm] = (size.hidden,)
        if self.final_norm_bias:
            out[self.final_norm_bias] = (size.hidden,)
        return out

    def _measured_shapes(self, measured: MeasuredModel, features: list[int]) -> dict[str, tuple[int, ...]]:
        out = dict(measured.shapes)
        for name, (i, kind) in self.ffn_names(measured.n_layers).items():
            axis = int((kind == "down") != self.transposed)
            shape = list(out[name])
            shape[axis] = features[i]
            out[name] = tuple(shape)
            if kind != "down" and bias_of(name) in out:
                out[bias_of(name)] = (features[i],)
        return out

    def _layer(self, config: Config, size: ModelSizes, i: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        q, kv = size.n_heads * size.head_dim, size.n_kv_heads * size.head_dim
        features, hidden = size.intermediate[i], size.hidden
        shapes = {self.o: (hidden, q), self.gate: (features, hidden), self.down: (hidden, features)}
        if self.qkv:
            shapes[self.qkv] = (q + 2 * kv, hidden)
        else:
            shapes |= {self.q: (q, hidden), self.k: (kv, hidden), self.v: (kv, hidden)}
        if self.up:
            shapes[self.up] = (features, hidden)
        attention = {self.o, self.qkv, self.q, self.k, self.v}
        for name in self.matrices():
            rows, columns = shapes[name]
            yield name, (columns, rows) if self.transposed else (rows, columns)
            if self._has_bias(config, name, name in attention):
                yield bias_of(name), (rows,)
        for name in self.norms():
            yield name, (size.head_dim,) if name in (self.q_norm, self.k_norm) else (hidden,)
            if self.norm_biases:
                yield bias_of(name), (hidden,)

    def _has_bias(self, config: Config, name: str, attention: bool) -> bool:
        rule = self.attn_bias if attention else self.ffn_bias
        if rule == "config":
            return bool(config.get("attention_bias" if attention else "mlp_bias", False))
        return rule == "always" or (rule == "qkv" and name != self.o)


def bias_of(weight: str) -> str:
    """The bias's name beside a weight's name."""
    return weight.removesuffix("weight") + "bias"


def layer_count(family: Family, names: Iterable[str]) -> int:
    """How many layers tensors are of: one more than the highest layer's number."""
    numbers = (family.relative(name)[0] for name in names)
    return 1 + max((n for n in numbers if n is not None), default=-1)


def check_layers(family: Family, config: Config, names: Mapping[str, object]) -> None:
    """Raise ModelError where the files have more or fewer layers than the config says."""
    stated, stored = family.sizes(config).n_layers, layer_count(family, names)
    if stored and stated != stored:
        key = family.keys.get("num_hidden_layers", "num_hidden_layers")
        raise ModelError(
            f"the config says {stated} layers ({key}), the files have {stored}: the config is another model's, or "
            "files are missing",
            tensor=family.gate_name(min(stated, stored)),
        )


def outside(name: str) -> str:
    """The stored name of a matrix (or bias) that a flat FFN's down matrix is inside of."""
    return name.replace(".inner.", ".")


def as_mapping(value: Any) -> Mapping[str, Any]:
    """A part of a config that should be an object: the value, {} where it is none."""
    return value if isinstance(value, Mapping) else {}


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
