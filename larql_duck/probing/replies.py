"""Prompts of any relations asked in shared batches: beginnings run once, finished batches kept in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from larql_duck.inference.engine import Engine
from larql_duck.inference.prefix import Head, Heads
from larql_duck.inference.scoring import answer_ids
from larql_duck.knowledge.relations import SLOT, Relation
from larql_duck.probing.answers import MAX_TOKENS, Asked, ask
from larql_duck.probing.checkpoint import Checkpoint, KeptBatch
from larql_duck.probing.outcomes import Outcome, Reply
from larql_duck.probing.priors import Priors
from larql_duck.probing.prompts import Variant

# Prompts of one batch, the numbers in its logits, and the bytes of its keys and values (several such caches live at
# a time: the prefix, the step after it, the answers being decoded).
BATCH_PROMPTS, BATCH_LOGITS, BATCH_CACHE = 128, 1 << 23, 1 << 27


@dataclass(frozen=True)
class Ask:
    """A subject to ask about in one variant of a relation.

    scored are answers whose probability is asked for too; decoded=False asks for nothing else.
    """

    relation: Relation
    variant: Variant
    subject: str
    scored: tuple[str, ...] = ()
    decoded: bool = True


class Asker:
    """Asks an engine in shared batches; beginnings that prompts share are run once.

    `done` is called with the number of prompts after each batch, whether it was run or found in the checkpoint. heads
    are those of earlier prompts. Of the relations in `once` (None: of all) one answer is decoded, unless they have many.
    """

    def __init__(
        self,
        engine: Engine,
        checkpoint: Checkpoint | None = None,
        done: Callable[[int], None] = lambda n: None,
        *,
        heads: Heads | None = None,
        once: Collection[str] | None = (),
    ) -> None:
        self.engine = engine
        self._answered: set[str] = set()
        self._unfit: dict[str, str] = {}
        self._checkpoint = checkpoint or Checkpoint(None)
        self._done = done
        self._heads = heads or Heads(engine)
        self._once = once

    def ask(self, items: Sequence[Ask], priors: Mapping[str, Priors] | None = None) -> list[Reply | None]:
        """Every item's Reply, in order; None where the model cannot be asked.

        priors are those of the relations by name, as far as they are known: see `answers.Asked`.
        """
        prompts = [i.variant.prompt(i.relation, i.subject) for i in items]
        ids = self.engine.tokenizer.encode_batch(prompts)
        # Room for an article and an answer, which have positions too.
        problems = [self.engine.unfit(row, room=MAX_TOKENS + 2) for row in ids]
        for item, problem in zip(items, problems, strict=True):
            if problem is None:
                self._answered.add(item.subject)
            else:
                self._unfit.setdefault(item.subject, problem)
        fits = [i for i, problem in enumerate(problems) if problem is None]
        # The examples, and the template up to the subject.
        begins = [
            i.variant.head(i.relation, i.subject) + i.variant.base.partition(SLOT)[0].rstrip(" ")
            for i in items
        ]
        means = _means(items, priors or {})
        most = max(8, min(BATCH_PROMPTS, self.engine.room(BATCH_LOGITS) // self.engine.vocab))
        lengths = [
            (len(head), len(row)) for head, row in zip(self._heads.beginnings(begins, ids), ids, strict=True)
        ]
        out: list[Reply | None] = [None] * len(items)
        room = self.engine.room(BATCH_CACHE) // self.engine.cache_bytes
        asked_together = list(chunks(fits, lengths, most, room))

        def wanted() -> Iterator[KeptBatch[Outcome]]:
            for chunk in asked_together:
                own = [self._asked(items[i], prompts[i], ids[i], means) for i in chunk]
                parts = [
                    [_form(a) for a in own],
                    [prompts[i] for i in chunk],
                    _told_apart(a.prior for a in own),
                ]
                begun = [begins[i] for i in chunk], [ids[i] for i in chunk]
                # Also where the batch is found: what later ones are like, to the last bit, depends on heads run together.
                heads = self._heads.of(*begun) if self._checkpoint.nodes is None else []
                yield KeptBatch(
                    parts, len(chunk), partial(_ask_batch, self.engine, own, heads), (own, *begun)
                )

        for number, made in self._checkpoint.batches("answers", Outcome, wanted(), ask_begun):
            chunk = asked_together[number]
            for i, outcome in zip(chunk, made, strict=True):
                out[i] = Reply(items[i].subject, items[i].variant.index, prompts[i], outcome)
            self._done(len(chunk))
        if len(fits) < len(items):
            self._done(len(items) - len(fits))
        return out

    @property
    def unasked(self) -> dict[str, str]:
        """The subjects that the model could not be asked about in any way, with the reason."""
        return {s: problem for s, problem in self._unfit.items() if s not in self._answered}

    def fits(self, item: Ask) -> bool:
        """Whether the model can be asked this."""
        prompt = item.variant.prompt(item.relation, item.subject)
        return self.engine.unfit(self.engine.tokenizer.encode(prompt), room=MAX_TOKENS + 2) is None

    def _asked(
        self,
        item: Ask,
        prompt: str,
        ids: Sequence[int],
        means: Mapping[tuple[str, int], Mapping[int, float]],
    ) -> Asked:
        """The prompt as it is asked, without its head."""
        relation = item.relation
        several = relation.many or (self._once is not None and relation.name not in self._once)
        scored = [answer_ids(self.engine.tokenizer, prompt, text)[: MAX_TOKENS + 1] for text in item.scored]
        return Asked(ids, relation.answer, None, means.get(_key(item), {}), several, scored, item.decoded)


def ask_begun(
    engine: Engine, own: Sequence[Asked], begins: Sequence[str], ids: Sequence[Sequence[int]]
) -> list[Outcome]:
    """What `ask` gives of prompts, given the texts and token ids of those that they begin with (see Heads).

    Heads are run anew: results do not depend on what else was asked there.
    """
    return _ask_batch(engine, own, Heads(engine).of(begins, ids))


def _ask_batch(engine: Engine, own: Sequence[Asked], heads: Sequence[Head | None]) -> list[Outcome]:
    return ask(engine, [replace(a, head=head) for a, head in zip(own, heads, strict=True)])


def chunks(
    rows: Iterable[int], lengths: Sequence[tuple[int, int]], most_rows: int, most_tokens: int
) -> Iterator[list[int]]:
    """The row numbers by (length of the beginning, length of the whole), in batches within both limits: so many rows,
    and so many tokens with padding (one row may exceed them alone).
    """
    chunk: list[int] = []
    begin = rest = 0
    for i in sorted(rows, key=lambda i: (lengths[i], i)):
        head, whole = lengths[i]
        begin, rest = max(begin, head), max(rest, whole - head)
        if chunk and (len(chunk) == most_rows or (len(chunk) + 1) * (begin + rest) > most_tokens):
            yield chunk
            chunk, begin, rest = [], head, whole - head
        chunk.append(i)
    if chunk:
        yield chunk


def _form(asked: Asked) -> str:
    """What tells how a prompt is asked from other ways, beside its prior."""
    form = asked.form if asked.several else f"{asked.form}, one"
    if not asked.scored and asked.decoded:
        return form
    return f"{form}, {'' if asked.decoded else 'only '}{[list(ids) for ids in asked.scored]}"


def _key(item: Ask) -> tuple[str, int]:
    return item.relation.name, item.variant.index


def _means(items: Sequence[Ask], priors: Mapping[str, Priors]) -> dict[tuple[str, int], dict[int, float]]:
    """The prior of every variant that is asked, as far as it is known."""
    return {
        key: priors[key[0]].of(key[1]).means() for key in {_key(item) for item in items} if key[0] in priors
    }


def _told_apart(priors: Iterable[Mapping[int, float]]) -> list[list[tuple[int, float]]]:
    """The different priors as JSON values."""
    different = {id(prior): prior for prior in priors}
    return [sorted((t, round(p, 9)) for t, p in prior.items()) for prior in different.values()]
