import gzip
import math

import numpy as np
import pytest

from optllm_router._errors import ConfigurationError, InvalidDataError
from optllm_router.evaluation import load_recorded

QUERIES = [["id", "task", "query", "reference"], ["a", "t1", "one", "1"], ["b", "t2", "two", "2"]]
OUTCOMES = [
    ["id", "model", "score", "prompt_tokens", "completion_tokens", "cost_usd", "answer"],
    ["b", "large", "0.5", "10", "3", "0.25", "zwei"],
    ["a", "large", "1", "9", "", "0.125", "eins"],
    ["a", "small", "0", "8", "2", "", ""],
]


def test_arrays_are_queries_by_models(write_folder):
    recorded = load_recorded(write_folder(QUERIES, OUTCOMES))
    assert recorded.name == "toy"
    assert list(recorded.ids) == ["a", "b"]
    assert list(recorded.tasks) == ["t1", "t2"]
    assert list(recorded.queries) == ["one", "two"]
    assert list(recorded.references) == ["1", "2"]
    assert recorded.models == ("large", "small")  # first appearance
    nan = math.nan
    np.testing.assert_array_equal(recorded.score, [[1, 0], [0.5, nan]])
    np.testing.assert_array_equal(recorded.cost, [[0.125, nan], [0.25, nan]])
    np.testing.assert_array_equal(recorded.prompt_tokens, [[9, 8], [10, nan]])
    np.testing.assert_array_equal(recorded.completion_tokens, [[nan, 2], [3, nan]])
    assert list(recorded.answers) == [{"large": "eins", "small": ""}, {"large": "zwei"}]
    assert recorded.complete.tolist() == [False, False]


def test_optional_columns_may_be_absent(write_folder):
    queries = [row[:3] for row in QUERIES]
    outcomes = [row[:3] for row in OUTCOMES]
    recorded = load_recorded(write_folder(queries, outcomes))
    assert recorded.references is None
    assert recorded.answers is None
    assert np.isnan(recorded.cost).all()
    assert np.isnan(recorded.prompt_tokens).all()


def test_gzipped_files_read_like_plain_ones(write_folder):
    folder = write_folder(QUERIES, OUTCOMES)
    plain = load_recorded(folder)
    for stem in ("queries", "outcomes"):
        content = (folder / f"{stem}.csv").read_bytes()
        (folder / f"{stem}.csv.gz").write_bytes(gzip.compress(content, mtime=0))
        (folder / f"{stem}.csv").unlink()
    zipped = load_recorded(str(folder))
    assert zipped.ids == plain.ids
    np.testing.assert_array_equal(zipped.score, plain.score)


def test_limit_keeps_the_first_queries(write_folder):
    recorded = load_recorded(write_folder(QUERIES, OUTCOMES), limit=1)
    assert list(recorded.ids) == ["a"]
    assert recorded.models == ("large", "small")
    np.testing.assert_array_equal(recorded.score, [[1, 0]])
    assert list(recorded.answers) == [{"large": "eins", "small": ""}]


def test_select_reorders_everything_alike(write_folder):
    recorded = load_recorded(write_folder(QUERIES, OUTCOMES)).select(np.array([1, 0]))
    assert list(recorded.ids) == ["b", "a"]
    assert list(recorded.references) == ["2", "1"]
    assert recorded.score[0, 0] == 0.5
    assert recorded.answers[0] == {"large": "zwei"}


def test_texts_may_hold_commas_quotes_line_breaks_any_script_and_be_long(write_folder):
    text = 'a, "b"\nc\r\nd \u4f60\u597d \U0001f600' + "x" * 200_000
    queries = [["id", "task", "query"], ["a", "t", text]]
    recorded = load_recorded(write_folder(queries, [["id", "model", "score"], ["a", "m", "1"]]))
    assert recorded.queries[0] == text


def _with(rows, line, column, value):
    """The rows with one cell changed; line counts from 1 as in the file."""
    changed = [list(row) for row in rows]
    changed[line - 1][changed[0].index(column)] = value
    return changed


@pytest.mark.parametrize(
    ("queries", "outcomes", "says"),
    [
        (None, OUTCOMES, r"holds neither queries\.csv nor queries\.csv\.gz"),
        (QUERIES, None, r"holds neither outcomes\.csv nor outcomes\.csv\.gz"),
        ([], OUTCOMES, r"queries\.csv is empty; its first line must be id,task,query"),
        (QUERIES, OUTCOMES[:1], r"outcomes\.csv has a header and no rows"),
        ([["id", "query"], ["a", "one"]], OUTCOMES, r"queries\.csv has no column 'task'"),
        (QUERIES, _with(OUTCOMES, 1, "score", "grade"), r"has no column 'score', only 'id'"),
        (QUERIES, _with(OUTCOMES, 1, "answer", "id"), "names a column twice"),
        (QUERIES, [*OUTCOMES, ["a", "x", "1"]], "line 5: 3 fields where the header names 7"),
        (_with(QUERIES, 3, "id", "a"), OUTCOMES, r"queries\.csv, line 3: id 'a' appears twice"),
        (QUERIES, _with(OUTCOMES, 3, "id", "c"), r"outcomes\.csv, line 3: id 'c' is not in"),
        (QUERIES, _with(OUTCOMES, 2, "model", ""), "line 2: the model has no name"),
        (QUERIES, _with(OUTCOMES, 4, "model", "large"), "line 4: a second outcome of 'large' for"),
        (QUERIES, _with(OUTCOMES, 2, "score", "1.5"), r"line 2: score '1\.5' is not in 0\.\.1"),
        (QUERIES, _with(OUTCOMES, 2, "score", "-1"), r"line 2: score '-1' is not in 0\.\.1"),
        (QUERIES, _with(OUTCOMES, 4, "score", "NaN"), "line 4: score is 'NaN', not a number"),
        (QUERIES, _with(OUTCOMES, 4, "score", ""), "line 4: score is '', not a number"),
        (QUERIES, _with(OUTCOMES, 3, "score", "good"), "line 3: score 'good' is not a number"),
        (QUERIES, _with(OUTCOMES, 3, "cost_usd", "$1"), r"line 3: cost_usd '\$1' is not a number"),
        (QUERIES, _with(OUTCOMES, 3, "cost_usd", "-1"), "line 3: cost_usd '-1' is not a finite"),
        (QUERIES, _with(OUTCOMES, 3, "cost_usd", "inf"), "line 3: cost_usd 'inf' is not a finite"),
        (QUERIES, _with(OUTCOMES, 3, "cost_usd", "nan"), "line 3: cost_usd is 'nan', not a number"),
        (QUERIES, _with(OUTCOMES, 3, "prompt_tokens", "-9"), "line 3: prompt_tokens '-9'"),
        (QUERIES, _with(OUTCOMES, 3, "cost_usd", "1e7"), "'1e7' is not .* from 0 to 1,000,000;"),
        (QUERIES, _with(OUTCOMES, 3, "prompt_tokens", "1e18"), "line 3: prompt_tokens '1e18'"),
        (QUERIES, _with(OUTCOMES, 3, "prompt_tokens", "1_0"), "'1_0' is not a number"),
        (QUERIES, _with(OUTCOMES, 3, "score", "0_1"), "line 3: score '0_1' is not a number"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(write_folder, queries, outcomes, says):
    with pytest.raises(InvalidDataError, match=says):
        load_recorded(write_folder(queries, outcomes))


def test_lines_are_those_of_the_file_even_after_line_breaks_in_fields(write_folder):
    outcomes = _with(_with(OUTCOMES, 2, "answer", "zw\nei"), 4, "score", "7")
    with pytest.raises(InvalidDataError, match="line 5: score '7'"):
        load_recorded(write_folder(QUERIES, outcomes))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InvalidDataError, match=r"no folder '.*nowhere'; give the folder"):
        load_recorded(tmp_path / "nowhere")


def test_two_versions_of_a_file_are_ambiguous(write_folder):
    folder = write_folder(QUERIES, OUTCOMES)
    with gzip.open(folder / "queries.csv.gz", "wt") as file:
        file.write("id,task,query\n")
    with pytest.raises(InvalidDataError, match="holds both"):
        load_recorded(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"this is no gzip file", "cannot be read"),
        (gzip.compress(b"id,task,query\na,t,one\n" * 99, mtime=0)[:-12], "cannot be read"),
        (gzip.compress(b"id,task,query\na,t,\xff\xfe\n", mtime=0), "is not UTF-8"),
        (gzip.compress(b'id,task,query\na,t,"one\n', mtime=0), "is not well-formed CSV"),
    ],
)
def test_files_that_cannot_be_read_are_named(write_folder, content, says):
    folder = write_folder(None, OUTCOMES)
    (folder / "queries.csv.gz").write_bytes(content)
    with pytest.raises(InvalidDataError, match=rf"queries\.csv\.gz {says}"):
        load_recorded(folder)


def test_limit_must_leave_a_query(write_folder):
    with pytest.raises(ConfigurationError, match="limit is 0"):
        load_recorded(write_folder(QUERIES, OUTCOMES), limit=0)


def test_the_papers_benchmark_loads_as_its_readme_says(logpai):
    recorded = load_recorded(logpai)
    assert recorded.score.shape == (32_000, 8)
    assert recorded.complete.all()
    best = recorded.models.index("mixtral-8x7b")
    assert recorded.score[:, best].mean() == pytest.approx(0.5911, abs=5e-5)
    assert recorded.score.max(axis=1).mean() == pytest.approx(0.8252, abs=5e-5)
    assert recorded.cost[:, best].sum() == pytest.approx(3.04, abs=5e-3)
    answer, reference = recorded.answers[5]["mixtral-8x7b"], recorded.references[5]
    assert recorded.score[5, best] == (answer == reference)
