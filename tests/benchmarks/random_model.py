"""A base model of a real shape with random weights: what it answers is nonsense, what it costs is not.

    python tests/benchmarks/random_model.py llama-3.1-8b FOLDER --tokenizer OTHER_MODEL

The tokenizer is that of another base model's folder. The weights are made on the GPU where there is one.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from graft_server.base_model.device import choose_device

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}


def write_random_model(shape: str, folder: Path, tokenizer: Path) -> None:
    """Weights (bfloat16), configuration and tokenizer as transformers loads them."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, dtype="bfloat16")
    with torch.device(choose_device("auto")):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for file in AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder):
        assert Path(file).exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with the tokenizer to use")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    write_random_model(arguments.shape, arguments.folder, arguments.tokenizer)


if __name__ == "__main__":
    main()
