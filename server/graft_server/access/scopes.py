"""Which scope each route needs: one table. A route that is not in it is for admins only, and a test finds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from re import Pattern

from starlette.routing import compile_path

from graft_client.schemas.keys import SCOPES, Scope


@dataclass(frozen=True, slots=True)
class Need:
    """One of ``scopes``, or nothing; ``whole`` is what tells of adapters that a limited key may not see."""

    scopes: frozenset[Scope]
    public: bool = False
    whole: bool = False

    @property
    def metered(self) -> bool:
        """Whether it asks a model, so that its answer says how much is left of the limits."""
        return self.scopes == _QUERY.scopes


_PUBLIC = Need(frozenset(), public=True)
_ANY = Need(frozenset(SCOPES))
_QUERY = Need(frozenset({"query"}))
_TRAIN = Need(frozenset({"train"}))
#: Files are for both.
_USE = Need(frozenset({"query", "train"}))
_MANAGE = Need(frozenset({"manage"}))
_ADMIN = Need(frozenset({"admin"}), whole=True)

NEEDS: dict[str, Need] = {
    "GET /health/live": _PUBLIC,
    "GET /health/ready": _PUBLIC,
    "GET /openapi.json": _PUBLIC,
    "GET /docs": _PUBLIC,
    "GET /docs/oauth2-redirect": _PUBLIC,
    "GET /redoc": _PUBLIC,
    "GET /metrics": Need(frozenset(SCOPES), whole=True),
    "GET /api/status": _ANY,
    "GET /api/tasks": _ANY,
    "GET /api/tasks/{name}": _ANY,
    "GET /api/training": _ANY,
    "GET /api/plugins": _ANY,
    "POST /api/datasets": _TRAIN,
    "GET /api/datasets": _ANY,
    "POST /api/datasets/check": _TRAIN,
    "GET /api/datasets/{dataset_id}": _ANY,
    "DELETE /api/datasets/{dataset_id}": _TRAIN,
    "POST /api/jobs": _TRAIN,
    "POST /api/jobs/check": _TRAIN,
    "GET /api/jobs": _ANY,
    "GET /api/jobs/{job_id}": _ANY,
    "POST /api/jobs/{job_id}/cancel": _TRAIN,
    "POST /api/jobs/{job_id}/resume": _TRAIN,
    "GET /api/jobs/{job_id}/events": _ANY,
    "GET /api/adapters": _ANY,
    "POST /api/adapters": _MANAGE,
    "GET /api/adapters/{name}": _ANY,
    "DELETE /api/adapters/{name}": _MANAGE,
    "GET /api/adapters/{name}/versions/{which}": _ANY,
    "DELETE /api/adapters/{name}/versions/{number}": _MANAGE,
    "POST /api/adapters/{name}/versions/{number}/pin": _MANAGE,
    "DELETE /api/adapters/{name}/versions/{number}/pin": _MANAGE,
    "GET /api/adapters/{ref}/archive": _ANY,
    "GET /api/adapters/{ref}/bundle": _ANY,
    "GET /api/adapters/{ref}/merged": _ANY,
    "POST /api/bundles": _MANAGE,
    "POST /api/merges": _MANAGE,
    "POST /api/adapters/{name}/aliases/{alias}": _MANAGE,
    "POST /api/adapters/{name}/aliases/{alias}/gate": _MANAGE,
    "POST /api/adapters/{name}/aliases/{alias}/rollback": _MANAGE,
    "DELETE /api/adapters/{name}/aliases/{alias}": _MANAGE,
    "GET /api/adapters/{name}/history": _ANY,
    # A route, and what may be collected, tell of adapters that a limited key may not see.
    "POST /api/gc": Need(frozenset({"manage"}), whole=True),
    "GET /api/routes": Need(frozenset(SCOPES), whole=True),
    "GET /api/routes/{name}": Need(frozenset(SCOPES), whole=True),
    "POST /api/routes/{name}": Need(frozenset({"manage"}), whole=True),
    "DELETE /api/routes/{name}": Need(frozenset({"manage"}), whole=True),
    "GET /api/routes/{name}/history": Need(frozenset(SCOPES), whole=True),
    "GET /api/routes/{name}/shadow": Need(frozenset(SCOPES), whole=True),
    "POST /api/explain": Need(frozenset(SCOPES), whole=True),
    "POST /api/predict": _QUERY,
    "POST /api/predict/bulk": _QUERY,
    "POST /api/evaluations": _QUERY,
    "GET /v1/models": _ANY,
    "GET /v1/models/{model:path}": _ANY,
    "DELETE /v1/models/{model:path}": _MANAGE,
    "POST /v1/chat/completions": _QUERY,
    "POST /v1/completions": _QUERY,
    "POST /v1/embeddings": _QUERY,
    "POST /v1/responses": _QUERY,
    "GET /v1/responses/{response_id}": _QUERY,
    "GET /v1/responses/{response_id}/input_items": _QUERY,
    "DELETE /v1/responses/{response_id}": _QUERY,
    "POST /v1/files": _USE,
    "GET /v1/files": _ANY,
    "GET /v1/files/{file_id}": _ANY,
    "GET /v1/files/{file_id}/content": _ANY,
    "DELETE /v1/files/{file_id}": _USE,
    "POST /v1/fine_tuning/jobs": _TRAIN,
    "GET /v1/fine_tuning/jobs": _ANY,
    "GET /v1/fine_tuning/jobs/{job_id}": _ANY,
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": _TRAIN,
    "POST /v1/fine_tuning/jobs/{job_id}/pause": _TRAIN,
    "POST /v1/fine_tuning/jobs/{job_id}/resume": _TRAIN,
    "GET /v1/fine_tuning/jobs/{job_id}/events": _ANY,
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": _ANY,
    "POST /v1/batches": _QUERY,
    "GET /v1/batches": _ANY,
    "GET /v1/batches/{batch_id}": _ANY,
    "POST /v1/batches/{batch_id}/cancel": _QUERY,
    "GET /api/keys": _ADMIN,
    "POST /api/keys": _ADMIN,
    "DELETE /api/keys/{key_id}": _ADMIN,
    "POST /api/keys/{key_id}/limits": _ADMIN,
    # Who manages adapters does not lift the limits that an operator set for them.
    "POST /api/adapters/{name}/limits": _ADMIN,
    "GET /api/audit": _ADMIN,
}


def _compiled() -> Iterator[tuple[str, Pattern[str], Need]]:
    for route, need in NEEDS.items():
        method, path = route.split(" ")
        yield method, compile_path(path)[0], need


_PATTERNS = tuple(_compiled())


def need_of(method: str, path: str) -> Need:
    """What a request needs."""
    method = "GET" if method == "HEAD" else method
    return next((need for m, pattern, need in _PATTERNS if m == method and pattern.match(path)), _ADMIN)
