"""Test accuracy: what the classifier is worth on images that it never saw.

    TA = accuracy on the test set; when a whole label is forgotten, on the test images of the other labels

Direction: higher. A retrained network, which saw fewer images, scores a little below the base.
Source: Fan et al., arXiv 2310.12508, table 1.
"""

from worker.metrics import UNMEASURED, Answers, ClassifierAnswers, Evidence, NamingAnswers, accuracy, share


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if isinstance(answers, NamingAnswers):
        return share(answers.test)
    if not isinstance(answers, ClassifierAnswers):
        return UNMEASURED
    return accuracy(answers.test, answers.test_labels)
