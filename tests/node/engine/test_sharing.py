"""What requests share of each other's computation on a tiny random model, and what they must never share."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from openlora.node.engine.engine import Engine
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.messages import (
    AdapterLoaded,
    AdapterUse,
    GetStatus,
    LoadAdapter,
    Sampling,
    Status,
    Submit,
)
from openlora.node.engine.models.config import DecoderConfig
from tests.node.engine.tiny import write_adapter, write_model

GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
LIMITS = EngineLimits(kv_tokens=4096, page_tokens=4, max_batch_tokens=256)
A, B = AdapterUse("a", 0.5), AdapterUse("b", 0.5)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=[{}, {"model_type": "mistral", "sliding_window": 13}], ids=["llama", "mistral"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, and the adapters a and b."""
    root = tmp_path_factory.mktemp("tiny")
    config = DecoderConfig.from_path(write_model(root / "model", **request.param))
    write_adapter(root / "a", config, 1)
    write_adapter(root / "b", config, 2, rank=7)
    return root


def load(files: Path, limits: EngineLimits = LIMITS) -> Engine:
    engine = Engine.load(files / "model", limits=limits)
    for key in ("a", "b"):
        (loaded,) = engine.handle(LoadAdapter(key=key, path=str(files / key)))
        assert isinstance(loaded, AdapterLoaded)
    return engine


@pytest.fixture
def engine(files: Path) -> Engine:
    return load(files)


def prompt_of(seed: int, length: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(3, 97), k=length))


def submit(
    name: str, prompt: Iterable[int], *adapters: AdapterUse, tenant: str = "", sampling: Sampling = GREEDY
) -> Submit:
    return Submit(request_id=name, prompt=tuple(prompt), sampling=sampling, adapters=adapters, tenant=tenant)


def answers(engine: Engine, *submits: Submit) -> dict[str, list[int]]:
    """The tokens of each, run together."""
    for one in submits:
        assert engine.handle(one) == []
    found: dict[str, list[int]] = {one.request_id: [] for one in submits}
    while engine.has_work:
        step = engine.step()
        engine.check_integrity()
        for token in step.tokens if step else ():
            found[token.request_id].append(token.token_id)
    return found


def status(engine: Engine) -> Status:
    (answer,) = engine.handle(GetStatus())
    assert isinstance(answer, Status)
    return answer


def mixed() -> Sequence[Submit]:
    recipes = [(), (A,), (B,), (A, B), (AdapterUse("a", -1.0),)]
    return [submit(f"r{i}", prompt_of(i, 1 + i * 37 % 40), *recipes[i % 5]) for i in range(15)]


def test_answers_are_the_same_with_and_without_the_cache(files: Path, engine: Engine) -> None:
    expected = answers(load(files, replace(LIMITS, prefix_cache=False)), *mixed())
    assert answers(engine, *mixed()) == expected
    assert status(engine).cache_hit_tokens == 0
    assert answers(engine, *mixed()) == expected
    assert status(engine).cache_hit_tokens == sum((len(one.prompt) - 1) // 4 * 4 for one in mixed())


def test_a_cache_too_small_for_all_changes_no_answer(files: Path, engine: Engine) -> None:
    small = load(files, EngineLimits(kv_tokens=160, page_tokens=4, max_batch_tokens=32, max_running=8))
    expected = answers(engine, *mixed())
    for _ in range(3):
        assert answers(small, *mixed()) == expected
        assert answers(small, mixed()[-1])["r14"] == expected["r14"]
    assert status(small).preemptions > 0
    assert status(small).cache_hit_tokens > 0
    assert status(small).kv_tokens_free == 160


def test_a_conversation_goes_on_from_the_cache(files: Path, engine: Engine) -> None:
    first = submit("first", prompt_of(4, 21), A)
    second = submit("second", (*first.prompt, *answers(engine, first)["first"], *prompt_of(5, 6)), A)
    assert answers(engine, second) == answers(load(files), second)
    assert status(engine).cache_hit_tokens == 32  # of 21 + 12 tokens


def test_no_page_is_shared_between_tenants_recipes_or_weights(engine: Engine) -> None:
    prompt = prompt_of(4, 40)
    for tenant, recipe in [
        ("t", ()),
        ("u", ()),
        ("t", (A,)),
        ("u", (A,)),
        ("t", (AdapterUse("a", 0.25),)),
        ("t", (A, B)),
        ("t", (B, A)),
    ]:
        answers(engine, submit("x", prompt, *recipe, tenant=tenant))
    assert status(engine).cache_hit_tokens == 0
    answers(engine, submit("x", prompt, B, A, tenant="t"))
    assert status(engine).cache_hit_tokens == 36


def test_a_name_published_anew_never_finds_the_old_ones_pages(files: Path, engine: Engine) -> None:
    """Two hundred times, and pages of both versions are cached all the time."""
    three = msgspec.structs.replace(GREEDY, max_tokens=3)
    old, new = (answers(engine, submit("x", prompt_of(9, 22), AdapterUse(key), sampling=three))["x"] for key in "ab")
    assert all(one != other for one, other in zip(old, new, strict=True))
    stale = 0
    for reload in range(200):
        (loaded,) = engine.handle(LoadAdapter(key="k", path=str(files / "ab"[reload % 2])))
        assert isinstance(loaded, AdapterLoaded)
        found = answers(engine, submit("x", prompt_of(9, 22), AdapterUse("k"), sampling=three))["x"]
        stale += sum(token != right for token, right in zip(found, (old, new)[reload % 2], strict=True))
    assert stale == 0
    assert status(engine).cache_hit_tokens == 200 * 20  # equal numbers are found under whatever name


def test_what_was_computed_for_a_poisoned_request_is_not_shared(files: Path, tmp_path: Path, engine: Engine) -> None:
    tensors = load_file(
        write_adapter(tmp_path / "x", DecoderConfig.from_path(files / "model"), 5).joinpath("adapter_model.safetensors")
    )
    save_file({name: tensor * 1e30 for name, tensor in tensors.items()}, tmp_path / "x" / "adapter_model.safetensors")
    engine.handle(LoadAdapter(key="x", path=str(tmp_path / "x")))
    for _ in range(2):
        engine.handle(submit("x", prompt_of(0, 20), AdapterUse("x")))
        engine.step()
        assert [refused.code for refused in engine.take_refused()] == ["not_finite"]
    assert status(engine).cache_hit_tokens == 0
    assert status(engine).kv_tokens_cached == 0


def test_an_idle_engine_checks_its_books_when_asked(engine: Engine) -> None:
    answers(engine, *mixed())
    assert status(engine).kv_tokens_cached > 0
    engine._blocks._holders[3] += 1
    with pytest.raises(AssertionError, match="page 3 is counted as held by"):
        engine.handle(GetStatus())
