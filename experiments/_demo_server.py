"""The demo's server: page, uploads and recognition, for this computer only.

It listens on the loopback address. Other pages open in the browser can still send
requests to it. So the Host header of a request must name this server, which prevents
DNS rebinding, and the Origin header, if present, must be this server's own.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from experiments import _demo_drawing as drawing
from experiments._demo_drawing import RefusedError
from experiments._demo_recognition import Recogniser

MAX_BODY = 16 * 2**20
"""Maximum bytes of a request: one photograph of a phone, or a hundred reduced ones."""

_MAX_DROPPED = 4 * MAX_BODY  # Read and discarded, so that the client gets the error.
_MAX_WAITING = 8  # Requests; a page sends one at a time.
_HOSTS = ("127.0.0.1", "localhost")
_POLICY = (
  "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
  "form-action 'none'; frame-ancestors 'none'"
)


class _StatusError(Exception):
  """An error with its own HTTP status."""

  def __init__(self, status: int, text: str):
    super().__init__(text)
    self.status = status


def application(recogniser: Recogniser, page: str) -> Starlette:
  """The demo as an ASGI application.

  Args:
    recogniser: recognises pictures.
    page: the page, with `{{nonce}}` in place of the nonce of its styles and scripts.

  Returns:
    The application: `GET /`, `GET /learners`, `POST /upload?name=FILE` with the file as
    its body, and `POST /name` with the request of `Recogniser.answer` as JSON. An error
    is an object with "error", a message for the user.
  """
  server = _Server(recogniser, page)
  return Starlette(
    routes=[
      Route("/", server.page),
      Route("/learners", server.learners),
      Route("/upload", server.upload, methods=["POST"]),
      Route("/name", server.name, methods=["POST"]),
    ],
    middleware=[Middleware(_Guard)],
    exception_handlers={
      RefusedError: _refused,
      _StatusError: _refused,
      ClientDisconnect: lambda request, error: Response(status_code=499),
      Exception: _failed,
    },
  )


class _Server:
  """The routes."""

  def __init__(self, recogniser: Recogniser, page: str):
    self._recogniser = recogniser
    self._page = page
    self._one_at_a_time = asyncio.Lock()
    self._num_waiting = 0

  async def page(self, request: Request) -> Response:
    nonce = secrets.token_urlsafe(16)
    policy = f"{_POLICY}; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
    text = self._page.replace("{{nonce}}", nonce)
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})

  async def learners(self, request: Request) -> Response:
    choices = [choice.for_page() for choice in self._recogniser.choices.values()]
    return JSONResponse({"learners": choices, "max_bytes": MAX_BODY})

  async def upload(self, request: Request) -> Response:
    name = request.query_params.get("name", "the picture")[:100]
    data = await _body(request)
    png = await self._computed(request, drawing.upload, data, name)
    return Response(png, media_type="image/png")

  async def name(self, request: Request) -> Response:
    data = await _body(request)
    try:
      asked = json.loads(data)
    except (ValueError, RecursionError) as error:
      raise RefusedError("a request is an object as JSON.") from error
    return JSONResponse(await self._computed(request, self._recogniser.answer, asked))

  async def _computed(
    self, request: Request, function: Callable[..., Any], *arguments: Any
  ) -> Any:
    """Runs a function on a thread, one call at a time.

    Raises:
      _StatusError: if too many requests wait.
      ClientDisconnect: if the client no longer waits for the answer.
    """
    if self._num_waiting >= _MAX_WAITING:
      raise _StatusError(503, "The server is busy; try again in a moment.")
    self._num_waiting += 1
    try:
      async with self._one_at_a_time:
        if await request.is_disconnected():
          raise ClientDisconnect
        return await run_in_threadpool(function, *arguments)
    finally:
      self._num_waiting -= 1


class _Guard:
  """Rejects requests for other hosts or from other pages; adds response headers."""

  def __init__(self, app: Any):
    self._app = app

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return

    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
      if message["type"] == "http.response.start":
        headers = MutableHeaders(scope=message)
        headers.setdefault("Content-Security-Policy", _POLICY)
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Cache-Control"] = "no-store"
      await send(message)

    headers = Headers(scope=scope)
    host, origin = headers.get("host", ""), headers.get("origin")
    answer: Any = self._app
    if host.partition(":")[0] not in _HOSTS:
      text = f"This server answers only to {' and '.join(_HOSTS)}, not to {host!r}."
      answer = _refusal(403, text)
    elif origin not in (None, f"http://{host}"):
      answer = _refusal(403, f"Requests from the page of {origin!r} are refused.")
    await answer(scope, receive, send_with_headers)


async def _body(request: Request) -> bytes:
  """The body of a request.

  Raises:
    _StatusError: if it has more than `MAX_BODY` bytes.
  """
  chunks, size = [], 0
  async for chunk in request.stream():
    size += len(chunk)
    if size > _MAX_DROPPED:
      break
    if size <= MAX_BODY:
      chunks.append(chunk)
  if size > MAX_BODY:
    raise _StatusError(
      413, f"At most {MAX_BODY // 2**20} MB can be sent at once; make it smaller."
    )
  return b"".join(chunks)


async def _refused(request: Request, error: Exception) -> Response:
  return _refusal(getattr(error, "status", 400), str(error))


async def _failed(request: Request, error: Exception) -> Response:
  return _refusal(500, "The server failed; the terminal that runs it shows why.")


def _refusal(status: int, text: str) -> Response:
  return JSONResponse({"error": text}, status_code=status)
