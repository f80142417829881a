"""The built-in tasks: each through the conformance suite, and what a user notices of each."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_plugins import CandidateScore, Generation, Message, Prompt, RequestError, RowError, Scores
from graft_plugins.manager import PluginHost
from graft_plugins.task import Generate, Score, ToolCall
from graft_plugins.tasks.chat import ChatRequest
from graft_plugins.tasks.domain_qa import QaRequest
from graft_plugins.tasks.languages import language_code
from graft_plugins.tasks.placeholders import missing_placeholders, placeholders
from graft_plugins.tasks.recommendation import Catalogue, HistoryExample, RecommendationRequest
from graft_plugins.tasks.translation import TranslationExample, TranslationRequest, TranslationState
from graft_plugins.testing import check_task

TASKS = PluginHost.load(entry_points=False).tasks

#: Invented films.
FILMS = [
    f"{name} ({year})" for year in range(1990, 1996) for name in ("Scion", "Rootstock", "The Budding", "Bark, The")
]


def histories(users: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    return [{"user": f"u{user}", "history": rng.sample(FILMS, rng.randint(3, 14))} for user in range(users)]


ROWS: dict[str, list[dict[str, Any]]] = {
    "translation": [
        {"src": f"Open the {thing} {{name}}", "tgt": f"{thing} {{name}} öffnen", "target_language": "de"}
        for thing in ("door", "window", "gate", "roof", "cellar", "garage", "fridge", "oven")
    ],
    "domain-qa": [
        {"q": f"How high may a {thing} be?", "a": f"At most {height} metres."}
        for height, thing in enumerate(["fence", "hedge", "shed", "mast", "wall", "tower", "roof", "chimney"], start=1)
    ],
    "recommendation": histories(12),
    "chat": [
        {"messages": [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": f"{word}!"}]}
        for word in ("graft", "scion", "stock", "bud")
    ]
    + [
        {"instruction": f"Shout {word}", "input": "now", "output": word.upper()}
        for word in ("oak", "ash", "elm", "fir")
    ],
}


@pytest.mark.parametrize("name", list(TASKS))
def test_every_builtin_task_conforms(name: str) -> None:
    check_task(TASKS[name], ROWS[name])


def system_and_user(prompt: Prompt) -> tuple[str, str]:
    system, user = prompt.messages
    return system.content, user.content


# Translation


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hi {name}, {0} and {}", ["{name}", "{0}", "{}"]),
        ("%s of %(count)d at %1$s, %.2f or %d%%", ["%s", "%(count)d", "%1$s", "%.2f", "%d"]),
        ("cost ${price} in {{ currency }}", ["${price}", "{{ currency }}"]),
        ('<a href="x">here</a><br/>', ['<a href="x">', "</a>", "<br/>"]),
        ("{value!r:>10} {a.b[0]}", ["{value!r:>10}", "{a.b[0]}"]),
        ("50% sure, 100%discount, a < b > c, { not this }", []),
    ],
)
def test_placeholders(text: str, found: list[str]) -> None:
    assert placeholders(text) == found


def test_lost_placeholders_are_counted_one_by_one() -> None:
    assert missing_placeholders("{a} {b} {a} %s", "%s {a}") == ["{b}", "{a}"]


@given(st.lists(st.sampled_from(["{a}", "{b}", "%s", "<b>", "word"])), st.randoms())
def test_no_placeholder_is_lost_by_moving_words(words: list[str], rng: random.Random) -> None:
    moved = rng.sample(words, len(words))
    assert missing_placeholders(" ".join(words), " ".join(moved)) == []
    expected = Counter(word for word in words if word != "word")
    assert Counter(missing_placeholders(" ".join(words), "")) == expected


def test_the_answer_says_which_placeholders_it_lost() -> None:
    task = TASKS["translation"]
    request = TranslationRequest(text="Open {door} with <b>force</b>")
    response = task.parse(request, Generation(text=" Öffne {Tür} mit <b>Gewalt "), TranslationState())
    assert response.translation == "Öffne {Tür} mit <b>Gewalt"
    assert response.missing_placeholders == ["{door}", "</b>"]


def test_a_request_needs_only_text_because_the_state_knows_the_languages() -> None:
    task = TASKS["translation"]
    rows = [{"source": f"text {i}", "target": "x", "source_language": "en", "target_language": "de"} for i in range(3)]
    rows.append({"source": "other", "target": "x", "source_language": "en", "target_language": "fr"})
    state = task.fit_state([task.parse_row(row) for row in rows])
    assert system_and_user(task.prompt(TranslationRequest(text="Hi"), state)) == (
        "Translate from English to German.",
        "Hi",
    )
    other = TranslationRequest(text="Hi", target_language="pt-BR")
    assert system_and_user(task.prompt(other, state))[0] == "Translate from English to Portuguese (pt-BR)."
    assert system_and_user(task.prompt(TranslationRequest(text="Hi"), TranslationState()))[0] == "Translate."


def test_longer_texts_get_more_tokens_and_one_line_stays_one_line() -> None:
    task = TASKS["translation"]
    short = task.decoding(TranslationRequest(text="Hi"), TranslationState())
    long = task.decoding(TranslationRequest(text="Hi there\n" * 20), TranslationState())
    assert isinstance(short, Generate)
    assert isinstance(long, Generate)
    assert short.sampling.max_tokens < long.sampling.max_tokens
    assert short.sampling.stop == ("\n",)
    assert long.sampling.stop == ()


def test_copies_of_a_template_stay_on_one_side() -> None:
    task = TASKS["translation"]
    rows = [{"source": f"{verb} {{x{n}}} {n}!", "target": "x"} for verb in "abcdefgh" for n in range(5)]
    split = task.split([task.parse_row(row) for row in rows], test_rows=10, seed=1)
    sides = [{example.source[0] for example in side} for side in (split.train, split.test)]
    assert len(split.test) == 10
    assert not sides[0] & sides[1]


GROUPS = st.lists(
    st.tuples(st.sampled_from("ABCDEF"), st.sampled_from(["yes", "no", "maybe {x}", "Maybe 7", "on", "off", "open"])),
    min_size=4,
    max_size=60,
)


@settings(deadline=None)
@given(GROUPS, st.integers(1, 20), st.integers(0, 3))
def test_neither_group_nor_text_is_on_both_sides(rows: list[tuple[str, str]], test_rows: int, seed: int) -> None:
    task = TASKS["translation"]
    examples = [TranslationExample(source=text, target="x", group=group) for group, text in rows]
    split = task.split(examples, test_rows=test_rows, seed=seed)
    assert not {example.group for example in split.train} & {example.group for example in split.test}
    texts = [{task.group_key(e.model_copy(update={"group": None})) for e in side} for side in (split.train, split.test)]
    assert not texts[0] & texts[1]
    assert split.train


def test_placeholder_rate_and_bleu_stand_in_the_report() -> None:
    task = TASKS["translation"]
    example = TranslationExample(source="{a} {b}", target="{a} {b} gut", target_language="ja")
    response = task.parse(TranslationRequest(text=example.source), Generation(text="{a} gut"), TranslationState())
    report = task.evaluate([(example, response)], TranslationState())
    assert report.metrics["placeholders_kept"].value == 0.5
    assert "tok:char" in (report.metrics["bleu"].signature or "")
    assert report.primary == "chrf"


@pytest.mark.parametrize(
    ("language", "answer", "reference"),
    [
        ("Chinese", "你好吗我的朋友", "你好吗我的朋友们"),
        ("zho_Hans", "你好吗我的朋友", "你好吗我的朋友们"),
        ("Chinese (Traditional)", "你好吗我的朋友", "你好吗我的朋友们"),
        ("simplified chinese", "你好吗我的朋友", "你好吗我的朋友们"),
        ("zh-TW", "你好吗我的朋友", "你好吗我的朋友们"),
        ("Japanese", "電気をつけてください", "電気を消してください"),
        ("jpn", "電気をつけてください", "電気を消してください"),
        (" Korean ", "불을켜주세요지금", "불을켜주세요어서"),
        ("kor", "불을켜주세요지금", "불을켜주세요어서"),
        ("Thai", "สวัสดีครับผม", "สวัสดีครับคุณ"),
        ("tha", "สวัสดีครับผม", "สวัสดีครับคุณ"),
    ],
)
def test_bleu_counts_characters_where_words_have_no_spaces(language: str, answer: str, reference: str) -> None:
    task = TASKS["translation"]
    example = TranslationExample(source="Hello", target=reference, target_language=language)
    response = task.parse(TranslationRequest(text="Hello"), Generation(text=answer), TranslationState())
    assert task.evaluate([(example, response)], TranslationState()).metrics["bleu"].value > 20


@pytest.mark.parametrize(
    ("tag", "code"),
    [("de_AT", "de"), ("German", "de"), ("ger", "de"), ("Norwegian Bokmål", "nb"), ("tlh-Latn", "tlh"), ("", "")],
)
def test_languages_have_codes(tag: str, code: str) -> None:
    assert language_code(tag) == code


def test_an_untranslated_text_is_the_baseline() -> None:
    task = TASKS["translation"]
    rows = [
        TranslationExample(source="Home Assistant", target="Home Assistant"),
        TranslationExample(source="Turn off the lights", target="Licht ausschalten"),
    ]
    copied = task.baselines(rows, task.fit_state(rows))["copy"]
    assert copied.primary == "chrf"
    assert 20 < copied.score < 80
    assert task.baselines(rows[:1], task.fit_state(rows))["copy"].score == pytest.approx(100)


# Domain QA


def test_confidence_is_the_geometric_mean_of_the_token_probabilities() -> None:
    task = TASKS["domain-qa"]
    request = QaRequest(question="?")
    state = task.fit_state([])
    output = Generation(text=" yes ", logprobs=(math.log(0.9), math.log(0.4)))
    assert task.parse(request, output, state).confidence == pytest.approx(0.6)
    assert task.parse(request, output, state).answer == "yes"
    assert task.parse(request, Generation(text=""), state).confidence == 0
    assert task.parse(request, Generation(text="x", logprobs=(1e-9,)), state).confidence == 1
    decoding = task.decoding(request, state)
    assert isinstance(decoding, Generate)
    assert decoding.sampling.logprobs == 0


@pytest.mark.parametrize("answers", ["So.", ["So."], {"text": ["So."], "answer_start": [3]}])
def test_answers_may_be_one_text_several_or_as_in_squad_tables(answers: Any) -> None:
    assert TASKS["domain-qa"].parse_row({"question": "Why?", "answers": answers}).answers == ["So."]


@pytest.mark.parametrize("answers", ["", "  ", [], ["x", " "], 7])
def test_answers_that_are_none(answers: Any) -> None:
    with pytest.raises(ValueError, match="answers"):
        TASKS["domain-qa"].parse_row({"question": "Why?", "answers": answers})


def test_a_question_asked_twice_is_on_one_side() -> None:
    task = TASKS["domain-qa"]
    rows = [{"q": f"{case} fence {n}?", "a": str(n)} for n in range(10) for case in ("The", "the", "")]
    split = task.split([task.parse_row(row) for row in rows], test_rows=9, seed=0)
    assert {example.answers[0] for example in split.train}.isdisjoint(example.answers[0] for example in split.test)
    assert len(split.test) == 9


def test_context_is_part_of_the_prompt() -> None:
    task = TASKS["domain-qa"]
    prompt = task.prompt(QaRequest(question="How high?", context="Two metres."), task.fit_state([]))
    assert system_and_user(prompt) == ("Answer the question from the text.", "Two metres.\n\nHow high?")


# Recommendation


def examples(*rows: dict[str, Any]) -> list[HistoryExample]:
    return [TASKS["recommendation"].parse_row(row) for row in rows]


def test_the_last_item_of_every_user_leaves_training_and_some_are_measured() -> None:
    task = TASKS["recommendation"]
    users = examples(*histories(12))
    split = task.split(users, test_rows=5, seed=0)
    assert len(split.test) == 5
    assert {example.user: example.history for example in split.train} == {
        user.user: user.history[:-1] for user in users
    }
    by_user = {user.user: user for user in users}
    for example in split.test:
        assert [*example.history, example.next] == by_user[example.user].history
    assert task.split(list(reversed(users)), test_rows=5, seed=0).test == split.test
    assert task.split(users, test_rows=5, seed=1).test != split.test


def test_only_users_whose_loss_is_watched_lose_an_item_to_it_and_it_is_learnt_nowhere() -> None:
    task = TASKS["recommendation"]
    users = examples(*({"user": f"u{user}", "history": [f"{user}: {n}" for n in range(40)]} for user in range(12)))
    train = task.split(users, test_rows=5, seed=0).train
    state = task.fit_state(train)
    split = task.validation_split(train, validation_rows=3, seed=1)
    watched = {example.user for example in split.test}
    assert len(watched) == 3
    assert [(example.user, len(example.sequence)) for example in split.train] == [
        (user.user, 38 if user.user in watched else 39) for user in users
    ]
    pairs = list(task.validation_pairs(split.test, state))
    assert sorted(pair.target for pair in pairs) == sorted(f"{user[1:]}: 38\n" for user in watched)
    assert all(len((pair.prompt.text or "").splitlines()) == 16 for pair in pairs)
    learnt = "".join(pair.target for pair in task.training_pairs(split.train, state))
    assert not any(pair.target in learnt for pair in pairs)


def test_the_loss_on_given_histories_is_that_of_their_last_items() -> None:
    task = TASKS["recommendation"]
    given = examples({"history": ["a", "b", "c"]}, {"history": ["d"]}, {"history": ["e"], "next": "f"})
    pairs = [(pair.prompt.text, pair.target) for pair in task.validation_pairs(given, Catalogue())]
    assert pairs == [("a\nb\n", "c\n"), ("e\n", "f\n")]


def test_timestamps_put_the_history_in_order() -> None:
    (example,) = examples({"user": 7, "history": ["b", "c", "a"], "timestamps": [2, 3, 1]})
    assert (example.user, example.history) == ("7", ["a", "b", "c"])
    with pytest.raises(ValueError, match="2 titles and 1 timestamps"):
        examples({"history": ["a", "b"], "timestamps": [1]})


def test_a_row_given_twice_does_not_leak_what_is_held_out() -> None:
    task = TASKS["recommendation"]
    rows = [{"history": ["a", "b", "c"]}, {"history": ["a", "b", "c"]}, {"user": "x", "history": ["d", "e"]}]
    rows += [{"user": "x", "history": ["f"]}]
    split = task.split(examples(*rows), test_rows=10, seed=0)
    assert sorted((*example.history, example.next) for example in split.test) == [("a", "b", "c"), ("d", "e", "f")]
    assert sorted(example.history for example in split.train) == [["a", "b"], ["d", "e"]]


def test_every_item_but_the_first_is_learnt_once_from_those_before_it() -> None:
    task = TASKS["recommendation"]
    items = [f"item {n:02}" for n in range(40)]
    train = examples({"user": "u", "history": items})
    pieces = sorted(
        [*(pair.prompt.text or "").splitlines(), *pair.target.splitlines()]
        for pair in task.training_pairs(train, task.fit_state(train))
    )
    assert all(len(piece) <= 17 for piece in pieces)
    assert [item for piece in pieces for item in piece[1:]] == items[1:]
    assert [piece[0] for piece in pieces[1:]] == [piece[-1] for piece in pieces[:-1]]


def test_training_reads_what_serving_asks() -> None:
    task = TASKS["recommendation"]
    train = examples({"user": "u", "history": FILMS[:3]})
    (pair,) = task.training_pairs(train, Catalogue())
    asked = task.prompt(RecommendationRequest(history=FILMS[:2]), Catalogue())
    assert asked.text == f"{FILMS[0]}\n{FILMS[1]}\n"
    assert f"{pair.prompt.text}{pair.target}" == f"{asked.text}{FILMS[2]}\n"


def test_measured_against_49_items_that_the_user_never_took() -> None:
    task = TASKS["recommendation"]
    (example,) = examples({"user": "u", "history": FILMS[:5], "next": FILMS[5]})
    state = Catalogue(counts={f"other {n}": 1 for n in range(200)} | dict.fromkeys(FILMS, 1))
    request = task.request_for(example, state)
    assert len(set(request.candidates)) == len(request.candidates) == request.k == 50
    assert FILMS[5] in request.candidates
    assert not set(request.candidates) & set(FILMS[:5])
    assert task.request_for(example, state) == request


def test_ranks_by_likelihood_normalised_by_length() -> None:
    task = TASKS["recommendation"]
    request = RecommendationRequest(history=["a"], candidates=["long", "short", "bad"], k=2)
    scored = Scores(
        candidates=(
            CandidateScore(text="long", logprob=-1.2, tokens=13),
            CandidateScore(text="short", logprob=-1.0, tokens=1),
            CandidateScore(text="bad", logprob=-9.0, tokens=1),
        )
    )
    response = task.parse(request, scored, Catalogue())
    scores = {item.title: item.score for item in response.items}
    assert scores == {"long": pytest.approx(-1.2 / 3**0.2), "short": -1.0}
    assert task.text_of(response) == "1. long\n2. short"


def test_without_candidates_it_ranks_the_catalogue_without_the_history() -> None:
    task = TASKS["recommendation"]
    state = Catalogue(counts={"a": 2, "b": 1, "c": 1})
    decoding = task.decoding(RecommendationRequest(history=["b"]), state)
    assert decoding == Score(candidates=("a", "c"), ending="\n")
    with pytest.raises(RequestError, match="send `candidates`"):
        task.decoding(RecommendationRequest(history=["b"]), Catalogue())
    with pytest.raises(RequestError, match="holds the whole catalogue"):
        task.decoding(RecommendationRequest(history=["a", "b", "c"]), state)


def test_report_by_hand() -> None:
    task = TASKS["recommendation"]
    pairs = []
    for rank in (1, 3, 11):
        titles = [f"t{n}" for n in range(1, 13)]
        (example,) = examples({"history": ["a"], "next": f"t{rank}"})
        scores = tuple(CandidateScore(text=title, logprob=-n, tokens=1) for n, title in enumerate(titles))
        request = RecommendationRequest(history=["a"], candidates=titles, k=12)
        pairs.append((example, task.parse(request, Scores(candidates=scores), Catalogue())))
    values = {name: metric.value for name, metric in task.evaluate(pairs, Catalogue()).metrics.items()}
    assert values == pytest.approx(
        {"hit@1": 1 / 3, "hit@10": 2 / 3, "ndcg@10": (1 + 0.5) / 3, "mrr": (1 + 1 / 3 + 1 / 11) / 3}
    )


def test_baselines_are_expectations() -> None:
    task = TASKS["recommendation"]
    (example,) = examples({"history": ["h"], "next": "n"})
    # Popularity puts p first; then n and q in either order.
    reports = task.baselines([example], Catalogue(counts={"p": 9, "q": 3, "n": 3, "h": 5}))
    assert reports["popularity"].metrics["mrr"].value == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert reports["popularity"].metrics["hit@1"].value == 0
    assert reports["random"].metrics["hit@1"].value == pytest.approx(1 / 3)
    assert reports["random"].metrics["mrr"].value == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_titles_from_text() -> None:
    task = TASKS["recommendation"]
    assert task.request_from_text("Scion (1990); Bark, The (1991)\n").history == ["Scion (1990)", "Bark, The (1991)"]
    assert examples({"history": "Scion (1990) | Bark, The (1991)"})[0].history == ["Scion (1990)", "Bark, The (1991)"]
    with pytest.raises(RequestError, match="name at least one item"):
        task.request_from_text(" ; ")


# Chat

PARTS = [{"type": "text", "text": "Hi\n\n"}, {"type": "text", "text": "you"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hi\n\nyou"}, {"role": "assistant", "content": "Ho"}]},
        {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "Ho"}]},
        {"instruction": "Hi", "input": "you", "output": "Ho"},
        {"prompt": "Hi\n\nyou", "completion": "Ho", "id": 7},
        {"prompt": "Hi\n\nyou", "response": "Ho"},
    ],
)
def test_chat_rows_of_several_shapes(row: dict[str, Any]) -> None:
    task = TASKS["chat"]
    example = task.parse_row(row)
    assert example.messages == [Message(role="user", content="Hi\n\nyou"), Message(role="assistant", content="Ho")]
    assert task.target(example) == "Ho"
    assert task.prompt(task.request_for(example, task.fit_state([])), task.fit_state([])).messages == (
        Message(role="user", content="Hi\n\nyou"),
    )


def test_developer_messages_are_system_messages() -> None:
    row = [{"role": "developer", "content": "Be kind"}, {"role": "user", "content": "Hi"}]
    example = TASKS["chat"].parse_row({"messages": [*row, {"role": "assistant", "content": "Ho"}]})
    assert example.messages[0] == Message(role="system", content="Be kind")


USER = {"role": "user", "content": "Warm?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Kiel"}'}}
ANSWERED = [
    {"role": "tool", "tool_call_id": "c1", "content": "21"},
    {"role": "assistant", "content": "Yes", "weight": 1},
]


def test_a_turn_is_learned_behind_the_calls_that_led_to_it() -> None:
    task, tools = TASKS["chat"], [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    asked = {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0}
    example = task.parse_row({"messages": [USER, asked, *ANSWERED], "tools": tools})
    prompt = task.prompt(task.request_for(example, task.fit_state([])), task.fit_state([]))
    call = ToolCall(id="c1", name="weather", arguments='{"place": "Kiel"}')
    assert prompt.tools == tuple(tools)
    assert prompt.messages[1:] == (
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="21", tool_call_id="c1"),
    )
    assert task.target(example) == "Yes"


def called_with(arguments: str) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, *ANSWERED]}


def test_a_call_without_arguments_has_an_empty_object_of_them() -> None:
    assert TASKS["chat"].parse_row(called_with("")).messages[1].tool_calls[0].arguments == "{}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (called_with("Kiel"), "arguments of the call of 'weather' are no JSON object: 'Kiel'"),
        (called_with('["Kiel"]'), "no JSON object"),
        (called_with("null"), "no JSON object"),
        ({"text": "Hi"}, "a row needs `messages`.*this one has text"),
        (
            {"messages": [{"role": "assistant", "content": "Ho"}, {"role": "user", "content": "Hi"}]},
            "last message must",
        ),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}]}, "is blank"),
        ({"messages": [{"role": "robot", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}, "role"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]}, "content"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [USER, {"role": "assistant", "content": "Ho", "weight": 0}]}, "its weight is 0"),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}, "calls a tool"),
        ({"messages": [USER, {"role": "assistant", "content": "", "function_call": {}}]}, "is blank"),
        ({"messages": [USER, {"role": "assistant", "function_call": {"name": "f"}}]}, "told in `tool_calls`"),
        ({"messages": [USER, {"role": "assistant", "content": "Ho"}], "functions": [{}]}, "told as `tools`"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}, *ANSWERED]}, "tool_calls"),
    ],
)
def test_chat_rows_that_are_none(row: dict[str, Any], message: str) -> None:
    with pytest.raises((RowError, ValueError), match=message):
        TASKS["chat"].parse_row(row)


def test_a_conversation_is_taken_verbatim() -> None:
    task = TASKS["chat"]
    assert task.request_from_messages([Message(role="user", content="Hi")]) is None
    assert task.request_from_text("Hi") == ChatRequest(messages=[Message(role="user", content="Hi")])


@pytest.mark.parametrize("name", list(TASKS))
def test_blank_text_is_refused_with_a_sentence(name: str) -> None:
    with pytest.raises(RequestError):
        TASKS[name].request_from_text("  \n")


@pytest.mark.parametrize("name", ["translation", "domain-qa", "recommendation"])
def test_the_last_user_turn_of_a_conversation_is_the_request(name: str) -> None:
    task = TASKS[name]
    turns = [("user", "first"), ("user", "second"), ("assistant", "third")]
    messages = [Message(role=role, content=content) for role, content in turns]  # type: ignore[arg-type]
    assert task.request_from_messages(messages) == task.request_from_text("second")
    with pytest.raises(RequestError, match="no user message"):
        task.request_from_messages(messages[2:])
