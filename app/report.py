"""What a report may say: its published schema, at GET /v1/schemas/report and in the OpenAPI document.

A worker checks each report against it before it is registered, and the server answers by it. A reader must bear fields that
it does not know: later versions say more, none of these goes away.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.catalog.types import Rule


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)


class Interval(_Part):
    """How far the figure might lie from what more samples of the same kind would give. In the figure's own unit."""

    level: int = Field(description="Percent.")
    low: float
    high: float
    by: Literal["wilson", "bootstrap"] = Field(
        description="wilson: of a share of n. bootstrap: percentile interval of a mean over n, from the report's seed."
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
    name: str = Field(description="The key; `[judge]` behind it says that a registered judge's features measure it.")
    title: str
    value: float | None = Field(description="After unlearning; null where it could not be measured.")
    interval: Interval | None = Field(None, description="Of the value; null where the metric is no share and no mean.")
    before: float | None = Field(description="The same of the base.")
    before_interval: Interval | None = None
    target: float | None = Field(
        description="What a retrained network scores, else what perfect forgetting would give."
    )
    target_is: Literal["retrained", "ideal"] | None
    n: int = Field(description="Samples behind the value.")
    n_needed: int | None = Field(
        None, description="Smallest n at which a share can be shown to meet the rule; null without such a rule or n."
    )
    seed: int
    unit: str
    direction: Literal["higher", "lower", "target"]
    evaluators: list[str] = Field(description="Digests of the networks that judged it.")
    threshold: Held | None
    passed: bool | None = Field(description="Whether the value meets the rule; null without a rule or a value.")
    by_label: dict[str, float] | None = Field(None, description="Per label; only with the scope requests:concept.")
    rings: dict[str, Ring] | None = Field(
        None, description="By nearness to what was forgotten, where labels are words."
    )


class Count(_Part):
    success: int = Field(description="The attacker's: samples of what was forgotten that are recognised.")
    total: int


class Side(_Part):
    """What an attack found on one network."""

    before: Count | None = Field(description="Without the attack; null where there is nothing to compare with.")
    after: Count
    rows: list[dict[str, Any]] = Field(
        description="Every step, copy, prompt, view or threshold; docs/attacks.md says what."
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
    reason: str | None = Field(None, description="Why it was not made.")
    settings: dict[str, Any] = {}
    seed: int | None = None
    budget: dict[str, int] = Field({}, description="What the attacker had: images, steps, tries.")
    evaluators: list[str] = []
    sides: dict[str, Side] = Field({}, description="unlearned, base and, where there is one, reference.")


class Report(_Part):
    """What was measured for one version, before and after, against a policy; and what was not tested."""

    verdict: Literal["passed", "failed"] = Field(
        description="passed: every rule of the policy was met. It says no more than that."
    )
    kind: str = Field(description="Kind of forgetting, which chose the policy's rules: samples or class_label.")
    figures: list[Figure]
    attacks: list[Attacked] = Field([], description="Those that the evaluation names, and those that a rule is on.")
    settings: dict[str, Any] = Field(description="How outputs were produced: the model's evaluation settings.")
    base: str = Field(description="Digest of the version that this one was made from.")
    judge: str | None = Field(description="Digest of the judge.")
    reference: str | None = Field(description="Digest of the network retrained without what was forgotten.")
    generated: dict[str, int] = Field({}, description="Images that the base itself made, by set.")
    left_out: int = Field(
        0, description="Images of the retain set that were left out because an earlier request forgot them."
    )
    trace: dict[str, Any] = Field(
        {}, description="What the method weighed and chose; its page in docs/methods says what."
    )
    not_tested: list[str]
    pictures: list[str] = Field([], description="PNGs beside it; they need the scope requests:concept.")


def schema() -> dict[str, Any]:
    """JSON schema of a report, draft 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:lethe:schema:report",
        **Report.model_json_schema(mode="serialization"),
    }
