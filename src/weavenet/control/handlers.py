"""The control API as ``await handle(request) -> response``: routes, bodies and errors, no sockets. Commands of the node
go by callback as well (:meth:`Api.submit`).

Bodies and answers are JSON objects; a refusal is a ``Failure`` object with a matching HTTP status. Unknown keys, wrong
types and oversized lists are refused with the key's name. The read-only API is a second route table, so that nothing
on the TCP port can change state.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, NamedTuple, TypeVar

import msgspec

from weavenet.control import metrics
from weavenet.control import report as report_json
from weavenet.control import status as status_text
from weavenet.control.service import AttachSpec, Daemon, DetachSpec, ExposeSpec, HideSpec, NameSpec
from weavenet.core.commands import (
    Addresses,
    Allocate,
    Attachments,
    Claim,
    Command,
    Connect,
    Consense,
    Done,
    Explain,
    Forget,
    GetReport,
    LookupName,
    Release,
    RemovePeers,
    Result,
)
from weavenet.core.errors import UNDECODABLE, Code, Failure
from weavenet.core.plain import plain_lines
from weavenet.core.report import Explanation, NodeReport
from weavenet.core.types import mac_text

log = logging.getLogger(__name__)

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"

_STATUS = {
    Code.INVALID: 400,
    Code.OUT_OF_RANGE: 400,
    Code.NOT_FOUND: 404,
    Code.IPAM_OFF: 404,
    Code.ALREADY_TAKEN: 409,
    Code.CONFLICT: 409,
    Code.NO_SPACE: 409,
    Code.STORE_FAILED: 500,
    Code.HOST: 500,
    Code.INTERNAL: 500,
    Code.BUSY: 503,
    Code.FENCED: 503,
    Code.DEPARTED: 503,
    Code.CANCELLED: 503,
    Code.TIMEOUT: 504,
}

# Bounds of one request; what is behind them (ident length, number of targets) is checked again by the node.
_Text = Annotated[str, msgspec.Meta(max_length=4096)]
_Texts = Annotated[tuple[_Text, ...], msgspec.Meta(max_length=1024)]


class Request(NamedTuple):
    """``path`` without its query string; ``query`` decoded, the last of repeated keys counts."""

    method: str
    path: str
    body: bytes = b""
    query: dict[str, str] = {}  # noqa: RUF012 - never changed


class Response(NamedTuple):
    status: int
    body: bytes
    content_type: str = JSON


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of request bodies: strict about keys."""


class NoBody(Body, frozen=True):
    """``{}`` or nothing at all."""


class AllocateBody(Body, frozen=True):
    ident: _Text
    subnet: _Text = ""


class ClaimBody(Body, frozen=True):
    ident: _Text
    address: _Text


class ExplainBody(Body, frozen=True):
    """As :class:`Explain`."""

    source: _Text
    target: _Text


class ReleaseBody(Body, frozen=True):
    ident: _Text
    addresses: _Texts = ()


class ConnectBody(Body, frozen=True):
    targets: _Texts
    replace: bool = False


class ForgetBody(Body, frozen=True):
    targets: _Texts


class LookupBody(Body, frozen=True):
    name: _Text


class RemovePeersBody(Body, frozen=True):
    """As :class:`RemovePeers`; ``older_than_s`` counts with ``all_unreachable`` only."""

    names: _Texts = ()
    force: bool = False
    all_unreachable: bool = False
    older_than_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    wait: bool = True


class ResetBody(Body, frozen=True):
    """As :class:`Reset`."""

    force: bool = False


class AddressesAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """CIDR text, in the order asked for. ``note``: what else is worth knowing."""

    addresses: tuple[str, ...]
    note: str = ""


class TextAnswer(msgspec.Struct, frozen=True):
    text: str


class PsRow(msgspec.Struct, frozen=True):
    """``id``: the ident, shortened to what tells it apart; ``live``: the interface exists now."""

    id: str
    container: str
    mac: str
    addresses: tuple[str, ...]
    live: bool


class PsAnswer(msgspec.Struct, frozen=True):
    attachments: tuple[PsRow, ...]


_encode = msgspec.json.Encoder().encode
_B = TypeVar("_B", bound=msgspec.Struct)
Answer = msgspec.Struct | Response
_Route = Callable[["Api", Request], Awaitable[Answer]]


def failed(failure: Failure) -> Response:
    """The HTTP form of a refusal."""
    return Response(_STATUS[failure.code], _encode(status_text.harmless(failure)))


def _response(answer: Answer) -> Response:
    if isinstance(answer, Response):
        return answer
    if isinstance(answer, Failure):
        return failed(answer)
    if isinstance(answer, Explanation):
        answer = status_text.harmless(answer)
    elif isinstance(answer, TextAnswer):  # several lines, where several things were done
        answer = TextAnswer(plain_lines(answer.text))
    return Response(200, _encode(answer))


def unexpected(request: Request) -> Response:
    """For an exception that is being handled: it goes to the log, the client learns that there was one."""
    log.exception("control request %s %s failed", request.method, request.path)
    return Response(
        500, _encode(Failure(Code.HOST, "an unexpected error in the daemon", "", "see its log, and report it"))
    )


def _nothing() -> None:
    """There is nothing left to cancel."""


def _invalid(expected: str, found: str, next_step: str = "") -> Failure:
    return Failure(Code.INVALID, expected, found, next_step)


class CommandRoute(NamedTuple):
    """A command of the node: what to make of the body, and what of the result."""

    make: Callable[[Request], Command | Failure]
    answer: Callable[[Result], Answer]


def _decode(body_type: type[_B]) -> Callable[[Request], _B | Failure]:
    decoder = msgspec.json.Decoder(body_type)
    keys = ", ".join(body_type.__struct_fields__) or "none"

    def decode(request: Request) -> _B | Failure:
        try:
            return decoder.decode(request.body or b"{}")
        except UNDECODABLE as error:
            # msgspec names the key: "Object missing required field `ident`", "Expected `str`, got `int` - at `$.x`".
            return _invalid(f"expected a JSON object with the keys: {keys}", str(error), "correct the request's body")

    return decode


def _post(
    body_type: type[_B], run: Callable[[Daemon, _B], Awaitable[Result]], answer: Callable[[Result], Answer]
) -> _Route:
    decode = _decode(body_type)

    async def route(api: Api, request: Request) -> Answer:
        body = decode(request)
        return body if isinstance(body, Failure) else answer(await run(api.daemon, body))

    return route


def _command(body_type: type[_B], make: Callable[[_B], Command], answer: Callable[[Result], Answer]) -> CommandRoute:
    decode = _decode(body_type)

    def command(request: Request) -> Command | Failure:
        body = decode(request)
        return body if isinstance(body, Failure) else make(body)

    return CommandRoute(command, answer)


def _addresses(result: Result) -> Answer:
    return AddressesAnswer(result.addresses, result.note) if isinstance(result, Addresses) else _refused(result)


def _explanation(result: Result) -> Answer:
    return result if isinstance(result, Explanation) else _refused(result)


def _done(result: Result) -> Answer:
    return TextAnswer(result.text) if isinstance(result, Done) else _refused(result)


def _refused(result: Result) -> Failure:
    if isinstance(result, Failure):
        return result
    raise TypeError(f"the daemon answered with {type(result).__name__}")


async def _node_report(api: Api, *, with_names: bool = True) -> NodeReport | Failure:
    result = await api.daemon.request(GetReport(with_names))
    return result if isinstance(result, NodeReport) else _refused(result)


async def _report(api: Api, _: Request) -> Answer:
    report = await _node_report(api)
    if isinstance(report, Failure):
        return report
    document = report_json.document(status_text.harmless(report), api.daemon.identity)
    return Response(200, msgspec.json.format(_encode(document), indent=4) + b"\n")


def _status(section: str) -> _Route:
    async def route(api: Api, _: Request) -> Answer:
        report = await _node_report(api, with_names=section == "dns")
        if isinstance(report, Failure):
            return report
        text = status_text.render(report, api.daemon.identity, section)
        return Response(200, text.encode(), TEXT)

    return route


async def _public_status(api: Api, request: Request) -> Answer:
    """For people, also while the daemon does not serve; the command gets the failure itself."""
    answer = await _status("")(api, request)
    if not isinstance(answer, Failure):
        return answer
    return Response(_STATUS[answer.code], status_text.render_failure(answer, api.daemon.identity).encode(), TEXT)


async def _ping(api: Api, _: Request) -> Answer:
    return api.daemon.identity


async def _ps(api: Api, request: Request) -> Answer:
    containers = tuple(name for name in request.query.get("containers", "").split(",") if name)
    result = await api.daemon.ps(containers)
    if not isinstance(result, Attachments):
        return _refused(result)
    return PsAnswer(
        tuple(PsRow(row.ident, row.container, mac_text(row.mac), row.addresses, row.live) for row in result.attachments)
    )


async def _stop(api: Api, _: Request) -> Answer:
    api.daemon.request_stop()
    return TextAnswer("stopping")


async def _metrics(api: Api, _: Request) -> Answer:
    found = await _node_report(api, with_names=False)
    report = None if isinstance(found, Failure) else found
    return Response(200, metrics.render(report, api.daemon.identity), metrics.CONTENT_TYPE)


_READ_ROUTES: dict[tuple[str, str], _Route] = {
    ("GET", "/status"): _status(""),
    **{("GET", f"/status/{section}"): _status(section) for section in status_text.SECTIONS},
    ("GET", "/report"): _report,
}

PUBLIC_ROUTES: dict[tuple[str, str], _Route | CommandRoute] = {
    **_READ_ROUTES,
    ("GET", "/status"): _public_status,
    ("GET", "/metrics"): _metrics,
}

CONTROL_ROUTES: dict[tuple[str, str], _Route | CommandRoute] = {
    **{(method, f"/v1{path}"): route for (method, path), route in _READ_ROUTES.items()},
    ("GET", "/v1/ping"): _ping,
    ("GET", "/v1/ps"): _ps,
    ("POST", "/v1/attach"): _post(AttachSpec, lambda daemon, body: daemon.attach(body), _addresses),
    ("POST", "/v1/detach"): _post(DetachSpec, lambda daemon, body: daemon.detach(body), _addresses),
    ("POST", "/v1/expose"): _post(ExposeSpec, lambda daemon, body: daemon.expose(body), _addresses),
    ("POST", "/v1/hide"): _post(HideSpec, lambda daemon, body: daemon.hide(body), _addresses),
    ("POST", "/v1/dns/add"): _post(NameSpec, lambda daemon, body: daemon.add_name(body), _done),
    ("POST", "/v1/dns/remove"): _post(NameSpec, lambda daemon, body: daemon.remove_name(body), _done),
    ("POST", "/v1/dns/lookup"): _command(LookupBody, lambda body: LookupName(body.name), _addresses),
    ("POST", "/v1/explain"): _command(ExplainBody, lambda body: Explain(body.source, body.target), _explanation),
    ("POST", "/v1/allocate"): _command(AllocateBody, lambda body: Allocate(body.ident, body.subnet), _addresses),
    ("POST", "/v1/claim"): _command(ClaimBody, lambda body: Claim(body.ident, body.address), _addresses),
    ("POST", "/v1/release"): _command(ReleaseBody, lambda body: Release(body.ident, body.addresses), _addresses),
    ("POST", "/v1/connect"): _command(ConnectBody, lambda body: Connect(body.targets, body.replace), _done),
    ("POST", "/v1/forget"): _command(ForgetBody, lambda body: Forget(body.targets), _done),
    ("POST", "/v1/consense"): _command(NoBody, lambda _: Consense(), _done),
    ("POST", "/v1/rmpeer"): _command(
        RemovePeersBody,
        lambda body: RemovePeers(body.names, body.force, body.all_unreachable, body.older_than_s, body.wait),
        _done,
    ),
    ("POST", "/v1/reset"): _post(ResetBody, lambda daemon, body: daemon.reset(body.force), _done),
    ("POST", "/v1/stop"): _stop,
}


class Api:
    """One route table over one daemon. Holds no state of its own: every request stands alone."""

    def __init__(self, daemon: Daemon, routes: Mapping[tuple[str, str], _Route | CommandRoute]) -> None:
        self.daemon = daemon
        self._routes = routes

    def submit(self, request: Request, done: Callable[[Response], None]) -> Callable[[], None] | None:
        """Run a command of the node: ``done`` is called once, perhaps before this returns, unless the returned function
        is called first, which cancels the command. None when the request is no such command: then :meth:`handle`."""
        route = self._routes.get((request.method, request.path))
        if not isinstance(route, CommandRoute):
            return None
        command = route.make(request)
        if isinstance(command, Failure):
            done(failed(command))
            return _nothing

        answer = route.answer

        def finish(result: Result) -> None:
            try:
                response = _response(answer(result))
            except Exception:  # it must not reach the executor, whose life it would end
                response = unexpected(request)
            done(response)

        return self.daemon.submit(command, finish)

    async def handle(self, request: Request) -> Response:
        """Answer one request that is no command. Raises only what the daemon raises beyond its ``Failure`` values."""
        route = self._routes.get((request.method, request.path))
        if route is None or isinstance(route, CommandRoute):
            return self._no_route(request)
        return _response(await route(self, request))

    def _no_route(self, request: Request) -> Response:
        methods = sorted(method for method, path in self._routes if path == request.path)
        found = f"{request.method} {request.path}"[:200]
        if methods:
            failure = _invalid(f"this path takes {' or '.join(methods)}", found)
            return Response(405, _encode(failure))
        known = ", ".join(sorted({path for _, path in self._routes}))
        return failed(Failure(Code.NOT_FOUND, f"expected one of the paths {known}", found))
