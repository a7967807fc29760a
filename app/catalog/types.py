"""What an entry of the catalogue says: the shapes of methods, families, metrics, attacks and their parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["integer", "number", "choice", "boolean", "text", "texts", "prompts"]
EvaluatorPart = Literal["judge", "context", "clip", "detector", "inception", "lpips"]
IntervalKind = Literal[
    "wilson",  # of a share of n
    "macro",  # of a mean of shares
    "sidak",  # of the smallest of several shares
    "newcombe",  # of an AUC
    "bootstrap",  # of a mean over n
]
Rule = Literal[
    "at_least", "at_most", "drop_at_most", "share_of_before", "times_before_at_least", "times_before_at_most"
]


@dataclass(frozen=True)
class Parameter:
    """One hyper-parameter. `default` is the value in the method's signature; a family may override it.

    `maximum` of a text is its length, of texts and prompts that of each.
    """

    kind: Kind
    default: Any
    description: str
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    choices: tuple[str, ...] = ()
    by_family: Mapping[str, Any] = field(default_factory=dict)

    def default_for(self, family: str) -> Any:
        return self.by_family.get(family, self.default)


@dataclass(frozen=True)
class Method:
    title: str
    source: str
    families: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    remembers: bool = False  # takes `remember`: results that depend on base and retain set only, kept between jobs
    moves: str = "all"  # the part of app.catalog.parts that may move, where the recipe does not say
    gradients: bool = True  # whether it holds a gradient of that part
    copies: int = (
        0  # tensors as large as that part that it holds beside: moments of an optimizer that the recipe cannot choose
    )


@dataclass(frozen=True)
class Family:
    """One kind of network: `classes` are the only class names its files may declare.

    `answers` is the module of worker/answers that asks its networks. Labels come from the weights (a classifier's head,
    a label table) or, where a network knows words or no labels at all, from the registered sets.
    """

    title: str
    library: Literal["transformers", "diffusers"]
    classes: tuple[str, ...]
    forget_kinds: tuple[str, ...]  # what a request may name: dataset, samples, class_label, concept
    answers: Literal["classifier", "generator", "zero_shot", "naming", "reconstruction"]
    labels_from: Literal["weights", "sets"]
    needs_judge: bool
    by_label: bool  # forgets a label whole, also where an uploaded set shows it
    texts: bool  # whether it is conditioned on words: captions, prompts, names
    evaluation: Mapping[str, Parameter]  # how outputs are produced for the report
    default_policy: Mapping[str, tuple["Threshold", ...]]  # by kind of forgetting: class_label or samples
    files: "Files" = field(default_factory=lambda: Files())  # what its directories may hold

    @property
    def generates(self) -> bool:
        """Whether its networks can show by themselves what is to be forgotten or kept, where no set is registered."""
        return self.answers == "generator"

    def policy_kind(self, forget_kind: str) -> str:
        """Which list of a policy, and which default ladder, applies to what a request names: families that forget by label
        do so for an uploaded set, too, and a concept is forgotten as a label is."""
        if forget_kind in self.default_policy:
            return forget_kind
        if forget_kind == "concept" and "class_label" in self.default_policy:
            return "class_label"
        return "samples" if "samples" in self.default_policy else "class_label"


@dataclass(frozen=True)
class Files:
    """What a family's directories may hold beside the network: the guard of uploads refuses the rest.

    A plain family is one folder: config.json of one of the family's `classes`, its weights, and what is named here. A
    pipeline has `components`: its model_index.json is of one of the family's `classes`, and each folder holds one
    component of the listed classes. A class is a name that diffusers or transformers defines.
    """

    schedulers: tuple[str, ...] = ()  # plain: classes of the scheduler_config.json that must lie beside config.json
    tokenizers: tuple[str, ...] = ()  # plain: classes of the tokenizer whose files must lie beside config.json
    nested: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # a config's part -> model types it may have
    components: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # a pipeline's folder -> its classes
    required: tuple[tuple[str, ...], ...] = ()  # of each group of folders a pipeline has at least one
    chat: bool = False  # whether a chat template (a sandboxed jinja file) may come along
    lora: bool = False  # whether pytorch_lora_weights.safetensors may come along


@dataclass(frozen=True)
class Threshold:
    """A rule on one figure of the report.

    `at_least`, `at_most`: on the value after. `drop_at_most`: points that the value may fall below the
    base's, of what is kept. `share_of_before`: the value's distance to the metric's `ideal` is at most this share of what
    it was before. `times_before_at_least`, `times_before_at_most`: on the value divided by the base's.
    """

    metric: str
    rule: Rule
    value: float


@dataclass(frozen=True)
class Metric:
    """One figure of the report. Its interval is said only where one is right: a distance of distributions, a gap or a bound has
    none, and counts are exact.
    """

    title: str
    families: tuple[str, ...]
    direction: Literal["higher", "lower", "target"]
    unit: str
    definition: str
    shows_forgetting: bool = False  # an untouched network must miss a rule on one of these
    needs: tuple[Literal["reference", "test"], ...] = ()  # what it cannot be measured without
    interval: IntervalKind | None = None  # None: what the figure is has none
    n_from: Literal["forget_samples", "samples_per_label", "prompts", "retain", "test"] | None = (
        None  # what a share's n follows: an evaluation setting (its value, or how many it lists), or a registered set's size
    )
    evaluator: EvaluatorPart | None = "judge"  # of generated and restored images: who has a part in it
    optional: bool = False  # left out of a report that could not measure it, unless a rule is on it
    ideal: Mapping[str, float] = field(default_factory=dict)  # what perfect forgetting would give, by kind, where known

    def better(self, kind: str) -> Literal["higher", "lower", "target"]:
        """Which way is better for that kind of forgetting; an ideal at either end of the scale is one, too."""
        if self.direction != "target" or kind not in self.ideal:
            return self.direction
        return "lower" if self.ideal[kind] == 0 else ("higher" if self.ideal[kind] == 100 else "target")

    def takes(self, rule: Rule, kind: str) -> bool:
        """Whether a version that is worse, or as it was, can miss such a rule on it, at some value."""
        match rule:
            case "share_of_before":
                return kind in self.ideal
            case "drop_at_most":
                return self.direction == "higher" and not self.shows_forgetting
            case "times_before_at_least":
                return self.better(kind) != "lower"
            case "times_before_at_most":
                return self.better(kind) != "higher"
        return True


@dataclass(frozen=True)
class Evaluator:
    """A part that a registered model may play in measuring another, beside the judge: of which family it must be, and
    of which families it measures networks."""

    family: str
    families: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class Backbone:
    """A famous network on weights of the operator's, in the folder that the setting of its name gives; a model asks
    for it by the evaluation setting of its name."""

    title: str
    families: tuple[str, ...]


@dataclass(frozen=True)
class Attack:
    """`direction` is the unlearner's: a lower value means that the attack achieved less."""

    title: str
    source: str
    families: tuple[str, ...]
    direction: Literal["lower", "target"]
    definition: str
    parameters: Mapping[str, Parameter]
    shadows: bool = False  # takes `shadows`: the registered networks that the model's evaluation names

    @property
    def counts(self) -> bool:
        """Whether it counts what is recognised of at most `measured` samples, so that 0 of n is the best answer."""
        return self.direction == "lower" and "measured" in self.parameters
