"""What the stages besides pretraining can be told: each a config with a section of its own, and defaults of its own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

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


class AlignConfig(RunConfig):
    """Alignment with preferences or verifiable rewards."""

    training: AlignTraining = AlignTraining()
    """The optimisation."""

    align: AlignSection = AlignSection()
    """The preferences."""

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
