"""A student taught by its teacher, in rounds: what it lost is asked, then it is trained on that, then it is asked again."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from larql_duck.atlas.texts import SHIPPED, open_corpus
from larql_duck.compilation.slot_replacement import perplexity
from larql_duck.compilation.staging import check_free
from larql_duck.distillation.audit import TeacherAudit
from larql_duck.distillation.drawing import Drawn, Pool
from larql_duck.distillation.examples import (
    TrainingExample,
    asked_examples,
    fitting,
    prompt_examples,
    text_examples,
)
from larql_duck.distillation.focus import confident, fact_weights, held_out, kept_facts
from larql_duck.distillation.parties import Party
from larql_duck.distillation.probes import TaughtFact, asked_of
from larql_duck.distillation.pruning import PrunedWeights
from larql_duck.distillation.questions import audit_questions
from larql_duck.distillation.retention import teacher_sureness
from larql_duck.distillation.rounds import ROUNDS
from larql_duck.distillation.settings import (
    LossSettings,
    RoundSettings,
    TrainingData,
    TrainSettings,
    check_settings,
    require_extra,
)
from larql_duck.distillation.soft_table import SoftTargets
from larql_duck.distillation.student import kept_layers, write_student
from larql_duck.distillation.training import Teacher, hidden_pairs, train_until
from larql_duck.errors import LarqlError
from larql_duck.files import clear_own, real_place, unfinished_work, with_parents, write_whole
from larql_duck.inference.model import Model
from larql_duck.models.hf import HfSource
from larql_duck.models.tokenizer import Tokenizer, load_tokenizer
from larql_duck.probing.stored import knowledge_of
from larql_duck.progress import report
from larql_duck.vindex.publish import publish_directory
from larql_duck.vindex.store import Vindex

# Every so manieth piece of the texts is not trained on: the student's perplexity is measured there.
_KEPT_BACK = 8
_STATE, _MODEL, _CHECKPOINTS = "state.json", "model", "checkpoints"


@dataclass(frozen=True)
class Distilled:
    """A student that was taught: its directory, the rounds (see ROUNDS), and what should be said beside them."""

    path: Path
    rounds: pa.Table
    notices: list[str]


def distil(
    teacher: Model,
    student: str | Path,
    out: Path,
    *,
    lessons: TrainingData,
    loss: LossSettings,
    settings: TrainSettings,
    plan: RoundSettings,
    resume: bool = False,
) -> Distilled:
    """The Hugging Face directory `out` that the model `student` became, taught by `teacher`, and how.

    Finished steps are kept beside `out` until it is there; with `resume` they are gone on from. LarqlError for options
    that do not go together, and where there is nothing to teach; VindexError for an `out` that is not free.
    """
    require_extra()
    check_settings(lessons, loss, settings, plan)
    out = real_place(out)
    check_free(out, Path(student).expanduser())
    check_free(out, teacher.source.path)
    place = out.with_name(f".{out.name}.distil")
    busy = f"{out}: another process is training this student; wait, or name another place"
    with with_parents(out), unfinished_work(place, busy, (place / _STATE).is_file):
        if not resume:
            clear_own(place)
        run = _TrainingRun(teacher, student, place, lessons, loss, settings, plan)
        rounds = run.finish()
        check_free(out, Path(student).expanduser())
        publish_directory(place / _MODEL, out)
    return Distilled(out, rounds, run.notices)


class _TrainingRun:
    """One training run and what it left in its folder `place`."""

    def __init__(
        self,
        teacher: Model,
        student: str | Path,
        place: Path,
        lessons: TrainingData,
        loss: LossSettings,
        settings: TrainSettings,
        plan: RoundSettings,
    ) -> None:
        self._teacher, self._place, self._lessons = teacher, place, lessons
        self._loss, self._settings, self._plan = loss, settings, plan
        options = [asdict(lessons), asdict(loss), asdict(settings), asdict(plan)]
        begun = [str(teacher.source.path), str(student), *options]
        self._key = json.loads(json.dumps(begun, default=str))
        self._rows: list[dict[str, Any]] = self._state()
        self._start = self._directory(student)
        source = HfSource(self._start)
        self._tokenizer: Tokenizer = load_tokenizer(source)
        self._files = source.tokenizer_files()
        self._config, self._sizes = source.config, source.sizes()
        self.notices: list[str] = []
        self._check_tokens()
        # What cannot be read is said before anybody is asked.
        self._soft = None if lessons.soft_targets is None else SoftTargets.read(lessons.soft_targets)
        self._given = self._fitting(self._files_examples())
        self._texts, self._kept_back = self._pieces()

    def _state(self) -> list[dict[str, Any]]:
        """The finished rounds of a run with the same options."""
        path = self._place / _STATE
        if not path.is_file():
            return []
        state = json.loads(path.read_text("utf-8"))
        if state["key"] != self._key:
            raise LarqlError(
                "the run that was interrupted had other options; give them again, or leave --resume out"
            )
        rows: list[dict[str, Any]] = state["rounds"]
        return rows

    def _directory(self, student: str | Path) -> Path:
        """The Hugging Face directory that training begins with: the student's own, or one that is written of it."""
        source = Model.open(student).source
        if isinstance(source, HfSource):
            return source.path
        start = self._place / "start"
        if not start.is_dir():
            layers = range(source.family.sizes(source.config).n_layers)
            write_student(PrunedWeights(source, layers), start)
        return start

    def _check_tokens(self) -> None:
        """Raise LarqlError where distributions are to be compared over different tokens."""
        if not self._loss.alpha and not self._loss.hidden:
            return
        other = load_tokenizer(self._teacher.source)
        size = max(other.vocab_size, self._tokenizer.vocab_size)
        if any(other.piece(i) != self._tokenizer.piece(i) for i in range(size)):
            raise LarqlError(
                "teacher and student have different tokenizers, so their distributions cannot be compared; --alpha 0 trains "
                "on the teacher's answers alone"
            )

    # -- rounds ------------------------------------------------------------------------------------------

    def finish(self) -> pa.Table:
        """The rounds, after the last of them: each trains up to its step, then asks the student."""
        if not self._rows:
            self._ask(0, self._start, None, 0, 0.0)
        for number in range(len(self._rows), self._plan.rounds + 1):
            began = time.monotonic()
            step = self._settings.steps * number // self._plan.rounds
            before = self._rows[-1]["step"]
            rows = self._drawn(number)
            model = self._place / _MODEL
            shutil.rmtree(model, ignore_errors=True)
            loss = train_until(
                step, self._start, self._taught, rows, self._loss, self._settings,
                self._place / _CHECKPOINTS, model,
            )  # fmt: skip
            for name, data in self._files.items():
                write_whole(model / name, data, error=None)
            first, last = before * self._settings.batch, step * self._settings.batch
            tokens = self._rows[-1]["tokens"] + sum(len(rows[i].ids) for i in range(first, last))
            self._ask(step, model, loss, tokens, time.monotonic() - began)
        return pa.Table.from_pylist(self._rows, schema=ROUNDS)

    def _ask(self, step: int, model: Path, loss: float | None, tokens: int, seconds: float) -> None:
        """Ask the student about every fact, and keep what it says as the end of a round."""
        engine = self._opened(model)
        number = len(self._rows)
        row: dict[str, Any] = {
            "round": number,
            "step": step,
            "tokens": tokens,
            "loss": loss,
            "seconds": seconds,
        }
        found = self._audit.of(Party("the student", engine))
        self.notices = found.notices
        pq.write_table(found.table, self._place / f"round-{number}.parquet")
        row |= kept_facts(confident(found.table, self._lessons.confidence), self._lessons.held_out)
        row["perplexity"] = perplexity(engine, self._kept_back)[0] if self._kept_back else None
        self._rows.append(row)
        state = json.dumps({"key": self._key, "rounds": self._rows})
        write_whole(self._place / _STATE, state, error=None)
        report("rounds", number + 1, self._plan.rounds + 1)

    def _opened(self, model: Path) -> Any:
        return Model.open(model, device=self._settings.device).engine

    @cached_property
    def _audit(self) -> TeacherAudit:
        """The questions, which the teacher is asked once: its answers are kept with the run."""
        source = self._teacher.source
        party = Party(str(source.path), self._teacher.engine)
        if isinstance(source, Vindex):
            party = replace(party, known=knowledge_of(source), table=source.table)
        asked = audit_questions([party], pack=self._lessons.pack, relations=self._lessons.relations)
        store = self._place / "answers"
        store.mkdir(exist_ok=True)
        return TeacherAudit(party, asked, checkpoint=store)

    def _facts(self, transfer: pa.Table) -> list[TaughtFact]:
        """The facts of an audit's rows, with the prompts in which they were asked."""
        asked = {a.relation.name: a.question for a in self._audit.asked}
        return [
            TaughtFact(
                row["subject"],
                row["relation"],
                row["teacher_object"],
                teacher_sureness(row),
                asked[row["relation"]].variants[0].prompt(asked[row["relation"]].relation, row["subject"]),
            )
            for row in transfer.to_pylist()
        ]

    # -- what is read ------------------------------------------------------------------------------------

    def _pieces(self) -> tuple[list[TrainingExample], list[tuple[int, ...]]]:
        """Pieces of the texts that are trained on, and the token ids of those that are kept back."""
        corpus = open_corpus(self._lessons.texts or SHIPPED, self._lessons.column)
        pieces = self._fitting(text_examples(corpus, self._tokenizer, self._lessons.size))
        back = [p.ids for p in pieces[_KEPT_BACK - 1 :: _KEPT_BACK]]
        return [p for i, p in enumerate(pieces) if (i + 1) % _KEPT_BACK], back

    def _fitting(self, examples: Sequence[TrainingExample]) -> list[TrainingExample]:
        return fitting(examples, self._config.get("max_position_embeddings"), self._sizes.vocab)

    def _files_examples(self) -> list[TrainingExample]:
        """The examples of the user's own files."""
        if self._soft is not None:
            return self._soft.examples
        if self._lessons.prompts is None:
            return []
        return prompt_examples(self._lessons.prompts, self._tokenizer, rationale=self._lessons.rationale)

    def _drawn(self, number: int) -> Drawn:
        """The rows of the run as the audit before this round has them drawn."""
        settings, lessons = self._settings, self._lessons
        pools: list[Pool] = []
        if not self._soft:
            transfer = confident(
                pq.read_table(self._place / f"round-{number - 1}.parquet"), lessons.confidence
            )
            seen = [not held_out(subject, lessons.held_out) for subject in transfer["subject"].to_pylist()]
            transfer = transfer.filter(pa.array(seen, pa.bool_()))
            read = settings.batch * settings.steps // self._plan.rounds
            facts = asked_examples(asked_of(self._tokenizer, self._facts(transfer)))
            fit = np.array([bool(self._fitting([example])) for example in facts], dtype=bool)
            pools.append(Pool(facts, fact_weights(transfer, self._plan.focus, read) * fit, 1.0))
        if self._given:
            pools.append(Pool(self._given, np.ones(len(self._given)), 1.0))
        taught = [] if self._soft else self._texts
        pools = [pool for pool in pools if pool.weights.any()]
        own = lessons.mix if pools else 1.0
        pools = [replace(pool, share=(1 - own) / len(pools)) for pool in pools]
        if taught and own:
            pools.append(Pool(taught, np.ones(len(taught)), own))
        if not pools:
            raise LarqlError(
                "there is nothing to teach: no fact is confident enough, and no prompt or text is given"
            )
        return Drawn(pools, batch=settings.batch, steps=settings.steps, seed=settings.seed)

    @cached_property
    def _taught(self) -> Teacher:
        """The teacher as training needs it."""
        if self._soft is not None:
            return Teacher(stored=self._soft)
        if not self._loss.alpha and not self._loss.hidden:
            return Teacher()
        engine = self._teacher.engine
        layers = kept_layers(self._config, self._sizes.n_layers, engine.n_layers)
        return Teacher(engine.model, pairs=hidden_pairs(layers, engine.n_layers))
