"""What goes wrong while a server is at work: kills, hang-ups, full disks, and requests that make no sense."""

from __future__ import annotations

import json
import pickle
import signal
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_client.errors import BusyError, ServerError
from graft_client.schemas.predict import SamplingOverrides
from graft_server.registry import Registry
from support.lora_folders import write_lora
from support.processes import ENGINE, Finished, ServerProcess, eventually, launch, run_graft, running
from support.serving import sse

pytestmark = pytest.mark.torch

#: Some seconds of work.
MANY = SamplingOverrides(max_tokens=1200)


@pytest.fixture(scope="module")
def adapter(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter that is there throughout, and must still be at the end."""
    folder = write_lora(tmp_path_factory.mktemp("adapters") / "good")
    return str(server.json("adapters", "register", folder, "--name", "steady", "--task", "chat")["ref"])


@pytest.fixture(autouse=True)
def _nothing_is_lost(server: ServerProcess, adapter: str) -> Iterator[None]:
    """After each test the server is ready, has what it had, and has not kept half of anything."""
    yield
    assert server.ready()
    with server.client() as client:
        assert [version.ref for version in client.adapter("steady").versions] == [adapter]
        digests = {version.digest for found in client.adapters() for version in found.versions}
        datasets = {dataset.id for dataset in client.datasets()}
    assert {path.name for path in (server.data_dir / "artefacts").glob("*/*")} == digests
    assert {path.name for path in (server.data_dir / "datasets").iterdir()} == datasets
    assert not list((server.data_dir / "staging").iterdir())
    uploads = server.data_dir / "uploads"
    assert not uploads.exists() or not list(uploads.iterdir())


class Stream:
    """A streamed answer, read by a thread of its own; ``begun`` once text has come."""

    def __init__(self, server: ServerProcess, adapter: str = "base") -> None:
        self.begun = threading.Event()
        self.text = ""
        self.error: Exception | None = None
        self._server = server
        self._adapter = adapter
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            with self._server.client(retries=0) as client:
                for event in client.predict_stream(self._adapter, "Go on", task="chat", sampling=MANY):
                    if event.delta:
                        self.text += event.delta
                        self.begun.set()
        except Exception as error:
            self.error = error
        finally:
            self.begun.set()

    def wait_begun(self) -> None:
        assert self.begun.wait(timeout=30)
        assert self.error is None

    def join(self) -> None:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()


def running_requests(server: ServerProcess) -> int:
    with server.client() as client:
        status = client.status()
    return status.engine.running + status.engine.waiting + status.queued_requests


# The engine and the connections


def test_an_engine_that_is_killed_is_rebuilt(server: ServerProcess, adapter: str) -> None:
    streams = [Stream(server), Stream(server, "steady")]
    for stream in streams:
        stream.wait_begun()
    with server.client(retries=0) as client, ThreadPoolExecutor() as pool:
        # Begun, but nobody has seen any of it.
        whole = pool.submit(client.predict, "steady", "Go on", sampling=MANY)
        eventually(lambda: client.status().engine.running == 3, what="three requests in the engine")
        server.child(ENGINE).kill()
        eventually(lambda: not server.ready(), within=10, what="not ready")
        assert client.live().status == "live"
        with server.http() as http:
            unready = http.get("/health/ready")
        assert (unready.status_code, unready.json()["status"]) == (503, "rebuilding")
        late = pool.submit(client.predict, "steady", "Go on", sampling=MANY)
        server.wait_until_ready()
        assert whole.result(timeout=60).text == late.result(timeout=60).text
        assert client.status().engine.restarts == 1
    for stream in streams:
        stream.join()
        assert isinstance(stream.error, ServerError)
        assert stream.error.code == "engine-died"
        assert str(stream.error) == "the engine's process ended (signal SIGKILL) during the answer"
        assert stream.text


class RawStream:
    """A streamed answer as its server-sent events, for somebody without our library. A thread reads them."""

    def __init__(self, server: ServerProcess, adapter: str) -> None:
        self.events: list[dict[str, str]] = []
        self.begun = threading.Event()
        self._server = server
        self._body = {
            "adapter": adapter,
            "task": "chat",
            "text": "Go on",
            "stream": True,
            "sampling": MANY.model_dump(),
        }
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._server.http() as http, http.stream("POST", "/api/predict", json=self._body) as response:
            lines: list[str] = []
            for line in response.iter_lines():
                if line:
                    lines.append(line)
                    continue
                self.events += sse("\n".join(lines))
                lines = []
                self.begun.set()

    def join(self) -> None:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()


def metric(server: ServerProcess, name: str) -> float:
    with server.http() as http:
        lines = http.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def test_an_engine_that_is_killed_under_load(server: ServerProcess, adapter: str, tmp_path: Path) -> None:
    """Whole answers of several adapters are replayed, streams that had begun end clearly, and nobody registers anew."""
    names = ["steady", "second", "third", "base"]
    for seed, name in enumerate(names[1:3], start=1):
        folder = write_lora(tmp_path / name, seed=seed)
        server.graft("adapters", "register", folder, "--name", name, "--task", "chat")
    with server.client(retries=0) as client, ThreadPoolExecutor(16) as pool:

        def ask(name: str) -> str:
            return client.predict(name, "Go on", task="chat", sampling=MANY).text

        expected = dict(zip(names, pool.map(ask, names), strict=True))
        assert len(set(expected.values())) == len(names)
        restarts = metric(server, "graft_engine_restarts")
        streams = [RawStream(server, name) for name in names]
        for stream in streams:
            assert stream.begun.wait(timeout=30)
        whole = [(name, pool.submit(ask, name)) for name in names * 3]
        eventually(lambda: client.status().engine.running == 16, what="sixteen requests in the engine")
        server.child(ENGINE).kill()
        eventually(lambda: not server.ready(), within=10, what="not ready")
        assert metric(server, "graft_ready") == 0
        assert client.live().status == "live"
        server.wait_until_ready()
        for name, answer in whole:
            assert answer.result(timeout=120) == expected[name]
        for stream in streams:
            stream.join()
            last = stream.events[-1]
            assert last["event"] == "error"
            problem_ = json.loads(last["data"])["problem"]
            assert problem_["code"] == "engine-died"
            assert "signal SIGKILL" in problem_["detail"]
            assert {event["event"] for event in stream.events[:-1]} == {"delta"}
        assert [ask(name) for name in names] == [expected[name] for name in names]
        assert metric(server, "graft_engine_restarts") == restarts + 1
        assert metric(server, "graft_ready") == 1
        assert client.status().engine.running == 0


def test_a_caller_that_hangs_up_frees_the_engine(server: ServerProcess) -> None:
    with server.http() as http:
        body = {"model": "base", "prompt": "Go on", "max_tokens": 3000, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()  # dropping the iterator would hang up already
            assert next(lines).startswith("data: ")
            assert running_requests(server) == 1
    eventually(lambda: running_requests(server) == 0, within=5, what="no request in the engine")


def test_a_caller_that_hangs_up_without_streaming_frees_the_engine(server: ServerProcess) -> None:
    body = {"model": "base", "prompt": "Go on", "max_tokens": 3000}
    with server.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/completions", json=body, timeout=0.5)
    eventually(lambda: running_requests(server) == 0, within=5, what="no request in the engine")


def test_a_terminated_server_finishes_what_it_has_begun(tiny_model: Path, tmp_path: Path) -> None:
    with running(tiny_model, tmp_path / "data", threads=1) as server, ThreadPoolExecutor() as pool:
        stream = Stream(server)
        with server.client(retries=0) as client:
            whole = pool.submit(client.predict, "base", "Go on", task="chat", sampling=MANY)
            stream.wait_begun()
            eventually(lambda: client.status().engine.running == 2, what="two requests in the engine")
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: not server.ready(), what="not ready")
            with pytest.raises(BusyError, match="shutting down") as refused:
                client.predict("base", "Me too", task="chat")
            assert (refused.value.code, refused.value.retry_after) == ("draining", 5)
            answer = whole.result(timeout=60)
        stream.join()
        assert stream.error is None
        assert answer.usage.completion_tokens == MANY.max_tokens
        assert server.process.wait(timeout=30) == 0
    assert not (tmp_path / "data" / "server.json").exists()


# Starting


def test_pins_outlive_a_server_that_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running(tiny_model, data_dir, threads=1) as server:
        for seed, name in enumerate(("kept", "damaged", "let-go")):
            folder = write_lora(tmp_path / name, seed=seed)
            server.graft("adapters", "register", folder, "--name", name, "--task", "chat")
            assert server.graft("adapters", "pin", name).out == f"pinned {name}@1\n"
        assert server.json("status")["engine"]["loaded_adapters"] == ["kept@1", "damaged@1", "let-go@1"]
        server.graft("adapters", "unpin", "let-go")
        digest = server.json("adapters", "show", "damaged@1")["digest"]
        server.kill()
    [weights] = (data_dir / "artefacts").glob(f"*/{digest}/*.safetensors")
    weights.chmod(0o600)
    weights.write_bytes(b"damaged")
    with running(tiny_model, data_dir, threads=1) as server:
        eventually(lambda: server.log.count("Serving ") == 2, what="the second start")
        kept, damaged = server.json("status")["pinned"]
        assert kept == {"ref": "kept@1", "loaded": True, "error": None}
        assert (damaged["ref"], damaged["loaded"]) == ("damaged@1", False)
        assert f"the pinned version damaged@1 could not be loaded: {damaged['error']}" in server.log
        pinned = {each["name"]: each["versions"][0]["pinned"] for each in server.json("adapters", "list")}
        assert pinned == {"kept": True, "damaged": True, "let-go": False}


def fails(server: ServerProcess) -> str:
    """The one sentence with which a server ended instead of starting."""
    assert server.process.wait(timeout=60) == 1
    lines = [line for line in server.log.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert "Traceback" not in server.log
    return lines[0].removeprefix("Error: ")


def test_a_second_server_on_the_same_folder_is_refused(server: ServerProcess, tiny_model: Path) -> None:
    second = run_graft("serve", "--base-model", tiny_model, "--port", "0", "--data-dir", server.data_dir, code=1)
    assert second.error == (
        f"another server (pid {server.process.pid}, {server.url}) already runs on {server.data_dir}; "
        "stop it, or choose another folder with --data-dir"
    )


def test_a_port_in_use_is_told(server: ServerProcess, tiny_model: Path, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    second = run_graft("serve", "--base-model", tiny_model, "--port", port, "--data-dir", tmp_path / "data", code=1)
    assert second.error == f"port {port} on 127.0.0.1 is in use; choose another with --port"


def test_a_database_of_a_newer_release_is_left_alone(tiny_model: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    Registry.open(data_dir).close()
    database = data_dir / "registry.db"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'r9999'")
    connection.close()
    before = database.read_bytes()
    told = fails(launch(tiny_model, data_dir))
    assert "the registry's database is at revision r9999, which this release does not know" in told
    assert "upgrade graftwork" in told
    assert database.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--dtype", "float23"), 2, "--dtype: Input should be"),
        (("--max-slot", "3"), 2, "--max-slot"),
        (("--config", "nowhere.toml"), 2, "nowhere.toml"),
    ],
)
def test_a_setting_that_makes_no_sense(tiny_model: Path, arguments: tuple[str, ...], code: int, told: str) -> None:
    assert told in run_graft("serve", "--base-model", tiny_model, *arguments, code=code).err


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Not a byte is free in ``folder``."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    yield
    ballast.unlink()


def test_a_full_disk_loses_nothing(tiny_model: Path, translations: Path, small_disk: Path, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "adapter")
    data_dir = small_disk / "data"
    # The log lies beside the data folder, on the same disk, as it may with anybody.
    with running(tiny_model, data_dir, threads=1) as server:
        kept = server.json("adapters", "register", folder, "--name", "kept", "--task", "chat")
        with filled(small_disk):
            upload = server.graft("train", "translation", "--data", translations, "--name", "x", code=1)
            assert "no space is left" in upload.error or "disk is full" in upload.error
            publish = server.graft("adapters", "register", folder, "--name", "more", "--task", "chat", code=1)
            assert "no space is left" in publish.error or "disk is full" in publish.error
            with server.http() as http:
                files = [("files", ("big.jsonl", bytes(4 << 20)))]
                answer = http.post("/api/datasets", data={"task": "translation"}, files=files)
            assert answer.status_code == 507
            assert answer.json()["code"] == "storage-full"
            assert server.graft("query", "kept", "Hi", "--max-tokens", "3").out.strip()
        assert server.ready()
        assert [version["digest"] for version in server.json("adapters", "show", "kept")["versions"]] == [
            kept["digest"]
        ]
        assert [adapter["name"] for adapter in server.json("adapters", "list")] == ["kept"]
        assert server.json("datasets", "list") == []
        assert not list((data_dir / "staging").iterdir())
        assert not list((data_dir / "uploads").iterdir())
        assert server.json("adapters", "register", folder, "--name", "kept", "--task", "chat")["ref"] == "kept@2"


# Requests


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert (document["status"], document["code"]) == (status, code)
    return document


def test_a_prompt_longer_than_the_context(server: ServerProcess) -> None:
    # A token is a byte, and the command line takes longer ones from stdin.
    refused = server.graft("query", "steady", stdin="x" * 5000, code=5)
    assert "4096" in refused.error
    assert len(refused.err.splitlines()) == 1
    with server.http() as http:
        answer = http.post("/v1/completions", json={"model": "base", "prompt": "x" * 5000})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_bodies_that_are_not_read(server: ServerProcess) -> None:
    limit = "the request body is larger than 1 MiB, which is the most taken here"
    big = b"x" * ((1 << 20) + 1)
    as_json = {"Content-Type": "application/json"}
    with server.http() as http:
        announced = http.post("/api/predict", content=big, headers=as_json)
        assert problem(announced, 413, "body-too-large")["detail"] == limit
        pieces = http.post(
            "/api/predict",
            content=(big[start : start + 4096] for start in range(0, len(big), 4096)),
            headers=as_json,
        )
        assert problem(pieces, 413, "body-too-large")["detail"] == limit
        broken = http.post("/api/predict", content='{"adapter": "steady",', headers=as_json)
        assert "the body is not JSON" in problem(broken, 400, "invalid-json")["detail"]
        form = http.post("/api/predict", data={"adapter": "steady", "text": "Hi"})
        assert "application/json" in problem(form, 415, "unsupported-media-type")["detail"]
        wrong = http.post("/api/predict", json={"adapter": "steady", "text": "Hi", "temprature": 0})
        assert "temprature" in problem(wrong, 422, "invalid-request")["detail"]
        nowhere = http.post("/api/predictions", json={})
        assert problem(nowhere, 404, "unknown-route")["detail"] == "there is no route POST /api/predictions"


def test_a_file_that_is_too_large(server: ServerProcess, tmp_path: Path) -> None:
    big = tmp_path / "big.jsonl"
    big.write_bytes(b'{"source": "a", "target": "b"}\n' * 40_000)
    refused = server.graft("datasets", "check", big, "--task", "translation", code=5)
    assert "larger than 1 MiB" in refused.error


DATA = "DATA"
"""Stands for the translation data in the arguments below."""


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("query", "steadi", "Hi"), 4, "no adapter 'steadi'; did you mean 'steady'?"),
        (("query", "steady@7", "Hi"), 4, "steady"),
        (("adapters", "show", "stedy"), 4, "no adapter 'stedy'; did you mean 'steady'?"),
        (("adapters", "show", "steady@2"), 4, "steady@1"),
        (("query", "base", "Hi", "--task", "tranlation"), 4, "did you mean 'translation'?"),
        (("tasks", "show", "domain_qa"), 4, "did you mean 'domain-qa'?"),
        (("train", "translaton", "--data", DATA, "--name", "x"), 4, "did you mean 'translation'?"),
        (("train", "translation", "--data", DATA, "--name", "x", "--method", "lroa"), 5, "did you mean 'lora'?"),
        (
            ("train", "translation", "--data", DATA, "--name", "x", "--set", "lerning_rate=1"),
            5,
            "unknown option 'lerning_rate' of method 'lora'; did you mean 'learning_rate'?",
        ),
        (
            ("train", "translation", "--data", DATA, "--name", "x", "--set", "learning_rate=fast"),
            5,
            "option 'learning_rate' can't be 'fast'",
        ),
        (("train", "translation", "--data", DATA, "--name", "x", "--set", "r=65"), 5, "rank 65 is more than"),
        (("train", "translation", "--data", DATA, "--name", "x", "--set", "r"), 2, "`r` is not NAME=VALUE"),
        (("train", "translation", "--data", DATA, "--nam", "x"), 2, "--nam"),
        (("train", "translation", "--data", DATA, "--name", "a b"), 5, "a b"),
        (
            ("train", "translation", "--data", DATA, "--name", "steady"),
            5,
            "belongs to the task 'chat', not to 'translation'",
        ),
        (("train", "translation", "--data", DATA, "--name", "x", "--format", "jsnl"), 5, "did you mean 'jsonl'?"),
        (("jobs", "show", "no-such-job"), 4, "no job 'no-such-job'"),
        (("quary", "steady", "Hi"), 2, "No such command `quary`; did you mean `query`?"),
    ],
)
def test_names_that_do_not_exist(
    server: ServerProcess, translations: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    refused = server.graft(*(translations if part == DATA else part for part in arguments), code=code)
    assert told in refused.err
    assert refused.out == ""
    with server.client() as client:
        assert client.jobs() == []


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        # Bound, but nobody listens.
        refused = run_graft("status", url=url, code=3)
    assert refused.error.startswith(f"no server answers at {url} (")
    assert refused.error.endswith("start one with `graft serve --base-model ...` or give --url")


# Data files

GOOD = '{"source": "Open", "target": "Auf"}\n'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "data.jsonl: the file is empty"),
        (b"\n\n", "data.jsonl: no rows were found"),
        (GOOD.encode() * 2 + "\u00d6ffnen\n".encode("latin-1"), "data.jsonl:3: byte 0xd6 at offset 72"),
        (GOOD.encode("utf-16"), "data.jsonl: the file is UTF-16"),
        (b'{"source": "Open"}\n' * 2, "data.jsonl:1:target: this field is missing"),
    ],
)
def test_data_that_can_not_be_used(server: ServerProcess, tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(content)
    refused = server.graft("train", "translation", "--data", file, "--name", "x", "--skip-bad", code=5)
    assert told in refused.error
    checked = server.graft("datasets", "check", file, "--task", "translation", code=5)
    assert told in checked.err


def test_data_that_is_not_there(server: ServerProcess, tmp_path: Path) -> None:
    refused = server.graft("train", "translation", "--data", tmp_path / "no.jsonl", "--name", "x", code=2)
    assert f"Path '{tmp_path / 'no.jsonl'}' does not exist." in refused.err


def test_bad_rows_refuse_the_data_or_are_left_out(server: ServerProcess, tmp_path: Path) -> None:
    with server.client() as client:
        before = [dataset.id for dataset in client.datasets()]
    file = tmp_path / "data.jsonl"
    rows = [GOOD, '{"source": "Shut"}\n', "not json\n", '{"source": "Shut", "target": ""}\n']
    file.write_text("".join(rows) + GOOD.replace("Open", "Shut") * 3)
    refused = server.graft("train", "translation", "--data", file, "--name", "x", "--detach", code=5)
    assert refused.error.startswith("3 of 7 rows are bad; first data.jsonl:2:target: this field is missing")
    assert refused.error.endswith("leave them out with --skip-bad")
    for place in ("data.jsonl:2:target: ", "data.jsonl:3: ", "data.jsonl:4:target: "):
        assert f"\n  {place}" in refused.err
    with server.client() as client:
        assert [dataset.id for dataset in client.datasets()] == before

    taken = server.graft("train", "translation", "--data", file, "--name", "skipped", "--skip-bad", "--detach")
    assert "4 rows (jsonl), left out as bad: 3" in taken.err
    job = taken.out.strip()
    server.graft("jobs", "cancel", job)
    with server.client() as client:
        eventually(lambda: client.job(job).state == "cancelled", what="cancelled")
        added = [dataset for dataset in client.datasets() if dataset.id not in before]
    assert [(dataset.rows, dataset.bad_rows) for dataset in added] == [(4, 3)]


# Adapter folders


def refusal(server: ServerProcess, folder: Path) -> Finished:
    """How ``graft adapters register`` refuses a folder; it must be one line."""
    refused = server.graft("adapters", "register", folder, "--name", "refused", "--task", "chat", code=5)
    assert len(refused.err.splitlines()) == 1
    with server.client() as client:
        assert "refused" not in [adapter.name for adapter in client.adapters()]
    return refused


def _pickled(folder: Path) -> None:
    write_lora(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"weights": 1}))


def _disguised(folder: Path) -> None:
    write_lora(folder)
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"weights": 1}))


def _cut_off(folder: Path) -> None:
    weights = write_lora(folder) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _no_config(folder: Path) -> None:
    (write_lora(folder) / "adapter_config.json").unlink()


def _broken_config(folder: Path) -> None:
    (write_lora(folder) / "adapter_config.json").write_text('{"peft_type": ')


def _linked_outside(folder: Path) -> None:
    weights = write_lora(folder) / "adapter_model.safetensors"
    weights.rename(folder.parent / "secret")
    weights.symlink_to(folder.parent / "secret")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        pytest.param(
            lambda folder: write_lora(folder, width=96),
            "q_proj.lora_A.weight has shape [4, 96], but must have [4, 64]",
            id="the shapes of another base model",
        ),
        pytest.param(
            lambda folder: write_lora(folder, lineage={"base_fingerprint": "ab" * 32, "base_model": "Other-1B"}),
            "graft.json: the adapter was trained on Other-1B (base_fingerprint abababababab)",
            id="the fingerprint of another base model",
        ),
        pytest.param(
            lambda folder: write_lora(folder, module="model.layers.7.self_attn.q_proj"),
            "the base model has no module model.layers.7.self_attn.q_proj; the nearest one is model.layers.",
            id="no such module",
        ),
        pytest.param(
            lambda folder: write_lora(folder, rank=4, r=8), "has shape [4, 64], but must have [8, 64]", id="wrong rank"
        ),
        pytest.param(lambda folder: write_lora(folder, r="four"), "r must be a positive whole number", id="no rank"),
        pytest.param(
            lambda folder: write_lora(folder, rank=65), "rank 65 is more than this server", id="rank too high"
        ),
        pytest.param(
            lambda folder: write_lora(folder, value=float("nan")), "lora_B.weight has values that are NaN", id="NaN"
        ),
        pytest.param(lambda folder: write_lora(folder, peft_type="IA3"), "peft_type IA3 is not supported", id="IA3"),
        pytest.param(_pickled, "adapter_model.bin: pickled weights can run code", id="pickled"),
        pytest.param(_disguised, "adapter_model.safetensors can't be read", id="a pickle under another name"),
        pytest.param(_cut_off, "adapter_model.safetensors can't be read", id="cut off"),
        pytest.param(_no_config, "adapter_config.json: missing", id="no configuration"),
        pytest.param(_broken_config, "adapter_config.json is not JSON", id="broken configuration"),
        pytest.param(_linked_outside, "adapter_model.safetensors: a link that leaves the folder", id="link"),
    ],
)
def test_adapter_folders_that_are_refused(
    server: ServerProcess, tmp_path: Path, make: Callable[[Path], object], told: str
) -> None:
    make(tmp_path / "folder")
    assert told in refusal(server, tmp_path / "folder").error


def test_an_adapter_folder_that_is_not_there(server: ServerProcess, tmp_path: Path) -> None:
    arguments = ("--name", "refused", "--task", "chat")
    refused = server.graft("adapters", "register", tmp_path / "nowhere", *arguments, code=2)
    assert refused.error == f"{tmp_path / 'nowhere'}: no such folder"


@pytest.mark.parametrize(
    "name", ["../adapter_config.json", "/etc/adapter_config.json", "..\\adapter_config.json", ".."]
)
def test_file_names_that_leave_their_folder(server: ServerProcess, tmp_path: Path, name: str) -> None:
    folder = write_lora(tmp_path / "folder")
    weights = ("adapter_model.safetensors", (folder / "adapter_model.safetensors").read_bytes())
    config = (name, (folder / "adapter_config.json").read_bytes())
    with server.http() as http:
        answer = http.post(
            "/api/adapters", data={"name": "refused", "task": "chat"}, files=[("files", weights), ("files", config)]
        )
        detail = problem(answer, 422, "invalid-request")["detail"]
        assert detail == f"files: {name!r} is a path; send a plain file name"
        data = http.post("/api/datasets", data={"task": "translation"}, files=[("files", config)])
        assert problem(data, 422, "invalid-request")["detail"] == detail


def test_weights_whose_header_is_as_long_as_a_pickle_begins(server: ServerProcess, tmp_path: Path) -> None:
    """A header of 640 bytes makes a file that begins with 0x80 0x02, as pickles of protocol 2 do."""
    weights = write_lora(tmp_path / "folder") / "adapter_model.safetensors"
    content = weights.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length < 640
    weights.write_bytes((640).to_bytes(8, "little") + content[8 : 8 + length].ljust(640) + content[8 + length :])
    taken = server.json("adapters", "register", weights.parent, "--name", "unlucky", "--task", "chat")
    assert taken["ref"] == "unlucky@1"
