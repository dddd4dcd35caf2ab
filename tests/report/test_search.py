"""The report of a search shows what was tried, finished or not."""

import shlex

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from support.pages import Reader
from support.report_sources import HOSTILE, held_row, quadratic, train_row, write_run

import streamseq as ss
from streamseq import cli
from streamseq.report.search import importance
from streamseq.report.search_charts import pareto_front
from streamseq.report.trials import read_search
from streamseq.search.space import Space
from streamseq.search.study import FIGURES, SECONDS, open_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a search that is finished."""
    folder = tmp_path_factory.mktemp("search")
    ss.search(quadratic, folder, {"k1": [8, 16, 32], "k2": "2*k1,4*k1"})
    return folder


def begin(folder, choices, about=None):
    """A study with a grid of candidates, none of them begun."""
    folder.mkdir(exist_ok=True)
    said = {"budget": {"timesteps": 1000}, "evaluations": 3, "settings": {"lanes": 4, "held_out": 0.1}, **(about or {})}
    return open_study(folder, Space.of(choices), sampler="grid", prune=False, seed=0, search=said)


def charts(page):
    """The views of each chart, by the heading above it."""
    titles = [text for text in page.text if text.startswith(("Held-out loss of", "Loss over", "Loss against"))]
    titles = [title for title in titles if not title.endswith("time") or title == "Loss against time"]
    return dict(zip(titles, [chart["views"] for chart in page.charts], strict=True))


def test_trials_are_ranked_and_the_best_is_named(finished, read):
    page, made = read(finished)
    assert made.kind == "search"
    assert {"state": "finished", "trials": "6", "best loss": "1", "k1": "16", "k2": "64"}.items() <= page.facts.items()
    (table,) = (rows for caption, rows in page.tables.items() if caption.startswith("All trials"))
    assert table[0][:4] == ["trial", "k1", "k2", "held-out loss"]
    assert table[1][1:4] == ["16", "64", "1"]
    losses = [float(row[3]) for row in table[1:]]
    assert losses == sorted(losses)


def test_the_heat_map_is_the_loss_over_k1_and_k2(finished, read):
    page, _ = read(finished)
    (view,) = charts(page)["Loss over k1 and k2"]
    trace, figures = view["traces"]
    assert sorted(figures["text"]) == ["1", "2", "2", "3", "3", "4"]
    assert (trace["x"], trace["y"]) == (["8", "16", "32"], ["16", "32", "64", "128"])
    assert trace["z"] == [[4, None, None], [3, 2, None], [None, 1, 2], [None, None, 3]]


def test_curves_are_of_each_candidate(finished, read):
    page, _ = read(finished)
    (view,) = charts(page)["Held-out loss of each candidate"]
    assert len(view["traces"]) == 6
    best = view["traces"][-1]
    assert best["name"].startswith("the best")
    assert best["y"] == [2, 1.5, pytest.approx(1.33333), 1]


def test_a_search_that_goes_on_shows_what_there_is(tmp_path, read):
    study = begin(tmp_path / "s", {"k1": [8, 16, 32, 64, 128], "k2": "k1"})
    ended = study.ask()
    ended.suggest_categorical("k1", ["8", "16", "32", "64", "128"])
    ended.suggest_categorical("k2", ['"k1"'])
    ended.report(2.5, 1)
    study.tell(ended, 2.0)
    pruned, failed, running, unborn = (study.ask() for _ in range(4))
    for trial in (pruned, failed, running):
        trial.suggest_categorical("k1", ["8", "16", "32", "64", "128"])
        trial.suggest_categorical("k2", ['"k1"'])
    pruned.report(5.0, 1)
    study.tell(pruned, state=TrialState.PRUNED)
    failed.set_user_attr("reason", HOSTILE)
    study.tell(failed, state=TrialState.FAIL)
    running.report(3.0, 1)
    page, _ = read(tmp_path / "s")
    assert page.facts["state"] == "2 trials to go"
    assert page.facts["pruned, failed"] == "1, 1"
    (table,) = (rows for caption, rows in page.tables.items() if caption.startswith("All trials"))
    states = {row[0]: row[-1].split(":")[0] for row in table[1:]}
    assert states == {"0": "complete", "1": "pruned", "2": "failed", "3": "running", "4": "running"}
    assert "img" not in [tag for tag, _ in page.tags]
    assert unborn.number == 4


def test_a_search_in_which_nothing_was_begun_is_reported(tmp_path, read):
    begin(tmp_path / "s", {"k1": [8, 16], "k2": "k1"})
    page, _ = read(tmp_path / "s")
    assert page.facts["state"] == "2 trials to go"
    assert "No candidate has come to the end yet." in page.said


@pytest.mark.parametrize("choices", [{"k1": [8], "k2": "k1"}, {"cell": ["lstm"]}, {"learning_rate": [0.1]}])
def test_one_trial_alone_is_reported(tmp_path, read, choices):
    ss.search(lambda candidate: 1.0, tmp_path / "s", choices)
    page, _ = read(tmp_path / "s")
    assert page.facts["trials"] == "1"


def test_ranges_and_text_are_drawn_as_dots(tmp_path, read):
    space = {"learning_rate": "1e-4..1e-1", "dropout": "0..0.9 linear"}
    ss.search(lambda each: each.values["dropout"], tmp_path / "s", space, sampler="random", trials=15)
    page, _ = read(tmp_path / "s")
    (view,) = charts(page)["Loss over learning_rate and dropout"]
    assert view["layout"]["xaxis"]["type"] == "log"
    assert len(view["traces"][0]["x"]) == 15
    ss.search(lambda each: len(each.values["cell"]), tmp_path / "t", {"cell": ["lstm", "a", "gru"]})
    page, _ = read(tmp_path / "t")
    assert charts(page)["Loss over cell"][0]["layout"]["xaxis"]["categoryarray"] == ["a", "gru", "lstm"]


def test_costs_and_the_front_are_drawn(tmp_path, read):
    study = begin(tmp_path / "s", {"lanes": [1, 2, 3]})
    for seconds, peak, loss in ((1.0, 5e6, 3.0), (2.0, 4e6, 4.0), (3.0, 6e6, 1.0)):
        trial = study.ask()
        trial.suggest_categorical("lanes", ["1", "2", "3"])
        trial.set_user_attr(SECONDS, seconds)
        trial.set_user_attr(FIGURES, {"peak_rss_bytes": peak, "timesteps_per_second": 10.0})
        study.tell(trial, loss)
    page, _ = read(tmp_path / "s")
    others, front = charts(page)["Loss against time"][0]["traces"]
    assert (others["x"], front["x"], front["y"]) == ([2], [1, 3], [3, 1])
    others, front = charts(page)["Loss against peak memory"][0]["traces"]
    assert (others["x"], front["x"]) == ([], [4, 5, 6])


def test_curves_are_over_timesteps_where_the_trials_logged_them(tmp_path, read):
    study = begin(tmp_path / "s", {"lanes": [1]})
    trial = study.ask()
    trial.suggest_categorical("lanes", ["1"])
    trial.report(3.0, 1)
    study.tell(trial, 2.0)
    write_run(tmp_path / "s" / "trials" / "0000", [train_row(10, 3.0), held_row(15, 2.5), train_row(20, 2.0)])
    page, _ = read(tmp_path / "s")
    timesteps, seconds, evaluation = charts(page)["Held-out loss of each candidate"]
    assert [view["traces"][0]["x"] for view in (timesteps, seconds, evaluation)] == [[1500], [7.5], [1]]
    assert timesteps["traces"][0]["y"] == [2.5]


def test_the_command_for_the_best_one_is_one(tmp_path, read):
    about = {"store": str(tmp_path / "my text.zarr"), "settings": {"lanes": 4, "shuffle": False, "clip": 0.5}}
    study = begin(tmp_path / "s", {"k1": [8, None], "learning_rate": [0.125]}, about)
    trial = study.ask()
    trial.suggest_categorical("k1", ["8", "null"])
    trial.suggest_categorical("learning_rate", [0.125])
    study.tell(trial, 1.0)
    page, _ = read(tmp_path / "s")
    (command,) = (text for text in page.text if text.startswith("streamseq train"))
    words = shlex.split(command)
    given = cli.commands.commands["train"].make_context("train", words[2:]).params
    assert given["store"] == about["store"]
    assert {name: given[name] for name in ("k1", "lanes", "shuffle", "clip", "learning_rate")} == {
        "k1": 8, "lanes": 4, "shuffle": False, "clip": 0.5, "learning_rate": 0.125,
    }  # fmt: skip


def test_the_command_that_searches_leaves_a_report(tmp_path, capsys):
    with ss.create(tmp_path / "text.zarr", {"x": ss.Field("uint8")}) as writer:
        for number in range(4):
            writer.write(f"{number}", x=np.arange(60, dtype=np.uint8))
    words = ["search", tmp_path / "text.zarr", "--k1", "8", "--k2", "k1", "--lanes", "2", "--updates", "2"]
    words += ["--out", tmp_path / "s", "--set", "hidden=4", "--set", "threads=1", "--set", "held_out=0.3", "--json"]
    with pytest.raises(SystemExit) as exit:
        cli.main([str(word) for word in words])
    said = capsys.readouterr()
    assert exit.value.code == 0, said.err
    assert f"the report is {tmp_path / 's' / 'report.html'}" in said.err
    assert Reader(tmp_path / "s" / "report.html").facts["trials"] == "1"


def test_importance_is_the_share_of_the_variance_between_values(tmp_path):
    ss.search(
        lambda each: 10 * each.values["k1"] + each.values["lanes"],
        tmp_path / "s",
        {"k1": [1, 2, 3], "lanes": [1, 2, 3]},
    )
    shares = dict(importance(read_search(tmp_path / "s")))
    assert list(shares) == ["k1", "lanes"]
    assert shares == {"k1": pytest.approx(100 / 101), "lanes": pytest.approx(1 / 101)}


def test_a_file_that_is_no_study_is_an_error(tmp_path):
    (tmp_path / "study.log").write_text("no journal\n")
    with pytest.raises(ss.StreamseqError, match="holds no search"):
        ss.report(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_nothing_beats_the_front_and_it_beats_the_rest(points):
    front = pareto_front(points)

    def beats(one, other):
        return one[0] <= other[0] and one[1] <= other[1] and one != other

    assert not any(beats(point, points[place]) for place in front for point in points)
    assert all(any(beats(points[place], point) or points[place] == point for place in front) for point in points)
    assert [points[place] for place in front] == sorted({points[place] for place in front})
