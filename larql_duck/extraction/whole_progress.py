"""How far a whole extraction is, told beside how far each stage is: stages weigh what they are expected to take."""

from __future__ import annotations

from collections.abc import Mapping

from larql_duck.progress import Progress

WHOLE = "extract"
"""The stage that is the whole extraction: what the command line calls the command."""


class WholeProgress:
    """A Progress that tells `told` of each stage, and before it of the whole, in expected seconds."""

    def __init__(self, seconds: Mapping[str, float], told: Progress) -> None:
        self._seconds, self._told = dict(seconds), told
        self._done = dict.fromkeys(self._seconds, 0.0)

    def __call__(self, stage: str, done: float, total: float) -> None:
        """Tell how far a stage is; stages before it are over."""
        if stage in self._done:
            names = list(self._done)
            for name in names[: names.index(stage)]:
                self._done[name] = self._seconds[name]
            self._done[stage] = self._seconds[stage] * (done / total if total else 1.0)
            whole = sum(self._seconds.values())
            # The whole is over when it is published, not when its last table is written.
            self._told(WHOLE, min(sum(self._done.values()), 0.999 * whole), whole)
        self._told(stage, done, total)

    def finish(self) -> None:
        """Tell that the whole is over."""
        whole = sum(self._seconds.values())
        self._told(WHOLE, whole, whole)
