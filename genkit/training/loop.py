"""The training loop: `genkit train` and `genkit.train` come here.

It trains any `Task`. `session.py` holds what happens before, between and after the steps,
`trainer.py` one step, and `learner.py` one module that learns.
"""

from __future__ import annotations

from pathlib import Path

from genkit.run.options import TrainingOptions
from genkit.training.numerics import numerics
from genkit.training.session import Reporter, Session
from genkit.training.task import Build


def train(
    task: Build,
    run: TrainingOptions,
    out: Path | None,
    reporter: Reporter,
    *,
    resume: bool = False,
) -> int:
    """Train a task and write its run directory.

    `task` is called as `task(run, accelerator)`. Returns 0 if the run reached its last step, else
    the number of the signal that interrupted it; either way everything is saved.
    """
    with numerics(run), Session(task, run, out, reporter, resume) as session:
        while session.step < run.steps and not session.interrupted():
            session.take()

            validating = session.due(run.validate_every) or session.step == run.steps
            if validating or session.due(run.log_every):
                session.log(validating)
            session.advance()

            # While steps are being skipped, the model may be beyond repair: keep the last good one.
            if session.due(run.checkpoint_every) and not session.skipped:
                session.checkpoint()
        return session.end()
