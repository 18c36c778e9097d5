"""The page over HTTP: files, pictures, and JSON questions and answers."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from experiments.explore.images import Pictures, Thumbnails, as_png
from experiments.explore.making import CONFIGS, Maker
from experiments.explore.questions import MOST_CHANGES, Question, read_question
from experiments.explore.security import Guard
from experiments.explore.session import Session
from spectra_jax.names import readable_attribute, readable_class

STATIC = Path(__file__).parent / "static"
_LARGEST = 2**20  # bytes of a question
_IMAGES = ("original", "now", "result", "difference")
Handler = Callable[["Explorer", Request], Awaitable[Response]]


class Explorer:
    """What the routes of one server share.

    Args:
        sessions: one model, or two to compare, on the same pictures.
    """

    def __init__(self, sessions: tuple[Session, ...]):
        self.sessions, self.maker = sessions, Maker()
        self.thumbnails = Thumbnails(sessions[0].pictures)
        digest = hashlib.sha256(sessions[0].attributes.tobytes())
        for session in sessions:
            digest.update(f"{session.name} {session.class_names} {session.attribute_names}".encode())
        self.key = digest.hexdigest()[:16]  # pictures in a browser's cache are of this very run

    def describe(self) -> dict[str, Any]:
        """What the page needs to know once."""
        first = self.sessions[0]
        return {
            "key": self.key,
            "models": [session.name for session in self.sessions],
            "classes": [readable_class(name) for name in first.class_names],
            "attributes": self._attributes(),
            "labels": first.pictures.labels.tolist(),
            "predicted": first.predicted.tolist(),
            "most_changes": MOST_CHANGES,
        }

    def _attributes(self) -> list[dict[str, Any]]:
        first = self.sessions[0]
        low, high = first.attributes.min(axis=0), first.attributes.max(axis=0)
        return [
            {
                "name": name,
                "words": readable_attribute(name),
                "low": float(low[place]),
                "high": float(high[place]),
                "spread": float(first.attributes[:, place].std()),
            }
            for place, name in enumerate(first.attribute_names)
        ]

    def question(self, given: Any) -> Question:
        """The question of a request."""
        first = self.sessions[0]
        return read_question(given, num_pictures=len(first.pictures.labels), num_classes=len(first.class_names))

    def answers(self, given: dict[str, Any]) -> dict[str, Any]:
        """The answers of all models to one question."""
        effort = given.get("effort", "full")
        if effort not in ("quick", "full"):
            raise ValueError(f"effort is {effort!r}; expected quick or full.")
        question = self.question(given.get("question"))
        answers = []
        for place, session in enumerate(self.sessions):
            fitting, strangers = (question, ()) if place == 0 else session.without_strangers(question)
            answers.append(session.answer(fitting, effort) | {"ignored": [readable_attribute(s) for s in strangers]})
        return {"answers": answers}

    def asked(self, given: dict[str, Any]) -> tuple[Session, Question]:
        """The model that is meant, and the question for it."""
        model = given.get("model", 0)
        if isinstance(model, bool) or not isinstance(model, int) or not 0 <= model < len(self.sessions):
            raise ValueError(f"model is {model!r}; expected a number below {len(self.sessions)}.")
        session = self.sessions[model]
        return session, session.without_strangers(self.question(given.get("question")))[0]


async def _posted(request: Request) -> dict[str, Any]:
    """The JSON object of a request."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "Send JSON, with Content-Type: application/json.")
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST:
            raise HTTPException(413, f"That is too long: a question may have at most {_LARGEST:,} bytes.")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"That is not JSON: {error}.") from None
    if not isinstance(given, dict):
        raise HTTPException(400, "Expected a JSON object.")
    return given


def _asking(work: Callable[[Explorer, dict[str, Any]], Any]) -> Handler:
    """A handler that answers JSON by JSON, computing outside of the event loop; mistakes are sentences."""

    async def handle(explorer: Explorer, request: Request) -> Response:
        given = await _posted(request)
        try:
            return JSONResponse(await run_in_threadpool(work, explorer, given))
        except ValueError as error:
            raise HTTPException(400, str(error)) from error

    return handle


async def _page(explorer: Explorer, request: Request) -> Response:
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    return Response(page, media_type="text/html", headers={"Cache-Control": "no-store"})


async def _session(explorer: Explorer, request: Request) -> Response:
    return JSONResponse(await run_in_threadpool(explorer.describe), headers={"Cache-Control": "no-store"})


def _reason(explorer: Explorer, given: dict[str, Any]) -> dict[str, str]:
    session, question = explorer.asked(given)
    return {"reason": session.reason(question)}


def _nearest(explorer: Explorer, given: dict[str, Any]) -> dict[str, Any]:
    session, question = explorer.asked(given)
    real = session.nearest_real(question)
    return {"real": None if real is None else real._asdict()}


def _make(explorer: Explorer, given: dict[str, Any]) -> dict[str, int]:
    session, question = explorer.asked(given)
    if given.get("aim") not in CONFIGS:
        raise ValueError(f"aim is {given.get('aim')!r}; expected {' or '.join(CONFIGS)}.")
    return {"job": explorer.maker.start(session, question, given["aim"])}


async def _job(explorer: Explorer, request: Request) -> Response:
    try:
        job = explorer.maker.job(request.path_params["job"])
    except KeyError:
        raise HTTPException(404, "That picture is no longer available: make it again.") from None
    if request.method == "DELETE":
        job.stop.set()
    name = request.query_params.get("image")
    if name is None:
        return JSONResponse(job.as_json(), headers={"Cache-Control": "no-store"})
    if name not in job.images:
        raise HTTPException(404, f"There is no picture {name!r} yet; expected {', '.join(_IMAGES)}.")
    return Response(as_png(job.images[name]), media_type="image/png", headers={"Cache-Control": "no-store"})


def _number(pictures: Pictures, request: Request) -> int:
    number = request.path_params["number"]
    if number >= len(pictures.labels):
        raise HTTPException(404, f"There is no picture {number}; the last one is {len(pictures.labels) - 1}.")
    return number


def _file(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"Cache-Control": "private, max-age=86400"})


async def _picture(explorer: Explorer, request: Request) -> Response:
    pictures = explorer.sessions[0].pictures
    return _file(as_png(await run_in_threadpool(pictures.one, _number(pictures, request))), "image/png")


async def _training_picture(explorer: Explorer, request: Request) -> Response:
    pictures = explorer.sessions[0].training
    return _file(as_png(await run_in_threadpool(pictures.one, _number(pictures, request))), "image/png")


async def _thumbnail(explorer: Explorer, request: Request) -> Response:
    number = _number(explorer.sessions[0].pictures, request)
    return _file(await run_in_threadpool(explorer.thumbnails.get, number), "image/jpeg")


def make_app(sessions: tuple[Session, ...], *, token: str, hosts: tuple[str, ...]) -> ASGIApp:
    """The server of one or two models.

    Args:
        sessions: on the same pictures.
        token: the key without which nothing is answered.
        hosts: host:port by which the server may be called.
    """
    explorer = Explorer(sessions)

    def route(path: str, handler: Handler, *methods: str) -> Route:
        async def endpoint(request: Request) -> Response:
            return await handler(explorer, request)

        return Route(path, endpoint, methods=methods or ("GET",))

    app = Starlette(
        routes=[
            route("/", _page),
            route("/api/session", _session),
            route("/api/answer", _asking(Explorer.answers), "POST"),
            route("/api/reason", _asking(_reason), "POST"),
            route("/api/nearest-real", _asking(_nearest), "POST"),
            route("/api/make", _asking(_make), "POST"),
            route("/api/make/{job:int}", _job, "GET", "DELETE"),
            route("/pictures/{number:int}.png", _picture),
            route("/training/{number:int}.png", _training_picture),
            route("/thumbnails/{number:int}.jpg", _thumbnail),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={HTTPException: _refused, Exception: _crashed},
    )
    return Guard(app, token, hosts)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _crashed(request: Request, error: Exception) -> Response:
    """Whatever went wrong is said in the page; the traceback goes to the console."""
    return JSONResponse({"error": f"The computation failed ({type(error).__name__}: {error})."}, 500)
