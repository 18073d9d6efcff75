import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from optllm_router._errors import ConfigurationError, InvalidDataError
from optllm_router._types import Prediction
from optllm_router.evaluation import (
    METHODS,
    KeptParts,
    Method,
    Setting,
    compare,
    comparison_table,
    draw_comparison,
    evaluate,
    load_recorded,
    protocol,
    summarise,
    write_report,
)
from optllm_router.evaluation.bootstrap import FIGURES, Resampler, estimate, row_of
from optllm_router.evaluation.judge import Judge
from optllm_router.evaluation.methods import TimedPrediction

SETTING = Setting(labels=0.5, resamples=40)


@pytest.fixture
def recorded(write_folder):
    """Sixty queries, three models; dearer ones are better, chance decides the rest."""
    rng = np.random.default_rng(11)
    models = {"small": (1.0, 0.3), "middle": (2.0, 0.5), "large": (5.0, 0.7)}
    outcomes = [["id", "model", "score", "cost_usd"]]
    for i in range(60):
        for model, (cost, rate) in models.items():
            outcomes.append([f"q{i}", model, int(rng.random() < rate), cost * rng.uniform(0.5, 2)])
    queries = [["id", "task", "query"], *[[f"q{i}", "t", f"text {i}"] for i in range(60)]]
    return load_recorded(write_folder(queries, outcomes))


def counting(name="counted"):
    """A method that counts how often it predicts."""
    calls = []

    def predict(split):
        calls.append(split.seed)
        p = np.random.default_rng(split.seed).random(split.test.score.shape)
        return TimedPrediction(Prediction(p, np.zeros_like(p)), 0.5, 0.25)

    return Method(name, predict), calls


# -------------------------------------------------------------------------- bootstrap


def test_a_resample_is_judged_like_the_test_set_it_stands_for(recorded):
    run = evaluate(recorded, labels=0.5, methods=[METHODS["random"]])
    counts = np.zeros(len(run.split.test), dtype=int)
    counts[[3, 3, 8, 20]] = [2, 2, 1, 3]
    drawn = np.repeat(np.arange(len(counts)), counts)

    weighted = Judge(run.split.test, counts.astype(float))
    repeated = Judge(run.split.test.select(drawn))
    result = run.methods["random"].run
    fronts = {name: run.methods[name].run.front for name in ("static", "oracle")}
    p, cost = result.timed.prediction.p[drawn], run.split.test.cost[drawn]
    again = METHODS["random"].solve(Prediction(p, np.zeros_like(p)), cost)

    first = weighted.headline(
        weighted.curve(result.front), result.deployed, weighted.references(**fronts)
    )
    second = repeated.headline(
        repeated.curve(again), result.deployed[drawn], weighted.references(**fronts)
    )
    np.testing.assert_allclose(row_of(first)[[2, 3, 4, 5]], row_of(second)[[2, 3, 4, 5]])
    assert first.auc == pytest.approx(second.auc, abs=0.02)  # same moves, taken query by query


def test_resamples_are_paired_and_centred(recorded):
    run = evaluate(recorded, labels=0.5, methods=[METHODS["random"]])
    fronts = {name: run.methods[name].run.front for name in ("static", "oracle")}

    def draws(name, seed=0):
        resampler = Resampler(run.split.test, **fronts, seed=seed, resamples=200)
        return resampler.draws(run.methods[name].run.front, run.methods[name].run.deployed)

    oracle, again = draws("oracle"), draws("oracle")
    assert oracle.shape == (200, len(FIGURES))
    np.testing.assert_array_equal(oracle, again)
    assert not np.array_equal(oracle, draws("oracle", seed=1))
    np.testing.assert_allclose(oracle[:, FIGURES.index("gap_closed")], 1.0)
    np.testing.assert_allclose(draws("static")[:, FIGURES.index("gap_closed")], 0.0)
    highest = FIGURES.index("max_accuracy")
    accuracy = run.methods["oracle"].figures.max_accuracy
    expected = math.sqrt(accuracy * (1 - accuracy) / len(run.split.test))
    assert oracle[:, highest].mean() == pytest.approx(accuracy, abs=4 * expected / math.sqrt(200))
    assert oracle[:, highest].std() == pytest.approx(expected, rel=0.3)


def test_an_interval_covers_queries_and_seeds():
    rng = np.random.default_rng(0)
    narrow = [rng.normal(centre, 0.01, 500) for centre in (0.1, 0.5, 0.9)]
    across = estimate([0.1, 0.5, 0.9], narrow)
    assert across.mean == pytest.approx(0.5)
    assert across.low < 0.2  # three draws of the lowest seed happen in one of 27 replicates
    assert across.high > 0.8
    within = estimate([0.5], [rng.normal(0.5, 0.1, 5000)])
    assert (within.low, within.high) == pytest.approx((0.5 - 0.196, 0.5 + 0.196), abs=0.02)


def test_what_mostly_does_not_exist_has_no_lower_end():
    draws = np.full(100, 0.3)
    draws[:5] = np.nan
    partly = estimate([0.3], [draws])
    assert (partly.mean, partly.low, partly.high, partly.exists) == (0.3, None, 0.3, 1)
    half = estimate([0.3, None], [draws, draws])
    assert (half.mean, half.exists) == (0.3, 1)
    never = estimate([None], [np.full(9, np.nan)])
    assert (never.mean, never.low, never.high, never.exists) == (None, None, None, 0)


# ------------------------------------------------------------------------- comparison


def test_parts_are_runs_of_the_protocol(recorded):
    method, _ = counting()
    parts = list(compare(recorded, [method], SETTING, seeds=[4, 5]))
    assert [(part.seed, part.method) for part in parts] == [
        (seed, name) for seed in (4, 5) for name in ("counted", "static", "oracle")
    ]
    alone = evaluate(recorded, labels=0.5, seed=5, methods=[counting()[0]])
    figures = replace(parts[3].figures, solve_seconds=0.0)
    assert figures == replace(alone.methods["counted"].figures, solve_seconds=0.0)
    assert parts[3].best_single == alone.best_single


def test_methods_that_share_a_prediction_predict_once(recorded):
    method, calls = counting()
    list(compare(recorded, [method, replace(method, name="twin")], SETTING, seeds=[1, 2]))
    assert calls == [1, 2]


def test_a_summary_averages_over_seeds(recorded):
    method, _ = counting()
    parts = list(compare(recorded, [method], SETTING, seeds=[0, 1, 2]))
    summary = summarise("toy", SETTING, parts)
    row = summary.rows["counted"]
    own = [part.figures for part in parts if part.method == "counted"]
    auc = row.estimates["auc"]
    assert row.seeds == (0, 1, 2)
    assert auc.mean == pytest.approx(np.mean([figures.auc for figures in own]))
    assert auc.low < auc.mean < auc.high
    ratio = row.estimates["cost_ratio"].mean
    assert ratio == pytest.approx(np.mean([figures.deployed.cost_ratio for figures in own]))
    assert row.means["fit_seconds"] == 0.5
    assert summary.rows["oracle"].means["brier"] is None
    printed = json.loads(summary.to_json())
    assert printed["methods"]["oracle"]["gap_closed"]["mean"] == 1
    assert list(printed["methods"]) == ["counted", "static", "oracle"]


def test_without_resamples_there_are_means_and_no_intervals(recorded):
    setting = Setting(labels=0.5, resamples=0)
    summary = summarise("toy", setting, list(compare(recorded, [], setting, seeds=[0])))
    auc = summary.rows["oracle"].estimates["auc"]
    assert auc.mean is not None
    assert (auc.low, auc.high) == (None, None)


def test_a_negative_number_of_resamples_is_refused():
    with pytest.raises(ConfigurationError, match="resamples is -1"):
        Setting(labels=0.5, resamples=-1)


# ---------------------------------------------------------------------- interruption


def test_an_interrupted_comparison_is_taken_up_where_it_stopped(recorded, tmp_path):
    path = tmp_path / "parts.jsonl"
    method, calls = counting()
    first = compare(
        recorded, [method], SETTING, seeds=[0, 1], kept=KeptParts(path, recorded, SETTING)
    )
    finished = [next(first), next(first), next(first), next(first)]
    first.close()
    assert calls == [0, 1]

    kept = KeptParts(path, recorded, SETTING)
    assert len(kept) == 4
    whole = list(compare(recorded, [method], SETTING, seeds=[0, 1], kept=kept))
    assert calls == [0, 1]  # nothing was predicted again
    assert len(whole) == 6
    for before, after in zip(finished, whole, strict=False):
        assert after.figures == before.figures
        assert after.singles == before.singles
        np.testing.assert_array_equal(after.draws, before.draws)
    resumed = summarise("toy", SETTING, whole)
    straight = summarise("toy", SETTING, list(compare(recorded, [method], SETTING, seeds=[0, 1])))
    assert resumed.rows["counted"].estimates == straight.rows["counted"].estimates


def slow():
    """A method whose solver takes two steps, and says so."""
    method, _ = counting("slow")

    def solve(prediction, cost, progress=None):
        for done in (1, 2):
            progress(done, 2)
        return method.solve(prediction, cost)

    return replace(method, solve=solve, reports=True)


def test_the_steps_of_a_slow_solver_are_reported(recorded):
    seen = []
    list(
        compare(
            recorded,
            [counting()[0], slow()],
            SETTING,
            seeds=[7],
            progress=lambda *step: seen.append(step),
        )
    )
    assert ("seed 7: slow, step 1 of 2", 1, 4) in seen
    assert ("seed 7: slow, step 2 of 2", 1, 4) in seen
    alone = []
    evaluate(recorded, labels=0.5, methods=[slow()], progress=lambda *step: alone.append(step))
    assert alone[:3] == [("slow", 0, 3), ("slow, step 1 of 2", 0, 3), ("slow, step 2 of 2", 0, 3)]


def test_an_interrupt_within_a_solver_loses_only_its_part(recorded, tmp_path):
    path = tmp_path / "parts.jsonl"

    def interrupt(doing, done, of):
        if "step 2" in doing:
            raise KeyboardInterrupt

    parts = compare(
        recorded,
        [counting()[0], slow()],
        SETTING,
        seeds=[0],
        kept=KeptParts(path, recorded, SETTING),
        progress=interrupt,
    )
    with pytest.raises(KeyboardInterrupt):
        list(parts)
    assert len(KeptParts(path, recorded, SETTING)) == 1


def test_a_line_torn_by_a_crash_is_dropped(recorded, tmp_path):
    path = tmp_path / "parts.jsonl"
    list(compare(recorded, [], SETTING, seeds=[0], kept=KeptParts(path, recorded, SETTING)))
    path.write_text(path.read_text()[:-30])
    kept = KeptParts(path, recorded, SETTING)
    assert (len(kept), kept.get(0, "oracle")) == (1, None)
    list(compare(recorded, [], SETTING, seeds=[0], kept=kept))
    assert len(KeptParts(path, recorded, SETTING)) == 2


@pytest.mark.parametrize("length", [0, 1, 60])
def test_a_file_that_is_empty_or_has_half_a_first_line_is_begun(recorded, tmp_path, length):
    path = tmp_path / "parts.jsonl"
    whole = list(compare(recorded, [], SETTING, seeds=[0], kept=KeptParts(path, recorded, SETTING)))
    path.write_text(path.read_text()[:length])
    list(compare(recorded, [], SETTING, seeds=[0], kept=KeptParts(path, recorded, SETTING)))
    assert len(KeptParts(path, recorded, SETTING)) == len(whole) == 2


def test_parts_of_the_same_costs_and_other_tokens_are_refused(recorded, tmp_path):
    path = tmp_path / "parts.jsonl"
    list(compare(recorded, [], SETTING, seeds=[0], kept=KeptParts(path, recorded, SETTING)))
    for name in ("prompt_tokens", "completion_tokens"):
        other = replace(recorded, **{name: np.ones_like(recorded.cost)})
        with pytest.raises(InvalidDataError, match="does not hold parts of this comparison"):
            KeptParts(path, other, SETTING)


def test_costs_are_forecast_once_for_all_methods_of_a_seed(recorded, monkeypatch):
    forecasts, predict_costs = [], protocol.predict_costs
    monkeypatch.setattr(
        protocol,
        "predict_costs",
        lambda *given, **named: forecasts.append(1) or predict_costs(*given, **named),
    )
    setting = replace(SETTING, cost="predicted")
    parts = list(compare(recorded, [counting()[0], METHODS["random"]], setting, seeds=[0, 1]))
    assert (len(parts), len(forecasts)) == (8, 2)
    alone = evaluate(recorded, labels=0.5, seed=1, cost="predicted", methods=[METHODS["random"]])
    (part,) = (part for part in parts if (part.method, part.seed) == ("random", 1))
    assert part.figures.auc == alone.methods["random"].figures.auc


def test_an_interrupted_comparison_says_so(recorded):
    parts = list(compare(recorded, [], SETTING, seeds=[0]))
    for complete in (True, False):
        summary = summarise("toy", SETTING, parts, complete=complete)
        assert json.loads(summary.to_json())["complete"] is complete
        assert ("Interrupted" in str(comparison_table(summary).caption)) is not complete


def test_parts_of_another_comparison_are_refused(recorded, tmp_path):
    path = tmp_path / "parts.jsonl"
    list(compare(recorded, [], SETTING, seeds=[0], kept=KeptParts(path, recorded, SETTING)))
    before = path.read_text()
    with pytest.raises(InvalidDataError, match="does not hold parts of this comparison"):
        KeptParts(path, recorded, Setting(labels=0.25, resamples=40))
    with pytest.raises(InvalidDataError, match="does not hold parts of this comparison"):
        KeptParts(path, recorded.select(np.arange(59)), SETTING)
    assert path.read_text() == before


@pytest.mark.parametrize("content", [b"not json\n", b"[]\n", b"half a line", b"\xff\xfe\x00"])
def test_a_file_of_something_else_is_refused_and_left_alone(recorded, tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidDataError, match=r"notes\.txt does not hold parts"):
        KeptParts(path, recorded, SETTING)
    assert path.read_bytes() == content


def test_a_damaged_part_is_named_by_its_line(recorded, tmp_path):
    path = tmp_path / "parts.jsonl"
    list(compare(recorded, [], SETTING, seeds=[0], kept=KeptParts(path, recorded, SETTING)))
    path.write_text(path.read_text() + '{"method": "half"}\n')
    with pytest.raises(InvalidDataError, match="line 4: not a finished part"):
        KeptParts(path, recorded, SETTING)


def test_a_file_that_cannot_be_written_is_named(recorded, tmp_path):
    kept = KeptParts(tmp_path / "nowhere" / "parts.jsonl", recorded, SETTING)
    with pytest.raises(ConfigurationError, match="cannot keep parts in"):
        list(compare(recorded, [], SETTING, seeds=[0], kept=kept))


# ----------------------------------------------------------------------------- output


class _Page(HTMLParser):
    """Text of a page, its tags, and every attribute that could load something."""

    def __init__(self):
        super().__init__()
        self.text, self.tags, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#")
        ]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def comparison(recorded):
    method, _ = counting("a <method> & more")
    return summarise("toy", SETTING, list(compare(recorded, [method], SETTING, seeds=[0, 1])))


def test_the_report_is_one_page_that_loads_nothing(comparison, tmp_path):
    page = _Page()
    page.feed(write_report(comparison, tmp_path / "report.html").read_text("utf-8"))
    text = " ".join(page.text)
    assert page.addresses == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 1
    assert page.tags.count("tr") == 5  # a heading, three methods, the best single model
    assert "a <method> & more" in text  # escaped, hence read back as it was
    assert f"{comparison.rows['static'].estimates['auc'].mean:.3f}" in text


def test_the_table_has_means_and_intervals(comparison):
    import io

    from rich.console import Console

    console = Console(width=160, file=io.StringIO())
    console.print(comparison_table(comparison))
    text = console.file.getvalue()
    auc = comparison.rows["static"].estimates["auc"]
    assert f"{auc.mean:.3f}" in text
    assert f"{auc.low:.3f}..{auc.high:.3f}" in text
    assert "mean of 2 seeds" in text
    assert "best single" in text


def test_a_comparison_is_drawn(comparison, tmp_path):
    assert "<svg" in draw_comparison(comparison, tmp_path / "front.svg").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "says"),
    [("report.txt", r"must end in \.html"), ("nowhere/report.html", "cannot write")],
)
def test_a_report_that_cannot_be_written_is_refused(comparison, tmp_path, name, says):
    with pytest.raises(ConfigurationError, match=says):
        write_report(comparison, tmp_path / name)
