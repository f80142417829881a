"""Translation of short texts such as user-interface strings, with a check that placeholders survive."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from graft_plugins.hookspecs import hookimpl
from graft_plugins.metrics import bleu, chrf
from graft_plugins.task import (
    AnyTask,
    Generate,
    Generation,
    Metric,
    Output,
    Prompt,
    Report,
    RequestError,
    Sampling,
    Split,
    Task,
)
from graft_plugins.tasks.languages import language_code, language_name
from graft_plugins.tasks.placeholders import PLACEHOLDER, missing_placeholders, placeholders

_NOT_WORDS = re.compile(r"[\W\d_]+")
#: BLEU's usual tokenizer splits at spaces, which these languages do not have (or have too few).
_BLEU_TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}


class TranslationExample(BaseModel):
    """A text and its translation. Languages are codes such as ``de`` or names such as ``German``."""

    source: str = Field(min_length=1, description="The text.")
    target: str = Field(min_length=1, description="Its translation.")
    source_language: str = Field("", description="Language of the text.")
    target_language: str = Field("", description="Language of the translation.")
    group: str | None = Field(None, description="Rows of one group are held out together, e.g. one per product.")


class TranslationRequest(BaseModel):
    """A text to translate; languages default to those the adapter was trained on."""

    text: str = Field(min_length=1, description="The text to translate.")
    source_language: str | None = Field(None, description="Language of the text.")
    target_language: str | None = Field(None, description="Language to translate to.")


class TranslationResponse(BaseModel):
    """The translation, and what got lost in it."""

    translation: str
    missing_placeholders: list[str] = Field([], description="Placeholders and tags that the answer lost.")


class TranslationState(BaseModel):
    """The languages of most training rows."""

    source_language: str = ""
    target_language: str = ""


class TranslationTask(Task[TranslationExample, TranslationRequest, TranslationResponse, TranslationState]):
    name = "translation"
    title = "Translation"
    description = "A text in one language in, its translation out, with a list of the placeholders it lost."
    example_model = TranslationExample
    request_model = TranslationRequest
    response_model = TranslationResponse
    state_model = TranslationState
    field_aliases: ClassVar[Mapping[str, str]] = {
        "src": "source",
        "source_text": "source",
        "text": "source",
        "tgt": "target",
        "target_text": "target",
        "translation": "target",
        "src_lang": "source_language",
        "source_lang": "source_language",
        "tgt_lang": "target_language",
        "target_lang": "target_language",
    }
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "batch_size": 16,
        "warmup_ratio": 0.1,
        "max_length": 256,
    }
    example_request: ClassVar[Mapping[str, Any]] = {"text": "Turn off the lights in {room}"}

    def group_key(self, example: TranslationExample) -> str:
        """The given group, or the text without case, placeholders, digits and punctuation, so that copies of
        one template stay together."""
        return f"group:{example.group}" if example.group else f"text:{_template(example.source)}"

    def split(self, examples: Sequence[TranslationExample], *, test_rows: int, seed: int) -> Split[TranslationExample]:
        """Whole groups, and no held-out text that also stands among the training rows.

        Different groups share texts ("Failed to connect"). Those of a held-out group that training knows are
        dropped, and more groups are held out until about ``test_rows`` unseen texts are left.
        """
        wanted = test_rows
        while True:
            split = super().split(examples, test_rows=wanted, seed=seed)
            known = {_template(example.source) for example in split.train}
            test = [example for example in split.test if _template(example.source) not in known]
            # At most a quarter of the rows is given up for the sake of the measure.
            if len(test) >= test_rows or wanted >= max(test_rows, len(examples) // 4):
                return Split(train=split.train, test=test)
            wanted = min(wanted + test_rows - len(test), max(test_rows, len(examples) // 4))

    def fit_state(self, train: Sequence[TranslationExample]) -> TranslationState:
        pairs = Counter((example.source_language, example.target_language) for example in train)
        (source, target), _ = pairs.most_common(1)[0] if pairs else (("", ""), 0)
        return TranslationState(source_language=source, target_language=target)

    def request_for(self, example: TranslationExample, state: TranslationState) -> TranslationRequest:
        return TranslationRequest(
            text=example.source,
            source_language=example.source_language or None,
            target_language=example.target_language or None,
        )

    def target(self, example: TranslationExample) -> str:
        return example.target

    def prompt(self, request: TranslationRequest, state: TranslationState) -> Prompt:
        source = request.source_language or state.source_language
        target = request.target_language or state.target_language
        direction = f" from {language_name(source)}" if source else ""
        direction += f" to {language_name(target)}" if target else ""
        return Prompt.chat(request.text, system=f"Translate{direction}.")

    def decoding(self, request: TranslationRequest, state: TranslationState) -> Generate:
        """Greedy, with room for one token a character: enough for scripts the base model spells out."""
        stop = () if "\n" in request.text.strip() else ("\n",)
        return Generate(sampling=Sampling(max_tokens=min(16 + len(request.text), 1024), stop=stop))

    def parse(self, request: TranslationRequest, output: Output, state: TranslationState) -> TranslationResponse:
        assert isinstance(output, Generation)
        translation = output.text.strip()
        return TranslationResponse(
            translation=translation, missing_placeholders=missing_placeholders(request.text, translation)
        )

    def request_from_text(self, text: str) -> TranslationRequest:
        if not text.strip():
            raise RequestError("there is no text to translate")
        return TranslationRequest(text=text.strip())

    def text_of(self, response: TranslationResponse) -> str:
        return response.translation

    def evaluate(
        self, pairs: Sequence[tuple[TranslationExample, TranslationResponse]], state: TranslationState
    ) -> Report:
        answers = [response.translation for _, response in pairs]
        references = [[example.target] for example, _ in pairs]
        languages = Counter(example.target_language or state.target_language for example, _ in pairs)
        language = languages.most_common(1)[0][0] if languages else ""
        tokenize = _BLEU_TOKENIZERS.get(language_code(language), "13a")
        metrics = {"chrf": chrf(answers, references), "bleu": bleu(answers, references, tokenize=tokenize)}
        total = sum(len(placeholders(example.source)) for example, _ in pairs)
        if total:
            lost = sum(len(missing_placeholders(example.source, answer.translation)) for example, answer in pairs)
            metrics["placeholders_kept"] = Metric(value=1 - lost / total)
        return Report(primary="chrf", metrics=metrics, rows=len(pairs))

    def baselines(self, test: Sequence[TranslationExample], state: TranslationState) -> dict[str, Report]:
        """What the untranslated text scores: names and numbers alone can be worth a lot."""
        copies = [(example, TranslationResponse(translation=example.source)) for example in test]
        return {"copy": self.evaluate(copies, state)}


def _template(text: str) -> str:
    """A text without placeholders, digits, punctuation and case; the text itself if nothing else is left."""
    return _NOT_WORDS.sub(" ", PLACEHOLDER.sub(" ", text.lower())).strip() or text


@hookimpl
def register_tasks(register: Callable[[AnyTask], None]) -> None:
    register(TranslationTask())
