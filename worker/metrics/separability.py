"""How well forgotten images can be told by what the network makes of them: the AUC of an attacker who holds the image.

    100 * P(score of a forgotten image > score of an ordinary one) + half of the ties

Score: a logistic regression's, on how far each of the judge's features moves between the image and its output, |f(output) - f(image)|;
cross-fitted in FOLDS folds, so that no image is scored by an attacker who learned from it. Ordinary images are the
test set's, or the retain set's where there is none. 50 = the outputs do not betray what was forgotten; 100 = every
forgotten image is known by its noise. Noise is itself a mark: the method's authors say so, and a high value beside a passed
forgetting figure means that the network tells whom it forgot. The base scores above 50 where one set is harder than the
other, so its value is the mark. Source: the area under the ROC curve as the Mann-Whitney statistic.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from worker.metrics import UNMEASURED, Answers, Evidence, ReconstructionAnswers, auc

FOLDS = 5


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, ReconstructionAnswers):
        return UNMEASURED
    forgotten, others = (
        np.abs(answers.features[name] - answers.original_features[name]) for name in ("forget", ordinary(answers))
    )
    if min(len(forgotten), len(others)) < FOLDS:
        return UNMEASURED
    return area(forgotten, others), len(forgotten)


def ordinary(answers: ReconstructionAnswers) -> str:
    """The set of the ordinary images."""
    return "test" if len(answers.features["test"]) else "retain"


def sizes(answers: ReconstructionAnswers) -> tuple[int, int]:
    """Forgotten and ordinary images."""
    return len(answers.features["forget"]), len(answers.features[ordinary(answers)])


def area(forgotten: np.ndarray, others: np.ndarray) -> float:
    """The cross-fitted attacker's AUC in percent; rows are images, (n, d) and (m, d)."""
    rows = np.concatenate([forgotten, others])
    truth = np.repeat([1, 0], [len(forgotten), len(others)])
    attacker = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(attacker, rows, truth, cv=folds, method="decision_function")
    return 100.0 * auc(*np.split(scores, [len(forgotten)]))
