"""What the examples share."""

import numpy as np
import pytest
import shared


def test_a_change_is_that_from_before_to_after_tuning(capsys):
    shared.print_table(
        {
            "oracle": {"reward": 9.0, "error": 1.0},
            "before": {"reward": 2.0, "error": 0.0},
            "after": {"reward": 3.0, "error": 0.5, "confidence": 1.0},
        }
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["oracle", "before", "after", "change"],
        ["reward", "9.000", "2.000", "3.000", "+50%"],
        ["error", "1.000", "0.000", "0.500"],
        ["confidence", "nan", "nan", "1.000"],
    ]


@pytest.mark.parametrize("last, end", [(0.0, 0.0), (0.25, 0.5), (1.0, 2.0)])
def test_a_learning_rate_rises_then_falls_to_its_last_fraction(last, end):
    rate = shared.learning_rate(steps=12, rate=2.0, warmup=4, last=last)
    rates = np.array([float(rate(step)) for step in (0, 2, 4, 8, 12, 20)])
    np.testing.assert_allclose(rates, [0, 1, 2, 1 + end / 2, end, end], atol=1e-6)
