"""``python -m graft_server.base_model.convert GGUF FOLDER``: write a GGUF file's model as bf16 safetensors.

Progress bars go to standard error; on failure the last line says why, in one sentence.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer of ``gguf`` into ``folder``.

    Raises:
        ValueError: the file lacks weights of its architecture, or has some that are not finite.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Newer releases can leave weights in their GGUF blocks; older ones always unpack and know no such option.
    dense = {}
    if hasattr(transformers, "GgufConfig"):
        dense["quantization_config"] = transformers.GgufConfig(dequantize=True)
    quantized, loading = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, output_loading_info=True, **dense
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"the file lacks {len(missing)} of the model's tensors, for instance {missing[0]}")
    for name, tensor in quantized.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {name} has values that are not finite")
    # A model that was loaded from GGUF refuses to be saved, so its weights move into one that was not.
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(quantized)(config)
    plain.load_state_dict(quantized.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        # The folder is renamed into place next, which must never become durable before its content.
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def main(arguments: list[str]) -> int:
    gguf, folder = map(Path, arguments)
    try:
        convert(gguf, folder)
    # Readers of damaged files raise whatever their parsing ran into; the parent shows one sentence.
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        print(f"{type(error).__name__}: {reason}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
