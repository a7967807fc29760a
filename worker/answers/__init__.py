"""How a network is asked, one file per kind of network: `ask` puts the same questions to base, unlearned and reference.

    ask(family, network, sets, kind, settings, judge, progress, base=None, answered=None, panel=ALONE) -> Answers
    recognised(family, settings, judge, network, samples) -> (N,) bool, for attacks: is each sample's label the answer?

`sets` holds forget, retain and test (None without one); `kind` is the policy's kind of forgetting; `settings` are the
model's evaluation settings; `progress(done, total)` may raise to stop. `base` is given when `network` is the unlearned one.
`answered` is what `network` answered in earlier jobs, to be added to; only generators read it: a classifier answers in seconds, and
what a network makes of a set's images is as private and as short-lived as the set.
`panel` holds the evaluators beside the judge, which generated images are shown to.
"""

from collections.abc import Mapping

from app.errors import JobError
from worker.families import Samples


def required(sets: Mapping[str, Samples | None], name: str) -> Samples:
    samples = sets[name]
    if samples is None or len(samples.y) == 0:
        raise JobError("set_empty", f"The {name} set holds no samples.")
    return samples
