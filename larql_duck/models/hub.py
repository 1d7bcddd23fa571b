"""Models on the Hugging Face Hub: from a repository's name to a local directory."""

from __future__ import annotations

import os
import re
from pathlib import Path

from larql_duck.errors import ModelError, reason

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
# Subfolders hold other formats (onnx, original), and "consolidated" repeats the weights in Mistral's own layout.
_UNWANTED = ["*/*", "consolidated*"]


def parse_spec(spec: str) -> tuple[str, str | None] | None:
    """(repository, revision or None) of hf://org/name[@revision] or org/name; None for anything else."""
    explicit = spec.startswith("hf://")
    repo, _, revision = spec.removeprefix("hf://").partition("@")
    if _REPO.fullmatch(repo) and (explicit or not repo.endswith((".gguf", ".safetensors", ".json", ".bin"))):
        return repo, revision or None
    if explicit:
        raise ModelError(f"{spec}: a model on the Hub is written hf://org/name or hf://org/name@revision")
    return None


def download(repo: str, revision: str | None) -> tuple[Path, dict[str, str | None]]:
    """The local snapshot directory and its origin (huggingface_repo, revision: the commit).

    Uses the Hub's cache, so a model that is complete there needs no network (HF_HUB_OFFLINE=1 enforces that).
    """
    from huggingface_hub import snapshot_download

    try:
        path = Path(
            snapshot_download(repo, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
        )
    # The network stack below raises types of its own, all of them mean the same here.
    except Exception as error:
        at = f"@{revision}" if revision else ""
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise ModelError(
            f"hf://{repo}{at}: cannot be fetched from the Hub{offline}: {reason(error)}; "
            "check the name and the network, or pass a local directory or .gguf file",
            path=f"hf://{repo}{at}",
        ) from None
    commit = path.name if path.parent.name == "snapshots" else revision
    return path, {"huggingface_repo": repo, "revision": commit}
