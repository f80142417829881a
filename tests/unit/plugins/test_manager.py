"""The plugin host: it finds plugins, keeps what they register, and goes on without the faulty ones."""

from __future__ import annotations

import logging
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graft_plugins import UnknownNameError, hookimpl
from graft_plugins.builtin import BUILTIN_PLUGINS
from graft_plugins.manager import PluginHost
from graft_plugins.reader import DatasetReader
from graft_plugins.readers.jsonl import JsonlReader
from graft_plugins.tasks.chat import ChatTask


class Named(JsonlReader):
    """A reader whose name is chosen by the test."""

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]


def plugin(*readers: Any) -> object:
    class Plugin:
        @hookimpl
        def register_readers(self, register: Any) -> None:
            for reader in readers:
                register(reader)

    return Plugin()


def load(*extra: tuple[str, object]) -> PluginHost:
    return PluginHost.load(builtins=[], extra=extra, entry_points=False)


def only_fault(host: PluginHost) -> Any:
    assert len(host.faults) == 1, host.faults
    return host.faults[0]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module and gives its name; the module can be imported during the test."""
    monkeypatch.syspath_prepend(tmp_path)
    written: list[str] = []

    def write(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_every_builtin_loads_without_a_fault() -> None:
    host = PluginHost.load(entry_points=False)
    assert host.faults == []
    assert [record.name for record in host.plugins] == list(BUILTIN_PLUGINS)
    assert set(host.tasks) == {"translation", "domain-qa", "recommendation", "chat"}
    assert all(record.built_in for record in host.plugins)


def test_provider_is_the_plugin_that_registered() -> None:
    host = PluginHost.load(extra=[("mine", plugin(Named("mine-format")))], entry_points=False)
    assert host.provider("reader", "mine-format").name == "mine"
    assert host.provider("task", "chat").name == "graft_plugins.tasks.chat"
    with pytest.raises(UnknownNameError):
        host.provider("task", "mine-format")


def test_an_unknown_name_gives_the_nearest() -> None:
    host = PluginHost.load(entry_points=False)
    with pytest.raises(UnknownNameError, match="unknown task 'translatoin'; did you mean 'translation'") as caught:
        host.task("translatoin")
    assert (caught.value.kind, caught.value.name, caught.value.nearest) == ("task", "translatoin", "translation")
    with pytest.raises(UnknownNameError, match="there are chat, domain-qa"):
        host.task("zzzzzz")
    with pytest.raises(UnknownNameError, match="unknown method 'lora'; there are none"):
        host.method("lora")
    assert host.reader("csv").name == "csv"


def test_the_first_name_wins_and_the_fault_names_both() -> None:
    first, second = Named("same"), Named("same")
    host = load(("one", plugin(first)), ("two", plugin(Named("other"), second)))
    assert host.readers == {"same": first}
    fault = only_fault(host)
    assert (fault.plugin, fault.hook) == ("two", "register_readers")
    assert "'same'" in fault.error
    assert "'one'" in fault.error
    assert "'two'" in fault.error


def test_a_hook_that_raises_registers_nothing_and_the_rest_goes_on(module: Any) -> None:
    name = module(
        "raising_plugin",
        """
        from graft_plugins import hookimpl
        from graft_plugins.readers.jsonl import JsonlReader
        from graft_plugins.tasks.chat import ChatTask

        @hookimpl
        def register_readers(register):
            register(JsonlReader())
            raise KeyError("settings")

        @hookimpl
        def register_tasks(register):
            register(ChatTask())
        """,
    )
    host = PluginHost.load(builtins=[name, "graft_plugins.readers.delimited"], entry_points=False)
    fault = only_fault(host)
    assert (fault.plugin, fault.hook, fault.line) == (name, "register_readers", 9)
    assert Path(fault.file or "").name == "raising_plugin.py"
    assert fault.error == "KeyError: 'settings'"
    assert list(host.readers) == ["csv"]
    assert list(host.tasks) == ["chat"]


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("import no_such_package_at_all\n", 1, "No module named 'no_such_package_at_all'"),
        ("x = 1\ndef broken(:\n", 2, "SyntaxError"),
        ("import sys\n\nsys.exit('bye')\n", 3, "SystemExit: bye"),
    ],
)
def test_a_plugin_that_cant_be_imported(module: Any, source: str, line: int, message: str) -> None:
    name = module("unimportable_plugin", source)
    fault = only_fault(PluginHost.load(builtins=[name], entry_points=False))
    assert Path(fault.file or "").name == "unimportable_plugin.py"
    assert fault.line == line
    assert message in fault.error


@pytest.mark.parametrize(
    ("source", "hook", "message"),
    [
        ("@hookimpl\ndef register_tasks(registry): ...\n", "register_tasks", "registry"),
        ("@hookimpl\ndef register_taks(register): ...\n", "register_taks", "did you mean register_tasks"),
        ("@hookimpl\nasync def request_served(request): ...\n", "request_served", "not async"),
        ("x = 1\n", None, "implements no hook"),
    ],
)
def test_a_plugin_with_an_unsound_hook_is_left_out(module: Any, source: str, hook: str | None, message: str) -> None:
    name = module("unsound_plugin", "from graft_plugins import hookimpl\n" + source)
    host = PluginHost.load(builtins=[name], entry_points=False)
    fault = only_fault(host)
    assert host.plugins == []
    assert fault.hook == hook
    assert Path(fault.file or "").name == "unsound_plugin.py"
    assert message in fault.error


class NoTitle(ChatTask):
    title = ""


class NoModel(ChatTask):
    request_model = dict  # type: ignore[assignment]


class BadAlias(ChatTask):
    field_aliases = {"q": "question"}  # noqa: RUF012


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (ChatTask, "register an instance, ChatTask()"),
        (object(), "must be a Task, not object"),
        (SimpleNamespace(name="x"), "must be a Task, not SimpleNamespace"),
        (NoTitle(), "needs a text as `title`"),
        (NoModel(), "needs a pydantic model as `request_model`"),
        (BadAlias(), "maps 'q' to 'question'"),
    ],
)
def test_a_task_that_is_none_or_incomplete(task: Any, message: str) -> None:
    class Plugin:
        @hookimpl
        def register_tasks(self, register: Any) -> None:
            register(task)

    host = load(("faulty", Plugin()))
    assert host.tasks == {}
    fault = only_fault(host)
    assert message in fault.error
    assert Path(fault.file or "").name == Path(__file__).name


def test_an_abstract_task_is_a_fault() -> None:
    class Half(DatasetReader):
        name = "half"

    class Plugin:
        @hookimpl
        def register_readers(self, register: Any) -> None:
            register(Half())  # type: ignore[abstract]

    assert "abstract" in only_fault(load(("half", Plugin()))).error


@pytest.mark.parametrize("name", ["Upper", "two words", "under_score", "-x", "x-", "", "naïve", None, 7])
def test_invalid_names(name: Any) -> None:
    host = load(("faulty", plugin(Named(name))))
    assert host.readers == {}
    assert "name" in only_fault(host).error


def test_two_plugins_of_one_name() -> None:
    host = load(("same", plugin(Named("a"))), ("same", plugin(Named("b"))))
    assert list(host.readers) == ["a"]
    assert "already loaded" in only_fault(host).error


# Observers


def observer(seen: list[Any], *, fail: bool = False) -> object:
    class Observer:
        @hookimpl
        def request_served(self, request: Any) -> None:
            seen.append(request)
            if fail:
                raise RuntimeError("observer broke")

    return Observer()


def test_observers_are_told_one_by_one_and_a_failing_one_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    first: list[Any] = []
    second: list[Any] = []
    host = load(("bad", observer(first, fail=True)), ("good", observer(second)))
    with caplog.at_level(logging.ERROR):
        host.notify("request_served", {"adapter": "x@1"})
    assert first == second == [{"adapter": "x@1"}]
    (record,) = caplog.records
    message = record.getMessage()
    assert "plugin bad: hook request_served failed at" in message
    assert Path(__file__).name in message
    assert [record.observes for record in host.plugins] == [("request_served",)] * 2


def test_every_observer_hook_is_delivered_under_its_own_name() -> None:
    seen: list[tuple[str, Any]] = []

    class Observer:
        @hookimpl
        def job_finished(self, job: Any) -> None:
            seen.append(("job", job))

        @hookimpl
        def version_published(self, version: Any) -> None:
            seen.append(("version", version))

        @hookimpl
        def request_served(self) -> None:
            seen.append(("request", None))

    host = load(("observer", Observer()))
    for hook in ("job_finished", "version_published", "request_served"):
        host.notify(hook, {"of": hook})
    assert seen == [("job", {"of": "job_finished"}), ("version", {"of": "version_published"}), ("request", None)]


def test_nobody_observing_is_no_error() -> None:
    load().notify("job_finished", {})


# Entry points


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two installed distributions with entry points, one of which points at nothing."""
    for name, target in (("alpha", "alpha_plugin"), ("beta", "beta_plugin")):
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[graftwork]\n{name} = {target}\n")
    (tmp_path / "alpha_plugin.py").write_text(
        "from graft_plugins import hookimpl\nfrom graft_plugins.readers.jsonl import JsonlReader\n"
        "class Alpha(JsonlReader):\n    name = 'alpha'\n"
        "@hookimpl\ndef register_readers(register):\n    register(Alpha())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "alpha_plugin", raising=False)


@pytest.mark.usefixtures("installed")
def test_entry_points_take_the_same_path() -> None:
    host = PluginHost.load()
    record = host.provider("reader", "alpha")
    assert (record.name, record.version, record.built_in) == ("alpha", "1.2", False)
    fault = next(fault for fault in host.faults if fault.plugin == "beta")
    assert "No module named 'beta_plugin'" in fault.error


@pytest.mark.usefixtures("installed")
def test_only_restricts_third_parties() -> None:
    assert PluginHost.load(only="alpha").faults == []
    none = PluginHost.load(only="")
    assert "alpha" not in none.readers
    assert "translation" in none.tasks
    host = PluginHost.load(only="alpah")
    assert "alpha" not in host.readers
    assert "did you mean 'alpha'?" in only_fault(host).error
