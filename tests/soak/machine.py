"""Random steps, chosen by Hypothesis, and many more of them than `make test` has the time for.

It must not know what the steps are.
"""

from __future__ import annotations

from tests.fault.test_state_machine import run_state_machine
from tests.soak.trial import Trial

STEPS = 100
"""Steps with one fleet."""


def state_machine(trial: Trial) -> None:
    row = trial.row("random steps of a state machine", "the six invariants of delivery, at every rest", "steps")
    runs = trial.times(5)
    answered = 0
    for number in range(runs):
        trial.progress(number * STEPS, runs * STEPS)
        folder = trial.folder / f"run-{number}"
        folder.mkdir()
        seed = trial.rng.randrange(1_000_000)
        row.of += STEPS
        try:
            verdict = run_state_machine(seed, STEPS, folder)
        except AssertionError as error:
            row.problems.append(f"run {number}: {str(error).strip().splitlines()[0]}")
            trial.show(str(error), folder)
            continue
        row.held += STEPS
        answered += verdict.requests
    row.tell("requests", answered)
