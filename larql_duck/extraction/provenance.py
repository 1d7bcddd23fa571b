"""Where a vindex came from: the model's name, revision and checksum, as the table meta states them. No private paths."""

from __future__ import annotations

import hashlib
from typing import Any

from larql_duck.extraction.job import Job
from larql_duck.models.checkpoint import ModelSource
from larql_duck.vindex.arrays import hash_file
from larql_duck.vindex.store import Vindex


def provenance(job: Job) -> dict[str, Any]:
    """source (repository, else name of file or folder), revision and checksum of a job's model; None where unknown.

    checksum is the sha256 of the file with the weights; of several, that of lines `NAME SHA256` in the order of names.
    A vindex passes on what it states itself. Reads every byte of the weights.
    """
    repository, revision = job.origin.get("huggingface_repo"), job.origin.get("revision")
    if isinstance(job.source, Vindex):
        stated = dict(zip(*job.source.table("meta").to_pydict().values(), strict=True))
        name, checksum = stated.get("source"), stated.get("checksum")
        return {"source": name or repository or job.name, "revision": revision, "checksum": checksum}
    assert isinstance(job.source, ModelSource)
    sums = [(file.name, hash_file(file)["sha256"]) for file in job.source.weight_files()]
    lines = "".join(f"{name} {checksum}\n" for name, checksum in sums)
    checksum = sums[0][1] if len(sums) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    return {
        "source": repository or job.source.path.resolve().name,
        "revision": revision,
        "checksum": checksum,
    }
