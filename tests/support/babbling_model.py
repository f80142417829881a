"""A tiny random model whose answers are printable ASCII and never end by themselves: requests that stay in flight."""

from __future__ import annotations

from pathlib import Path

from support.tiny_model import save_tiny_model


def save_babbling_model(folder: Path, *, seed: int = 0, hidden: int = 64, context: int = 4096) -> Path:
    """``save_tiny_model``, with logit 0 for every token but letters, digits and punctuation.

    Greedy decoding takes the largest of some ninety random logits, which is above 0; so neither the end of the turn
    nor a line break nor half a character is ever drawn.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    save_tiny_model(folder, seed=seed, hidden=hidden, context=context)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    vocabulary = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
    printable = [token for text, token in vocabulary.items() if len(text) == 1 and "!" <= text <= "~"]
    # Input and output embeddings are tied.
    embeddings = tensors["model.embed_tokens.weight"]
    kept = torch.zeros_like(embeddings)
    kept[printable] = embeddings[printable]
    save_file({**tensors, "model.embed_tokens.weight": kept}, weights, metadata={"format": "pt"})
    return folder
