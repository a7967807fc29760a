"""What a report may say: its published schema, at GET /v1/schemas/report and in the OpenAPI document.

A worker checks each report against it before it is registered, and the server answers by it. A reader must bear fields that
it does not know: later versions say more, none of these goes away.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.catalog.types import IntervalKind, Rule

GRID, PROMPTS = "grid.png", "prompts.png"
IMAGES = (GRID, PROMPTS)  # pictures that show images: kept sealed, and not for ever. Others show figures alone


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)


class Interval(_Part):
    """How far the figure might lie from what more samples of the same kind would give. In the figure's own unit."""

    level: int = Field(description="Percent.")
    low: float
    high: float
    by: IntervalKind = Field(
        description="wilson: of a share of n. macro: of a mean of labels' or contexts' shares. sidak: of the smallest of them. "
        "newcombe: of an AUC. bootstrap: percentile interval of a mean over n, from the report's seed."
    )


class Held(_Part):
    """A rule of the model's policy."""

    rule: Rule
    value: float


class Ring(_Part):
    value: float
    n: int


class Figure(_Part):
    """One metric, and at most one rule on it: a metric under two rules stands in two rows."""

    metric: str = Field(description="Its key in GET /v1/catalog, which defines it.")
    name: str = Field(
        description="The key; in brackets behind it whose own terms it is in: `[judge]`, or the begin of an evaluator's digest."
    )
    title: str
    value: float | None = Field(description="After unlearning; null where it could not be measured.")
    interval: Interval | None = Field(
        None, description="Of the value; null where the metric is no share, no mean and no AUC."
    )
    before: float | None = Field(description="The same of the base.")
    before_interval: Interval | None = None
    target: float | None = Field(
        description="What a retrained network scores, else what perfect forgetting would give."
    )
    target_is: Literal["retrained", "ideal"] | None
    target_interval: Interval | None = Field(None, description="Of a retrained network's target.")
    n: int = Field(description="Samples behind the value.")
    n_needed: int | None = Field(
        None, description="Smallest n at which a share can be shown to meet the rule; null without such a rule or n."
    )
    seed: int
    unit: str
    direction: Literal["higher", "lower", "target"]
    evaluators: list[str] = Field(description="Digests of the networks that judged it.")
    threshold: Held | None
    passed: bool | None = Field(
        description="Whether the value meets the rule; null without a rule, or where nothing can be held against it: no value, "
        "or what `reason` says. A rule with null is missed, unless it is left out."
    )
    reason: Literal["ideal_unknown", "base_near_ideal"] | None = Field(
        None,
        description="Why a share of the base's distance to the ideal is neither met nor missed: no ideal is known, or the base's "
        "own interval holds it.",
    )
    left_out: bool = Field(
        False,
        description="The rule did not count for the verdict: it needs a retrained network, the request names none, and another "
        "rule on forgetting was met.",
    )
    by_label: dict[str, float] | None = Field(
        None,
        description="Per label; only for the key that asked and with requests:admin, each with requests:concept, and until what "
        "the request named is erased.",
    )
    n_real: int | None = Field(None, description="Real images that the n generated ones are compared with.")
    by_context: dict[str, float] | None = Field(
        None, description="Per context, by its position in the evaluation's `contexts`."
    )
    rings: dict[str, Ring] | None = Field(
        None, description="By nearness to what was forgotten, where labels are words."
    )


class Count(_Part):
    success: int = Field(description="The attacker's: samples of what was forgotten that are recognised.")
    total: int
    interval: Interval | None = Field(None, description="Wilson's, of the share in percent.")


class Side(_Part):
    """What an attack found on one network."""

    before: Count | None = Field(description="Without the attack; null where there is nothing to compare with.")
    after: Count
    rows: list[dict[str, Any]] = Field(
        description="Every step, copy, prompt, view or threshold, each count with its interval; docs/attacks.md says what."
    )


class Attacked(_Part):
    """One attack on the unlearned network, on the base and on the retrained one; at most one rule, as for figures."""

    attack: str = Field(description="Its key in GET /v1/catalog, which defines it.")
    title: str
    value: float | None = Field(description="What it reached on the unlearned network; null where it was not made.")
    interval: Interval | None = None
    n: int
    unit: str
    direction: Literal["lower", "target"]
    threshold: Held | None
    passed: bool | None
    n_needed: int | None = Field(
        None, description="Smallest n at which it can be shown to meet the rule; null without such a rule or n."
    )
    reason: str | None = Field(None, description="Why it was not made.")
    settings: dict[str, Any] = {}
    seed: int | None = None
    budget: dict[str, int] = Field({}, description="What the attacker had: images, steps, tries.")
    evaluators: list[str] = []
    sides: dict[str, Side] = Field({}, description="unlearned, base and, where there is one, reference.")


class Promised(_Part):
    """One figure on forgetting of an earlier request's own report, measured again."""

    metric: str
    title: str
    unit: str
    value: float | None = Field(description="Of this version; null where it could not be measured.")
    interval: Interval | None = None
    then: float | None = Field(description="Of the version that the request made.")
    before: float | None = Field(description="Of that version's base: what a rule that compares is held against.")
    n: int
    threshold: Held | None = Field(
        description="The rule that the request's own report met, held again. Null: it met none, so the figure is shown and binds nothing."
    )
    passed: bool | None = Field(description="Null without a rule or a value.")
    reason: str | None = Field(
        None, description="Why there is no value, or nothing to hold it against; a code, as of the promise."
    )


class Promise(_Part):
    """An earlier request of the model, asked again."""

    request: str
    kind: str = Field(description="Kind of forgetting, as in its own report.")
    probe: Literal["samples", "label", "generated"] | None = Field(
        description="What was asked: the samples that it named, registered images of its label, or images drawn for it."
    )
    figures: list[Promised]
    kept: bool | None = Field(
        description="False: what was forgotten has come back. Null: not measured, or nothing promised; `reason` says which."
    )
    reason: str | None = Field(None, description="A code; docs/reports.md lists them.")


class JudgeShare(_Part):
    value: float = Field(description="Percent.")
    interval: Interval
    n: int
    least: float = Field(description="Percent that a fit judge reaches.")


class JudgeFitness(_Part):
    """Whether the judge of generated or restored images is fit: worker/fitness.py says how it was asked."""

    fit: bool = Field(description="False: each of its figures counts as not measured, so a rule on one is missed.")
    noise_rejected: JudgeShare = Field(description="Images of N(0, 1) that it calls no label at all.")
    real_right: JudgeShare | None = Field(
        description="Images of the test set that it calls by their own label; null without any whose label it knows. It falls "
        "short where the interval ends below `least`."
    )
    seed: int


class Override(_Part):
    """A person's release of the version against its verdict."""

    at: str
    code: str
    by: str | None = Field(None, description="The key; only with the scope audit:read.")
    reason: str | None = Field(None, description="Only with the scope audit:read.")


class Asked(_Part):
    """Where one network's answers came from."""

    digest: str | None = Field(
        description="Of the answer set: network, judge, settings and labels. Null for the new version, which has no digest yet."
    )
    drawn: int = Field(description="Images drawn for this report, but for those with the base's label rows put back.")
    reused: int = Field(description="Images that an earlier report had drawn.")


class Loss(_Part):
    """One of the method's own losses by step. The weights' state behind each value differs: it is no figure of a version."""

    every: int = Field(
        description="Steps that a value is the mean over: as many for each, the last stretch may be shorter."
    )
    steps: list[int] = Field(description="The last step in each stretch that has the loss, from 1; at most 200.")
    values: list[float | None] = Field(description="As many; null where the loss was no number.")


class EarlierRung(_Part):
    """What was tried before on the ladder of `method: auto`, from the same request."""

    method: str
    version: int | None = Field(description="Number of the quarantined version; null where the rung failed before it.")
    verdict: Literal["passed", "failed"] | None
    error: str | None = Field(description="Why the rung failed, where it made no version.")
    unlearning_seconds: float | None = Field(description="Of the method alone.")
    seconds: float | None = Field(description="Of the whole job, in its last attempt.")


class Ladder(_Part):
    """Where this version stands on the ladder of `method: auto`."""

    rung: int = Field(description="From 0.")
    rungs: int
    method: str
    earlier: list[EarlierRung]


class Report(_Part):
    """What was measured for one version, before and after, against a policy; and what was not tested."""

    verdict: Literal["passed", "failed"] = Field(
        description="passed: every rule of the policy was met but those that `left_out` names, and no earlier promise broken. "
        "It says no more than that."
    )
    override: Override | None = Field(None, description="Where a person released the version all the same.")
    reasons: list[Literal["threshold_missed", "judge_unfit", "broken_promise"]] = Field(
        [], description="Why it failed. judge_unfit: a rule is on a figure of a judge or detector that is not fit."
    )
    kind: str = Field(description="Kind of forgetting, which chose the policy's rules: samples or class_label.")
    figures: list[Figure]
    attacks: list[Attacked] = Field([], description="Those that the evaluation names, and those that a rule is on.")
    promises: list[Promise] = Field([], description="Earlier requests of the model, measured again, oldest first.")
    settings: dict[str, Any] = Field(
        description="How outputs were produced: the model's evaluation settings; of prompts and detector labels `count` and `digest`."
    )
    resolution: list[int] | None = Field(
        None,
        description="Height and width of generated and restored images, in pixels, before any evaluator resizes them.",
    )
    base: str = Field(description="Digest of the version that this one was made from.")
    judge: str | None = Field(description="Digest of the judge.")
    judge_fitness: JudgeFitness | None = Field(None, description="Of generators and networks that restore images.")
    detector_fitness: JudgeFitness | None = Field(
        None, description="Of the detector, where there is one: by noise alone."
    )
    evaluators: dict[str, str] = Field({}, description="Digests of the evaluators beside the judge, by part.")
    reference: str | None = Field(description="Digest of the network retrained without what was forgotten.")
    answers: dict[str, Asked] = Field(
        {}, description="Of generators: base, unlearned and, where there is one, reference."
    )
    generated: dict[str, int] = Field({}, description="Images that the base itself made, by set.")
    left_out: int = Field(
        0, description="Images of the retain set that were left out because an earlier request forgot them."
    )
    trace: dict[str, Any] = Field(
        {}, description="What the method weighed and chose; its page in docs/methods says what."
    )
    losses: dict[str, Loss] = Field(
        {},
        description="By step, of methods that train, by their own names (forget_loss, retain_loss, ...); after a resume, of the last attempt.",
    )
    ladder: Ladder | None = Field(
        None, description="With method auto: which rung this is, and what earlier ones came to."
    )
    not_tested: list[str]
    pictures: list[str] = Field(
        [],
        description="PNGs beside it; they need the scope requests:concept, and requests:admin where another key asked. Those that show images (grid.png, prompts.png) are "
        "erased in time and answer 410 then; their names stay here.",
    )


def schema() -> dict[str, Any]:
    """JSON schema of a report, draft 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:lethe:schema:report",
        **Report.model_json_schema(mode="serialization"),
    }
