"""A registry in an empty folder, and folders to publish."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from graft_server.registry import Lineage, Registry
from support.object_stores import S3Server, s3_server
from support.postgresql import PostgreSQL, postgresql

MakeFolder = Callable[..., Path]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """One server for the whole run."""
    with postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """Both databases; ``None`` is SQLite in the data folder."""
    if request.param == "sqlite":
        return None
    server: PostgreSQL = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def registry(data_dir: Path, database_url: str | None) -> Iterator[Registry]:
    opened = Registry.open(data_dir, database_url)
    yield opened
    opened.close()


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """``make_folder("x")`` is a folder with an adapter's files; the same text gives the same content."""

    def make(text: str = "weights") -> Path:
        folder = tmp_path / f"trained-{text}"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text('{"r": 8}')
        (folder / "adapter_model.safetensors").write_text(text)
        return folder

    return make


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One server for the whole run."""
    with s3_server() as server:
        yield server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB of its own."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.fixture
def lineage() -> Lineage:
    return Lineage(
        task="translation", method="lora", rank=8, base_model="smollm2", base_fingerprint="f" * 64, options={"r": 8}
    )


@pytest.fixture
def dataset(registry: Registry, make_folder: MakeFolder) -> str:
    """The id of a stored translation dataset."""
    folder = make_folder("rows")
    return registry.add_dataset(task="translation", format="jsonl", rows=3, bad_rows=0, folder=folder).id
