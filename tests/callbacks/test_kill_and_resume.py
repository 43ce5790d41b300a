"""A process that is killed at random moments, and the one that goes on."""

import pathlib
import subprocess
import sys

import chance
import keras
import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "kill_and_resume.py"


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bits_of_one_left_alone():
    # In a step, while a checkpoint is written, and during validation.
    given = {"backends": keras.config.backend(), "kills": 3, "seed": chance.TEST_SEED}
    options = [f"--{name}={value}" for name, value in given.items()]
    result = subprocess.run(
        [sys.executable, SCRIPT, *options], capture_output=True, text=True
    )
    said = result.stdout.splitlines()
    assert result.returncode == 0, result.stdout + result.stderr
    assert said[-1].endswith("arrays are equal") and len(said) == 5
