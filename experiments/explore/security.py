"""Who may talk to the server: this machine's browser, opened with the key in the address."""

import hmac
import os
import secrets
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from experiments.cli.command import UserError

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_MONTH = 30 * 24 * 3600


def kept_token(path: Path) -> str:
    """The key of this user, made on first use: addresses stay valid when the server is started again.

    Raises:
        UserError: the file cannot be written or read.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
        except FileExistsError:
            if path.stat().st_mode & 0o077:
                raise UserError(f"{path} can be read by others; delete it to have a new key made.") from None
        token = path.read_text().strip()
    except OSError as error:
        raise UserError(
            f"{path} cannot be used ({error.strerror}): set SPECTRA_JAX_CACHE to a folder that you own."
        ) from error
    if len(token) < 32:
        raise UserError(f"{path} holds no key; delete it to have a new one made.")
    return token


class Guard:
    """Refuses requests of other hosts and origins, and those without the key.

    The key comes in the address once; a cookie takes its place. `Authorization: Bearer KEY` does for scripts.

    Args:
        app: what is guarded.
        token: the key.
        hosts: host:port by which the server may be called.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: tuple[str, ...]):
        self._app, self._token, self._hosts = app, token, hosts
        self._cookie = f"explore-{hosts[0].rpartition(':')[2]}"  # cookies do not tell ports apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)

        async def guarded(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
            await send(message)

        await (self._refusal(request) or self._app)(scope, receive, guarded)

    def _refusal(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if host not in self._hosts:
            return _refused(421, f"This server is {self._hosts[0]}, not {host!r}.")
        if origin is not None and origin not in {f"http://{host}" for host in self._hosts}:
            return _refused(403, "Requests from other pages are refused.")
        if "token" in request.query_params and request.method == "GET" and request.url.path == "/":
            if not self._is_token(request.query_params["token"]):
                return _refused(403, "The key in the address is not this server's: open the address that it printed.")
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie, self._token, max_age=_MONTH, httponly=True, samesite="strict", path="/")
            return answer
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = key if scheme.lower() == "bearer" else request.cookies.get(self._cookie, "")
        if not self._is_token(given):
            return _refused(403, "The key is missing: open the address that the server printed when it started.")
        return None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _refused(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)
