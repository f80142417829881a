"""Options of a job: precedence, text from a command line, and errors that name what is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from graft_plugins.manager import PluginHost
from graft_server.training.options import OptionError, resolve_options


def test_given_beats_the_task_which_beats_the_defaults(host: PluginHost) -> None:
    task = host.task("translation")
    assert task.training_defaults, "the test needs a task with defaults"
    name, value = next(iter(task.training_defaults.items()))
    plain = resolve_options(task, host.method("lora"), {})
    assert plain.flat[name] == value
    assert plain.flat["optimizer"] == "adamw"
    assert resolve_options(task, host.method("lora"), {"seed": 7, name: value}).training.seed == 7


def test_text_of_a_command_line_is_read_as_values(host: PluginHost) -> None:
    given = {"r": "4", "learning_rate": "1e-3", "target_modules": "q_proj, v_proj", "max_steps": "12"}
    resolved = resolve_options(host.task("chat"), host.method("lora"), given)
    assert resolved.flat["r"] == 4
    assert resolved.training.learning_rate == 1e-3
    assert resolved.flat["target_modules"] == ["q_proj", "v_proj"]
    assert resolved.training.max_steps == 12
    assert resolve_options(host.task("chat"), host.method("lora"), {"max_steps": "none"}).training.max_steps is None


def test_what_is_in_force_can_be_given_again(host: PluginHost) -> None:
    for method in host.methods.values():
        resolved = resolve_options(host.task("chat"), method, {"epochs": 3})
        assert resolve_options(host.task("chat"), method, resolved.flat) == resolved


@pytest.mark.parametrize(
    ("given", "code", "nearest", "text"),
    [
        ({"learning_rat": 1}, "unknown-option", "learning_rate", "did you mean 'learning_rate'"),
        ({"alpa": 1}, "unknown-option", "alpha", "did you mean 'alpha'"),
        ({"zzz": 1}, "unknown-option", None, "there are alpha"),
        ({"epochs": "many"}, "invalid-option", None, "option 'epochs' can't be 'many'"),
        ({"epochs": 0}, "invalid-option", None, "greater than or equal to 1"),
        ({"optimizer": "adamm"}, "invalid-option", None, "'adamw', 'adam' or 'sgd'"),
        ({"r": "-1"}, "invalid-option", None, "option 'r' can't be '-1'"),
    ],
)
def test_a_wrong_option_is_named(
    host: PluginHost, given: dict[str, object], code: str, nearest: str | None, text: str
) -> None:
    with pytest.raises(OptionError) as caught:
        resolve_options(host.task("chat"), host.method("lora"), given)
    assert (caught.value.code, caught.value.nearest) == (code, nearest)
    assert text in str(caught.value)


def test_nothing_stops_early_by_a_loss_that_is_not_watched(host: PluginHost) -> None:
    task, method = host.task("chat"), host.method("lora")
    unwatched: dict[str, object] = {"early_stopping_patience": 3, "validation_rows": 0}
    with pytest.raises(OptionError, match="no loss to stop by; set validation_rows or validation_dataset") as caught:
        resolve_options(task, method, unwatched)
    assert (caught.value.code, caught.value.name) == ("invalid-option", "early_stopping_patience")
    assert resolve_options(task, method, unwatched | {"validation_dataset": "d1"}).training.early_stopping_patience == 3


def test_an_option_of_another_method_is_unknown(host: PluginHost) -> None:
    with pytest.raises(OptionError, match="unknown option 'alpha' of method 'output-head'"):
        resolve_options(host.task("chat"), host.method("output-head"), {"alpha": 1})


def test_the_server_learns_options_and_methods_without_torch() -> None:
    code = (
        "import sys, graft_server.training.options, graft_server.training.methods.plugin, "
        "graft_server.training.runner; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
