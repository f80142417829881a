"""``graft adapters register OWNER/REPO``: what is fetched from a hub, and what is said where it can't be."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from support.processes import Finished, run_graft
from unit.client import samples
from unit.client.little_server import LittleServer, document

COMMIT = "c0ffee" + "0" * 34
ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights", "task_state.json": b'{"a": 1}'}


class Hub:
    """The part of a hub that serves models: ``files`` by repository and name, and what was asked of it."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""

    @property
    def fetched(self) -> list[str]:
        return sorted({path.partition(f"/resolve/{COMMIT}/")[2] for path, _ in self.asked} - {""})

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        repo = next((repo for repo in self.files if repo in path), None)
        if repo is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if path.startswith("/api/"):
            if path.partition("/revision/")[2] not in ("", "main", COMMIT):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            siblings = [{"rfilename": name} for name in self.files[repo]]
            return 200, {}, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        content = self.files[repo][path.rpartition("/")[2]]
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{len(content)}-{path[-9]}"'}, content


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append((self.path, self.headers.get("Authorization")))
            status, headers, content = hub.answer(self.path.partition("?")[0])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


Register = Callable[..., Finished]


@pytest.fixture
def register(server: LittleServer, hub: Hub, tmp_path: Path) -> Register:
    """Runs the command as a process of its own: the hub's client reads ``HF_ENDPOINT`` when it is imported."""
    server.on("POST", "/api/adapters", document(samples.version(1), 201))

    def run(place: str, *, code: int = 0, endpoint: str | None = None) -> Finished:
        env = {"HF_ENDPOINT": endpoint or hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_secret"}
        words = ("adapters", "register", place, "--name", "x", "--task", "translation")
        return run_graft(*words, url=server.url, code=code, env=env)

    return run


@pytest.mark.parametrize("place", ["some-owner/some-lora", "some-owner/some-lora@main"])
def test_what_could_run_code_is_not_fetched(server: LittleServer, hub: Hub, register: Register, place: str) -> None:
    other = {"training_args.bin": b"pickle", "README.md": b"#", "sub/adapter_config.json": b"{}", "x.py": b"1"}
    hub.files["some-owner/some-lora"] = {**ADAPTER, **other}
    assert "registered" in register(place).out
    fields, files = server.asked[-1].form()
    assert fields == {"name": "x", "task": "translation"}
    assert dict(files) == ADAPTER
    assert hub.fetched == sorted(ADAPTER)
    # The client asks for things of its own, too.
    assert {token for path, token in hub.asked if "some-lora" in path} == {"Bearer hf_secret"}


def test_pickled_weights_are_refused_before_anything_is_fetched(
    server: LittleServer, hub: Hub, register: Register
) -> None:
    hub.files["some-owner/old"] = {"adapter_config.json": b"{}", "adapter_model.bin": b"pickle"}
    assert "pickled weights can run code" in register("some-owner/old", code=5).error
    assert hub.fetched == []
    assert server.asked == []


def test_what_can_not_be_had_says_what_to_do(server: LittleServer, hub: Hub, register: Register) -> None:
    hub.files["some-owner/gated"] = dict(ADAPTER)
    hub.gated.add("some-owner/gated")
    assert f"{hub.url}/some-owner/gated and log in" in register("some-owner/gated", code=1).error
    assert "has no such model" in register("some-owner/nothing", code=2).error
    assert "no revision 'v9'" in register("some-owner/gated@v9", code=2).error
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert "give the folder" in register("some-owner/gated", code=3, endpoint=away).error
    assert server.asked == []
