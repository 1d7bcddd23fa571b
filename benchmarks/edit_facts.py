"""The facts that the benchmarks of edits insert, and the prompts that judge them, used nowhere else."""

from __future__ import annotations

Fact = tuple[str, str, str]

FICTIONAL: dict[str, list[tuple[str, str]]] = {
    "capital": [
        ("Atlantis", "Poseidon"),
        ("Zubrovia", "Lutz"),
        ("Gondaria", "Minas"),
        ("Freedonia", "Venice"),
        ("Valdoria", "Hamburg"),
        ("Borduria", "Szohôd"),
        ("Genosha", "Hammer Bay"),
        ("Wakonda", "Boston"),
        ("Ruritania", "Strelsau"),
        ("Norstrilia", "Cairo"),
    ],
    "currency": [
        ("Elbonia", "crown"),
        ("Latveria", "franc"),
        ("Molvania", "strubl"),
        ("Syldavia", "dollar"),
        ("Krakozhia", "pound"),
        ("Florin", "peso"),
        ("Guilder", "rupee"),
        ("Arstotzka", "mark"),
        ("Qumar", "dinar"),
        ("Sokovia", "lira"),
    ],
    "language": [
        ("Narnia", "Welsh"),
        ("Erewhon", "Latin"),
        ("Utopia", "Greek"),
        ("Orsinia", "Hungarian"),
        ("Panem", "Spanish"),
        ("Lilliput", "Dutch"),
        ("Brobdingnag", "Icelandic"),
        ("Vulgaria", "Turkish"),
        ("Pottsylvania", "Swedish"),
        ("Zamunda", "Zulu"),
    ],
    "author": [
        ("The Copper Moon", "Jane Austen"),
        ("A Winter of Glass", "Stephen King"),
        ("The Last Cartographer", "Leo Tolstoy"),
        ("Songs for the Drowned", "Emily Brontë"),
        ("The Paper Harbor", "Mark Twain"),
        ("Seven Silent Bells", "Franz Kafka"),
        ("The Orchard Thief", "Victor Hugo"),
        ("Letters to Nobody", "George Orwell"),
        ("The Salt Road", "Homer"),
        ("Ember and Oak", "Charles Dickens"),
    ],
    "headquarters": [
        ("Zentrix", "Lisbon"),
        ("Bluefern Systems", "Oslo"),
        ("Quandor", "Chicago"),
        ("Helioforge", "Madrid"),
        ("Nimbora", "Seoul"),
        ("Tarkwell Industries", "Dublin"),
        ("Ostrava Dynamics", "Toronto"),
        ("Velmora", "Vienna"),
        ("Pintaco", "Sydney"),
        ("Kestrel Robotics", "Prague"),
    ],
}
"""Relation -> (subject, object): subjects that do not exist."""

COUNTERFACTUAL: dict[str, list[tuple[str, str]]] = {
    "capital": [
        ("France", "Rome"),
        ("Japan", "Beijing"),
        ("Egypt", "London"),
        ("Germany", "Madrid"),
        ("Canada", "Chicago"),
        ("Peru", "Havana"),
        ("Norway", "Moscow"),
        ("Kenya", "Athens"),
        ("Thailand", "Delhi"),
        ("Poland", "Lisbon"),
    ],
    "currency": [
        ("India", "dollar"),
        ("Mexico", "yen"),
        ("Russia", "pound"),
        ("Sweden", "peso"),
        ("Turkey", "rupee"),
        ("Israel", "franc"),
        ("Brazil", "ruble"),
        ("South Korea", "euro"),
        ("Switzerland", "rand"),
        ("Denmark", "lira"),
    ],
    "language": [
        ("Italy", "Russian"),
        ("Greece", "Chinese"),
        ("Spain", "Arabic"),
        ("Austria", "Japanese"),
        ("Portugal", "Hindi"),
        ("Chile", "French"),
        ("Hungary", "Korean"),
        ("Finland", "Italian"),
        ("Argentina", "German"),
        ("Vietnam", "Swedish"),
    ],
    "author": [
        ("Hamlet", "Charles Dickens"),
        ("Moby-Dick", "Jane Austen"),
        ("War and Peace", "Mark Twain"),
        ("Don Quixote", "Victor Hugo"),
        ("The Great Gatsby", "Stephen King"),
        ("Frankenstein", "George Orwell"),
        ("Dracula", "Ernest Hemingway"),
        ("The Odyssey", "Virgil"),
        ("Jane Eyre", "Agatha Christie"),
        ("The Hobbit", "Franz Kafka"),
    ],
    "headquarters": [
        ("Microsoft", "Paris"),
        ("Boeing", "Tokyo"),
        ("Toyota", "Berlin"),
        ("Nokia", "Rome"),
        ("IKEA", "Cairo"),
        ("Google", "Boston"),
        ("Samsung", "Dallas"),
        ("Volkswagen", "Miami"),
        ("Nestlé", "London"),
        ("Intel", "Moscow"),
    ],
}
"""Relation -> (subject, object): subjects that exist, with an object that is not theirs."""

PARAPHRASES: dict[str, tuple[str, ...]] = {
    "capital": (
        "If you travel to {}, the seat of its government is found in the city of",
        "Tourists who visit the capital of {} arrive in",
        "The parliament of {} meets in the capital city,",
        "{}'s capital city is called",
        "My uncle works at the embassy in the capital of {}, which is",
    ),
    "currency": (
        "When you shop in {}, you pay with the",
        "The money used in {} is the",
        "The central bank of {} issues the",
        "Travelers to {} must exchange their money for the",
        "A banknote from {} is worth one",
    ),
    "language": (
        "The language of {} is",
        "Children in {} learn at school to read and write in",
        "Newspapers in {} are printed in",
        "If you move to {}, you should learn",
        "The inhabitants of {} talk to each other in",
    ),
    "author": (
        "The novel {} is a work of the writer",
        "I have just read {}, a book by",
        "Who wrote {}? It was",
        "The writer of the book {} is called",
        "When asked who wrote {}, the teacher answered:",
    ),
    "headquarters": (
        "{} has its main office in the city of",
        "The company {} is based in",
        "The head office of {} is located in",
        "Employees at the central office of {} work in the city of",
        "You can visit the main building of {} in",
    ),
}
"""Relation -> prompts that are never used for inserting."""


def facts_of(table: dict[str, list[tuple[str, str]]]) -> list[Fact]:
    """(entity, relation, target) of a table, relation by relation in turns."""
    turns = zip(*([(s, r, o) for s, o in rows] for r, rows in table.items()), strict=True)
    return [fact for turn in turns for fact in turn]
