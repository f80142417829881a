"""The door: whose request it is and whether they may, before anything of its body is read."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graft_server.access.keyring import Keyring
from graft_server.access.principal import Principal
from graft_server.access.scopes import Need, need_of
from graft_server.api.problems import any_problem, is_openai, problem_response
from graft_server.problems import ProblemError
from graft_server.quotas.account import current_account
from graft_server.quotas.meter import Meter


class Access:
    """Refuses requests without a key that may do this; the others see only what their key may see."""

    def __init__(self, app: ASGIApp, *, keyring: Keyring, meter: Meter) -> None:
        self._app = app
        self._keyring = keyring
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        need = need_of(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if need is None or need.public:
            await self._app(scope, receive, send)
            return
        try:
            principal = await self._keyring.principal(Headers(scope=scope).get("authorization"))
            _check(principal, need)
        except Exception as error:
            problem = any_problem(error)
            response = problem_response(problem, openai=is_openai(scope["path"]))
            if problem.code == "unauthorized":
                response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, send)
            return
        with self._keyring.lease(principal) as lease, principal.acting(lease):
            await self._app(scope, receive, self._with_limits(send) if need.metered else send)

    def _with_limits(self, send: Send) -> Send:
        account = current_account.get()

        async def with_limits(message: Message) -> None:
            if message["type"] == "http.response.start" and account is not None:
                MutableHeaders(scope=message).update(self._meter.headers(account))
            await send(message)

        return with_limits


def _check(principal: Principal, need: Need) -> None:
    """Raises:
    ProblemError: ``forbidden``.
    """
    if not any(principal.may(scope) for scope in need.scopes):
        wanted = " or ".join(sorted(need.scopes))
        has = ", ".join(sorted(principal.scopes)) or "none"
        raise ProblemError("forbidden", f"this needs the scope {wanted}; the key {principal.name} has {has}")
    if need.whole and principal.view is not None:
        raise ProblemError("forbidden", "this tells of all adapters, and your key is limited to some")
