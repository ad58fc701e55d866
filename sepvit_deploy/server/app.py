"""The addresses of the server, as an ASGI application."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import resources
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sepvit_deploy.contract import classify_name, segment_name
from sepvit_deploy.optional import require
from sepvit_deploy.server import catalogue
from sepvit_deploy.server.metrics import statistics
from sepvit_deploy.server.protocol import dumps
from sepvit_deploy.server.refusal import ClientGone, Refusal, unavailable
from sepvit_deploy.server.service import Service
from sepvit_deploy.uploads import CLASSIFY, SEGMENT

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    Message = MutableMapping[str, Any]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEALTH = "/v2/health/"
_SECURE = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


def application(service: Service, *, connections: set[Any], loopback: bool) -> App:
    """Everything that the server answers.

    Args:
        connections: those that are open.
        loopback: only this machine is served, so a name that is not this machine's is a page's trick (DNS rebinding).
    """
    require("python_multipart", extra="serving")
    require("starlette", extra="serving")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import Response
    from starlette.routing import Route

    def answer(document: object, status: int = 200, **headers: str) -> Response:
        body = dumps(document)
        return Response(body, status, {"content-type": "application/json", **headers})

    def known(request: Request) -> Any:
        return service.signature(request.path_params["model"], request.path_params.get("version"))

    own = {"name": "sepvit-deploy", "version": version("sepvit-deploy"), "extensions": list(catalogue.EXTENSIONS)}
    # Read once: a server whose files are all taken by connections can open no other.
    pages = {path: resources.files(__package__).joinpath(name).read_bytes() for path, (name, _) in PAGE.items()}

    async def server(request: Request) -> Response:
        return answer(own)

    async def live(request: Request) -> Response:
        if not service.alive:
            raise unavailable("the model fails again and again; the server's log says why")
        return answer({"live": True})

    async def ready(request: Request) -> Response:
        if "model" in request.path_params:
            known(request)
        if not service.ready:
            raise unavailable("the server is ending" if service.ending else "the model fails again and again")
        return answer({"ready": True})

    async def metadata(request: Request) -> Response:
        return answer(catalogue.metadata(known(request), service.lane))

    async def configuration(request: Request) -> Response:
        delay_us = round(service.settings.queue_delay_ms * 1000)
        return answer(catalogue.configuration(known(request), service.lane, delay_us))

    async def stats(request: Request) -> Response:
        names = [known(request).model] if "model" in request.path_params else list(service.signatures)
        version = service.lane.version
        found = [statistics(name, version, service.metrics.of(name, version)) for name in names]
        return answer({"model_stats": found})

    async def index(request: Request) -> Response:
        state = "READY" if service.ready else "UNAVAILABLE"
        return answer(catalogue.index(list(service.signatures), service.lane, state))

    async def infer(request: Request) -> Response:
        request.scope["sepvit.model"] = request.path_params["model"]
        body, length = await service.infer(request)
        if length is None:
            return Response(body, headers={"content-type": "application/json"})
        headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(length)}
        return Response(body, headers=headers)

    async def classify(request: Request) -> Response:
        request.scope["sepvit.model"] = classify_name(service.settings.name)
        return answer(await service.classify(request))

    async def segment(request: Request) -> Response:
        request.scope["sepvit.model"] = segment_name(service.settings.name)
        body, kind = await service.segment(request)
        return Response(body, headers={"content-type": kind, "vary": "accept"})

    async def about(request: Request) -> Response:
        model = service.lane.model
        spec = model.spec
        more = {"head": spec.head, "output": spec.output, "any_size": spec.any_size} if spec.task == "segment" else {}
        return answer(
            {
                "name": service.settings.name,
                "version": str(service.lane.version),
                "sha256": model.sha256,
                "variant": spec.variant,
                "task": spec.task,
                "classes": None if spec.task == "dense" else spec.num_classes,
                "size": list(spec.size),
                "untrained": model.untrained,
                "max_batch": service.lane.max_batch,
                "max_body_mb": service.settings.max_body_mb,
                "max_megapixels": service.settings.max_megapixels,
                **more,
            }
        )

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.page(), headers={"content-type": service.metrics.content_type})

    async def page(request: Request) -> Response:
        path = request.scope["path"]
        _, kind = PAGE[path]
        headers = {"content-type": f"{kind}; charset=utf-8", "content-security-policy": POLICY}
        headers |= {"referrer-policy": "no-referrer"}
        return Response(pages[path], headers=headers)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        headers = {"retry-after": str(error.retry_s)} if error.retry_s is not None else {}
        if error.close:
            headers["connection"] = "close"
        return answer({"error": error.text}, error.status, **headers)

    async def nowhere(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        texts = {404: "there is nothing at this address", 405: f"{request.method} is not answered here"}
        return answer({"error": texts.get(error.status_code, error.detail)}, error.status_code, **(error.headers or {}))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def broken(request: Request, error: Exception) -> Response:
        return answer({"error": "a fault of the server's own; its log says more"}, 500)

    routes = [Route(path, page) for path in PAGE]
    routes += [Route("/v2", server), Route(f"{HEALTH}live", live), Route(f"{HEALTH}ready", ready)]
    routes += [Route("/v2/models/stats", stats), Route("/v2/repository/index", index, methods=["POST"])]
    for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [Route(base, metadata), Route(f"{base}/ready", ready), Route(f"{base}/config", configuration)]
        routes += [Route(f"{base}/stats", stats), Route(f"{base}/infer", infer, methods=["POST"])]
    routes += [Route(CLASSIFY, classify, methods=["POST"]), Route(SEGMENT, segment, methods=["POST"])]
    routes += [Route("/v1/model", about), Route("/metrics", metrics)]
    inner = Starlette(
        routes=routes,
        exception_handlers={HTTPException: nowhere, Refusal: refused, ClientGone: gone, Exception: broken},
    )
    inner.router.redirect_slashes = False
    return _guarded(inner, service, connections, loopback)


def _guarded(inner: App, service: Service, connections: set[Any], loopback: bool) -> App:
    """What holds for every address: who may ask, how many, and what every answer carries."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), *_SECURE]
                if service.ending:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
                count(message["status"])
            await send(message)

        def count(status: int) -> None:
            model = scope.get("sepvit.model", "")
            model = model if model in service.signatures else ""
            service.metrics.requests.labels(model, str(status)).inc()
            if model and status >= 400:
                service.metrics.of(model, service.lane.version).fail += 1

        error = _denied(dict(scope["headers"]), scope["method"], service.settings.host if loopback else None)
        probed = scope["path"].startswith(HEALTH)  # many connections are no reason to end the server
        if error is None and len(connections) > service.settings.max_connections and not probed:
            error = unavailable(f"more than {service.settings.max_connections} connections are open")
            error.close = True
        if error is None:
            await inner(scope, receive, sending)
            return
        body = dumps({"error": error.text})
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if error.retry_s is not None:
            head.append((b"retry-after", str(error.retry_s).encode()))
        if error.close:
            head.append((b"connection", b"close"))
        await sending({"type": "http.response.start", "status": error.status, "headers": head})
        await sending({"type": "http.response.body", "body": body})

    return app


def _denied(headers: dict[bytes, bytes], method: str, loopback_host: str | None) -> Refusal | None:
    """Pages of other sites reach a local server through their reader's browser: it says so in these headers."""
    if method not in ("GET", "HEAD") and headers.get(b"sec-fetch-site") == b"cross-site":
        return Refusal(403, "a page of another site may not ask this")
    host = headers.get(b"host")
    if loopback_host is None or host is None or _is_local(host.decode("latin-1"), loopback_host):
        return None
    expected = "expected localhost or 127.0.0.1; a server for others is started with --host"
    return Refusal(403, f"Host is {host.decode('latin-1')!r:.80}, {expected}")


def _is_local(host: str, own: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]").lower().rstrip(".")
    if name in ("localhost", own.lower()) or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
