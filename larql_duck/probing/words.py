"""Words: which tokens begin an answer, where an answer ends in running text, when two answers are the same."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from larql_duck.knowledge.keys import ARTICLES
from larql_duck.knowledge.keys import normal as normal


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# English closed-class words and the adverbs and participles that lead up to an answer without being one. They count
# only in lower case: "He", "In" and "As" may be chemical symbols, "May" a month.
FUNCTION_WORDS = _words("""
    a an the this that these those some any no every each either neither both all such what which who whom whose
    i me my mine we us our ours you your yours he him his she her hers it its they them their theirs
    and or but nor so yet if then than because while when where why how although though since unless until whether
    as at by for from in into of off on onto out over per through to toward towards under up upon via with within
    without about above across after against along among around before behind below beneath beside between beyond
    during except inside near outside past
    is am are was were be been being has have had having do does did doing will would shall should can could may
    might must not also just only even still already now here there very quite rather too more most less least
    one other another same called known named said located situated found used made based considered usually often
    sometimes always never generally commonly typically actually probably perhaps currently officially formerly
    approximately roughly
""")
# Opening quotation marks, and what closes them.
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“”", "「": "」", "『": "』"}
# Signs that belong to the number behind them.
_SIGNS = frozenset("-−+±$€£¥")
# Comparatives in two words.
_DEGREE = frozenset({"more", "most", "less", "least"})
# Lower-case words inside names: "Gulf of Mexico", "Rio de Janeiro", "Ludwig van Beethoven".
_LINKS = _words(
    "of the de del della di da das do dos du des la las le les el al van von der den zu y e and & upon"
)
# Words that open a new clause and so end even a phrase.
_CLAUSE = _words(
    "and or but which who whom whose that because when where while if as is are was were has have had"
)
# What opens a clause behind a noun.
_THAT = _words("that which who whose")
_ABBREVIATIONS = frozenset({"St", "Mt", "Ft", "Dr", "Mr", "Mrs", "Ms", "Jr", "Sr", "No"})
_STOP = frozenset('.,;:!?()[]{}<>"“”„«»…|/\\=*_•、。，；：！？「」『』（）\n\r\t')
_MAX_WORDS = {"name": 6, "word": 1, "phrase": 8, "noun": 6, "number": 3, "symbol": 1}
# Words that a noun's complement begins with, and articles inside it: "city in the north of Portugal".
_COMPLEMENT = _words("of in from by for on at to with")


def is_function_word(text: str) -> bool:
    """True for a lower-case closed-class word ('the', 'which'), surrounding space aside."""
    return text.strip() in FUNCTION_WORDS


def is_opener(text: str) -> bool:
    """True for what an answer may stand behind: an article, also capitalised, or an opening quotation mark."""
    return text.strip().lower() in ARTICLES or text.strip() in _QUOTES


def is_blank(text: str) -> bool:
    """True for blanks alone, within a line: some tokenizers put them before a digit as a token of their own."""
    return bool(text) and all(c.isspace() and c not in "\n\r\t\v\f" for c in text)


def is_sign(text: str) -> bool:
    """True for a sign that belongs to the number behind it: a minus, a currency's."""
    return text.strip() in _SIGNS


def goes_on(opener: str, text: str) -> bool:
    """Whether an answer begins with this text right behind a blank or a sign: no further blank, and digits for signs."""
    return text[:1].isdecimal() if is_sign(opener) else text[:1].isalnum()


def closing_marks(text: str) -> str:
    """The marks that close the opening quotation mark which this text is; '' for any other text."""
    return _QUOTES.get(text.strip(), "")


def begins_answer(text: str, form: str = "name") -> bool:
    """Whether an answer can begin with a token of this text: it has a letter or digit and is no function word."""
    word = text.strip()
    if not word or not any(c.isalnum() for c in word) or "�" in word:
        return False
    if word in _DEGREE:
        return form in {"word", "phrase", "noun"}
    return word not in FUNCTION_WORDS


@dataclass(frozen=True)
class Ending:
    """Where an answer stands in a text: characters [start, end); `closed` says that what follows shows its end."""

    start: int
    end: int
    closed: bool


def find_answer(text: str, form: str = "name", closing: str = "") -> Ending:
    """The span of the answer that begins the text (leading space allowed), by the relation's answer form.

    An answer ends before punctuation, a line's end, or a word that no longer belongs to it: any further word for
    forms word and symbol, a function word for names (unless it links capitalised ones), a new clause for phrases.
    Points and commas inside a number are its own. A name or phrase behind an opening quotation mark ends at one of
    the marks in `closing`, where there is one in the line.
    """
    start = len(text) - len(text.lstrip())
    if form not in {"name", "phrase", "noun"}:
        closing = ""
    if quoted := _quoted(text, start, closing):
        return quoted
    end, closed = start, True
    words: list[str] = []
    limit = _MAX_WORDS.get(form, 6)
    for match in re.finditer(r"\S+|[\n\r]+", text[start:]):
        at = start + match.start()
        gap = text[end:at]
        if "\n" in gap or "\r" in gap or match[0][0] in "\n\r":
            break
        last = at + len(match[0]) == len(text)
        cut = _cut(match[0], words, form, last)
        word = match[0][:cut]
        grows = last and cut == len(match[0])
        if word and not (_may_belong if grows else _belongs)(word, words, form, limit):
            break
        if word:
            words.append(word)
            end = at + cut
        if cut < len(match[0]):
            break
    else:
        closed = False
    while len(words) > 1 and closed and (words[-1] in _LINKS or words[-1] in FUNCTION_WORDS):
        end = start + len(text[start:end].rstrip()[: -len(words.pop())].rstrip())
    # A quotation may still be closed further on in the line.
    return Ending(start, end, closed and not (closing and "\n" not in text))


def _quoted(text: str, start: int, closing: str) -> Ending | None:
    """The span before the closing quotation mark; None when the line has none, or nothing stands before it."""
    line = re.match(r"[^\n\r]*", text[start:])
    for i, c in enumerate(line[0] if line else "", start):
        # An apostrophe is no closing mark, and what follows says which it is.
        if c in closing and (c not in "'’" or (i + 1 < len(text) and not text[i + 1].isalnum())):
            end = start + len(text[start:i].rstrip(" .,;"))
            return Ending(start, end, True) if end > start else None
    return None


def answer_text(text: str, form: str = "name", closing: str = "") -> str:
    """The answer that begins the text, as `find_answer` bounds it; an unfinished last word is left out."""
    span = find_answer(text, form, closing)
    answer = text[span.start : span.end]
    if not span.closed and " " in answer and len(text) == span.end:
        answer = answer.rsplit(" ", 1)[0]
    if answer[-2:-1].isdecimal():
        answer = answer.rstrip(".,:/")
    return answer.strip(" '’-–—&")


def _cut(word: str, before: list[str], form: str, last: bool) -> int:
    """How many characters of a run of non-space belong to the answer; `last` says that more may follow it."""
    for i, c in enumerate(word):
        if c not in _STOP and c not in "—–":
            continue
        inside = 0 < i < len(word) - 1 and word[i - 1].isalnum() and word[i + 1].isalnum()
        if form == "symbol":
            return i
        if inside and c in ".,:/" and word[i - 1].isdigit() and word[i + 1].isdigit():
            continue
        if last and 0 < i == len(word) - 1 and c in ".,:/" and word[i - 1].isdigit():
            continue  # "3." may become "3.5"
        if inside and c in "./–" and form in {"name", "phrase", "noun"}:
            continue
        if c == "." and form in {"name", "phrase", "noun"}:
            if _abbreviates(word[:i], before):
                continue
            if last and i == len(word) - 1 and re.fullmatch(r"(?:.*\.)?[A-Z]", word[:i]):
                continue  # "D." may become "D.C."
        return i
    return len(word)


def _abbreviates(word: str, before: list[str]) -> bool:
    """Whether a full stop after the word is no end: 'St.', or initials at the beginning ('J. R. R. Tolkien')."""
    if word in _ABBREVIATIONS or re.fullmatch(r"(?:\w\.)+\w", word):
        return True
    initial = len(word) == 1 and word.isupper()
    return initial and all(len(w) == 2 and w.endswith(".") for w in before)


def _belongs(word: str, before: list[str], form: str, limit: int) -> bool:
    """Whether a complete word continues an answer of which `before` are the words so far."""
    if not before:
        return True
    if before[0] in _DEGREE and len(before) == 1:
        return word not in FUNCTION_WORDS
    if len(before) >= limit:
        return False
    if form == "phrase":
        return word not in _CLAUSE
    if form == "noun":
        if word in _COMPLEMENT:
            return before[-1] not in FUNCTION_WORDS
        return word not in FUNCTION_WORDS or (word in ARTICLES and before[-1] in _COMPLEMENT)
    if form == "number":
        return word[0].isdigit() or word in {"million", "billion", "thousand", "hundred", "trillion"}
    if word in _LINKS:
        return before[-1][:1].isupper()
    if word in FUNCTION_WORDS:
        return False
    # "Swiss franc", "polar bear": a few ordinary words may follow; a name of many words has capitals.
    return not word[0].islower() or len(before) < 3


def _may_belong(word: str, before: list[str], form: str, limit: int) -> bool:
    """Whether the last word, which more text may still lengthen, can come to belong to the answer.

    A whole function word is taken as finished: words that begin with one are rarely cut there.
    """
    if form == "name" and before and word in _LINKS:
        return before[-1][:1].isupper() and len(before) < limit
    return _belongs(word, before, form, limit)


def head_noun(text: str) -> str:
    """A noun phrase without its complement, normalised: 'city in Portugal' -> 'city'."""
    words = normal(text).split()
    end = next((i for i, word in enumerate(words) if i and word in _COMPLEMENT | _THAT), len(words))
    return " ".join(words[:end])


def answer_key(text: str, form: str) -> str:
    """What an answer is counted under among others of its relation: its normal form, of a noun the head."""
    return head_noun(text) if form == "noun" else normal(text)


def matches(answer: str, references: Collection[str], form: str = "name") -> bool:
    """Whether the answer equals one of the references after normalisation.

    Of a noun phrase the head decides: 'famous tennis player from Spain' is a tennis player and a player.
    """
    accepted = set(map(normal, references))
    if form != "noun":
        return normal(answer) in accepted
    words = head_noun(answer).split()
    return any(" ".join(words[i:]) in accepted for i in range(len(words)))
