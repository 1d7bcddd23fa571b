"""OpenAI's paths: objects, streams, logprobs, stops; the same tokens as transformers' own greedy generation."""

from __future__ import annotations

import json
import math

import pytest
import torch

from larql_duck.commands.opening import connect
from tests.conftest import Make
from tests.server.conftest import EDITOR
from tests.server.running import Running

MODEL = "llama-probed"
PROMPT = "The capital of France is"


def complete(server: Running, **body: object) -> dict[str, object]:
    response = server.post(f"/v1/{MODEL}/completions", {"prompt": PROMPT, "temperature": 0} | body)
    assert response.status_code == 200, response.text
    return response.json()


def test_greedy_text_is_that_of_transformers(reader: Running, probed_vindex: Make) -> None:
    answer = complete(reader, max_tokens=8, logprobs=3)
    assert answer["object"] == "text_completion" and answer["model"] == MODEL
    [choice] = answer["choices"]
    with connect(probed_vindex("llama")) as session:
        engine = session.model.engine
        ids = engine.encode(PROMPT).ids
        made = engine.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[
            0, ids.shape[1] :
        ]
        logits = engine.model(ids).logits[0, -1]
        expected = engine.tokenizer.continuation(made[: answer["usage"]["completion_tokens"]].tolist())
        best = torch.log_softmax(logits.float(), -1).topk(3)
    # Half a character at the end is not given.
    assert choice["text"] == expected.rstrip("\ufffd") and choice["finish_reason"] in ("stop", "length")
    assert choice["logprobs"]["token_logprobs"][0] == pytest.approx(float(best.values[0]), rel=1e-4)
    assert len(choice["logprobs"]["top_logprobs"][0]) == 3
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_echo_gives_the_prompts_own_logprobs(reader: Running) -> None:
    [choice] = complete(reader, max_tokens=0, echo=True, logprobs=1)["choices"]
    assert choice["text"] == PROMPT and choice["finish_reason"] == "length"
    first, *others = choice["logprobs"]["token_logprobs"]
    assert first is None and all(math.isfinite(p) and p < 0 for p in others)
    offsets = choice["logprobs"]["text_offset"]
    assert offsets[0] == 0 and offsets == sorted(offsets)


def test_a_stream_has_the_same_text(reader: Running) -> None:
    whole = complete(reader, max_tokens=8)["choices"][0]["text"]
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8, "stream": True}
    response = reader.post(f"/v1/{MODEL}/completions", body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert "".join(c["text"] for c in chunks) == whole and chunks[-1]["finish_reason"] in ("stop", "length")


def test_stops_end_the_text_and_seeds_repeat_it(reader: Running) -> None:
    whole = complete(reader, max_tokens=12)["choices"][0]["text"]
    stop = whole[2:4]
    cut = complete(reader, max_tokens=12, stop=stop)["choices"][0]
    assert cut["text"] == whole[: whole.index(stop)] and cut["finish_reason"] == "stop"
    sampled = [
        complete(reader, temperature=1.5, top_p=0.9, seed=seed)["choices"][0]["text"] for seed in (1, 1, 2, 3)
    ]
    assert sampled[0] == sampled[1] and len(set(sampled)) > 1


def test_what_is_not_served_is_said_as_openai_says_it(reader: Running) -> None:
    for body, status in (
        ({"prompt": PROMPT, "n": 2}, 400),
        ({"prompt": ["a", "b"]}, 400),
        ({"prompt": ""}, 400),
        ({"prompt": PROMPT, "temperature": -1}, 400),
        ({"prompt": PROMPT, "stop": ["", "x"]}, 400),
        ({}, 400),
    ):
        response = reader.post(f"/v1/{MODEL}/completions", body)
        assert response.status_code == status, response.text
        assert response.json()["error"]["type"] == "invalid_request_error"
    unknown = reader.post("/v1/completions", {"prompt": PROMPT, "model": "nothing"})
    assert unknown.status_code == 404 and MODEL in unknown.json()["error"]["message"]
    assert (
        reader.post("/v1/completions", {"prompt": PROMPT, "model": MODEL, "max_tokens": 1}).status_code == 200
    )
    # The tiny model has no chat template.
    chat = reader.post(f"/v1/{MODEL}/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
    assert chat.status_code in (200, 400)
    browse = reader.post("/v1/world/completions", {"prompt": PROMPT})
    assert browse.status_code == 400 and "message" in browse.json()["error"]


def test_an_edited_model_can_be_tried(editor: Running) -> None:
    mine = {"Authorization": f"Bearer {EDITOR}"}
    fact = {"entity": "Atlantis", "relation": "capital", "target": "Paris"}
    made = editor.post("/v1/insert", fact, headers=mine)
    assert made.status_code == 200, made.text
    session = mine | {"X-Session-Id": made.headers["X-Session-Id"]}
    body = {"prompt": "The capital of Atlantis is", "temperature": 0, "max_tokens": 1, "logprobs": 5}

    def best(headers: dict[str, str]) -> dict[str, float]:
        answer = editor.post("/v1/completions", body, headers=headers).json()
        return answer["choices"][0]["logprobs"]["top_logprobs"][0]

    before, after = best(mine), best(session)
    assert after != before and best(mine) == before
    infer = {"prompt": body["prompt"], "top": 1}
    plain = editor.post("/v1/infer", infer, headers=mine).json()["predictions"][0]
    edited = editor.post("/v1/infer", infer, headers=session).json()["predictions"][0]
    assert math.log(edited["probability"]) == pytest.approx(max(after.values()), rel=1e-3)
    assert plain["probability"] != edited["probability"]
    assert editor.http.delete(f"/v1/sessions/{session['X-Session-Id']}", headers=mine).json()["found"]
