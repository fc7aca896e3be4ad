"""The server in process: the engine in its thread, HTTP without a network."""

import asyncio
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import httpx
import numpy as np
import pytest

from workbench.config import AttentionConfig, Mamba2Config, ModelConfig
from workbench.data.tokenizer import Bytes
from workbench.generate import complete, follow
from workbench.model.language_model import create
from workbench.model.names import named, restored
from workbench.serve import engine as module
from workbench.serve.app import application
from workbench.serve.engine import Closed, Engine, Full, Request

SYMBOLS = {"M": Mamba2Config(state=4, head_dim=8), "*": AttentionConfig(heads=2)}
CONTEXT = 256


@pytest.fixture(scope="module")
def model():
    return create(ModelConfig("M*", 16, 257, SYMBOLS), 0)


def engine(model, **settings):
    return Engine(model, Bytes(), **{"rows": 2, "context": CONTEXT} | settings)


def served(engine, *bodies):
    """The answers of requests that are made at the same time."""

    async def all_of_them():
        app = application(engine, "tiny")
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://tiny") as client,
        ):
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))

    return asyncio.run(all_of_them())


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]" and response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line) for line in lines[:-1]]


BODIES = [
    {"prompt": "a", "max_tokens": 50, "temperature": 0},
    {"prompt": "once upon", "max_tokens": 21, "seed": 3, "temperature": 0.8, "top_p": 0.9},
    {"prompt": "x" * 70, "max_tokens": 30, "temperature": 0, "repetition_penalty": 1.5},
    {"prompt": [5, 6, 7], "max_tokens": 12, "temperature": 0},
]


def test_requests_that_share_a_batch_give_what_each_gives_alone(model):
    together = served(engine(model), *BODIES)
    for body, response in zip(BODIES, together, strict=True):
        assert response.status_code == 200, response.text
        assert response.json()["choices"] == served(engine(model), body)[0].json()["choices"]
    (wanted,) = complete(model, Bytes(), ["a"], 50)
    (choice,) = together[0].json()["choices"]
    assert choice["text"] == wanted.text and choice["finish_reason"] == ("stop" if wanted.stopped else "length")


def test_a_stream_is_the_answer_in_pieces(model):
    body = BODIES[1] | {"max_tokens": 40, "logprobs": 0, "n": 2}
    whole, stream = served(engine(model), body, body | {"stream": True, "stream_options": {"include_usage": True}})
    *pieces, last = events(stream)
    assert last["choices"] == [] and last["usage"] == whole.json()["usage"]
    assert len(pieces) > 4 and {piece["id"] for piece in pieces} == {pieces[0]["id"]}
    for index, choice in enumerate(whole.json()["choices"]):
        own = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == index]
        assert "".join(each["text"] for each in own) == choice["text"]
        assert [token for each in own for token in each["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]
        assert [each["finish_reason"] for each in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]


def test_log_probabilities_are_the_models_and_tokens_end_with_the_text(model):
    body = {"prompt": "ab", "max_tokens": 20, "temperature": 0, "logprobs": 2}
    (response,) = served(engine(model), body)
    (choice,) = response.json()["choices"]
    text, found = choice["text"], choice["logprobs"]
    assert response.json()["usage"] == {"prompt_tokens": 3, "completion_tokens": 20, "total_tokens": 23}
    (written,) = complete(model, Bytes(), ["ab"], 20)
    _, (likely,) = follow(model, [np.concatenate([[0, 98, 99], written.tokens])])
    size = len(written.tokens)
    assert len(found["tokens"]) == size == 20
    np.testing.assert_allclose(found["token_logprobs"], likely.log_probabilities[3 : 3 + size], atol=1e-5)
    for token, chance, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert max(top.values()) == pytest.approx(chance) and token in top  # greedy
    assert all(0 <= at < len(text) for at in found["text_offset"])
    stop = text[7:9]
    (cut,) = served(engine(model), body | {"stop": stop})[0].json()["choices"]
    assert cut["text"] == text[: text.find(stop)] and cut["finish_reason"] == "stop"
    assert len(cut["logprobs"]["tokens"]) < size
    assert all(at < len(cut["text"]) for at in cut["logprobs"]["text_offset"])


@pytest.mark.parametrize(
    "body, status, message",
    [
        (b"{", 400, "the body is not JSON"),
        (b"[]", 400, "not a JSON object"),
        ({}, 400, "prompt is missing"),
        ({"prompt": "", "temperature": 0}, 200, ""),  # a document from its beginning
        ({"prompt": []}, 400, "none of them without tokens"),
        ({"prompt": ["a", 3]}, 400, "a text, tokens, or a list of either"),
        ({"prompt": [257]}, 400, "prompt has token 257; the model knows 0 to 256"),
        ({"prompt": "a", "model": "gpt"}, 404, "'gpt' is not served here; 'tiny' is"),
        ({"prompt": "a", "max_token": 3}, 400, "unknown field 'max_token'; did you mean 'max_tokens'"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens must be a whole number of at least 1"),
        ({"prompt": "a", "max_tokens": 255}, 400, "prompt has 2 tokens and 255 may follow; together at most 256"),
        ({"prompt": "a", "temperature": "hot"}, 400, "temperature must be a number"),
        ({"prompt": "a", "top_p": 2}, 400, "top_p is above 0 and at most 1"),
        ({"prompt": "a", "logprobs": 6}, 400, "logprobs must be a whole number from 0 to 5"),
        ({"prompt": "a", "stop": [""]}, 400, "stop must be a text or a list of texts"),
        ({"prompt": "a", "echo": True}, 400, "echo must be false: nothing else is offered"),
        ({"prompt": ["a"] * 9, "n": 8}, 400, "72 answers asked for at once; at most 64"),
        (b'{"prompt": "\\ud800"}', 400, "half a character"),
        (b" " * (2**22 + 1), 413, "more than 4194304 bytes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_request_that_cannot_be_answered_is_told_why(model, body, status, message):
    async def ask():
        app = application(engine(model), "tiny")
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://tiny") as client,
        ):
            return await client.post("/v1/completions", content=content)

    response = asyncio.run(ask())
    assert response.status_code == status, response.text
    if status != 200:
        error = response.json()["error"]
        assert message in error["message"] and error["type"] == "invalid_request_error" and error["code"] == status


def test_what_is_served_is_listed(model):
    async def ask():
        transport = httpx.ASGITransport(app=application(engine(model), "tiny"))
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
            return [await client.get(f"/v1/{path}") for path in ("models", "models/tiny", "models/big", "nothing")]

    models, one, other, nothing = asyncio.run(ask())
    assert models.json()["data"] == [one.json()] and one.json()["id"] == "tiny"
    assert (other.status_code, nothing.status_code) == (404, 404) and "error" in nothing.json()


# ---- the engine


def asked(prompt="a", tokens=8, **settings):
    """A request and the pieces that come of it."""
    pieces = queue.Queue()
    return Request(np.array([0, *prompt.encode()]), tokens, pieces.put, **settings), pieces


def ended(pieces):
    """All pieces up to the last."""
    found = [pieces.get(timeout=60)]
    while not found[-1].finish:
        found.append(pieces.get(timeout=60))
    return found


def test_a_full_queue_refuses_and_what_was_taken_is_answered(model):
    served_by, (first, pieces) = engine(model, waiting=2), asked()
    served_by.submit(first)
    with pytest.raises(Full):
        served_by.submit(asked()[0], asked()[0])  # both or none
    second, more = asked()
    served_by.submit(second)

    async def ask():
        transport = httpx.ASGITransport(app=application(served_by, "tiny"))  # whose engine does not run yet
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
            return await client.post("/v1/completions", json={"prompt": "a"})

    refused = asyncio.run(ask())
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    assert "2 requests wait already" in refused.json()["error"]["message"]
    with served_by:
        assert ended(pieces)[-1].written == ended(more)[-1].written == 8


def test_closing_ends_what_was_taken_and_takes_no_more(model):
    closing = engine(model, rows=1)
    with closing:
        (first, pieces), (second, more) = asked(tokens=60), asked(tokens=20)
        closing.submit(first, second)
        pieces.get(timeout=60)
    assert ended(pieces)[-1].written == 60 and ended(more)[-1].written == 20
    with pytest.raises(Closed):
        closing.submit(asked()[0])


def test_a_caller_who_leaves_frees_the_row(model):
    with engine(model, rows=1) as busy:
        (leaves, first), (queued, none), (last, more) = asked(tokens=200), asked(), asked()
        leaves.put = lambda piece: (first.put(piece), busy.cancel(leaves, queued))  # at once, before the next piece
        busy.submit(leaves, queued, last)
        assert ended(more)[-1].written == 8 and none.empty()
    assert not first.get().finish and first.empty()


def test_a_failure_is_told_and_the_next_request_is_answered(model, monkeypatch):
    broken = threading.Event()

    def fails(*arguments):
        if not broken.is_set():
            broken.set()
            raise RuntimeError("out of memory")
        return draw_block(*arguments)

    draw_block = module.draw_block
    monkeypatch.setattr(module, "draw_block", fails)
    with engine(model) as shaken:
        first, pieces = asked()
        shaken.submit(first)
        (piece,) = ended(pieces)
        assert piece.failed and piece.finish == "RuntimeError: out of memory"
        second, more = asked()
        shaken.submit(second)
        assert ended(more)[-1].written == 8


def test_what_is_longer_than_the_models_positions_is_refused_and_an_answer_of_no_given_length_ends_there(model):
    limited = restored(create(replace(model.config, positions=32), 0), named(model))
    bodies = [
        {"prompt": "x" * 19, "max_tokens": 13, "temperature": 0},  # with its boundary 20, and 12 of 13 are read
        {"prompt": "x" * 19, "max_tokens": 14, "temperature": 0},
        {"prompt": "x" * 27, "temperature": 0},
        {"prompt": "x" * 40, "temperature": 0},
    ]
    fits, over, open_, long = served(engine(limited), *bodies)
    assert fits.status_code == 200 and fits.json()["usage"]["completion_tokens"] == 13
    assert over.status_code == 400 and over.json()["error"] == {
        "message": "the prompt has 20 tokens and 14 are to be generated, 33 to be read; the model's positions allow "
        "32: ask for fewer, or give a shorter one",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": 400,
    }
    assert open_.json()["usage"] == {"prompt_tokens": 28, "completion_tokens": 5, "total_tokens": 33}
    assert long.status_code == 400 and "the prompt has 41 tokens and 1 are to be" in long.json()["error"]["message"]


# ---- the command


@pytest.mark.slow
def test_an_interrupted_server_ends_the_answer_that_it_has_begun(lettered, tmp_path):
    """Of an imported model of letters, over a real socket."""
    source, run = lettered("mamba-tied"), tmp_path / "letters"
    command = [sys.executable, "-m", "workbench.command"]
    subprocess.run([*command, "import", str(source), str(run)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = subprocess.Popen([*command, "serve", str(run), "--port", str(port)], stderr=subprocess.PIPE, text=True)
    try:
        while "running on" not in (line := serving.stderr.readline()):
            assert line, "the server did not start"
        body = {
            "prompt": "ab",
            "max_tokens": 4000,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=120) as stream:
            lines = (line for line in stream.iter_lines() if line)
            next(lines)
            serving.send_signal(signal.SIGINT)
            *_, last, done = lines
        assert done == "data: [DONE]" and json.loads(last.removeprefix("data: "))["usage"]["completion_tokens"] > 8
        assert serving.wait(timeout=60) == 0
        assert "Traceback" not in serving.stderr.read()
    finally:
        serving.kill()
