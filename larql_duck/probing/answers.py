"""One batch of prompts asked: the next token's distribution, and whole answers with articles looked past."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from larql_duck.inference.batch import pad
from larql_duck.inference.engine import Engine
from larql_duck.inference.generate import entropy, forced, greedy
from larql_duck.inference.kv_cache import ROOM
from larql_duck.inference.prefix import Head, Prefix, TextsRead, following, read_prompts
from larql_duck.probing.outcomes import NO_ARTICLE, Candidate, Outcome, ScoredAnswer
from larql_duck.probing.words import (
    answer_text,
    begins_answer,
    closing_marks,
    find_answer,
    goes_on,
    is_blank,
    is_function_word,
    is_opener,
    is_sign,
)

# Tokens kept of each next-token distribution; what lies beyond counts as 0 in priors.
TOP = 32
# An article or opening quotation mark is looked past when it is at least this probable; at most two a prompt. So are
# blanks that stand alone and signs, two a prompt, where the answer follows right behind.
ARTICLE_P = 0.02
# Answers are decoded when their first token is at least this probable, the most probable one always.
ANSWER_P = 0.1
MAX_ANSWERS = 4
# So probable has the answer to be that stands out most from what the relation's prompts say of anything.
STANDS_OUT_P = 0.02
# Added to a prior before anything is divided by it: rarer beginnings are told apart no further.
PRIOR_FLOOR = 0.002
# Bytes of keys and values of the texts that go on together: behind articles, and answers that are decoded.
_GOING_ON = 1 << 28
# Tokens after the first one that an answer may have.
MAX_TOKENS = 8
# The same for numbers, where every digit may be a token, and for what stands in quotation marks.
_MAX_LONG = 20


@dataclass(frozen=True)
class Asked:
    """A prompt to ask: its token ids, the Head that it begins with, the form of the answer, and how probable each token
    is on average as the beginning of the relation's answers, as far as that is known. several: all probable answers are
    decoded, else only the most probable one and the one that stands out from the prior. scored are the token ids of answers
    whose probability is asked for too; decoded=False asks for nothing else.
    """

    ids: Sequence[int]
    form: str = "name"
    head: Head | None = None
    prior: Mapping[int, float] = field(default_factory=dict)
    several: bool = True
    scored: Sequence[Sequence[int]] = ()
    decoded: bool = True


@dataclass(frozen=True)
class _Way:
    """One way in which a prompt goes on: `token` with probability p after row `row` of `step`."""

    token: int
    p: float
    step: int
    row: int
    article: int


@dataclass
class _Step:
    """Texts, and the next token's probabilities [rows, vocab] behind them."""

    texts: TextsRead
    probabilities: torch.Tensor

    def picked(self, ways: Sequence[_Way]) -> tuple[TextsRead, torch.Tensor, torch.Tensor]:
        """The texts, and the tokens and rows of these ways of going on."""
        device = self.probabilities.device
        tokens = torch.tensor([w.token for w in ways], device=device)
        return self.texts, tokens, torch.tensor([w.row for w in ways], device=device)


@dataclass
class _Chosen:
    """A beginning that is decoded: prompt, way, its total probability, what may close it, and of the tokens behind it
    the ids, each one's probability and the entropy of where it came from.
    """

    prompt: int
    way: _Way
    p: float
    closing: str
    ids: list[int] = field(default_factory=list)
    p_tokens: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


def ask(engine: Engine, asked: Sequence[Asked]) -> list[Outcome]:
    """The outcome of every prompt; prompts of several relations and heads may share a batch."""
    with torch.inference_mode():
        rows = pad([a.ids for a in asked], device=engine.device)
        logits, texts = read_prompts(engine, rows, [a.head for a in asked])
        log_p = torch.log_softmax(logits, dim=-1)
        direct = _Step(texts, log_p.exp())
        entropies = entropy(log_p).tolist()
        best_p, best = direct.probabilities.max(-1)
        del log_p, logits
        ways, articles = _direct_ways(engine, direct)
        totals: list[Sequence[tuple[int, float]]] = []
        scored: list[tuple[ScoredAnswer, ...]] = []
        answers: list[list[Candidate]] = [[] for _ in asked]
        for part in _parts(engine, direct, articles, len(asked)):
            steps = [direct]
            if looked_past := [w for w in articles if w.row in part]:
                steps.append(_after_articles(engine, direct, looked_past, ways))
            totals += [_totals(ways[i]) for i in part]
            chosen = [
                c
                for i in part
                if asked[i].decoded
                for c in _choose(engine, asked[i], i, ways[i], totals[i], _opened(engine, asked[i].ids[-1]))
            ]
            _decode(engine, [a.form for a in asked], steps, chosen)
            scored += _scored(engine, asked, part, steps, ways, totals, chosen)
            for c in chosen:
                candidate = _candidate(engine, asked[c.prompt].form, c)
                if candidate is not None:
                    answers[c.prompt].append(candidate)
    return [
        Outcome(
            predicted_id=int(best[i]),
            predicted=engine.tokenizer.token(int(best[i])),
            p=float(best_p[i]),
            entropy=entropies[i],
            top=dict(totals[i][:TOP]),
            candidates=tuple(answers[i]),
            scored=scored[i],
        )
        for i in range(len(asked))
    ]


def _parts(engine: Engine, direct: _Step, articles: Sequence[_Way], n: int) -> list[range]:
    """The n prompts in runs, the texts behind whose articles have room together: each has keys and values of its own."""
    most = _rows_together(engine, [direct])
    counts = Counter(w.row for w in articles)
    out: list[range] = []
    start = rows = 0
    for i in range(n):
        if rows and rows + counts[i] > most:
            out.append(range(start, i))
            start, rows = i, 0
        rows += counts[i]
    return [*out, range(start, n)]


def _rows_together(engine: Engine, steps: Sequence[_Step]) -> int:
    """How many texts go on together behind these."""
    length = max(step.texts.cache.get_seq_length() for step in steps) + ROOM
    return max(8, engine.room(_GOING_ON) // (engine.cache_bytes * length))


def _direct_ways(engine: Engine, step: _Step) -> tuple[list[list[_Way]], list[_Way]]:
    """Per prompt the most probable next tokens; articles and the like that are looked past are listed apart."""
    values, tokens = step.probabilities.topk(min(TOP, engine.vocab), dim=-1)
    ways: list[list[_Way]] = []
    articles: list[_Way] = []
    for row, (ps, ts) in enumerate(zip(values.tolist(), tokens.tolist(), strict=True)):
        likely = [_Way(t, p, 0, row, NO_ARTICLE) for t, p in zip(ts, ps, strict=True)]
        texts = {w: engine.tokenizer.token(w.token) for w in likely if w.p >= ARTICLE_P}
        openers = [w for w, text in texts.items() if is_opener(text)][:2]
        openers += [w for w, text in texts.items() if is_blank(text) or is_sign(text)][:2]
        articles += openers
        ways.append([w for w in likely if w not in openers])
    return ways, articles


def _after_articles(
    engine: Engine, direct: _Step, articles: Sequence[_Way], ways: Sequence[list[_Way]]
) -> _Step:
    """The step behind the articles that are looked past; its most probable tokens become `ways` of their prompts.

    A blank or sign stays a way of its own with what is left of its probability when answers right behind it are taken.
    """
    logits, texts = following([direct.picked(articles)]).advanced()
    step = _Step(texts, torch.softmax(logits, dim=-1))
    values, best = step.probabilities.topk(min(TOP, logits.shape[1]), dim=-1)
    for i, article in enumerate(articles):
        opener = engine.tokenizer.token(article.token)
        left = article.p
        for token, p in zip(best[i].tolist(), values[i].tolist(), strict=True):
            if is_opener(opener) or goes_on(opener, engine.tokenizer.token(token)):
                ways[article.row].append(_Way(token, article.p * p, 1, i, article.token))
                left -= article.p * p
        if not is_opener(opener):
            ways[article.row].append(replace(article, p=max(left, 0.0)))
    return step


def _totals(ways: Sequence[_Way]) -> list[tuple[int, float]]:
    """(token, probability summed over its ways), most probable first."""
    totals: dict[int, float] = defaultdict(float)
    for way in ways:
        totals[way.token] += way.p
    return sorted(totals.items(), key=lambda item: (-item[1], item[0]))


def _choose(
    engine: Engine,
    asked: Asked,
    prompt: int,
    ways: Sequence[_Way],
    totals: Sequence[tuple[int, float]],
    closing: str,
) -> list[_Chosen]:
    """The beginnings worth decoding, most probable first, along each one's most probable way.

    They are the most probable beginning of an answer (where something else is more probable, with p >= STANDS_OUT_P),
    others with p >= ANSWER_P, and the one that stands out most from the prior. `closing` are the marks that close a
    quotation which the prompt itself opened.
    """
    likely = [
        (token, p)
        for token, p in totals[:TOP]
        if engine.tokenizer.is_word(token) and begins_answer(engine.tokenizer.token(token), asked.form)
    ]
    first = {token for token, p in likely[:1] if token == totals[0][0] or p >= STANDS_OUT_P}
    probable = [token for token, p in likely if token in first or (asked.several and p >= ANSWER_P)][
        :MAX_ANSWERS
    ]
    outstanding = max(
        (item for item in likely if item[1] >= STANDS_OUT_P),
        key=lambda item: item[1] / (asked.prior.get(item[0], 0.0) + PRIOR_FLOOR),
        default=None,
    )
    if asked.prior and outstanding is not None and outstanding[0] not in probable:
        probable.append(outstanding[0])
    p_of = dict(likely)
    best = {t: max((w for w in ways if w.token == t), key=lambda w: (w.p, -w.step)) for t in probable}
    out = []
    for token in probable:
        way = best[token]
        opener = "" if way.article == NO_ARTICLE else engine.tokenizer.token(way.article)
        out.append(_Chosen(prompt, way, p_of[token], closing_marks(opener) or closing))
    return out


def _opened(engine: Engine, last: int) -> str:
    """The marks that close the quotation which a prompt's last token opens; '' where it opens none."""
    text = engine.tokenizer.token(last)
    return closing_marks(text) if text.startswith(" ") else ""


def _decode(engine: Engine, forms: Sequence[str], steps: Sequence[_Step], chosen: Sequence[_Chosen]) -> None:
    """Fill in each chosen beginning's tokens, greedily, until the text shows where its answer ends."""
    # In batches whichever step they go on from: a prompt may have several beginnings, and each has keys and values.
    chosen = sorted(chosen, key=lambda c: c.way.step)
    n_parts = -(-len(chosen) // _rows_together(engine, steps))
    for part in range(n_parts):
        own = chosen[part * len(chosen) // n_parts : (part + 1) * len(chosen) // n_parts]
        _decode_batch(engine, forms, steps, own)


def _decode_batch(
    engine: Engine, forms: Sequence[str], steps: Sequence[_Step], chosen: Sequence[_Chosen]
) -> None:
    def ended(i: int, ids: list[int]) -> bool:
        text = engine.tokenizer.continuation([chosen[i].way.token, *ids])
        form = forms[chosen[i].prompt]
        if engine.tokenizer.is_special(ids[-1]) or find_answer(text, form, chosen[i].closing).closed:
            return True
        return len(ids) >= MAX_TOKENS and not (chosen[i].closing or text.strip()[:1].isdecimal())

    begun = _begun(steps, [c.way for c in chosen])
    found = greedy(begun, max_tokens=_MAX_LONG, stop=ended)
    for c, more in zip(chosen, found, strict=True):
        c.ids, c.p_tokens, c.entropies = list(more.ids), list(more.p), list(more.entropy)


def _begun(steps: Sequence[_Step], ways: Sequence[_Way]) -> Prefix:
    """The texts that go on in these ways, which are in the order of their steps."""
    parts = ((step, [w for w in ways if w.step == number]) for number, step in enumerate(steps))
    return following([step.picked(own) for step, own in parts if own])


def _scored(
    engine: Engine,
    asked: Sequence[Asked],
    part: Sequence[int],
    steps: Sequence[_Step],
    ways: Sequence[Sequence[_Way]],
    totals: Sequence[Sequence[tuple[int, float]]],
    chosen: Sequence[_Chosen],
) -> list[tuple[ScoredAnswer, ...]]:
    """What every prompt of a part says of the answers that were given with it, each along its first token's most probable
    way.
    """
    direct = steps[0].probabilities
    decoded = {(c.prompt, c.way.token): c for c in chosen}
    firsts: dict[tuple[int, int], tuple[float, int]] = {}
    tails: dict[tuple[int, int], float] = {}
    read: list[tuple[tuple[int, int], _Way, Sequence[int]]] = []
    for i in part:
        a = asked[i]
        known = dict(totals[i]) if a.scored else {}
        for n, ids in enumerate(a.scored):
            if not ids or max(ids) >= direct.shape[1]:
                # Nothing that the model could say.
                firsts[i, n] = 0.0, direct.shape[1]
                continue
            first, *tail = ids
            p = known[first] if first in known else float(direct[i, first])
            # Rarer beginnings are counted among next tokens, articles and all.
            above = (
                sum(other > p for other in known.values()) if first in known else int((direct[i] > p).sum())
            )
            firsts[i, n] = p, above + 1
            own = decoded.get((i, first))
            if own is not None and own.ids[: len(tail)] == tail:
                tails[i, n] = math.prod(own.p_tokens[: len(tail)])
            elif tail:
                leads = (w for w in ways[i] if w.token == first)
                way = max(leads, key=lambda w: (w.p, -w.step), default=_Way(first, p, 0, i, NO_ARTICLE))
                read.append(((i, n), way, tail))
    read.sort(key=lambda r: r[1].step)
    most = _rows_together(engine, steps)
    for start in range(0, len(read), most):
        own_part = read[start : start + most]
        found = forced(_begun(steps, [way for _, way, _ in own_part]), [tail for *_, tail in own_part])
        tails |= {key: p for (key, _, _), p in zip(own_part, found, strict=True)}
    return [
        tuple(
            ScoredAnswer(firsts[i, n][0] * tails.get((i, n), 1.0), firsts[i, n][1])
            for n in range(len(asked[i].scored))
        )
        for i in part
    ]


def _candidate(engine: Engine, form: str, c: _Chosen) -> Candidate | None:
    """The chosen beginning as an answer; None when its text is none."""
    ids = [c.way.token, *(t for t in c.ids if not engine.tokenizer.is_special(t))]
    ended = len(ids) <= len(c.ids)  # a special token stood at the end
    text = engine.tokenizer.continuation(ids)
    answer = answer_text(text + "\n" if ended else text, form, c.closing)
    if not answer or "�" in answer or is_function_word(answer):
        return None
    # Tokens that the answer is made of: the shortest run whose text reaches its end.
    end = find_answer(text, form, c.closing).start + len(answer)
    n_tokens = 1
    while n_tokens < len(ids) and len(engine.tokenizer.continuation(ids[:n_tokens])) < end:
        n_tokens += 1
    behind = c.p_tokens[: n_tokens - 1]
    article = "" if c.way.article == NO_ARTICLE else engine.tokenizer.token(c.way.article).strip()
    if article[:1].isupper():  # part of the name: "The Hague"
        answer = f"{article} {answer}"
    elif is_sign(article):
        answer = f"{article}{answer}"
    return Candidate(
        object=answer,
        first=c.way.token,
        article=c.way.article,
        p=c.p,
        p_string=c.p * math.prod(behind),
        n_tokens=n_tokens,
        least=min(behind, default=1.0),
        doubt=max(c.entropies[: n_tokens - 1], default=0.0),
        closed=ended or find_answer(text, form, c.closing).closed,
    )
