from __future__ import annotations

from decimal import Decimal

import pytest

from optllm_router._errors import ConfigurationError, StoreError, UnpricedModelError
from optllm_router._money import Budget
from optllm_router._types import Candidate, Price, RateLimits, Tier
from optllm_router.candidates import (
    DEFAULT_OUTPUT_TOKENS,
    read_candidates,
    shared_limits,
    unknown_model,
)
from optllm_router.config import load_settings, load_store, read_policy, read_settings
from optllm_router.policy import MatchBest, MaxSuccess, MinCost, WillingnessToPay

GPT = "openai/gpt-4o-mini"


def entry(name="mine", **params) -> dict:
    params = {
        "model": "openai/mine",
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": "2e-6",
        **params,
    }
    return {"model_name": name, "litellm_params": params}


# Candidates


def test_a_model_by_its_litellm_name():
    (candidate,) = read_candidates([GPT])
    assert (candidate.name, candidate.model) == (GPT, GPT)
    assert candidate.price.prompt == 150
    assert candidate.max_output_tokens <= DEFAULT_OUTPUT_TOKENS
    assert candidate.api_key is None


def test_an_entry_of_a_model_list():
    (candidate,) = read_candidates(
        [entry(api_key="sk-1", api_base="http://x", max_tokens=7, temperature=0)]
    )
    assert (candidate.name, candidate.model) == ("mine", "openai/mine")
    assert candidate.price == Price(Decimal(1000), Decimal(2000), "configuration")
    assert candidate.max_output_tokens == 7
    assert candidate.api_key == "sk-1"
    assert candidate.parameters == {"api_base": "http://x", "temperature": 0}
    assert "sk-1" not in repr(candidate)


def test_both_names_of_the_bound_on_an_answer():
    (candidate,) = read_candidates([entry(max_completion_tokens=9)])
    assert candidate.max_output_tokens == 9
    assert candidate.parameters == {}


def test_a_price_under_model_info():
    info = {"input_cost_per_token": 3e-6, "output_cost_per_token": 0}
    bare = {"model_name": "mine", "litellm_params": {"model": "openai/mine"}, "model_info": info}
    assert read_candidates([bare])[0].price.prompt == 3000


def test_a_price_for_long_prompts():
    (candidate,) = read_candidates([entry(input_cost_per_token_above_200k_tokens=3e-6)])
    tier = Tier(Decimal(3000), Decimal(2000), 200_000)
    assert candidate.price == Price(Decimal(1000), Decimal(2000), "configuration", tiers=(tier,))
    assert candidate.parameters == {}


def test_a_price_of_nothing_that_the_configuration_gives_is_a_price():
    (candidate,) = read_candidates([entry(input_cost_per_token=0, output_cost_per_token=0)])
    assert candidate.price == Price(Decimal(0), Decimal(0), "configuration")


def test_the_configuration_can_price_a_model_that_bills_more_than_tokens():
    with pytest.raises(UnpricedModelError, match="'perplexity/sonar' also bills"):
        read_candidates(["perplexity/sonar"])
    assert read_candidates([entry(model="perplexity/sonar")])[0].price.prompt == 1000


def test_a_deployment_is_known_by_its_base_model():
    deployment = {
        "model_name": "mine",
        "litellm_params": {"model": "azure/my-deployment", "api_base": "https://x"},
        "model_info": {"base_model": "azure/gpt-4o", "id": "1"},
    }
    (candidate,) = read_candidates([deployment])
    (base,) = read_candidates(["azure/gpt-4o"])
    assert candidate.model == "azure/my-deployment"
    assert candidate.price == base.price
    assert candidate.max_output_tokens == base.max_output_tokens
    embedding = {**deployment, "model_info": {"base_model": "azure/text-embedding-3-small"}}
    assert read_candidates([embedding])[0].operation == "embedding"


def test_what_else_an_entry_holds_is_litellm_s_business():
    assert read_candidates([{**entry(), "tags": ["x"]}]) == read_candidates([entry()])


def test_a_candidate_stands_as_it_is():
    candidate = read_candidates([entry()])[0]
    assert read_candidates([candidate]) == (candidate,)


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["a", "a", "a"], ["a", "a#2", "a#3"]),
        (["a", "b", "a"], ["a", "b", "a#2"]),
        (["a#b", "a#b"], ["a#b", "a#b#2"]),
        (["a", "a", "a#2"], ["a", "a#3", "a#2"]),
    ],
)
def test_deployments_of_one_name_are_told_apart(names, unique):
    assert [one.name for one in read_candidates([entry(name) for name in names])] == unique


def test_keys_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-from-environment")
    (candidate,) = read_candidates([entry(api_key="os.environ/MY_KEY")])
    assert candidate.api_key == "sk-from-environment"
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigurationError, match="MY_KEY, which is not set"):
        read_candidates([entry(api_key="os.environ/MY_KEY")])


@pytest.mark.parametrize(
    ("models", "shown"),
    [
        ([], r"models is \[\]"),
        (None, "models is None"),
        (5, "models is 5"),
        (GPT, f"models is '{GPT}'"),
        ({"a": 1}, "models is {'a': 1}"),
        ([None], "model entry None"),
        ([5], "model entry 5"),
        ([""], "litellm_params.model"),
        ([{}], "model entry {}"),
        ([{"model_name": "a"}], "model entry {'model_name': '...'}"),
        ([{"model_name": "a", "litellm_params": "gpt"}], "no litellm_params.model"),
        ([{"model_name": "a", "litellm_params": ["gpt"]}], "no litellm_params.model"),
        ([{"model_name": "a", "litellm_params": {"model": 5}}], "no litellm_params.model"),
        ([{**entry(), "model_info": {"mode": "rerank"}}], "'mine' is for rerank"),
        (["openai/*"], "wildcard"),
        ([entry("all/*")], "wildcard"),
        ([entry(max_tokens=0)], "max_tokens 0"),
        ([entry(max_tokens="many")], "max_tokens 'many'"),
        ([entry(max_tokens=True)], "max_tokens True"),
        ([entry(n=2)], "sets n"),
        ([entry(output_cost_per_token=None)], "only one of"),
        ([entry(input_cost_per_token=-1)], "prompt price -1"),
        ([entry(input_cost_per_token="cheap")], "prompt price 'cheap'"),
        ([entry(output_cost_per_token=float("nan"))], "completion price nan"),
    ],
)
def test_what_is_no_model_is_refused(models, shown):
    with pytest.raises(ConfigurationError, match=shown) as caught:
        read_candidates(models)
    assert "\n" not in str(caught.value)


def test_an_entry_that_is_refused_does_not_show_its_key():
    with pytest.raises(ConfigurationError) as caught:
        read_candidates([{"model_name": "a", "litellm_params": {"api_key": "sk-secret"}}])
    assert "sk-secret" not in str(caught.value)


def test_an_unpriced_model_is_refused_by_name_with_the_setting_that_would_price_it():
    with pytest.raises(UnpricedModelError, match="'openai/nobody-knows'") as caught:
        read_candidates([GPT, "openai/nobody-knows"])
    assert "input_cost_per_token" in str(caught.value)


def test_an_unknown_model_gets_the_nearest_names():
    assert "did you mean 'gpt-4o'" in str(unknown_model("gpt-4", ["gpt-4o", "claude"]))
    listed = str(unknown_model("zzzzzz", ["gpt-4o", "claude"]))
    assert "the models are 'gpt-4o', 'claude'; 'auto' chooses among them" in listed


# Policies


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("max_success", MaxSuccess()),
        ("match_best", MatchBest()),
        ("match_best:0.8", MatchBest(0.8)),
        ("min_cost:0.9", MinCost(0.9)),
        ("willingness_to_pay:0.01", WillingnessToPay(0.01)),
        (MinCost(0.5), MinCost(0.5)),
    ],
)
def test_policies_by_name(text, policy):
    assert read_policy(text) == policy


@pytest.mark.parametrize(
    "text",
    [
        *("", "best", "MAX_SUCCESS", "MaxSuccess", "max_success:1", 5, None),
        *("min_cost", "min_cost:", "min_cost:a", "min_cost:0", "min_cost:1.1", "min_cost:nan"),
        *("match_best:0.2", "match_best:nan", "willingness_to_pay", "willingness_to_pay:0"),
        *("willingness_to_pay:inf", "willingness_to_pay:nan"),
    ],
)
def test_what_is_no_policy_is_refused(text):
    with pytest.raises(ConfigurationError):
        read_policy(text)


# Settings


def test_settings_from_plain_values():
    settings = read_settings([entry()], budget="5 USD per day", policy="min_cost:0.9", store=None)
    assert settings.budgets == (Budget(Decimal(5), "day"),)
    assert settings.policy == MinCost(0.9)
    assert settings.store == "sqlite:///optllm.db"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("expected_queries", value) for value in (0, -1, 2.5, "many", True, float("nan"))],
        *[("explore", value) for value in (-1, float("nan"), float("inf"), "much", True)],
        *[("max_retries", value) for value in (-1, 1.5, "two", True)],
        *[("timeout_seconds", value) for value in (0, -1, float("nan"), float("inf"), "1m", [1])],
        *[("hedge_after_seconds", value) for value in (-1, float("inf"), "1", True)],
        *[("batch_window_ms", value) for value in (-1, float("nan"), "1", True)],
        *[("seed", value) for value in (-1, 1.5, "x", True)],
        *[("budget", value) for value in (-1, "lots", True, float("nan"))],
        *[("policy", value) for value in ("best", 5)],
        *[("predictor", value) for value in ("nope", 5, ["auto"])],
    ],
)
def test_a_setting_that_is_wrong_is_named_with_its_value(name, value):
    with pytest.raises(ConfigurationError) as caught:
        read_settings([entry()], **{name: value})
    assert name in str(caught.value)
    assert str(value).strip("[]") in str(caught.value)


def test_settings_do_not_show_the_store_s_password():
    settings = read_settings([entry()], store="postgresql://user:secret@host/db")
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ("timeout_seconds: 1e-9", "timeout_seconds '1e-9' .* that is text: write 1.0e-09, without"),
        ("explore: 1e3", "explore '1e3' .* write 1000.0, without"),
        ("max_retries: '2'", "max_retries '2' .* write 2, without"),
        ("explore: inf", "explore 'inf' must be a finite number, 0 or more$"),
    ],
)
def test_a_number_that_yaml_takes_for_text_is_told_how_to_be_written(tmp_path, settings, shown):
    path = tmp_path / "config.yaml"
    path.write_text(MODELS + f"router: {{{settings}}}")
    with pytest.raises(ConfigurationError, match=shown):
        load_settings(path)


@pytest.mark.parametrize("name", ["auto", "auto:match_best", "auto:x"])
def test_a_name_that_means_routing_is_no_model_s(name):
    one = {**entry(), "model_name": name}
    with pytest.raises(ConfigurationError, match=f"model_name '{name}' cannot be asked for"):
        read_settings([one])
    assert read_candidates([one])[0].name == name  # as a group of litellm's router may be called


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        ({"temperature": "hot"}, "litellm_params of model 'mine': temperature 'hot' must be"),
        ({"seed": 1.5}, "seed 1.5"),
        ({"top_p": "os.environ/TOP_P"}, "top_p '0.5'"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls 'yes'"),
    ],
)
def test_a_parameter_that_fails_every_call_is_found_at_the_start(monkeypatch, parameters, shown):
    monkeypatch.setenv("TOP_P", "0.5")
    with pytest.raises(ConfigurationError, match=shown):
        read_candidates([entry(**parameters)])


def test_processes_that_share_limits_keep_them_together():
    one = read_candidates([entry(rpm=7, max_parallel_requests=3)])
    assert shared_limits(one, 1) == one
    assert shared_limits(one, 3)[0].limits == RateLimits(2, None, 1)
    with pytest.raises(ConfigurationError, match="max_parallel_requests 3 of model 'mine'"):
        shared_limits(one, 4)


def test_a_setting_that_does_not_exist_gets_the_nearest():
    with pytest.raises(ConfigurationError, match="'bugdet' is unknown; did you mean 'budget'"):
        read_settings([entry()], bugdet=5)


# Files

LITELLM = """
model_list:
  - model_name: mine
    litellm_params: {model: openai/gpt-4o-mini, api_key: os.environ/SOME_KEY, rpm: 5}
  - model_name: other
    litellm_params:
      model: anthropic/claude-unheard-of
      input_cost_per_token: 0.000001
      output_cost_per_token: 1e-6
    model_info: {mode: chat}
    tags: [paid]
  - model_name: vectors
    litellm_params: {model: openai/text-embedding-3-small, api_key: os.environ/ABSENT_KEY}
  - model_name: own-vectors
    litellm_params: {model: openai/unheard-of}
    model_info: {mode: embedding}
litellm_settings: {drop_params: true, success_callback: [langfuse]}
router_settings: {routing_strategy: simple-shuffle}
general_settings: {master_key: sk-1234}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"

    def write(content: str | bytes):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_litellm_configuration_loads_unchanged(config, monkeypatch, caplog):
    monkeypatch.setenv("SOME_KEY", "sk-1")
    settings = load_settings(config(LITELLM))
    assert [candidate.name for candidate in settings.candidates] == ["mine", "other"]
    assert "ABSENT_KEY" in caplog.text
    assert "'openai/unheard-of'" in caplog.text
    assert settings.candidates[1].price.completion == 1000
    assert settings.budgets == ()


def test_models_for_embeddings_are_loaded_where_they_can_be_used(config, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-1")
    monkeypatch.setenv("ABSENT_KEY", "sk-2")
    settings = load_settings(config(LITELLM))
    assert [candidate.name for candidate in settings.candidates] == ["mine", "other", "vectors"]


def test_our_settings_live_under_router_and_arguments_win(config, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-1")
    path = config(LITELLM + "router: {budget: 5 USD per day, policy: match_best, seed: 3}\n")
    settings = load_settings(path, policy="max_success", seed=None)
    assert settings.budgets == (Budget(Decimal(5), "day"),)
    assert (settings.policy, settings.seed) == (MaxSuccess(), 3)


MODELS = "model_list: [{model_name: a, litellm_params: {model: openai/gpt-4o}}]\n"


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("", "no model_list"),
        ("just text", "no model_list"),
        ("- a\n- b", "no model_list"),
        ("model_list:", "no model_list"),
        ("model_list: gpt-4o", "no model_list"),
        ("model_list: []", "models is"),
        ("model_list: [{litellm_params: {model: whisper-1}}]", "no chat model"),
        ("model_list: [3]", "model entry 3"),
        ("model_list: [{litellm_params: {model: [3]}}]", "no litellm_params.model"),
        ("model_list: [", "line 1 is not YAML"),
        ("model_list:\n  - model_name: a\n    litellm_params: {mod", "line 3 is not YAML"),
        ("model_list:\n\t- a", "not YAML"),
        ("a: &a [*a]", "no model_list"),
        ("model_list: !!python/object/apply:os.system [echo]", "not YAML"),
        (b"\xff\xfe\x00\xd8", "cannot be read"),
        (b"model_list: \x00", "not YAML"),
        (MODELS + "router: cheap", "router must hold settings, not 'cheap'"),
        (MODELS + "router: [1]", "router must hold settings"),
        (MODELS + "router: {bugdet: 5}", "did you mean 'budget'"),
        (MODELS + "router: {models: [a]}", "'models' is unknown"),
        (MODELS + "router: {candidates: [a]}", "'candidates' is unknown"),
        (MODELS + "router: {5: 6}", "router setting 5 is unknown"),
        (MODELS + "router: {budget: -5}", "-5"),
        (MODELS + "router: {predictor: nope}", "predictor 'nope' is unknown; choose one of auto"),
        (MODELS + "router: {timeout_seconds: soon}", "timeout_seconds 'soon'"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_sentence(config, content, shown):
    with pytest.raises(ConfigurationError, match=shown) as caught:
        load_settings(config(content))
    assert "\n" not in str(caught.value)


def test_the_store_is_read_without_the_models_and_their_keys(config):
    assert load_store(config(LITELLM + "router: {store: sqlite:///x.db}")) == "sqlite:///x.db"
    assert load_store(config(LITELLM)) == "sqlite:///optllm.db"
    assert load_store(config("")) == "sqlite:///optllm.db"


@pytest.mark.parametrize("store", [5, True, ["sqlite:///x.db"]])
def test_a_store_that_is_no_text_is_refused(config, store):
    with pytest.raises(StoreError, match=r"is not a database URL") as caught:
        read_settings([entry()], store=store)
    assert f"store {store!r}" in str(caught.value)
    content = MODELS + f"router: {{store: {store}}}"
    for load in (load_settings, load_store):
        with pytest.raises(StoreError, match="is not a database URL"):
            load(config(content))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml"):
        load_settings(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings(tmp_path)


def test_a_model_for_embeddings():
    (known,) = read_candidates(["openai/text-embedding-3-small"])
    assert (known.operation, known.price.prompt, known.price.completion) == ("embedding", 20, 0)
    info = {"mode": "embedding", "input_cost_per_token": 1e-7}
    own = {"model_name": "mine", "litellm_params": {"model": "openai/mine"}, "model_info": info}
    (candidate,) = read_candidates([own])
    assert (candidate.operation, candidate.price.prompt) == ("embedding", 100)
    with pytest.raises(UnpricedModelError, match="'openai/mine'"):
        read_candidates([{**own, "model_info": {"mode": "embedding"}}])
    with pytest.raises(ConfigurationError, match="models has none for chat"):
        read_settings([own])


def test_budgets_of_one_window_that_differ_otherwise_hold_together():
    hard, soft = {"limit_usd": 5, "window": "day"}, {"limit_usd": 3, "window": "day", "hard": False}
    assert [one.name for one in read_settings([entry()], budget=[hard, soft]).budgets] == [
        "default",
        "default per day",
    ]


def test_several_budgets_hold_together():
    settings = read_settings(
        [entry()], budget=["5 USD per day", 20, {"limit_usd": 1, "window": "hour", "name": "burst"}]
    )
    assert settings.budgets == (
        Budget(Decimal(5), "day"),
        Budget(20, "total", "default per total"),
        Budget(1, "hour", "burst"),
    )
    assert read_settings([entry()], budgets=[3]).budgets == (Budget(3),)


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"budget": [5, 6]}, "two budgets are called 'default'"),
        ({"budget": [5, "6 USD per day", "7 a day"]}, "two budgets are called 'default per day'"),
        ({"budget": ["lots"]}, "'lots'"),
        ({"budget": [[5]]}, r"\[5\]"),
        ({"budget": {"window": "day"}}, "has no limit_usd"),
        ({"budget": {"limit_usd": 5, "windw": "day"}}, "'windw' is unknown; did you mean 'window'"),
        ({"budget": 5, "budgets": [6]}, "both budget and budgets"),
    ],
)
def test_budgets_that_are_none(settings, shown):
    with pytest.raises(ConfigurationError, match=shown):
        read_settings([entry()], **settings)


# What a model can do


def test_abilities_come_from_the_catalogue():
    mini, turbo = read_candidates([GPT, "openai/gpt-3.5-turbo"])
    assert (mini.context_tokens, mini.unable) == (128_000, {"audio"})
    assert (turbo.context_tokens, turbo.unable) == (16_385, {"audio", "vision", "json_schema"})


@pytest.mark.parametrize("tier", ["priority", "flex", "scale", 5])
def test_a_service_whose_price_is_not_the_standard_one_needs_its_own(tier):
    known = {"model": "openai/gpt-4o-mini", "service_tier": tier}
    with pytest.raises(ConfigurationError, match=r"service_tier .* billed at other rates"):
        read_candidates([{"litellm_params": known}])
    (candidate,) = read_candidates([entry(service_tier=tier)])
    assert candidate.parameters["service_tier"] == tier
    read_candidates([{"litellm_params": {**known, "service_tier": "default"}}])


def test_of_an_unheard_of_model_only_hearing_is_doubted():
    """Sound may have a rate of its own, which nobody told us."""
    (candidate,) = read_candidates([entry()])
    assert (candidate.context_tokens, candidate.unable) == (None, {"audio"})
    assert (candidate.transport, candidate.tags) == ("litellm", frozenset())
    assert candidate.limits == RateLimits()


def test_the_configuration_wins_over_the_catalogue():
    stated = {"supports_vision": False, "supports_audio_input": True, "max_input_tokens": 9}
    ours = {
        "unable": "streaming",
        "context_tokens": 7,
        "hidden_prompt_tokens": 5,
        "tags": ["region:eu"],
        "transport": "httpx",
    }
    one = entry(model=GPT, tags=["paid"])
    (candidate,) = read_candidates([{**one, "model_info": stated, "router": ours}])
    assert candidate.unable == {"vision", "streaming"}
    assert (candidate.context_tokens, candidate.hidden_prompt_tokens) == (7, 5)
    assert candidate.tags == {"paid", "region:eu"}
    assert candidate.transport == "httpx"
    assert candidate.parameters == {}
    (candidate,) = read_candidates([{**one, "model_info": stated}])
    assert candidate.context_tokens == 9


@pytest.mark.parametrize("place", ["litellm_params", "model_info", None])
def test_limits_stand_where_litellm_takes_them(place):
    one = entry()
    limits = {"rpm": 5, "tpm": 1000, "max_parallel_requests": 2}
    (one.setdefault(place, {}) if place else one).update(limits)
    (candidate,) = read_candidates([one])
    assert candidate.limits == RateLimits(5, 1000, 2)
    assert candidate.parameters == {}


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"rpm": 0}, "rpm 0 of model 'mine' must be a whole number"),
        ({"tpm": "many"}, "tpm 'many'"),
        ({"max_parallel_requests": True}, "max_parallel_requests True"),
        ({"model_info": {"max_input_tokens": 1.5}}, "max_input_tokens 1.5"),
        ({"router": "eu"}, "router of model 'mine' must hold settings"),
        ({"router": {"tag": ["eu"]}}, "'tag' is unknown; did you mean 'tags'"),
        ({"router": {"tags": 5}}, "tags 5 of model 'mine' must be a list of texts"),
        ({"router": {"tags": [5]}}, r"tags \[5\]"),
        ({"router": {"unable": ["flying"]}}, "unable 'flying' of model 'mine' is no capability"),
        ({"router": {"transport": "pigeon"}}, "transport 'pigeon'.*litellm or httpx"),
        ({"router": {"context_tokens": 0}}, "context_tokens 0"),
        ({"router": {"hidden_prompt_tokens": -1}}, "hidden_prompt_tokens -1"),
        ({"transport": "httpx"}, r"transport of model 'mine' .* router: {transport: \.\.\.}"),
        (entry(transport="httpx"), r"beside litellm_params: router: {transport: \.\.\.}"),
        (entry(unable=["vision"]), "unable of model 'mine' is for the router"),
    ],
)
def test_a_setting_of_a_model_that_is_wrong_is_named(settings, shown):
    with pytest.raises(ConfigurationError, match=shown):
        read_candidates([{**entry(), **settings}])


def test_candidates_are_values():
    assert read_candidates([entry()]) == read_candidates([entry()])
    assert isinstance(read_candidates([entry()])[0], Candidate)


def test_a_policy_of_ones_own_has_to_be_hashable():
    class Own(MaxSuccess):
        __hash__ = None

    assert read_policy(MaxSuccess()) == MaxSuccess()
    with pytest.raises(ConfigurationError, match="freeze its dataclass"):
        read_policy(Own())
