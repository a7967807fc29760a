"""How far the forget set's mutual information still is from that of noise, as a share of what the base gave away, in %.

    100 * (I(output) - I(noise)) / (I(base's output) - I(noise))

I: SMILE between the hidden pixels of the forgotten originals and what stands there (`mutual_information`); noise: N(0, I)
in their place. 0 = the outputs say as little as noise, which knows nothing of the image; 100 = as much as the base's.
Both clips, 1 and 5, are estimated, and the larger share counts. Direction: lower. Not a plain ratio to I(noise), since
the estimate is on held-out images and noise scores about 0 nats: nothing relative can be within 25 % of that. Where the
base itself says hardly more than noise (under LEAST nats), nothing can be shown, and the figure is not measured.
Source: the noise reference of Li et al., arXiv 2402.00351 (rebuttal), on the held-out estimate.
"""

from worker.metrics import UNMEASURED, Answers, Evidence, ReconstructionAnswers, mutual_information

LEAST = 0.25


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    base = evidence.before
    if not isinstance(answers, ReconstructionAnswers) or not isinstance(base, ReconstructionAnswers):
        return UNMEASURED
    n = len(answers.outputs["forget"])
    if n < mutual_information.FEWEST:
        return UNMEASURED
    noise = mutual_information.of_outputs(base, noise=True)
    known = mutual_information.of_outputs(base)
    left = mutual_information.of_outputs(answers)
    if min(known[clip] - noise[clip] for clip in mutual_information.CLIPS) < LEAST:
        return UNMEASURED
    shares = [(left[clip] - noise[clip]) / (known[clip] - noise[clip]) for clip in mutual_information.CLIPS]
    return 100.0 * max(shares), n
