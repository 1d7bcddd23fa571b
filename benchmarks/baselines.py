"""ROME, MEMIT and AlphaEdit from their papers' formulas, on the weights of an engine.

ROME: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", equations 2 to 4. MEMIT: Meng et al. 2023,
"Mass-Editing Memory in a Transformer", equations 14 to 20. AlphaEdit: Fang et al. 2025, "AlphaEdit: Null-Space Constrained
Knowledge Editing for Language Models", equations 11 to 14. W maps a key (what W_down reads at the subject's last token) to a
value (what the FFN writes there); C is the second moment of keys over ordinary text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from larql_duck.editing.detector import layer_input
from larql_duck.inference.batch import pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.modules import starting_at, watching_input
from larql_duck.inference.sampling import written_ids
from larql_duck.inference.scoring import answer_ids, subject_position

Moment = Callable[[int], torch.Tensor]
"""Layer -> C, f64 [features, features]."""

Wanted = dict[tuple["Edit", "Settings"], torch.Tensor]
"""What the last layer is to hand on at an edit's subject, f32 [hidden]: MEMIT and AlphaEdit look for the same."""


@dataclass(frozen=True)
class Edit:
    """A fact as the papers have it: a template with {} for the subject's text, and what is to be said behind it."""

    template: str
    text: str
    target: str


@dataclass(frozen=True)
class Settings:
    """What the papers leave to each model. layers: those that are written, the last one has the value.

    steps, rate, decay, kl and clamp are of the value's gradient steps; preserve is MEMIT's lambda; null and ridge are the
    eigenvalue below which AlphaEdit counts a direction as null space, and the weight of its update's length.
    """

    layers: tuple[int, ...]
    steps: int = 25
    rate: float = 0.5
    decay: float = 0.5
    kl: float = 0.0625
    clamp: float = 4.0
    done: float = 0.05
    preserve: float = 15_000.0
    null: float = 0.02
    ridge: float = 10.0


# Beginnings that a prompt is put behind, so that key and value do not depend on its place; their tokens and the seed.
_CONTEXTS, _LENGTH, _SEED = 5, 10, 3
# What is said of a subject otherwise, held by the KL term.
_ESSENCE = "{} is a"


def rome(
    engine: Engine, edits: Sequence[Edit], moment: Moment, settings: Settings, wanted: Wanted | None = None
) -> None:
    """Change W_down of the last of the layers by a matrix of rank one for each edit, one after the other."""
    layer, contexts = settings.layers[-1], contexts_of(engine)
    inverse = torch.linalg.inv(_regular(moment(layer)))
    for edit in edits:
        key = mean_keys(engine, [edit], layer, contexts)[0]
        value = _written(engine, edit, layer) + best_change(engine, edit, layer, contexts, settings, "down")
        rows = engine.modules.layers[layer].down_rows().double()
        direction = inverse @ key
        change = (value.double() - key @ rows) / (direction @ key)
        _add(engine, layer, torch.outer(direction, change))


def memit(
    engine: Engine, edits: Sequence[Edit], moment: Moment, settings: Settings, wanted: Wanted | None = None
) -> None:
    """Change W_down of all the layers by least squares over all edits together, what is left shared among those to come."""

    def update(layer: int, keys: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        known = settings.preserve * moment(layer)
        return torch.linalg.solve(known + keys.t() @ keys, keys.t() @ left)

    _spread(engine, edits, settings, update, {} if wanted is None else wanted)


def alphaedit(
    engine: Engine, edits: Sequence[Edit], moment: Moment, settings: Settings, wanted: Wanted | None = None
) -> None:
    """As `memit`, with the change projected on the directions in which ordinary keys have next to nothing."""

    def update(layer: int, keys: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        p = null_space(moment(layer), settings.null)
        a = p @ (keys.t() @ keys) + settings.ridge * torch.eye(len(p), dtype=p.dtype)
        return torch.linalg.solve(a, p @ (keys.t() @ left))

    _spread(engine, edits, settings, update, {} if wanted is None else wanted)


METHODS: dict[str, Callable[[Engine, Sequence[Edit], Moment, Settings, Wanted | None], None]] = {
    "ROME": rome,
    "MEMIT": memit,
    "AlphaEdit": alphaedit,
}


@contextmanager
def restored(engine: Engine) -> Iterator[None]:
    """A context after which every W_down is what it was."""
    before = [parts.down.weight for parts in engine.modules.layers]
    try:
        yield
    finally:
        for parts, weight in zip(engine.modules.layers, before, strict=True):
            parts.down.weight = weight


# -- keys and values ------------------------------------------------------------------------------------------


def contexts_of(engine: Engine) -> list[str]:
    """Nothing, and a few beginnings of texts that the model writes."""
    rows = written_ids(engine, _CONTEXTS * 192, seed=_SEED)[:_CONTEXTS]
    texts = [engine.tokenizer.continuation(row[:_LENGTH]).strip() for row in rows]
    return ["", *(f"{' '.join(text.split())}. ".replace("{", "").replace("}", "") for text in texts if text)]


def mean_keys(engine: Engine, edits: Sequence[Edit], layer: int, contexts: Sequence[str]) -> torch.Tensor:
    """The mean of what W_down reads at the subject's last token over the contexts, f64 [edits, features]."""
    out = []
    for edit in edits:
        places = [subject_position(engine.tokenizer, c + edit.template, edit.text) for c in contexts]
        found = layer_input(engine, [place.start for place in places], layer, part="down")
        out.append(found[:, -1].double().mean(0).cpu())
    return torch.stack(out)


def _written(engine: Engine, edit: Edit, layer: int) -> torch.Tensor:
    """What the FFN writes at the subject's last token of the plain prompt, f32 [hidden]."""
    return _output(engine, edit, layer, "down")


@torch.no_grad()
def _output(engine: Engine, edit: Edit, layer: int, part: str) -> torch.Tensor:
    """The output of a layer's 'down', or of all of it ('block'), at the subject's last token of the plain prompt."""
    start = subject_position(engine.tokenizer, edit.template, edit.text).start
    found: list[torch.Tensor] = []

    def watch(module: torch.nn.Module, args: Any, out: Any) -> None:
        found.append((out[0] if isinstance(out, tuple) else out)[0, -1].float().cpu())

    with engine.modules.pass_lock:
        handle = getattr(engine.modules.layers[layer], part).register_forward_hook(watch)
        try:
            engine.model.base_model(input_ids=torch.tensor([start], device=engine.device), use_cache=False)
        finally:
            handle.remove()
    return found[0]


def best_change(
    engine: Engine, edit: Edit, layer: int, contexts: Sequence[str], settings: Settings, part: str
) -> torch.Tensor:
    """What, added to the layer's output at the subject, makes the model say the target: f32 [hidden], by Adam.

    The loss is the target's mean nats a token behind the contexts, a KL term on "{} is a", and weight decay; the length is
    at most `clamp` times that of what stands there: the output of 'down' (ROME) or of the 'block' (MEMIT, AlphaEdit).
    """
    tokenizer, target = engine.tokenizer, answer_ids(engine.tokenizer, edit.template, edit.target)
    places = [subject_position(tokenizer, c + edit.template, edit.text, target) for c in contexts]
    # The last token of a target is said, not read.
    rows = [place.ids[:-1] for place in places]
    essence = subject_position(tokenizer, _ESSENCE, edit.text)
    batch = pad([*rows, essence.ids], device=engine.device)
    width = batch.ids.shape[1]
    at = [width - len(ids) + p.at for ids, p in zip([*rows, essence.ids], [*places, essence], strict=True)]
    which = torch.arange(len(at)), torch.tensor(at)
    first = _output(engine, edit, layer, part)
    delta = torch.zeros(engine.hidden, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.rate)
    entering = _entering(engine, layer, batch)
    labels = torch.tensor(target).expand(len(rows), -1)
    held: torch.Tensor | None = None
    for step in range(settings.steps):
        hidden = _with_added(engine, layer, batch, entering, which, delta)
        logp = _log_p(engine, hidden[:-1, -len(target) :])
        nats = -logp.gather(-1, labels[..., None])[..., 0].mean()
        now = _log_p(engine, hidden[-1:, -1])
        held = now.detach() if held is None else held
        kl = (held.exp() * (held - now)).sum()
        loss = nats + settings.kl * kl + settings.decay * delta.norm() / first.norm() ** 2
        if float(loss.detach()) < settings.done or step == settings.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            most = settings.clamp * first.norm()
            if delta.norm() > most:
                delta *= most / delta.norm()
    return delta.detach()


@torch.no_grad()
def _entering(engine: Engine, layer: int, batch: Any) -> torch.Tensor:
    """The hidden states [n, t, hidden] that enter a layer: the layers below run once."""
    with watching_input(engine.modules, layer) as found:
        _body(engine, batch)
    return found[0]


def _with_added(
    engine: Engine,
    layer: int,
    batch: Any,
    entering: torch.Tensor,
    which: tuple[torch.Tensor, torch.Tensor],
    delta: torch.Tensor,
) -> torch.Tensor:
    """The hidden states behind the last norm with delta added to the FFN's output at the subjects; differentiable.

    In a residual stream that is the same as adding it to the layer's output.
    """

    def hook(module: torch.nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[which] += delta.to(out)
        return out

    with engine.modules.pass_lock, starting_at(engine.modules, layer, entering):
        handle = engine.modules.layers[layer].down.register_forward_hook(hook)
        try:
            return _body(engine, batch)
        finally:
            handle.remove()


def _body(engine: Engine, batch: Any) -> torch.Tensor:
    out = engine.model.base_model(
        input_ids=batch.ids,
        attention_mask=batch.mask.long() if batch.padded else None,
        position_ids=batch.positions,
        use_cache=False,
    )
    hidden: torch.Tensor = out.last_hidden_state
    return hidden


def _log_p(engine: Engine, hidden: torch.Tensor) -> torch.Tensor:
    logits = engine.modules.head(hidden.to(engine.model.dtype)).float() * engine.logit_scale
    return torch.log_softmax(engine.capped(logits), -1).cpu()


# -- updates --------------------------------------------------------------------------------------------------


def _spread(
    engine: Engine,
    edits: Sequence[Edit],
    settings: Settings,
    update: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
    known: Wanted,
) -> None:
    """Write values into the layers in turn: each takes its share of what the last one's output still lacks."""
    contexts, last = contexts_of(engine), settings.layers[-1]
    # Before anything is written; it does not depend on how it will be.
    key = replace(settings, preserve=0.0, null=0.0, ridge=0.0)  # What the value does not depend on.
    for e in edits:
        if (e, key) not in known:
            change = best_change(engine, e, last, contexts, settings, "block")
            known[e, key] = _output(engine, e, last, "block") + change
    wanted = torch.stack([known[e, key] for e in edits])
    for i, layer in enumerate(settings.layers):
        keys = mean_keys(engine, edits, layer, contexts)
        now = torch.stack([_output(engine, e, last, "block") for e in edits])
        left = (wanted - now).double() / (len(settings.layers) - i)
        _add(engine, layer, update(layer, keys, left))


def null_space(moment: torch.Tensor, below: float) -> torch.Tensor:
    """The projection f64 [d, d] on the eigenvectors of a second moment whose eigenvalues are below that."""
    values, vectors = torch.linalg.eigh(moment.double())
    chosen = vectors[:, values < below]
    return chosen @ chosen.t()


def _regular(moment: torch.Tensor) -> torch.Tensor:
    """A second moment that can be inverted: features that hardly ever fire get a little of the mean."""
    return moment + 1e-4 * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)


def _add(engine: Engine, layer: int, change: torch.Tensor) -> None:
    """Add a change [features, hidden] to the rows of W_down, in a new parameter: the old one is left as it is."""
    parts = engine.modules.layers[layer]
    rows = parts.down_rows().detach()
    rows = (rows.double() + change.to(rows.device)).to(rows.dtype)
    weight = rows if parts.transposed else rows.t()
    parts.down.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
