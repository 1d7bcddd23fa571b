"""DIFF a b TEXTS, and its Python functions: two models, or one alone, over texts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from larql_duck.commands.auditing import show_tables
from larql_duck.distillation.parties import open_engine
from larql_duck.distillation.text_diff import SAMPLES, TOKENS, diff_tokens, write_text_diff
from larql_duck.distillation.text_score import score_texts
from larql_duck.inference.engine import Engine
from larql_duck.inference.settings import Settings
from larql_duck.lql import statements as st
from larql_duck.result import Result
from larql_duck.session import Session

# Rows shown without a LIMIT.
_ROWS = 20


class TextDiffResult(Result):
    """The table `text_diff` as a Result, a row a token; tokens is the table `diff_tokens`."""

    def __init__(self, file: Path, notices: list[str]) -> None:
        """file is what `write_text_diff` wrote."""
        rows = pq.read_table(file)
        self.tokens = Result(diff_tokens(rows))
        kl = pc.mean(rows["kl"]).as_py()
        same = pc.mean(pc.cast(pc.equal(rows["top_a"], rows["top_b"]), "float64")).as_py()
        summary = f"{rows.num_rows} tokens: mean KL {kl:.4g} nats, the same token comes first at {same:.1%}"
        super().__init__(rows, notices=[*notices, summary])


def diff_texts(
    a: str | Path,
    b: str | Path,
    texts: str | Path,
    *,
    samples: int = SAMPLES,
    tokens: int = TOKENS,
    column: str | None = None,
    out: str | Path | None = None,
    settings: Settings | None = None,
) -> TextDiffResult:
    """How far b's next-token distributions are from a's over texts: the table `text_diff`, with `.tokens` (`diff_tokens`).

    a and b are vindexes or models, texts a Parquet file (column `column`, else 'text'), JSON lines, a text file (a text a
    line) or a directory of these; the first `samples` are read, at most `tokens` tokens of each. out keeps the table as a
    Parquet file, and an interrupted run is continued by the same call; without it nothing is kept. LevelError for a vindex
    without weights.
    """
    engines = open_engine(a, settings), open_engine(b, settings)
    return _compared(engines, texts, samples, tokens, column, out)


def text_scores(
    model: str | Path,
    texts: str | Path,
    *,
    samples: int = SAMPLES,
    tokens: int = TOKENS,
    lens: bool = False,
    column: str | None = None,
    settings: Settings | None = None,
) -> Result:
    """How well a model predicts texts: the table `text_scores`, all texts first; lens: also layer by layer."""
    notices: list[str] = []
    engine = open_engine(model, settings)
    rows = score_texts(
        engine, texts, samples=samples, tokens=tokens, lens=lens, column=column, notice=notices.append
    )
    return Result(rows, notices=notices)


def diff_over_texts(session: Session, s: st.Diff) -> Result:
    """DIFF a b TEXTS: the tokens behind which the models differ most; `FROM text_diff` and `FROM diff_tokens` show all."""
    engines = _engine(session, s.left), _engine(session, s.right)
    samples = SAMPLES if s.samples is None else s.samples
    tokens = TOKENS if s.tokens is None else s.tokens
    found = _compared(engines, str(s.texts), samples, tokens, s.column, None)
    show_tables(session, {"text_diff": found.arrow(), "diff_tokens": found.tokens.arrow()})
    limit = _ROWS if s.limit is None else s.limit
    most = found.arrow().sort_by([("kl", "descending"), ("doc", "ascending"), ("position", "ascending")])
    more = "FROM text_diff shows every token, FROM diff_tokens those that one model prefers"
    return Result(most.slice(0, limit), notices=[*found.notices, more])


def _engine(session: Session, path: str | None) -> Engine:
    return session.workspace.engine() if path is None else open_engine(path, session.options.settings)


def _compared(
    engines: tuple[Engine, Engine],
    texts: str | Path,
    samples: int,
    tokens: int,
    column: str | None,
    out: str | Path | None,
) -> TextDiffResult:
    notices: list[str] = []
    with tempfile.TemporaryDirectory(prefix="larql-duck-") as folder:
        file = write_text_diff(
            *engines, texts, Path(folder) / "text_diff.parquet" if out is None else out,
            samples=samples, tokens=tokens, column=column, notice=notices.append,
        )  # fmt: skip
        return TextDiffResult(file, notices)
