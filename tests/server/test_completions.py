"""OpenAI's paths: objects, streams, logprobs, stops; the same tokens as transformers' own greedy generation."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from larql_duck.commands.opening import connect
from larql_duck.server.completions import TextWriter, Writing
from larql_duck.server.options import Limits, ServeOptions
from tests.conftest import Make
from tests.server.conftest import EDITOR
from tests.server.running import Running, running

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


def test_completions_share_passes_and_stay_what_they_are(reader: Running) -> None:
    bodies = [
        {"prompt": f"The capital of France number {i} is", "max_tokens": 4 + 3 * i, "seed": i, "logprobs": 1}
        | ({"temperature": 0} if i % 2 else {"temperature": 1.3, "top_p": 0.9})
        for i in range(6)
    ]
    alone = [complete(reader, **body) for body in bodies]
    thread = reader.app.state.service.thread
    held = threading.Event()
    threading.Thread(target=lambda: thread.call(held.wait, 30)).start()
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(complete, reader, **body) for body in bodies]
        while thread.waiting < 6:
            time.sleep(0.01)
        turns = thread.batches
        held.set()
        together = [each.result() for each in asked]
    # 19 tokens are three turns of eight: alone, the six would have taken ten.
    assert thread.batches - turns <= 4
    for one, many in zip(alone, together, strict=True):
        assert many["choices"][0]["text"] == one["choices"][0]["text"] and many["usage"] == one["usage"]
        assert many["choices"][0]["finish_reason"] == one["choices"][0]["finish_reason"]
        assert many["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(
            one["choices"][0]["logprobs"]["token_logprobs"], rel=1e-3
        )


def test_a_slow_reader_gets_every_turn(reader: Running) -> None:
    body = {"prompt": "The capital of France number 5 is", "max_tokens": 19, "temperature": 0, "logprobs": 1}
    whole = complete(reader, **body)["choices"][0]
    service = reader.app.state.service
    writing = Writing(body["prompt"], max_tokens=19, temperature=0.0, alternatives=1)
    pieces = TextWriter(writing, next(iter(service.hosted.values())), None).pieces()
    first = next(pieces)
    # All turns are over by the time that the first one is read on.
    for _ in range(4):
        service.thread.call(lambda: None, 30)
    assert "".join(piece.text for piece in [first, *pieces]) == whole["text"]


def test_a_wrong_prompt_among_others_is_told_so_alone(reader: Running) -> None:
    thread = reader.app.state.service.thread
    held = threading.Event()
    threading.Thread(target=lambda: thread.call(held.wait, 30)).start()
    with ThreadPoolExecutor(2) as pool:
        bodies = [{"prompt": "", "max_tokens": 3}, {"prompt": PROMPT, "max_tokens": 3}]
        asked = [pool.submit(reader.post, f"/v1/{MODEL}/completions", body) for body in bodies]
        while thread.waiting < 2:
            time.sleep(0.01)
        held.set()
        assert [each.result().status_code for each in asked] == [400, 200]


@pytest.mark.parametrize("stream", [True, False])
def test_nothing_more_is_written_for_a_client_that_hung_up(probed_vindex: Make, stream: bool) -> None:
    limits = Limits(new_tokens=100_000)
    with running([probed_vindex("llama")], ServeOptions(limits=limits)) as server:
        port = int(server.url.rsplit(":", 1)[1])
        thread = server.app.state.service.thread
        # The tiny model's context would be full before anybody could hang up.
        complete(server, max_tokens=1)
        server.app.state.service.hosted[MODEL].engine._engine.context = None
        body = json.dumps(
            {"prompt": PROMPT, "max_tokens": 100_000, "temperature": 2, "seed": 1, "stream": stream}
        ).encode()
        head = (
            f"POST /v1/{MODEL}/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        )
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            before = thread.batches
            while thread.batches < before + 2:
                time.sleep(0.01)
        deadline = time.monotonic() + 60
        while (now := thread.batches) != (time.sleep(0.7), thread.batches)[1]:
            assert time.monotonic() < deadline, f"{now} turns, and still more"
        assert "larql_duck_requests_running 1.0" in server.get("/metrics").text
        assert complete(server, max_tokens=2)["usage"]["completion_tokens"] <= 2
