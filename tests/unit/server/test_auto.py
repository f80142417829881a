"""``auto`` without plugins: who is chosen by the text, how sure it is, and what happens where nothing fits."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from graft_server.registry.records import Lineage
from graft_server.routing.auto.features import features
from graft_server.routing.auto.index import ProfileIndex
from graft_server.routing.auto.profiles import Profile, profile_of
from graft_server.services import Services
from support.scripted_engine import FINGERPRINT
from support.serving import adapter_files, in_memory, make_services, parts

LAMPS = [f"The {colour} lamp in the {room} is switched {way}" for colour in ("red", "green", "blue")
         for room in ("kitchen", "hall", "bedroom") for way in ("on", "off")]  # fmt: skip
PERMITS = [f"Do I need a building permit for a {size} {thing}?" for size in ("small", "large", "new")
           for thing in ("fence", "garage", "balcony", "shed", "wall", "pool")]  # fmt: skip


async def train(services: Services, client: httpx.AsyncClient, folder: Path, name: str, task: str, rows: list[Any]):
    """A version as a training job would have published it: with its dataset in its lineage."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    response = await client.post("/api/datasets", data={"task": task}, files=parts({"rows.jsonl": content}))
    assert response.status_code == 201, response.text
    source = Path(tempfile.mkdtemp(dir=folder))
    state = {"source_language": "English", "target_language": name} if task == "translation" else None
    for file, written in adapter_files(state=state).items():
        (source / file).write_bytes(written)
    lineage = Lineage(task=task, method="lora", base_model="tiny", base_fingerprint=FINGERPRINT, rank=8)
    return services.registry.publish(name, source, replace(lineage, dataset=response.json()["id"]))


def translations(target: str) -> list[dict[str, str]]:
    return [{"source": text, "target": "x", "source_language": "English", "target_language": target} for text in LAMPS]


async def catalogue(services: Services, client: httpx.AsyncClient, folder: Path) -> None:
    await train(services, client, folder, "german", "translation", translations("German"))
    await train(services, client, folder, "french", "translation", translations("French"))
    await train(services, client, folder, "permits", "domain-qa", [{"question": q, "answers": "x"} for q in PERMITS])


@pytest.fixture
async def client(services: Services, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with in_memory(services) as client:
        await catalogue(services, client, tmp_path)
        yield client


async def ask(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/api/predict", json={"adapter": "auto", **body})
    assert response.status_code == 200, response.text
    return {**response.json(), "note": response.headers["x-graft-route"]}


async def test_the_text_chooses_and_says_how_sure_it_is(client: httpx.AsyncClient) -> None:
    answer = await ask(client, text="Do I need a permit for a small garage?")
    assert (answer["adapter"], answer["task"]) == ("permits@1", "domain-qa")
    routing = answer["routing"]
    assert routing["adapter"] == "permits@1"
    assert 0.067 < routing["confidence"] <= 1
    assert routing["runner_up_confidence"] < routing["confidence"]
    assert answer["note"].startswith("the text chose permits@1 with confidence 0.")
    german = await ask(client, text="Translate from English to German. The green lamp is off")
    assert (german["adapter"], german["routing"]["runner_up"]) == ("german@1", "french@1")


async def test_a_conversations_system_message_counts(client: httpx.AsyncClient) -> None:
    for language in ("German", "French"):
        messages = [
            {"role": "system", "content": f"Translate from English to {language}."},
            {"role": "user", "content": "The blue lamp in the hall is on"},
        ]
        response = await client.post("/v1/chat/completions", json={"model": "auto", "messages": messages})
        assert response.json()["model"] == f"{language.lower()}@1"
        assert "runner-up" in response.headers["x-graft-route"]


async def test_a_document_counts_with_all_its_texts(client: httpx.AsyncClient) -> None:
    document = {"text": "The blue lamp in the hall is on", "target_language": "French"}
    assert (await ask(client, task="translation", input=document))["adapter"] == "french@1"


async def test_what_fits_nothing_goes_to_the_base(client: httpx.AsyncClient) -> None:
    for text in ("kubectl CrashLoopBackOff ingress", "", "1234 +"):
        answer = await ask(client, task="chat" if not text else None, text=text or "?")
        assert answer["adapter"] == "base"
        assert "no router chose an adapter" in answer["note"]


async def test_a_new_adapter_takes_part_at_once_and_a_deleted_one_no_more(
    services: Services, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    text = "Which knight moves in the Sicilian opening?"
    assert (await ask(client, text=text))["adapter"] == "base"
    rows = [{"question": f"Which {piece} moves in the {name} opening?", "answers": "x"}
            for piece in ("knight", "bishop", "pawn") for name in ("Sicilian", "Spanish", "French")]  # fmt: skip
    version = await train(services, client, tmp_path, "chess", "domain-qa", rows)
    assert (await ask(client, text=text))["adapter"] == "chess@1"
    # The profile outlives the dataset, and a new process finds it.
    assert (await client.delete(f"/api/datasets/{version.lineage.dataset}")).status_code == 204
    services.profiles._known = type(services.profiles._known)(0, {}, {}, ProfileIndex({}))
    assert (await ask(client, text=text))["adapter"] == "chess@1"
    assert (await client.delete("/api/adapters/chess")).status_code == 204
    assert (await ask(client, text=text))["adapter"] == "base"


async def test_the_promoted_version_answers(services: Services, client: httpx.AsyncClient, tmp_path: Path) -> None:
    rows = [{"question": question, "answers": "x"} for question in PERMITS]
    await train(services, client, tmp_path, "permits", "domain-qa", rows)
    text = "Do I need a building permit for a fence?"
    assert (await ask(client, text=text))["adapter"] == "permits@2"
    assert (await client.post("/api/adapters/permits/aliases/production", json={"version": 1})).status_code == 200
    assert (await ask(client, text=text))["adapter"] == "permits@1"


async def test_the_caller_is_asked_where_that_is_configured(tmp_path: Path) -> None:
    services = make_services(tmp_path, auto_below="ask")
    async with in_memory(services) as client:
        await catalogue(services, client, tmp_path)
        for text, reason in (
            ("The green lamp in the kitchen is switched off", "and .* fit alike"),
            ("kubectl ingress controller", "no adapter was trained on anything like it|below"),
        ):
            response = await client.post("/api/predict", json={"adapter": "auto", "text": text})
            assert (response.status_code, response.json()["code"]) == (409, "undecided")

            assert re.search(reason, response.json()["detail"])
        assert (await ask(client, text="Do I need a permit for a small garage?"))["adapter"] == "permits@1"
    services.registry.close()


async def test_a_decision_by_the_text_is_explained(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/explain", json={"text": "Do I need a permit for a small garage?"})
    steps = response.json()["steps"]
    assert steps[0] == "the request leaves the adapter to its text (`auto`)"
    assert any("similar to what permits@1 was trained on" in step for step in steps)
    assert steps[-2].startswith("the text chose permits@1")


def test_a_damaged_profile_is_told(tmp_path: Path) -> None:
    profile = profile_of(["one two three"])
    assert profile is not None
    profile.save(tmp_path / "p.safetensors")
    loaded = Profile.load(tmp_path / "p.safetensors")
    assert np.array_equal(loaded.indices, profile.indices)
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]
    (tmp_path / "p.safetensors").write_bytes((tmp_path / "p.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        Profile.load(tmp_path / "p.safetensors")


def test_a_text_is_its_own_best_match_and_nothing_is_nobodys() -> None:
    texts = {"lamps": LAMPS, "permits": PERMITS}
    index = ProfileIndex({name: profile for name, each in texts.items() if (profile := profile_of(each))})
    for name, each in texts.items():
        for text in each:
            best = index.match(text)[0]
            assert best.name == name
            assert 0 < best.confidence <= 1
    assert index.match("") == index.match("!?") == []
    assert ProfileIndex({}).match("lamp") == []
    assert profile_of(["", "?!"]) is None


def test_features_are_sorted_and_a_long_text_is_cut() -> None:
    indices, weights = features("a lamp, a lamp")
    assert list(indices) == sorted(set(indices))
    assert weights.max() == pytest.approx(1 + np.log(2))
    assert len(features("word " * 400)[0]) == len(features("word " * 4000)[0])


async def test_a_limited_key_chooses_among_what_it_may_see(client: httpx.AsyncClient, services: Services) -> None:
    root = (await client.post("/api/keys", json={"name": "root", "scopes": ["admin"]})).json()["key"]
    limited = services.registry.create_key("limited", ["query"], adapters=["fr*"])[1]

    async def answered(key: str, language: str) -> dict[str, Any]:
        client.headers["Authorization"] = f"Bearer {key}"
        text = f"Translate from English to {language}. The green lamp in the hall is switched off"
        return await ask(client, text=text, task="translation")

    # The limited one asks first: what it may not see is not lost to those who come after it.
    french = await answered(limited, "French")
    assert french["adapter"] == "french@1"
    assert "german" not in str(await answered(limited, "German"))
    assert (await answered(root, "German"))["adapter"] == "german@1"
    # Nor does what it is told depend on what it may not see.
    await client.delete("/api/adapters/german")
    assert (await answered(limited, "French"))["routing"] == french["routing"]


async def register(client: httpx.AsyncClient, name: str, rows: list[Any], **files: bytes) -> httpx.Response:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    sent = parts({**adapter_files(), **files}) + ([("profile", ("rows.jsonl", content))] if rows else [])
    return await client.post("/api/adapters", data={"name": name, "task": "domain-qa"}, files=sent)


async def explained(client: httpx.AsyncClient, text: str) -> list[str]:
    return (await client.post("/api/explain", json={"adapter": "auto", "text": text})).json()["steps"]


TREES = [{"question": f"May I fell a {kind} in my own garden in {month}?", "answers": "x"}
         for kind in ("birch", "maple", "willow") for month in ("March", "June", "October")]  # fmt: skip


async def test_a_version_from_elsewhere_takes_part_by_the_rows_it_is_registered_with(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    question = "May I fell a willow in June?"
    assert (await register(client, "trees", [])).status_code == 201
    steps = await explained(client, question)
    assert any(step.startswith("trees@1 takes no part: none of its versions was trained here") for step in steps)
    assert (await ask(client, text=question))["adapter"] != "trees@1"

    assert (await register(client, "trees", TREES)).status_code == 201
    assert (await ask(client, text=question))["adapter"] == "trees@2"
    assert not any("takes no part" in step for step in await explained(client, question))
    assert (await client.get("/api/datasets")).json()[0]["rows"] != len(TREES)

    # A later version that says nothing changes nothing.
    assert (await register(client, "trees", [])).status_code == 201
    assert (await ask(client, text=question))["adapter"] == "trees@3"

    bundle = (await client.get("/api/adapters/trees@2/bundle")).content
    other = make_services(tmp_path / "other")
    async with in_memory(other) as there:
        taken = await there.post("/api/bundles", files=[("files", ("b.zip", bundle))])
        assert taken.status_code == 201, taken.text
        assert (await ask(there, text=question))["adapter"] == "trees@1"
    other.registry.close()


async def test_a_profile_that_says_nothing_is_refused(client: httpx.AsyncClient) -> None:
    bad = await register(client, "trees", [{"question": 3}])
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid-data")
    empty = await register(client, "trees", [{"question": "?", "answers": "x"}], **{"profile.safetensors": b"junk"})
    assert (empty.status_code, empty.json()["code"]) == (422, "invalid-adapter")
    assert "profile.safetensors" in empty.json()["detail"]
    assert (await client.get("/api/adapters/trees")).status_code == 404


async def test_who_has_lost_its_rows_is_named(services: Services, tmp_path: Path) -> None:
    async with in_memory(services) as client:
        version = await train(services, client, tmp_path, "gone", "domain-qa", [{"question": "Why?", "answers": "x"}])
        await client.delete(f"/api/datasets/{version.lineage.dataset}")
        assert any("gone@1 takes no part: no dataset" in step for step in await explained(client, "Why?"))


def test_a_profile_from_anywhere_is_looked_through(tmp_path: Path) -> None:
    made = profile_of(LAMPS)
    assert made is not None
    order = made.indices[::-1].copy()
    nan = np.full_like(made.mean, np.nan)
    numbers = [np.array(array[0]) for array in (made.indices, made.mean, made.share)]
    for spoiled in (replace(made, indices=order), replace(made, mean=nan), replace(made, share=made.share[1:]),
                    replace(made, share=made.share * 1e30), replace(made, share=-made.share),
                    replace(made, mean=-made.mean), Profile(*numbers),
                    replace(made, indices=made.indices + features("x")[0].max() + (1 << 16))):  # fmt: skip
        spoiled.save(tmp_path / "p.safetensors")
        with pytest.raises(ValueError, match="no profile"):
            Profile.load(tmp_path / "p.safetensors")
