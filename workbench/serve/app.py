"""The engine over HTTP, as OpenAI's completions: POST /v1/completions, GET /v1/models.

Requests are checked field by field: what would not be done is refused with a sentence, never ignored.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as Call
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from workbench.config import nearest
from workbench.generate import TOP, Sampling, encoded
from workbench.serve.engine import Closed, Engine, Full, Piece, Request

LOOK = 0.5  # seconds after which a caller who waits is looked for
LARGEST = 2**22  # bytes of a request's body
MANY = 128  # answers that one request may ask for


class Refused(Exception):
    """A request that is not answered: the status, why, and the field that it is about."""

    def __init__(self, status: int, why: str, field: str | None = None):
        super().__init__(why)
        self.status, self.field = status, field


class Field(NamedTuple):
    """What a field may be, in words and as a check, and what stands for one that is absent or null."""

    holds: Callable[[Any], bool]
    needed: str
    absent: Any = None


def _whole(low: int, high: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _only(*accepted: Any) -> Field:
    return Field(lambda value: value in accepted, f"{' or '.join(map(json.dumps, accepted))}: nothing else is offered")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and each for each in value)


FIELDS = {
    "model": Field(lambda value: isinstance(value, str), "the name of the model"),
    "prompt": Field(lambda value: isinstance(value, str | list), "a text, tokens, or a list of either"),
    "max_tokens": Field(_whole(1), "a whole number of at least 1", 16),
    "n": Field(_whole(1, MANY), f"a whole number from 1 to {MANY}", 1),
    "stream": Field(lambda value: isinstance(value, bool), "true or false", False),
    "stream_options": Field(
        lambda value: isinstance(value, dict) and all(k == "include_usage" for k in value),
        '{"include_usage": true}',
        {},
    ),
    "stop": Field(lambda value: (isinstance(value, str) and value) or _texts(value), "a text or a list of texts", []),
    "seed": Field(_whole(0, 2**32 - 1), "a whole number from 0 to 2^32 - 1"),
    "logprobs": Field(_whole(0, TOP), f"a whole number from 0 to {TOP}"),
    "temperature": Field(_number, "a number", 1.0),
    "top_p": Field(_number, "a number", 1.0),
    "top_k": Field(_whole(0), "a whole number of at least 0", 0),
    "min_p": Field(_number, "a number", 0.0),
    "repetition_penalty": Field(_number, "a number", 1.0),
    "user": Field(lambda value: isinstance(value, str), "a text"),
    # part of the interface that nobody needs here: accepted where they change nothing
    "best_of": _only(1),
    "echo": _only(False),
    "frequency_penalty": _only(0),
    "logit_bias": _only({}),
    "presence_penalty": _only(0),
    "suffix": _only(""),
}


@dataclass
class Asked:
    """A request for completions, checked. prompts: of tokens."""

    values: dict[str, Any]
    prompts: list[np.ndarray]

    @property
    def answers(self) -> int:
        return len(self.prompts) * self.values["n"]


def asked(body: bytes, engine: Engine, name: str) -> Asked:
    """What a body asks for. Raises Refused with what is wrong."""
    try:
        given = json.loads(body)
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise Refused(400, "the body is not a JSON object")
    for field, value in given.items():
        if field not in FIELDS:
            raise Refused(400, f"unknown field {field!r}; {nearest(field, FIELDS)}", field)
        if value is not None and not FIELDS[field].holds(value):
            raise Refused(400, f"{field} must be {FIELDS[field].needed}", field)
    values = {field: each.absent if given.get(field) is None else given[field] for field, each in FIELDS.items()}
    if values["model"] not in (None, name):
        raise Refused(404, f"model {values['model']!r} is not served here; {name!r} is", "model")
    if values["prompt"] is None:
        raise Refused(400, "prompt is missing", "prompt")
    names = {"repetition_penalty": "repetition"}
    try:
        values["sampling"] = Sampling(
            **{names.get(field, field): values[field] for field in
               ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")}
        )  # fmt: skip
    except ValueError as error:
        raise Refused(400, str(error)) from None
    found = Asked(values, _prompts(values["prompt"], engine))
    if given.get("max_tokens") is None:
        values["max_tokens"] = max(min(values["max_tokens"], engine.room(max(map(len, found.prompts)))), 1)
    if found.answers > min(MANY, engine.waiting):
        raise Refused(400, f"{found.answers} answers asked for at once; at most {min(MANY, engine.waiting)}", "prompt")
    return found


def _prompts(given: str | list, engine: Engine) -> list[np.ndarray]:
    """The tokens of each prompt. A text begins a document; tokens are read as they stand."""
    tokens = lambda each: isinstance(each, list) and each and all(map(_whole(0), each))  # noqa: E731
    many = [given] if isinstance(given, str) or tokens(given) else given
    if not many or not all(isinstance(each, str) or tokens(each) for each in many):
        raise Refused(400, f"prompt must be {FIELDS['prompt'].needed}, none of them without tokens", "prompt")
    vocabulary, out = engine.model.config.vocabulary, []
    for each in many:
        try:
            ids = encoded(engine.tokenizer, [each])[0] if isinstance(each, str) else np.array(each)
        except UnicodeEncodeError:
            raise Refused(400, "prompt has half a character of UTF-16", "prompt") from None
        if ids.max() >= vocabulary:
            raise Refused(400, f"prompt has token {ids.max()}; the model knows 0 to {vocabulary - 1}", "prompt")
        out.append(ids)
    return out


def application(engine: Engine, name: str) -> Starlette:
    """The web application, which starts the engine and, when it ends, lets it finish what it has begun."""
    begun = int(time.time())

    @asynccontextmanager
    async def lifespan(_):
        engine.__enter__()
        yield
        await asyncio.to_thread(engine.close)

    async def models(_: Call) -> Response:
        return JSONResponse({"object": "list", "data": [about()]})

    async def model(call: Call) -> Response:
        if call.path_params["name"] != name:
            raise Refused(404, f"model {call.path_params['name']!r} is not served here; {name!r} is", "model")
        return JSONResponse(about())

    def about() -> dict:
        return {"id": name, "object": "model", "created": begun, "owned_by": "workbench"}

    async def completions(call: Call) -> Response:
        body = bytearray()
        async for part in call.stream():
            body += part
            if len(body) > LARGEST:
                raise Refused(413, f"the body has more than {LARGEST} bytes")
        found = asked(bytes(body), engine, name)
        pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        requests = _submitted(found, engine, pieces)
        head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time())}
        head["model"] = name
        if found.values["stream"]:
            events = _events(found, requests, engine, pieces, head)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        return JSONResponse(head | await _whole_answer(call, found, requests, engine, pieces))

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/completions", completions, methods=["POST"]),
        ],
        lifespan=lifespan,
        exception_handlers={Refused: _refusal, HTTPException: _refusal},
    )


def _submitted(found: Asked, engine: Engine, pieces: asyncio.Queue) -> list[Request]:
    """One request for each answer, n for each prompt; answer i draws from seed + i."""
    values, loop = found.values, asyncio.get_running_loop()
    seed = secrets.randbits(32) if values["seed"] is None else values["seed"]

    def put(index: int) -> Callable[[Piece], None]:
        def one(piece: Piece) -> None:
            with suppress(RuntimeError):  # the loop has ended, and the caller with it
                loop.call_soon_threadsafe(pieces.put_nowait, (index, piece))

        return one

    stop = (values["stop"],) if isinstance(values["stop"], str) else tuple(values["stop"])
    requests = [
        Request(
            found.prompts[index // values["n"]],
            values["max_tokens"],
            put(index),
            values["sampling"],
            stop,
            (seed + index) % 2**32,
            values["logprobs"],
        )
        for index in range(found.answers)
    ]
    try:
        engine.submit(*requests)
    except ValueError as error:
        raise Refused(400, str(error), "max_tokens") from None
    except Full:
        raise Refused(429, f"{engine.waiting} requests wait already; try again later") from None
    except Closed:
        raise Refused(503, "the server is shutting down") from None
    return requests


async def _whole_answer(call: Call, found: Asked, requests: list, engine: Engine, pieces: asyncio.Queue) -> dict:
    """All answers once all have ended; a caller who leaves before frees their rows."""
    got: list[list[Piece]] = [[] for _ in requests]
    try:
        while not all(each and each[-1].finish for each in got):
            try:
                index, piece = await asyncio.wait_for(pieces.get(), LOOK)
            except TimeoutError:
                if await call.is_disconnected():
                    raise Refused(499, "the caller has left") from None
                continue
            if piece.failed:
                raise Refused(500, piece.finish)
            got[index].append(piece)
    finally:
        engine.cancel(*requests)
    whole = [
        Piece("".join(p.text for p in each), [t for p in each for t in p.tokens], each[-1].written, each[-1].finish)
        for each in got
    ]
    choices = [_choice(index, piece, found) for index, piece in enumerate(whole)]
    return {"choices": choices, "usage": _usage(found, sum(piece.written for piece in whole))}


async def _events(
    found: Asked, requests: list, engine: Engine, pieces: asyncio.Queue, head: dict
) -> AsyncIterator[str]:
    """Each piece as it comes, as a server-sent event."""
    event = lambda value: f"data: {json.dumps(value)}\n\n"  # noqa: E731
    written, open_ = [0] * len(requests), len(requests)
    try:
        while open_:
            index, piece = await pieces.get()
            if piece.failed:
                yield event(_error(500, piece.finish))
                return
            written[index] = piece.written
            open_ -= bool(piece.finish)
            if piece.text or piece.finish:
                yield event(head | {"choices": [_choice(index, piece, found)]})
        if found.values["stream_options"].get("include_usage"):
            yield event(head | {"choices": [], "usage": _usage(found, sum(written))})
        yield "data: [DONE]\n\n"
    finally:
        engine.cancel(*requests)


def _choice(index: int, piece: Piece, found: Asked) -> dict:
    chances = None
    if found.values["logprobs"] is not None:
        chances = {
            "tokens": [token.text for token in piece.tokens],
            "token_logprobs": [token.log_probability for token in piece.tokens],
            "top_logprobs": [token.top for token in piece.tokens] if found.values["logprobs"] else None,
            "text_offset": [token.offset for token in piece.tokens],
        }
    return {"text": piece.text, "index": index, "logprobs": chances, "finish_reason": piece.finish or None}


def _usage(found: Asked, written: int) -> dict:
    read = sum(map(len, found.prompts))
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _error(status: int, why: str, field: str | None = None) -> dict:
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    kind = "rate_limit_error" if status == 429 else kind
    return {"error": {"message": why, "type": kind, "param": field, "code": status}}


async def _refusal(call: Call, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        status, why, field = error.status_code, f"{call.method} {call.url.path}: {error.detail}", None
    else:
        status, why, field = error.status, str(error), error.field
    headers = {"retry-after": "1"} if status in (429, 503) else dict(getattr(error, "headers", None) or {})
    return JSONResponse(_error(status, why, field), status, headers)
