"""One feature's page for a notebook: tokens of both ends, figures, histogram, examples, facts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from larql_duck.errors import LarqlError
from larql_duck.session.connection import Connection

_EXAMPLES, _FACTS = 5, 10
_WIDTH, _HEIGHT = 320, 60


@dataclass(frozen=True)
class FeatureCard:
    """What is known of one feature; in a notebook it shows itself as a page.

    tokens gives by side (in: activates on, out: promotes, out_neg: suppresses) the top tokens. stats are its row of
    feature_stats (None before larql-duck activations ran), examples rows of `examples_of`, facts rows of `facts_of_feature`; name is that of
    feature_names for its usual sign, if it has one.
    """

    layer: int
    feature: int
    sign: int
    name: str | None
    tokens: dict[str, list[str]]
    stats: dict[str, Any] | None
    examples: list[dict[str, Any]]
    facts: list[dict[str, Any]]

    def __repr__(self) -> str:
        lines = [f"layer {self.layer} feature {self.feature}{f': {self.name}' if self.name else ''}"]
        lines += [f"{said}: {', '.join(map(str.strip, own))}" for said, own in self._ends()]
        if self.stats is not None:
            lines.append(_figures(self.stats))
        lines += [f"{e['activation']:8.3g}  {' '.join(e['context'].split())}" for e in self.examples]
        lines += [f"{f['subject']} - {f['relation']} - {f['object']}" for f in self.facts]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        name = f": {html.escape(self.name)}" if self.name else ""
        parts = [f"<h4>layer {self.layer} feature {self.feature}{name}</h4>"]
        ends = "".join(
            f"<tr><th>{said}</th><td>{html.escape(', '.join(own))}</td></tr>" for said, own in self._ends()
        )
        parts.append(f"<table>{ends}</table>")
        if self.stats is not None:
            parts.append(f"<p>{html.escape(_figures(self.stats))}</p>{_histogram(self.stats['histogram'])}")
        rows = "".join(
            f"<tr><td>{e['activation']:.3g}</td><td style='text-align:left'>{_marked(e)}</td></tr>"
            for e in self.examples
        )
        facts = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(str(f[c]))}</td>" for c in ("subject", "relation", "object"))
            + "</tr>"
            for f in self.facts
        )
        parts += [f"<table>{some}</table>" for some in (rows, facts) if some]
        return "".join(parts)

    def _ends(self) -> list[tuple[str, list[str]]]:
        usual, other = ("out", "out_neg") if self.sign > 0 else ("out_neg", "out")
        named = (("activates on", "in"), ("promotes", usual), ("suppresses", other))
        return [(said, self.tokens[side]) for said, side in named if self.tokens.get(side)]


def feature_card(connection: Connection, schema: str, layer: int, feature: int) -> FeatureCard:
    """The card of one feature. LarqlError where there is none."""
    # One cursor for all: to prepare one takes as long as most of these queries.
    with connection.cursor() as cursor:

        def rows(sql: str) -> list[dict[str, Any]]:
            found = cursor.execute(sql, [layer, feature])
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

        known = rows(
            f"SELECT f.sign, n.name FROM {schema}.features AS f LEFT JOIN {schema}.feature_names AS n"
            " ON n.layer = f.layer AND n.feature = f.feature AND n.sign = f.sign WHERE f.layer = $1 AND f.feature = $2"
        )
        if not known:
            raise LarqlError(
                f"there is no feature {feature} in layer {layer}; SHOW LAYERS says how many each has"
            )
        of_slot = "WHERE layer = $1 AND feature = $2"
        tokens: dict[str, list[str]] = {}
        for row in rows(f"SELECT side, token FROM {schema}.feature_tokens {of_slot} ORDER BY side, rank"):
            tokens.setdefault(row["side"], []).append(row["token"])
        stats = rows(f"SELECT * FROM {schema}.feature_stats {of_slot}")
        return FeatureCard(
            layer, feature, known[0]["sign"], known[0]["name"], tokens, stats[0] if stats else None,
            rows(f"FROM {schema}.examples_of($1, $2, p_k := {_EXAMPLES}) WHERE context IS NOT NULL"),
            rows(f"FROM {schema}.facts_of_feature($1, $2) WHERE source <> 'weights' LIMIT {_FACTS}"),
        )  # fmt: skip


def _figures(stats: dict[str, Any]) -> str:
    return (
        f"fires at {stats['density']:.2%} of {stats['n']} tokens (|activation| > {stats['fires_above']:.3g}); "
        f"min {stats['min']:.3g}, median {stats['p50']:.3g}, 99 % {stats['p99']:.3g}, max {stats['max']:.3g}"
    )


def _marked(example: dict[str, Any]) -> str:
    """A context with its firing token marked, as far as it can be told from other brackets."""
    context, token = (str(example[name]).replace("\n", "↵") for name in ("context", "token"))
    before, found, after = context.rpartition(f"[{token}]")
    if not found:
        return html.escape(context)
    return f"{html.escape(before)}<mark>{html.escape(token)}</mark>{html.escape(after)}"


def _histogram(counts: Sequence[int]) -> str:
    """Bars of the logarithms of counts, those of negative activations in another colour."""
    import math

    heights = [math.log1p(count) for count in counts]
    top, wide = max(heights) or 1.0, _WIDTH / len(counts)
    bars = "".join(
        f'<rect x="{i * wide:.1f}" y="{_HEIGHT - _HEIGHT * h / top:.1f}" width="{wide - 0.5:.1f}" '
        f'height="{_HEIGHT * h / top:.1f}" fill="{"#b5533c" if i < len(counts) // 2 else "#3b6ea5"}"/>'
        for i, h in enumerate(heights)
        if h
    )
    about = "activations by powers of two, negative ones left"
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{about}"><title>{about}</title>{bars}</svg>'
