"""A feature's page: what it shows, that everything in it is escaped, and what it says of features that are not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import larql_duck as lq
from larql_duck.errors import LarqlError


def test_a_card_shows_tokens_figures_examples_and_facts(probed_vindex, tmp_path: Path) -> None:
    vindex = Path(shutil.copytree(probed_vindex("llama"), tmp_path / "x.vindex"))
    texts = tmp_path / "t.txt"
    texts.write_text("\n".join(["The capital of France is <b>Paris</b> [of] Japan"] * 3))
    with lq.connect(vindex) as s:
        [(layer, feature)] = s.sql("SELECT layer, feature FROM edges WHERE source = 'probe' LIMIT 1").rows()
        card = s.feature(layer, feature)
        assert card.stats is None and card.examples == [] and card.facts and set(card.tokens) > {"out"}
        assert "<mark>" not in card._repr_html_()
        s.collect_examples(texts)
        card = s.feature(layer, feature)
        assert card.stats is not None and card.stats["n"] == sum(card.stats["histogram"])
        assert card.examples == s.sql(f"FROM examples_of({layer}, {feature}, p_k := 5)").dicts()
        page = card._repr_html_()
        assert "<mark>" in page and "<svg" in page and "<b>" not in page
        assert f"layer {layer} feature {feature}" in page and card.facts[0]["object"] in page
        assert "fires at" in repr(card) and card.facts[0]["subject"] in repr(card)
        if card.sign > 0:
            assert card._ends()[1] == ("promotes", card.tokens["out"])
        with pytest.raises(LarqlError, match="no feature 999999 in layer 0"):
            s.feature(0, 999999)
