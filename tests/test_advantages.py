"""Advantages against numbers worked out by hand."""

import numpy as np
import pytest
from tiny import to_numpy

from keras_reward import advantages

NAN = float("nan")


def test_leave_one_out_is_reward_minus_mean_of_the_others():
    result = advantages.leave_one_out([[1.0, 2.0, 6.0]])
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    np.testing.assert_allclose(to_numpy(result), [[-3.0, -1.5, 4.5]], rtol=1e-6)


def test_mean_is_reward_minus_mean_of_all():
    result = advantages.mean([[1.0, 2.0, 6.0]])
    np.testing.assert_allclose(to_numpy(result), [[-2.0, -1.0, 3.0]], rtol=1e-6)


def test_greedy_is_reward_minus_reward_of_the_greedy_output():
    result = advantages.greedy([[1.0, 2.0], [3.0, 5.0]], [0.5, 4.0])
    np.testing.assert_allclose(to_numpy(result), [[0.5, 1.5], [-1.0, 1.0]])


def test_moving_average_is_reward_minus_the_average_before():
    result = advantages.moving_average([[1.0, 2.0]], 0.5)
    np.testing.assert_allclose(to_numpy(result), [[0.5, 1.5]])


def test_no_average_yet_leaves_rewards_as_they_are():
    result = advantages.moving_average([[1.0, 2.0]], NAN)
    np.testing.assert_allclose(to_numpy(result), [[1.0, 2.0]])


def test_average_starts_at_the_first_batch_and_moves_by_momentum():
    first = advantages.update_average(NAN, [[1.0, 3.0]])
    second = advantages.update_average(first, [[4.0, 8.0]], momentum=0.75)
    assert float(first) == 2.0
    assert float(second) == pytest.approx(0.75 * 2.0 + 0.25 * 6.0)


def test_average_ignores_what_cannot_be_scored():
    assert float(advantages.update_average(5.0, [[NAN, NAN]])) == 5.0
    moved = advantages.update_average(5.0, [[NAN, 1.0]], momentum=0.5)
    assert float(moved) == 3.0


# 0.1 and 1e6 + 0.1 have no exact float32, and thirds round.
@pytest.mark.parametrize("reward", [0.0, 0.1, -3.7, 1e6 + 0.1])
@pytest.mark.parametrize("samples", [2, 3, 7])
@pytest.mark.parametrize("baseline", [advantages.leave_one_out, advantages.mean])
def test_advantages_of_equal_rewards_are_exactly_zero(baseline, samples, reward):
    result = baseline(np.full((4, samples), reward, "float32"))
    assert not to_numpy(result).any()


def test_unscored_row_has_advantage_zero_and_is_left_out_of_its_baseline():
    rewards = [[1.0, NAN, 3.0], [NAN, NAN, 2.0], [NAN, NAN, NAN]]
    loo = [[-2.0, 0.0, 2.0], [0.0] * 3, [0.0] * 3]
    mean = [[-1.0, 0.0, 1.0], [0.0] * 3, [0.0] * 3]
    greedy = [[0.0, 0.0, 2.0], [0.0] * 3, [0.0] * 3]
    np.testing.assert_allclose(to_numpy(advantages.leave_one_out(rewards)), loo)
    np.testing.assert_allclose(to_numpy(advantages.mean(rewards)), mean)
    result = advantages.greedy(rewards, [1.0, NAN, 1.0])
    np.testing.assert_allclose(to_numpy(result), greedy)
    result = advantages.moving_average(rewards, 1.0)
    np.testing.assert_allclose(
        to_numpy(result), [[0.0, 0.0, 2.0], [0.0, 0.0, 1.0], [0.0] * 3]
    )


def test_infinite_reward_counts_as_unscored():
    result = advantages.leave_one_out([[1.0, float("-inf"), 3.0]])
    np.testing.assert_allclose(to_numpy(result), [[-2.0, 0.0, 2.0]])


def test_reward_std_has_divisor_n_minus_one():
    result = advantages.reward_std([[1.0, 2.0, 6.0], [1.0, NAN, 3.0], [NAN, 1.0, NAN]])
    expected = [np.std([1, 2, 6], ddof=1), np.sqrt(2.0), 0.0]
    np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-6)


def test_scaling_divides_by_the_standard_deviation_of_the_group():
    rewards = np.array([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]], "float32")
    scaled = advantages.scale_by_std(advantages.mean(rewards), rewards)
    expected = np.array([-2.0, -1.0, 3.0]) / np.std([1, 2, 6], ddof=1)
    np.testing.assert_allclose(to_numpy(scaled), [expected, [0.0] * 3], rtol=1e-5)


def test_no_signal_where_all_scored_samples_earn_the_same():
    rewards = [[1.0, 1.0], [1.0, 1.0 + 1e-6], [NAN, 2.0], [NAN, NAN]]
    result = to_numpy(advantages.no_signal(rewards))
    np.testing.assert_array_equal(result, [True, False, True, True])


def test_positions_of_a_nest_are_side_by_side():
    rewards = np.zeros((2, 3), "float32")
    samples = {"box": np.zeros((2, 3, 2, 2)), "class": np.zeros((2, 3)), "none": None}
    each = np.full((2, 3, 5), np.nan)
    result = advantages.checked("own", each, rewards, samples)
    np.testing.assert_array_equal(to_numpy(result), np.zeros((2, 3, 5)))
    with pytest.raises(ValueError, match=r"Expected: shape \(2, 3\) or \(2, 3, 5\)"):
        advantages.checked("own", each[..., :4], rewards, samples)
