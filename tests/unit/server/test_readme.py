"""The tables in ``server/README.md`` are what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from graft_client.schemas.predict import SamplingOverrides
from graft_server.app import create_app
from graft_server.config import Settings
from graft_server.problems import CODES
from graft_server.services import Services
from support.tables import table

README = Path(__file__).parents[3] / "server" / "README.md"


def test_settings() -> None:
    told = {row[0].strip("`"): row[1:] for row in table(README, "Settings")}
    assert list(told) == list(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else f"`{field.default}`"
        assert told[name] == [default, field.description]


def test_routes(services: Services) -> None:
    paths = create_app(services).openapi()["paths"]
    routes = {f"`{method.upper()} {path}`" for path, methods in paths.items() for method in methods}
    assert {row[0] for row in table(README, "Routes")} == routes


def test_decoding() -> None:
    told = [row[0].strip("`") for row in table(README, "Decoding")]
    assert told == list(SamplingOverrides.model_fields)


def test_metrics(services: Services) -> None:
    figures = [
        [f"`{family.name}`", family.type, family.documentation] for family in services.metrics.registry.collect()
    ]
    assert table(README, "Metrics") == figures


def test_codes() -> None:
    assert table(README, "Errors") == [[f"`{code}`", str(status), title] for code, (status, title) in CODES.items()]


@pytest.mark.parametrize(
    "room", sorted(path.name for path in (README.parent / "graft_server").iterdir() if path.is_dir())
)
def test_every_room_is_on_the_map(room: str) -> None:
    if room != "__pycache__":
        assert f"**`{room}/`**" in README.read_text()
