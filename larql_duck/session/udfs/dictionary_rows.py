"""The rows of the functions about dictionaries: one a prompt, each field's values as a list or array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from larql_duck.atlas.dictionary import Dictionary, chosen_name, kept_files, read_dictionary
from larql_duck.atlas.dictionary_effects import firing_features, walk_dictionary
from larql_duck.workspace import Workspace

DictionaryRows = list[dict[str, Any]]


def dictionary_features(
    workspace: Workspace, prompts: Sequence[str], tops: Sequence[int], names: Sequence[str | None]
) -> DictionaryRows:
    """The features that fire at each prompt's last position and add most to the prediction."""
    engine, rows = workspace.engine(), []
    for prompt, top, name in zip(prompts, tops, names, strict=True):
        chosen, dictionary = _opened(workspace, name)
        found = firing_features(engine, dictionary, prompt, top)
        n = len(found.feature)
        rows.append(
            {
                "dictionary": [chosen] * n,
                "rank": list(range(1, n + 1)),
                "feature": found.feature,
                "activation": found.activation,
                # NULL, where the dictionary adds nothing to the residual.
                "contribution": [value if value == value else None for value in found.contribution.tolist()],
                "effect": found.effect,
                "predicted": [engine.tokenizer.token(found.token_id)] * n,
            }
        )
    return rows


def dictionary_walk(
    workspace: Workspace, prompts: Sequence[str], tops: Sequence[int], names: Sequence[str | None]
) -> DictionaryRows:
    """The features that fire at each position of each text."""
    engine, rows = workspace.engine(), []
    for prompt, top, name in zip(prompts, tops, names, strict=True):
        chosen, dictionary = _opened(workspace, name)
        found = walk_dictionary(engine, dictionary, prompt, top)
        rows.append(
            {
                "dictionary": [chosen] * len(found.feature),
                "position": found.position,
                "token": found.tokens,
                "rank": found.rank,
                "feature": found.feature,
                "activation": found.activation,
            }
        )
    return rows


def _opened(workspace: Workspace, name: str | None) -> tuple[str, Dictionary]:
    """The dictionary of this name (None: the only one), read once a session."""
    vindex = workspace.vindex
    chosen = chosen_name(name, vindex.manifest.files)
    key = ("dictionary", chosen)
    if key not in workspace.cache:
        weights, config = (vindex.file(file) for file in kept_files(chosen))
        workspace.cache[key] = read_dictionary(
            weights, config, hidden=vindex.hidden, n_layers=vindex.n_layers, device=workspace.engine().device
        )
    return chosen, workspace.cache[key]
