import time

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sacrebleu.significance import _bootstrap_resample

from stages.evaluation import significance
from stages.evaluation.quality import Bleu
from stages.evaluation.significance import bootstrap, interval, p_value


def mean(sums):
    return sums[..., 0] / sums[..., 1]


def segments(values):
    return np.stack([np.asarray(values, dtype=float), np.ones(len(values))], axis=1)


def test_resampled_bleu_is_sacrebleus(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    texts = ["the hotel is in the north .", "a cheap one", "it costs 25 pounds a night", "bye bye now then"] * 5
    others = ["the hotel is in the south .", "a cheap one", "it costs 20 pounds", "good bye now then"] * 5
    theirs = BLEU()
    statistics = theirs._extract_corpus_statistics(texts, [others])
    _, expected = _bootstrap_resample(statistics, theirs, 50)
    ours = bootstrap(np.asarray(statistics, dtype=float), Bleu("en").score, samples=50, seed=7)
    np.testing.assert_allclose(ours, [s.score for s in expected], atol=1e-4)  # sacrebleu sums in float32


def test_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).integers(0, 100, size=400)
    low, high = interval(bootstrap(segments(values), mean, samples=4000, seed=1), 0.95)
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_seed_decides_and_blocks_do_not_change_what_is_drawn(monkeypatch):
    statistics = segments(range(30))
    whole = bootstrap(statistics, mean, samples=100, seed=3)
    assert (whole == bootstrap(statistics, mean, samples=100, seed=3)).all()
    assert (whole != bootstrap(statistics, mean, samples=100, seed=4)).any()
    monkeypatch.setattr(significance, "DRAWS_AT_A_TIME", 64)
    assert (whole == bootstrap(statistics, mean, samples=100, seed=3)).all()


def test_equal_systems_differ_by_nothing():
    scores = bootstrap(segments(range(10)), mean, samples=200, seed=0)
    assert p_value(scores - scores) == 1
    assert interval(scores - scores, 0.95) == (0, 0)


def test_pairing_sees_a_small_steady_difference_that_intervals_hide():
    values = np.random.default_rng(0).integers(0, 100, size=200)
    better = values + np.random.default_rng(1).integers(0, 3, size=200)
    one = bootstrap(segments(values), mean, samples=1000, seed=0)
    two = bootstrap(segments(better), mean, samples=1000, seed=0)
    assert interval(one, 0.95)[1] > interval(two, 0.95)[0]
    assert p_value(two - one) == pytest.approx(2 / 1001)
    assert p_value(one - two) == p_value(two - one)


def test_p_value_agrees_with_the_interval():
    for shift in (0.5, 1.5, 1.9, 2.05, 2.5):
        differences = np.random.default_rng(0).normal(shift, 1, size=2000)
        low, _ = interval(differences, 0.95)
        assert (p_value(differences) < 0.05) == (low > 0)


def test_one_segment():
    assert interval(bootstrap(segments([5]), mean, samples=100, seed=0), 0.95) == (5, 5)


def test_a_thousand_resamples_of_a_thousand_segments_are_quick():
    statistics = np.random.default_rng(0).integers(1, 20, size=(1000, 10)).astype(float)
    start = time.perf_counter()
    bootstrap(statistics, Bleu("en").score, samples=1000, seed=0)
    assert time.perf_counter() - start < 1
