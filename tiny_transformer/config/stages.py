"""What the stages besides pretraining can be told: each a config with a section of its own, and defaults of its own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tiny_transformer.config.schema import RunConfig, Section, TrainingConfig, setting


class FinetuneTraining(TrainingConfig):
    """The optimisation, with defaults for a model that is trained already."""

    learning_rate: float = setting(3e-4, "warn", gt=0)
    """Peak rate of AdamW."""

    weight_decay: float = setting(0.0, "warn", ge=0)
    """Decay towards zero, on matrices only (not on norms and biases)."""

    eval_steps: Annotated[int, Field(ge=1)] | Literal["auto"] | None = setting(50, "warn")
    """Evaluate on the validation split every this many steps, and at the end. `auto`: eight times, spread evenly over
    the run. With `null` there is no evaluation, and no `best` checkpoint."""

    sample_prompts: tuple[str, ...] = setting((), "allow", max_length=16)
    """Texts continued as they stand, without the chat template. The end of the run shows answers to questions of the
    validation split."""


class FinetuneSection(Section):
    """Conversations to learn from."""

    template: Literal["auto", "chatml", "qwen3", "alpaca", "llama3", "plain"] = setting("auto", "refuse")
    """How a conversation is written for the model. `auto`: the template that the checkpoint was taught, or that its
    control tokens ask for; else `chatml`, and `alpaca` with adapters, which cannot learn new tokens."""

    system_prompt: str | None = setting(None, "refuse", min_length=1)
    """A system message for conversations that have none."""

    skip_bad_rows: bool = setting(False, "refuse")
    """Leave out records that are no conversation, and say how many; without it the first is refused with its line."""


class FinetuneConfig(RunConfig):
    """Supervised fine-tuning on conversations."""

    training: FinetuneTraining = FinetuneTraining()
    """The optimisation."""

    finetune: FinetuneSection = FinetuneSection()
    """The conversations."""


class ClassifySection(Section):
    """Labels of texts."""

    label_field: str = setting("label", "refuse")
    """The field of a row that holds the label; `data.text_field` names that of the text."""

    labels: tuple[str, ...] = setting((), "refuse")
    """The labels by number; another one in the data is refused. Default: those of the data, in order."""

    class_weights: bool = setting(False, "refuse")
    """Let each label count the same, however many texts it has."""

    @field_validator("labels", mode="before")
    @classmethod
    def _with_commas(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


class ClassifyConfig(RunConfig):
    """Sorting texts by labels."""

    training: FinetuneTraining = FinetuneTraining()
    """The optimisation."""

    classify: ClassifySection = ClassifySection()
    """The labels."""


class AlignTraining(FinetuneTraining):
    """The optimisation, with defaults for a model that can answer already."""

    learning_rate: float = setting(1e-5, "warn", gt=0)
    """Peak rate of AdamW."""

    micro_batch_size: int = setting(8, "warn", ge=1)
    """Examples in one forward and backward pass: pairs of answers, of which both are read. With `grad_accum_steps` it
    makes the batch of one step, of which several processes each take an equal part."""


class AlignSection(Section):
    """Which of two answers is better, and how that is learnt."""

    method: Literal["dpo", "orpo", "grpo"] = setting("dpo", "refuse")
    """`dpo` (pairs, against the model as it was at first), `orpo` (pairs, without a reference) or `grpo` (the model's
    own answers, judged by a verifier)."""

    beta: float = setting(0.1, "refuse", gt=0)
    """How much a preference weighs: of `dpo` the inverse temperature, so that a smaller one lets the model go further
    from its reference; of `orpo` the weight of the odds ratio beside the cross-entropy of the chosen answer."""

    template: Literal["auto", "chatml", "qwen3", "alpaca", "llama3", "plain"] = setting("auto", "refuse")
    """How a conversation is written for the model. `auto`: the template that the checkpoint was taught, or that its
    control tokens ask for."""

    system_prompt: str | None = setting(None, "refuse", min_length=1)
    """A system message for conversations that have none."""

    skip_bad_rows: bool = setting(False, "refuse")
    """Leave out records that are no pair, and say how many; without it the first is refused with its line."""


class GrpoSection(Section):
    """Answers that a verifier judges, with `align.method: grpo`. `micro_batch_size x grad_accum_steps` answers are
    learnt from in a step; default: 64."""

    verifier: str = setting("exact", "refuse", min_length=1)
    """What an answer is worth: `exact` (1 where it equals the known answer, as text or as a number; of several lines
    what stands behind `####`, else the last number), `regex:PATTERN` (what the pattern finds last, its first group, is
    compared), or `FILE.py:function` (`function(prompt, text, answer)` returns a number, in a process of its own)."""

    verifier_seconds: float = setting(10.0, "refuse", gt=0, le=3600)
    """A function that has not judged an answer after so long is ended, and so is all that it has started."""

    verifier_failure: Literal["zero", "stop"] = setting("zero", "refuse")
    """An answer that the function cannot judge (it raises, hangs, or returns no number) is worth `zero`, is counted as
    `unjudged` in the log and told in the report; or the run ends (`stop`). It always ends where none can be judged."""

    group_size: int = setting(8, "refuse", ge=2, le=4096)
    """Answers to a question; each is compared with the mean of its group."""

    max_new_tokens: int = setting(128, "refuse", ge=1, le=100_000)
    """Tokens of an answer at most."""

    temperature: float = setting(1.0, "refuse", ge=0.01, le=100)
    """Logits are divided by it where answers are drawn, and where their probabilities are found."""

    loss_type: Literal["dapo", "grpo", "dr_grpo"] = setting("dapo", "refuse")
    """What the loss is a mean of: `dapo` of all written tokens; `grpo` of answers, each a mean of its tokens, so that
    tokens of short answers weigh more; `dr_grpo` of answers, each the sum of its tokens divided by
    `max_new_tokens`."""

    scale_rewards: Literal["group", "batch", "none"] = setting("group", "refuse")
    """Divide what a reward is above its group's mean by the standard deviation of the `group`, or of the whole `batch`,
    or not."""

    kl_weight: float = setting(0.04, "refuse", ge=0)
    """Weight of the distance to the reference, the model as it was at first (with adapters: the same without them).
    With 0 there is no reference, and no `kl` in the log."""

    clip: float = setting(0.2, "refuse", gt=0, lt=1)
    """A token's probability may count up to this share less (and, without `clip_high`, more) than when it was written.
    Says something only where several updates learn from the same answers."""

    clip_high: float | None = setting(None, "refuse", gt=0)
    """The same for more. Default: `clip`."""

    updates_per_round: int = setting(1, "refuse", ge=1, le=1000)
    """Updates that learn from the same answers."""


class AlignConfig(RunConfig):
    """Alignment with preferences or verifiable rewards."""

    training: AlignTraining = AlignTraining()
    """The optimisation."""

    align: AlignSection = AlignSection()
    """The preferences."""

    grpo: GrpoSection = GrpoSection()
    """Answers that a verifier judges."""

    @model_validator(mode="after")
    def _settings_need_their_method(self) -> AlignConfig:
        if self.align.method != "grpo" and (others := self.grpo.model_fields_set) and self._says_more(others):
            raise ValueError(f"grpo.{min(others)} says nothing without align.method: grpo (--method grpo)")
        return self

    def _says_more(self, names: set[str]) -> bool:
        """Whether one of these keys of `grpo` is not as it is by default: a run's own config has them all."""
        return any(getattr(self.grpo, name) != GrpoSection.model_fields[name].default for name in names)

    @property
    def home(self) -> str:
        """Pairs are learnt from in `align`; every other method has a module of its own."""
        return "align" if self.align.method in ("dpo", "orpo") else self.align.method


# The config class of each stage: `RunConfig`, or a class with a section of its own more.
CONFIGS: dict[str, type[RunConfig]] = {
    "pretrain": RunConfig,
    "finetune": FinetuneConfig,
    "classify": ClassifyConfig,
    "align": AlignConfig,
}
