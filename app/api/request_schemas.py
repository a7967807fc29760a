"""What a deletion request looks like: as it is posted, and as it is answered."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.dependencies import Moment, Text
from app.deadlines import Regime
from app.records import job as jobs
from app.records import legal_hold as legal_holds
from app.records.model import Step
from app.records.request import Status

Source = Literal["uploaded", "registered", "generated"]
REFERENCE = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$"


class Forget(BaseModel):
    """What to forget: an uploaded set of role forget, samples of a registered set, or a class label. Left out, the
    concept alone says it, for families whose forget kinds in the catalogue name `concept`."""

    model_config = ConfigDict(extra="forbid")
    dataset: Text | None = Field(
        None,
        description="Id of an uploaded forget set; or, with samples or class_label, the registered set to choose from (default: the model's train set, else its retain set).",
    )
    samples: list[str] | None = Field(
        None, min_length=1, max_length=1_000_000, description="Sample ids, see GET /v1/datasets/{name}/samples."
    )
    class_label: Text | None = Field(None, max_length=200, description="A label of the model.")

    @model_validator(mode="after")
    def one_way(self) -> "Forget":
        if self.samples is not None and self.class_label is not None:
            raise ValueError("give samples or class_label, not both")
        if self.samples is None and self.class_label is None and self.dataset is None:
            raise ValueError("give dataset, samples or class_label")
        return self


class Generate(BaseModel):
    """How many images the worker makes with the base model where no registered set has any; they stay in its memory."""

    model_config = ConfigDict(extra="forbid")
    forget: int = Field(
        100, ge=1, le=10_000, strict=True, description="Of the concept, when no label or caption names it."
    )
    retain: int = Field(
        200, ge=1, le=10_000, strict=True, description="Of the labels to keep, when the model has no retain set."
    )


class RequestIn(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"model": "digits", "concept": "three", "forget": {"class_label": "3"}, "method": "salun"}]
        },
    )
    model: Text = Field(description="Name or id of a registered model.")
    concept: Text | None = Field(
        None,
        max_length=500,
        description="What this is about. Sealed; shown only with requests:concept to the key that asked, and with requests:admin. For families of texts it is a rule, too: what names it, by label or caption, is not kept; and without `forget` it selects the samples.",
    )
    forget: Forget | None = Field(None, description="Needed unless the concept alone says what to forget.")
    generate: Generate = Field(
        Generate(), description="For generators only: what to make where no registered set has any."
    )
    method: str = Field(
        "auto",
        description="auto climbs the model's ladder, cheapest first, until a rung meets the policy; or a method of GET /v1/catalog.",
    )
    recipe: dict[str, Any] = Field(
        {}, description="Hyper-parameters of a named method; the family's defaults for the rest. auto takes none."
    )
    seed: int = Field(
        0, ge=0, lt=2**53, strict=True, description="Of every random choice: equal seeds give equal weights."
    )
    reference: Text | None = Field(
        None, description="Registered model that was retrained without the forget set: the report's target."
    )
    external_id: str | None = Field(
        None,
        max_length=200,
        pattern=REFERENCE,
        description="Your own id. Not a name: it is stored in plain.",
    )
    requested_at: Moment | None = Field(None, description="When the person asked; default now. Not in the future.")
    regime: Regime = Field(
        Regime.OTHER,
        description="Which law's periods hold. gdpr: one calendar month, extended at most three; ccpa: 45 days, extended at most 90; other: as `due_at` says.",
    )
    due_at: Moment | None = Field(
        None,
        description="Until when it must be done. gdpr, ccpa: only earlier than the regime's date, which is the default. other: at most ten years away; default 30 days after requested_at. The nearest deadline runs first.",
    )

    @model_validator(mode="after")
    def something_to_forget(self) -> "RequestIn":
        if self.forget is None and self.concept is None:
            raise ValueError("give forget, or a concept that alone says what to forget")
        return self


class Rung(BaseModel):
    method: str
    recipe: dict[str, Any] = Field(description="Resolved: every hyper-parameter.")


class JobBrief(BaseModel):
    """One rung of the ladder, in one climb of it: what ran, what came of it, and what it cost."""

    id: str
    method: str
    rung: int = Field(description="Of `ladder`, from 0.")
    retry: int = Field(description="How often the request had been retried before.")
    status: jobs.Status
    stage: str | None
    error: str | None = Field(description="A code: why it failed.")
    verdict: Literal["passed", "failed"] | None = Field(description="Of the policy, once it was measured.")
    version: int | None = Field(description="Number of the version that it made; missed the policy: in quarantine.")
    unlearning_seconds: float | None = Field(description="Of the method alone.")
    seconds: float | None = Field(description="Of the whole job, in its last attempt.")


class Hold(BaseModel):
    code: legal_holds.Code
    since: str
    by: str = Field(description="The key that put it.")


class RequestOut(BaseModel):
    id: str
    status: Status
    reason: str | None = Field(
        description="A code, where the status needs one: worker_lost, threshold_missed, judge_unfit, broken_promise, next_rung, overridden, why it was denied, ..."
    )
    model: str
    external_id: str | None
    concept: str | None = Field(description="Null without the scope requests:concept.")
    forget_kind: str = Field(description="dataset, samples, class_label or concept.")
    forget_count: int = Field(description="Number of samples that it selects, or that will be generated.")
    forget_source: Source = Field(
        description="Where they come from: an uploaded set, a registered one, or the base model, when the job runs."
    )
    method: str = Field(description="As asked: auto, or a method's name.")
    ladder: list[Rung] = Field(description="What runs, in this order, until a version meets the policy.")
    seed: int
    reference: str | None
    jobs: list[JobBrief] = Field(description="Oldest first: one for each rung that was reached.")
    checkpoint: int | None = Field(description="Number of the newest version that this request made.")
    requested_at: str
    regime: Regime
    due_at: str
    days_left: int | None = Field(
        description="Whole days until `due_at`, negative when it has passed. Null when it has ended; one that failed and can be retried, or was reopened, has not."
    )
    overdue: bool = Field(description="Whether `due_at` has passed; of an ended one: whether it ended after it.")
    extended_at: str | None
    extension_code: str | None = Field(description="Why more time was taken: complexity or number_of_requests.")
    notified_at: str | None = Field(description="When the person was told of the extension.")
    needs: list[Step] = Field(description="What it waits for before it is queued; the first is next.")
    verified_at: str | None = Field(description="When it was checked who asks; also when the check was rejected.")
    verified_by: str | None = Field(description="The key that said so.")
    verification_method: str | None
    verification_reference: str | None = Field(description="Id of the check where it was made.")
    decided_at: str | None
    approved_by: str | None
    denied_by: str | None = Field(description="`reason` says why.")
    created_at: str
    finished_at: str | None
    forget_set_purged_at: str | None
    duplicates: list[str] = Field(
        description="Ids of earlier requests that ask the same of the same model, newest first, at most 10: one's own, or everybody's with the scope requests:admin. Told, and no more: a duplicate is done as any other."
    )
    hold: Hold | None = Field(description="A legal hold: nothing of the request is purged while it stands.")
