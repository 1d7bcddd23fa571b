"""Where an answer begins and ends, and when two answers are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from larql_duck.probing.words import answer_text, begins_answer, find_answer, is_opener, matches, normal

ANSWERS = [
    (" Paris. It is", "name", "Paris"),
    (" Buenos Aires, which", "name", "Buenos Aires"),
    (" New York City in the", "name", "New York City"),
    (" Rio de Janeiro and", "name", "Rio de Janeiro"),
    (" Bosnia and Herzegovina.", "name", "Bosnia and Herzegovina"),
    (" Kabul and it is", "name", "Kabul"),
    (" Port-au-Prince, the", "name", "Port-au-Prince"),
    (" St. John's.", "name", "St. John's"),
    (" J. R. R. Tolkien.", "name", "J. R. R. Tolkien"),
    (" Washington D.C. and", "name", "Washington D.C."),
    (" yen (JPY)", "name", "yen"),
    (" Swiss franc.", "name", "Swiss franc"),
    (" cold and wet", "word", "cold"),
    (" cold water", "word", "cold"),
    (" more beautiful than", "word", "more beautiful"),
    (" mice\nThe plural", "word", "mice"),
    (" He.", "symbol", "He"),
    (" H2O", "symbol", "H2O"),
    (" 1,000 km", "number", "1,000"),
    (" 3.14.", "number", "3.14"),
    (" 21 million people", "number", "21 million"),
    (" 1984, when", "number", "1984"),
    (" 12,756.2 km", "number", "12,756.2"),
    (" 3.5 km.", "name", "3.5 km"),
    (" 1,234.", "name", "1,234"),
    (" 3.", "number", "3"),
    (" the sum of its parts, and", "phrase", "the sum of its parts"),
    (' "Guernica"', "name", ""),
    ("東京です。", "name", "東京です"),
    (" Москва, столица", "name", "Москва"),
    ("\n", "name", ""),
    ("", "name", ""),
]


@pytest.mark.parametrize(("text", "form", "answer"), ANSWERS)
def test_answers_end_where_they_end(text: str, form: str, answer: str) -> None:
    assert answer_text(text, form) == answer


@pytest.mark.parametrize(
    ("text", "form", "closed"),
    [
        (" Paris", "name", False),  # "Parisian"?
        (" Paris is", "name", True),
        (" Paris,", "name", True),
        (" Rio de", "name", False),  # "de Janeiro"?
        (" Washington D.", "name", False),  # "D.C."?
        (" cold w", "word", True),
        (" 3.", "number", False),  # "3.5"?
        (" 1,", "name", False),  # "1,234"?
        (" 3. It", "number", True),
        (" Au\n", "symbol", True),
    ],
)
def test_a_text_shows_whether_its_answer_can_still_grow(text: str, form: str, closed: bool) -> None:
    assert find_answer(text, form).closed is closed


@pytest.mark.parametrize(
    ("text", "closing", "answer", "closed"),
    [
        ('The Good, the Bad and the Ugly" by', '"', "The Good, the Bad and the Ugly", True),
        ("Who's Afraid?' he", "'", "Who's Afraid?", True),
        ('Guernica," a painting', '"', "Guernica", True),
        ("Schloss“", "“”", "Schloss", True),
        ("Guernica, a", '"', "Guernica", False),  # the mark may still come
        ("Guernica, a\nline", '"', "Guernica", True),
        ('" and', '"', "", False),
    ],
)
def test_an_answer_in_quotation_marks_is_what_stands_in_them(
    text: str, closing: str, answer: str, closed: bool
) -> None:
    assert answer_text(text, "name", closing) == answer
    assert find_answer(text, "name", closing).closed is closed
    assert find_answer(text, "word", closing) == find_answer(text, "word")


@given(st.text(max_size=60), st.sampled_from(["name", "word", "phrase", "number", "symbol"]))
def test_any_text_has_a_span_inside_it(text: str, form: str) -> None:
    span = find_answer(text, form)
    assert 0 <= span.start <= span.end <= len(text)
    answer = answer_text(text, form)
    assert answer in text
    assert "\n" not in answer


@given(st.sampled_from(ANSWERS), st.integers(0, 30))
def test_a_closed_answer_does_not_change_when_more_text_follows(case: tuple[str, str, str], cut: int) -> None:
    text, form, answer = case
    whole_words = cut >= len(text) or not text[cut].isalnum()
    if whole_words and find_answer(text[:cut], form).closed:
        assert answer_text(text[:cut], form) == answer


def test_what_can_begin_an_answer() -> None:
    assert all(begins_answer(w) for w in (" Paris", "y", " 12", " He", " As", " Москва", "東"))
    assert not any(begins_answer(w) for w in (" the", " of", " located", ".", ' "', "", "\n", "�"))
    assert begins_answer(" more", "word") and not begins_answer(" more", "name")
    assert all(is_opener(w) for w in (" the", " The", " a", ' "', "“"))
    assert not any(is_opener(w) for w in (" of", " Paris", '."'))


def test_answers_are_compared_without_case_accents_articles_and_outer_punctuation() -> None:
    assert normal("The  Hague.") == normal("hague")
    assert normal("São Paulo") == normal("sao paulo")
    assert normal("Port-au-Prince") == normal("port au prince")
    assert normal("A") == "a"  # the letter, not an article in front of nothing
    assert normal("北京") != normal("東京")
    assert normal("1,234,567") == normal("1234567") and normal("1,23") != normal("123")
    assert normal("-5") != normal("5") and normal("−5") == normal("-5")
    assert matches("the Netherlands", ("Holland", "Netherlands"))
    assert not matches("Paris", ("Parish",))
