"""What ``deploy/`` names exists: settings, commands with their options, routes and paths."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from graft_client.cli import root
from graft_server.app import create_app
from graft_server.config import Settings
from support.serving import make_services

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.iterdir() if path.is_file())
#: Variables of the command line, not of the server.
CLIENT = {"GRAFT_API_KEY", "GRAFT_URL", "GRAFT_CACHE"}

#: Seconds for requests in flight, and for the last checkpoint of a job.
LONGEST_STOP = Settings.model_fields["drain_seconds"].default + 60


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_every_setting_exists() -> None:
    known = {f"GRAFT_{name.upper()}" for name in Settings.model_fields} | CLIENT
    named = {name for file in FILES for name in re.findall(r"\bGRAFT_[A-Z_]+[A-Z]", file.read_text())}
    assert len(named) > 8
    assert named <= known


def test_every_route_exists(tmp_path: Path) -> None:
    services = make_services(tmp_path)
    paths = set(create_app(services).openapi()["paths"])
    services.registry.close()
    named = {
        path for file in FILES for path in re.findall(r"(?<![\w.])(/(?:health|metrics|api)[\w/]*)", file.read_text())
    }
    assert "/health/ready" in named
    assert named <= paths


def commands() -> Iterator[list[str]]:
    """Each use of ``graft`` in the README and in the unit, also as the entrypoint of a container."""
    text = (DEPLOY / "README.md").read_text().replace("\\\n", " ")
    for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line)
            if words[:1] == ["graft"]:
                yield words[1:]
            elif words[:2] in (["docker", "run"], ["docker", "compose"]):
                image = next((place for place, word in enumerate(words) if word in ("graftwork", "server-a")), None)
                if image is not None and words[image + 1 :]:
                    yield words[image + 1 :]
    yield shlex.split(re.search(r"^ExecStart=(.*)$", (DEPLOY / "graft.service").read_text(), re.MULTILINE)[1])[1:]
    yield yaml.safe_load(re.search(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[1])


def test_every_command_and_option_exists() -> None:
    used = list(commands())
    assert len(used) >= 7
    for words in used:
        command: click.Command = root
        context = click.Context(command, info_name="graft")
        rest = list(words)
        while isinstance(command, click.Group):
            found = command.get_command(context, rest[0])
            assert found is not None, f"graft {shlex.join(words)}: no command {rest[0]}"
            context, command, rest = click.Context(found, parent=context, info_name=rest[0]), found, rest[1:]
        # Raises for an option that it does not know.
        command.make_parser(context).parse_args(rest)


def test_the_image_copies_what_there_is() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ") and "--from" not in line]
    sources = {source for line in copied for source in line}
    assert {"client", "plugins", "server"} <= sources
    assert all((ROOT / source).exists() for source in sources)
    passed = (DEPLOY / "Dockerfile.dockerignore").read_text()
    assert {line[1:] for line in passed.splitlines() if line.startswith("!")} == sources
    # Everything that runs does so as somebody who is not root.
    assert text.rindex("\nUSER graft") < text.index("\nENTRYPOINT")
    told = {row.split("`")[1] for row in (DEPLOY / "README.md").read_text().splitlines() if row.startswith("| `")}
    arguments = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    assert arguments == {name for name in told if name.isupper()}


def test_the_image_has_the_torch_that_the_package_needs() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert f'"{re.search(r"^ARG TORCH=.(.*).$", text, re.MULTILINE)[1]}"' in (ROOT / "pyproject.toml").read_text()


def test_the_services_fit_together(compose: Any) -> None:
    services = compose["services"]
    servers = [service for name, service in services.items() if name.startswith("server-")]
    assert len(servers) == 2
    volumes = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    assert len(volumes) == len(set(volumes)), "no two share a folder"
    assert set(volumes) == set(compose["volumes"])
    for server in servers:
        assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
        assert set(server["depends_on"]) <= set(services)
        environment = server["environment"]
        assert re.search(r"@(\w+)/", environment["GRAFT_DATABASE_URL"])[1] in services
        assert re.search(r"//(\w+):", environment["AWS_ENDPOINT_URL"])[1] in services
        bucket = re.match(r"s3://(\w+)/", environment["GRAFT_ARTEFACTS_URL"])[1]
        assert f"store/{bucket}" in services["bucket"]["command"][0]
        assert environment["AWS_ACCESS_KEY_ID"] == services["minio"]["environment"]["MINIO_ROOT_USER"]
        assert int(server["stop_grace_period"].removesuffix("s")) > LONGEST_STOP
    # What has to be set is told.
    asked = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()))
    readme = (DEPLOY / "README.md").read_text()
    assert all(f"\n{name}=" in readme for name in asked)


def test_a_container_is_given_time_to_stop() -> None:
    text = (DEPLOY / "README.md").read_text().replace("\\\n", " ")
    started = [shlex.split(line) for line in text.splitlines() if line.startswith("docker run -d ")]
    assert started
    for words in started:
        assert int(words[words.index("--stop-timeout") + 1]) > LONGEST_STOP


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    # It looks whether the program is there, which it is only where the server is installed.
    unit = tmp_path / "graft.service"
    unit.write_text((DEPLOY / "graft.service").read_text().replace("/opt/graft/bin/graft", "/bin/true"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
