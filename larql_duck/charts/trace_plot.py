"""What a trace and a causal trace look like as charts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from larql_duck.charts.charts import Bars, Chart, Heat, Lines, Panel, Series
from larql_duck.errors import LarqlError

if TYPE_CHECKING:
    from larql_duck.inference.causal import CausalTrace
    from larql_duck.inference.trace import TraceResult

__all__ = ["Chart", "causal_chart", "trace_chart"]

_LONGEST = 60


def trace_chart(result: TraceResult) -> Chart:
    """The Chart of the last traced position: rank and probability over layers, attention against FFN.

    With a FOR token they are that token's, and the bars its additive logit contributions; without one the
    probability is the lens's top token's and the bars are norms. LarqlError for a trace without readings.
    """
    last = max(result.table["position"].to_pylist(), default=None)
    rows: list[dict[str, Any]] = [
        row for row in result.table.to_pylist() if row["position"] == last and row["head"] is None
    ]
    if not rows:
        raise LarqlError("this trace has no rows to plot")
    names = ["emb" if row["layer"] < 0 else str(row["layer"]) for row in rows]
    tops = [_shown(row["top_token"]) for row in rows]

    def column(name: str) -> list[float | None]:
        return [row[name] for row in rows]

    panels: list[Panel] = []
    if result.target is not None:
        token = _shown(result.target.token)
        panels.append(Lines(f"Rank of {token}", names, [Series("rank", column("token_rank"))], "rank"))
        panels.append(
            Lines(
                "Probability in each layer's reading; the most probable token below",
                [f"{name} {top}" for top, name in zip(tops, names, strict=True)],
                [
                    Series(token, column("token_probability")),
                    Series("most probable", column("probability")),
                ],
                "share",
            )
        )
        bars = [Series("attention", column("attn_logit")), Series("FFN", column("ffn_logit"))]
        panels.append(Bars(f"What each layer adds to the logit of {token} (emb: the embedding)", names, bars))
    else:
        if any(row["probability"] is not None for row in rows):
            labels = [f"{name} {top}" for top, name in zip(tops, names, strict=True)]
            reading = Series("most probable", column("probability"))
            panels.append(Lines("Probability of the most probable token", labels, [reading], "share"))
        bars = [Series("attention", column("attn_norm")), Series("FFN", column("ffn_norm"))]
        panels.append(Bars("Length of what each layer adds to the residual", names, bars))
    return Chart(_cut(result.prompt) or "Trace", f"position {last}, layer by layer", panels)


def causal_chart(result: CausalTrace) -> Chart:
    """The Chart of a causal trace: how much of the answer's logit each patched place brings back."""
    rows = result.grid().tolist()
    names = ["emb", *(str(i) for i in range(len(rows) - 1))]
    columns = [f"{i} {_shown(token)}" for i, token in enumerate(result.tokens)]
    answer = _shown(result.target.token)
    heat = Heat(
        f"Share of the logit of {answer} that a clean residual brings back (rows: layers)",
        names,
        columns,
        rows,
    )
    subtitle = f"probability of {answer}: clean {result.clean:.3f}, corrupted {result.corrupted:.3f}"
    return Chart("Causal trace", subtitle, [heat])


def _shown(token: str | None) -> str:
    return (
        ""
        if token is None
        else _cut(repr(token)[1:-1].replace(" ", "·", 1) if token.startswith(" ") else token)
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
