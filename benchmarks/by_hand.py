"""Extraction beside the script that one would write with transformers and torch.topk for the same tokens.

The script's tokens come in batches of 1,024, in f32 on all threads; one topk a batch (and side) keeps each feature's best. It makes
promoted, suppressed and top activating tokens, and none of the tables: no z, no features of a token, no files.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Row, run, smollm2, tool
from benchmarks.infer import hf_smollm2

_BATCH, _K = 1024, 10


def by_hand(model: Path, word_ids: list[int], limit: int | None = None) -> dict[str, float]:
    """Seconds of the parts of the script, loading left out: 'promoted' and 'activating' (of the first `limit` tokens)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    layers = lm.model.layers

    def better(kept: Any, values: Any, ids: Any) -> Any:
        """The k largest of what was kept and a batch's values [batch, features], with their tokens."""
        best, at = values.topk(min(_K, len(values)), dim=0)
        both, tokens = torch.cat([kept[0], best]), torch.cat([kept[1], ids[at]])
        top, at = both.topk(_K, dim=0)
        return top, tokens.gather(0, at)

    def nothing(features: int) -> Any:
        return torch.full((_K, features), -torch.inf), torch.zeros(_K, features, dtype=torch.long)

    with torch.no_grad():
        began = time.perf_counter()
        head = lm.lm_head.weight
        rows = (head - head.mean(0)) * lm.model.norm.weight
        rows /= rows.norm(dim=1, keepdim=True)
        vocabulary = torch.arange(len(rows))
        for layer in layers:
            down = layer.mlp.down_proj.weight
            columns = down / down.norm(dim=0)
            most, least = nothing(columns.shape[1]), nothing(columns.shape[1])
            for ids in vocabulary.split(_BATCH):
                scores = rows[ids] @ columns
                most, least = better(most, scores, ids), better(least, -scores, ids)
        promoted = time.perf_counter() - began

        began = time.perf_counter()
        tops = [nothing(layer.mlp.gate_proj.out_features) for layer in layers]
        prefix = tokenizer("The", return_tensors="pt").input_ids
        batch: Any = None

        def keep(i: int) -> Any:
            def hook(module: Any, args: Any, out: Any) -> None:
                tops[i] = better(tops[i], out[:, -1], batch)

            return hook

        hooks = [layer.mlp.gate_proj.register_forward_hook(keep(i)) for i, layer in enumerate(layers)]
        for ids in torch.tensor(word_ids[:limit]).split(_BATCH):
            batch = ids
            lm.model(torch.cat([prefix.expand(len(ids), -1), ids[:, None]], 1), use_cache=False)
        for hook in hooks:
            hook.remove()
        activating = time.perf_counter() - began
    return {"promoted": promoted, "activating": activating}


def _word_ids() -> list[int]:
    from larql_duck.extraction.vocabulary import vocabulary_of
    from larql_duck.models.opening import open_model
    from larql_duck.models.tokenizer import load_tokenizer

    source = open_model(smollm2())
    return [int(i) for i in vocabulary_of(load_tokenizer(source)).word_ids]


def hand(work: Path) -> Iterator[Row]:
    """SmolLM2 without facts, tables and files included, beside the script."""
    ids = work / "word-ids.json"
    ids.write_text(json.dumps(_word_ids()))
    command = [sys.executable, "-m", "benchmarks.by_hand", hf_smollm2(work), ids]
    _, output = run([str(part) for part in command])
    parts = json.loads(output.splitlines()[-1])
    script = sum(parts.values())
    note = ", ".join(f"{name} {value:.0f} s" for name, value in parts.items())
    for precision in ("f32", "bf16"):
        out = work / f"hand-{precision}.vindex"
        extract: list[str | Path] = [
            tool("larql-duck"),
            "extract",
            smollm2(),
            "-o",
            out,
            "--force",
            "--no-probe",
        ]
        ours, _ = run([*extract, "--in-basis", "context", "--precision", precision])
        yield Row(f"extraction without facts, {precision}, by hand", ours, script, "s", "0.33", note)


CASES: dict[str, Case] = {"by-hand": hand}

if __name__ == "__main__":
    print(json.dumps(by_hand(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))))
