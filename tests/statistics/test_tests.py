"""McNemar, Holm, Friedman, Student and the power of tests against published and hand-computed answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reference.statistics_slow import holm_by_hand, rejections, sign_flip_by_enumeration
from tailora.statistics.intervals import seed_test
from tailora.statistics.power import Spread, detectable, noncentrality, seeds_needed
from tailora.statistics.signflips import mcnemar, sign_flip
from tailora.statistics.tables import average_ranks, holm


def test_mcnemar_on_agrestis_approval_ratings():
    # Agresti, Categorical Data Analysis (1990), p. 350: 150 and 86 discordant of 1,600, chi-squared 34.71 without
    # correction; with Edwards' correction (|150 - 86| - 1)^2 / 236 = 16.8178.
    assert mcnemar(150, 86) == pytest.approx(stats.chi2.sf(63**2 / 236, 1))
    assert mcnemar(150, 86) == mcnemar(86, 150)


@pytest.mark.parametrize(("gained", "lost"), [(4, 0), (0, 6), (9, 2), (12, 12), (1, 0), (3, 20)])
def test_mcnemar_is_exact_with_few_discordant_examples(gained, lost):
    number = gained + lost
    tail = sum(math.comb(number, k) for k in range(min(gained, lost) + 1)) / 2**number
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail))
    assert sign_flip([1] * gained + [-1] * lost + [0] * 50) == pytest.approx(mcnemar(gained, lost))


def test_nothing_discordant_is_no_difference():
    assert mcnemar(0, 0) == sign_flip([0, 0, 0]) == sign_flip([]) == 1


def test_sign_flips_are_their_enumeration():
    rng = np.random.default_rng(4)
    for _ in range(20):
        totals = rng.integers(-4, 5, size=rng.integers(1, 11)).tolist()
        assert sign_flip(totals) == pytest.approx(sign_flip_by_enumeration(totals))


def test_many_sign_flips_are_normal():
    totals = np.random.default_rng(1).integers(-5, 6, size=4000)
    z = abs(totals.sum()) / np.sqrt((totals**2).sum())
    assert sign_flip(totals) == pytest.approx(2 * stats.norm.sf(z), abs=0.01)


def test_holm_on_his_textbook_example():
    # 0.01, 0.04, 0.03, 0.005: sorted times 4, 3, 2, 1, never going down (the example of Wikipedia's article).
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.7]) == [pytest.approx(1.0), None, pytest.approx(1.0)]
    assert holm([None]) == [None]
    values = np.random.default_rng(0).uniform(0, 0.2, 12).tolist()
    assert holm(values) == pytest.approx(holm_by_hand(values))


def test_friedman_on_demsars_table():
    # Demsar, Statistical comparisons of classifiers over multiple data sets (JMLR 2006), table 6: AUC of C4.5 with
    # four settings on 14 data sets; he prints average ranks 3.143, 2.000, 2.893, 1.964 and chi-squared 9.28.
    table = """0.763 0.768 0.771 0.798|0.599 0.591 0.590 0.569|0.954 0.971 0.968 0.967|0.628 0.661 0.654 0.657
    0.882 0.888 0.886 0.898|0.936 0.931 0.916 0.931|0.661 0.668 0.609 0.685|0.583 0.583 0.563 0.625
    0.775 0.838 0.866 0.875|1.000 1.000 1.000 1.000|0.940 0.962 0.965 0.962|0.619 0.666 0.614 0.669
    0.972 0.981 0.9751 0.975|0.957 0.978 0.946 0.970"""
    rows = [list(map(float, row.split())) for line in table.splitlines() for row in line.split("|")]
    names = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")
    found = average_ranks([dict(zip(names, row, strict=True)) for row in rows], [True] * 14)
    assert found is not None
    assert found.blocks == 14
    assert [round(found.average[name], 3) for name in names] == [3.143, 2.000, 2.893, 1.964]
    # He corrects nothing for ties; scipy divides by 1 - sum(t^3 - t) / (14 * 4 * 15), three pairs and one four tied.
    assert found.statistic == pytest.approx(9.28 / (1 - (3 * 6 + 60) / 840), rel=1e-3)
    assert found.p_value == pytest.approx(stats.chi2.sf(found.statistic, 3))


def test_ranks_by_hand():
    # A loss in the second place: smaller is better there. b did not run in the third, c is alone in the fourth.
    scores = [{"a": 0.9, "b": 0.8, "c": 0.9}, {"a": 2.0, "b": 3.0, "c": 1.0}, {"a": 0.5, "c": 0.4}, {"c": 1.0}]
    found = average_ranks(scores, [True, False, True, True])
    assert found is not None
    # a: ranks 1.5 (among a and c), 2, 1; c: 1.5, 1, 2.
    assert found.average == {"a": 1.5, "c": 1.5}
    assert (found.blocks, found.p_value) == (3, None)
    assert average_ranks(scores[:1], [True]) is None
    assert average_ranks([{"a": 1.0, "b": 2.0}, {"c": 1.0, "d": 2.0}], [True, True]) is None


def test_the_test_over_seeds_is_students():
    ours, theirs = [0.71, 0.74, 0.70, 0.73], [0.70, 0.71, 0.70, 0.69]
    assert seed_test(ours, theirs) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert seed_test([0.7], [0.6]) is None
    assert seed_test([0.3, 0.1 + 0.2], [0.3, 0.3]) == 1
    # 0.01 on both seeds, to rounding: no spread is luck with so coarse a score, not certainty.
    assert seed_test([0.71, 0.81], [0.70, 0.80]) is None


def test_the_noncentrality_is_that_of_statsmodels():
    from statsmodels.stats.power import TTestPower

    # Cohen's table: an effect of 0.5 standard deviations needs 33.4 pairs at 80 % power.
    assert noncentrality(33.367 - 1) / 33.367**0.5 == pytest.approx(0.5, abs=2e-4)
    for number in (3, 5, 10, 200):
        effect = TTestPower().solve_power(nobs=number, alpha=0.05, power=0.8, alternative="two-sided")
        assert noncentrality(number - 1) / number**0.5 == pytest.approx(effect, rel=1e-3)
    assert noncentrality(1e6) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    assert noncentrality(1e5) == pytest.approx(noncentrality(1.0001e5), rel=1e-4)


def test_the_detectable_effect_by_formula():
    # One seed, 1,000 examples with 10 % discordant: (1.96 + 0.84) sqrt(0.1 / 1000).
    assert detectable(Spread(1, 1000, 0.0, 0.0, 1e-4)) == pytest.approx(2.8016 * 0.01, rel=2e-3)
    # Five seeds, nothing shared: noncentrality of Student's t with 4 degrees times the standard error.
    assert detectable(Spread(5, 1000, 4e-4, 1e-5, 0.0)) == pytest.approx(noncentrality(4) * (4e-4 / 5) ** 0.5)
    # Seeds that agree by luck are taken to scatter as their examples' noise.
    assert detectable(Spread(2, 1000, 0.0, 1e-4, 0.0)) == detectable(Spread(2, 1000, 1e-4, 1e-4, 0.0))
    assert detectable(Spread(3, 50, 0.0, 0.0, 0.0)) == 0
    # What all seeds share does not go away with more of them.
    shared = Spread(3, 1000, 1e-4, 1e-4, 1e-4)
    assert detectable(shared, seeds=1000) == pytest.approx(0.028, rel=0.01)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_detectable_effect_is_found_in_eighty_percent(seeds):
    between, noise = 0.02**2, 0.3
    spread = Spread(seeds, 400, between + noise**2 / 400, noise**2 / 400, 0.0)
    # 20,000 studies: the standard error of a share of 80 % is 0.3 %.
    assert rejections(detectable(spread), between, noise, seeds, 400, 20_000) == pytest.approx(0.8, abs=0.01)


def test_the_seeds_needed_are_the_fewest_that_do():
    spread = Spread(3, 1000, 4e-4, 1e-4, 1e-6)
    number = seeds_needed(spread, -0.02)
    assert number is not None
    assert detectable(spread, seeds=number) <= 0.02 < detectable(spread, seeds=number - 1)
    # Without shared variance a paired t-test: 0.5 standard deviations need 34 seeds.
    assert seeds_needed(Spread(3, 10_000, 4e-4, 1e-9, 0.0), 0.01) == 34
    assert seeds_needed(spread, 0.0) is None
    assert seeds_needed(Spread(1, 1000, 0.0, 0.0, 1e-4), 0.5) is None
    assert seeds_needed(Spread(3, 1000, 4e-4, 1e-4, 1e-4), 0.01) is None
