"""What a run can be told: every key, its type, its range, its default and what it does.

This is the single source of `docs/CONFIG_REFERENCE.md`, of the checks made before any work starts and of the
`config.yaml` saved with each run. A config only describes: nothing here builds a model, opens a file or reads the
environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from tiny_transformer.config.shapes import ModelConfig, Qwen3Config
from tiny_transformer.storage.reading import at_home

OnResume = Literal["refuse", "warn", "allow", "data"]


def setting(default: Any, on_resume: OnResume, **constraints: Any) -> Any:
    """A field with its default, its range, and what `--resume` does when it differs from the saved run's value.

    `refuse`: it would be another run, or the saved state would not fit. `warn`: the rest of the run becomes another one
    than was started. `allow`: the weights stay what they would have been. `data`: the prepared data was made with it,
    and asking for another value is refused.
    """
    return Field(default, json_schema_extra={"on_resume": on_resume}, **constraints)


def on_resume(field: FieldInfo) -> OnResume:
    """What `--resume` does when this field has changed; the shape of a model never may."""
    extra = field.json_schema_extra
    return extra["on_resume"] if isinstance(extra, dict) else "refuse"  # ty: ignore[invalid-explicit-return]


def _path(value: Any) -> Any:
    """A path as it is meant; none that is empty, which would be the current directory."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("an empty path; leave it out for the default, . is the current directory")
    return at_home(value) if isinstance(value, str | Path) else value


class Section(BaseModel):
    """One part of a config: unknown keys are refused, values are checked, nothing can be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)


class DataConfig(Section):
    """Where the text comes from and how it becomes token sequences."""

    source: str = setting("stories", "data")
    """A name (`stories`, `tinystories`, `wikipedia`, `wiki-intros`, `wiki-bookscorpus`), a hub data set id, or a path:
    file, folder or glob."""

    data_dir: Path | None = setting(None, "allow")
    """Prepared token files (`train.bin`, `val.bin`, `meta.json`). Made from `source` when they are missing. Default:
    `data/NAME`."""

    text_field: str = setting("text", "data")
    """The field of a .jsonl, .json, .csv, .tsv, .parquet or hub row that holds the text."""

    max_bytes: int | None = setting(None, "data", ge=1)
    """Stop reading the source after this many bytes of text."""

    val_fraction: float | None = setting(None, "data", gt=0, lt=1)
    """Share of the text kept for validation: whole documents, chosen by a hash of the document, so that it does not
    move when data is added; of a text that is one document, several pieces spread over it. Default: 0.02, and up to 0.1
    of a short text that is one document."""

    tokenizer: str = setting("bpe", "data")
    """`bpe` (trained on this text), `byte`, `char`, `gpt2`, `qwen3`, or a Hugging Face tokenizer directory or id."""

    vocab_size: int | None = setting(None, "data", ge=256, le=1_000_000)
    """Words of a `bpe` trained here. Default: chosen from the amount of text."""

    packing: Literal["concat", "documents"] = setting("concat", "refuse")
    """`concat` joins documents by the end token and cuts; `documents` packs whole ones, and attention stops at their
    borders."""

    seq_len: int = setting(256, "refuse", ge=2, le=1_048_576)
    """Tokens a model sees at once in training."""

    @field_validator("data_dir", mode="before")
    @classmethod
    def _home(cls, value: Any) -> Any:
        return _path(value)

    @field_validator("source")
    @classmethod
    def _something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("an empty name; leave it out for the built-in stories")
        return value


class TrainingConfig(Section):
    """How the model is trained. A *step* is one update of the weights."""

    steps: int | None = setting(None, "warn", ge=1)
    """Updates in the whole run. Of `steps`, `max_tokens`, `epochs` and `max_train_minutes`, whichever ends first; with
    none of them, 1000. On the command line the first three are stronger than what a file says about the length."""

    max_tokens: int | None = setting(None, "warn", ge=1)
    """Train on this many tokens, rounded up to a whole step."""

    epochs: float | None = setting(None, "warn", gt=0)
    """Read the training text this many times; sets `max_tokens` to so many times its tokens, once they are known."""

    max_train_minutes: float | None = setting(None, "warn", gt=0)
    """Fit the run to this wall-clock time. Speed is measured first and again and again on the way; steps, warm-up and
    decay follow from it, and each correction is written into plan.json before it is used. `train --minutes` sets this,
    and chooses what else the config leaves open."""

    micro_batch_size: int = setting(16, "warn", ge=1)
    """Sequences in one forward and backward pass. Changes memory and speed; with `grad_accum_steps` it makes the batch
    of one step, of which several processes each take an equal part."""

    grad_accum_steps: int = setting(1, "warn", ge=1)
    """Passes whose gradients are added before one update. A step sees `micro_batch_size x grad_accum_steps`
    sequences, however many processes share them."""

    parallelism: Literal["ddp", "fsdp"] = setting("ddp", "warn")
    """How processes started with `torchrun` share the work: `ddp` keeps the whole model in each, `fsdp` a part of every
    weight, gradient and optimizer state. With one process it says nothing."""

    deterministic: bool = setting(False, "warn")
    """Add up gradients in a fixed order, with one thread per process on a CPU: the same weights bit for bit on 1, 2,
    4, ... processes, if `grad_accum_steps` is a multiple of their number. Slower; not with `fsdp`."""

    lost_rank_seconds: float = setting(20.0, "allow", ge=1)
    """A process that does not answer, or does not go on, for so long is lost, and the others end."""

    optimizer: Literal["adamw", "muon"] = setting("adamw", "refuse")
    """`adamw` for all weights, or `muon` for the hidden matrices with AdamW for the rest."""

    learning_rate: float = setting(1e-3, "warn", gt=0)
    """Peak rate of AdamW."""

    muon_learning_rate: float = setting(0.01, "warn", gt=0)
    """Peak rate of Muon; only with `optimizer: muon`."""

    weight_decay: float = setting(0.1, "warn", ge=0)
    """Decay towards zero, on matrices only (not on norms and biases)."""

    beta1: float = setting(0.9, "warn", ge=0, lt=1)
    """AdamW's memory of the gradient."""

    beta2: float = setting(0.95, "warn", ge=0, lt=1)
    """AdamW's memory of the squared gradient."""

    grad_clip: float | None = setting(1.0, "warn", gt=0)
    """Largest norm of the whole gradient; longer ones are shortened to it. `null`: never."""

    schedule: Literal["cosine", "linear", "wsd", "constant"] = setting("cosine", "warn")
    """Shape of the learning rate after warm-up. `wsd` (warm-up, stable, decay) is `linear` with a `decay_fraction` of
    0.2."""

    warmup_steps: int | None = setting(None, "warn", ge=0)
    """Steps over which the rate rises from zero. Default: `warmup_fraction` of all steps."""

    warmup_fraction: float = setting(0.05, "warn", ge=0, lt=1)
    """Share of all steps used for warm-up when `warmup_steps` is not given."""

    decay_fraction: float | None = setting(None, "warn", gt=0, le=1)
    """Share of the steps after warm-up over which the rate falls; before that it stays at its peak. Default: 1, and 0.2
    for `wsd`."""

    final_rate_fraction: float = setting(0.1, "warn", ge=0, le=1)
    """The last learning rate as a share of the peak."""

    dropout: float = setting(0.0, "refuse", ge=0, lt=1)
    """Share of activations set to zero while training."""

    final_dropout: float | None = setting(None, "warn", ge=0, lt=1)
    """Let dropout go from `dropout` at the first step to this at the last, in a straight line. Default: it stays."""

    zero_residual: bool = setting(False, "refuse")
    """Start the output projection of each attention and feed-forward block at zero, so that each block begins as the
    identity."""

    previous_token_init: bool = setting(False, "refuse")
    """Start the first layer with heads that look at the token before and at the one before that, which looking
    something up in the text is built on; in a `llama` or `qwen3` with a `head_dim` of 12 or more. They are trained like
    all other weights."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "warn")
    """Arithmetic of the matrix products, those of Muon's updates too; weights are always kept in fp32. `bf16` and
    `fp16` (with a loss scale that follows the gradient) are used where the device has them in hardware; `auto` takes
    bf16 there if it passes a check against float64, else fp32."""

    gradient_checkpointing: bool = setting(False, "allow")
    """Keep only the input of each block and compute the rest again in the backward pass: a third more time for much
    less memory, the same gradients."""

    attention: Literal["auto", "sdpa", "blocks"] = setting("auto", "warn")
    """How attention finds its gradient on a CPU: `sdpa` by PyTorch's fused operator, `blocks` in blocks of queries, the
    same up to rounding. `auto` times both at the run's shape when it starts, and keeps the faster one in config.yaml: a
    resumed run stays with it. `deterministic` runs and other devices have `sdpa`."""

    compile: bool = setting(False, "warn")
    """Compile the model first (torch.compile; on a CPU this needs a C++ compiler and takes about 40 s)."""

    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "warn")
    """Where to compute; `auto` takes CUDA, then Apple's MPS, then the CPU."""

    seed: int = setting(0, "refuse", ge=0, lt=2**63)
    """Decides initial weights, the order of examples and dropout."""

    eval_steps: Annotated[int, Field(ge=1)] | Literal["auto"] | None = setting("auto", "warn")
    """Evaluate on the validation split every this many steps, and at the end. `auto`: eight times, spread evenly over
    the run, however long it turns out to be. With `null` there is no evaluation, and no `best` checkpoint."""

    eval_tokens: int | None = setting(None, "warn", ge=1)
    """Evaluate on this many tokens from the beginning of the validation split, rounded up to a whole batch. Default:
    all of it; with `eval_steps: auto` at most as many as eight steps train on. Bits per byte then count
    as many bytes a token as the whole split has."""

    save_steps: int | None = setting(500, "allow", ge=1)
    """Save a checkpoint every this many steps. The end of the run is always saved."""

    keep_checkpoints: int = setting(2, "allow", ge=1)
    """How many of the newest checkpoints stay on disk, besides `best`."""

    early_stopping_patience: int | None = setting(None, "warn", ge=1)
    """Stop after this many evaluations in a row without a better validation loss. Needs `eval_steps`."""

    log_steps: int = setting(10, "allow", ge=1)
    """Write a line to log.jsonl every this many steps, and before the first of them after 1, 2, 4, 8, ... steps."""

    loggers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = setting((), "allow")
    """Send the same figures to these programs too, each installed by you (`pip install wandb`): one, or several with
    commas between them."""

    sample_prompts: tuple[str, ...] = setting(("Once upon a time",) * 3, "allow", max_length=16)
    """Prompts continued at the end of the run, for the terminal and the report. The first three different ones are also
    continued at six points on the way, greedily and in at most 48 tokens. `[]`: none. Of a text other than the
    built-in stories, where none are given: how three of its validation documents begin."""

    sample_tokens: int = setting(200, "allow", ge=1, le=100_000)
    """Longest continuation of each of them."""

    sample_drafter: str | None = setting(None, "allow")
    """Who drafts tokens ahead when `generate` writes with a checkpoint of this run, so that several are written a pass:
    `ngram` (earlier text), `mtp` (the model's own MTP head), a checkpoint or run of a smaller model with the same
    tokenizer, or `auto`: `mtp` where there is such a head, else `ngram`. The texts are the same. Null: nobody."""

    log_attention: bool = setting(False, "allow")
    """When `generate` writes one text with a checkpoint of this run, also save its attention weights, to
    `attention.safetensors` in the working directory: what `generate --log_attention` does."""

    quantize: Literal["int8", "int4"] | None = setting(None, "allow")
    """At the end of the run, also write its best checkpoint with weights of 8 or 4 bits, to `int8` or `int4` in the run
    directory: what `tiny-transformer quantize` does."""

    @property
    def examples_per_step(self) -> int:
        """Examples in the batch of one update, all processes together."""
        return self.micro_batch_size * self.grad_accum_steps

    @field_validator("loggers", mode="before")
    @classmethod
    def _names_with_commas(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("quantize", mode="before")
    @classmethod
    def _not_at_all(cls, value: Any) -> Any:
        return None if value in (False, "", "none", "None", "null", "off", "no") else value

    @field_validator("sample_prompts", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> TrainingConfig:
        if self.early_stopping_patience is not None and self.eval_steps is None:
            raise ValueError("early_stopping_patience needs eval_steps: without evaluation nothing can stop early")
        if self.deterministic and self.parallelism == "fsdp":
            raise ValueError("deterministic and fsdp exclude each other: fsdp adds up gradients in an order of its own")
        if self.final_dropout is not None and self.compile:
            raise ValueError("final_dropout and compile exclude each other: each new rate would be compiled anew")
        return self


class LoraSection(Section):
    """Low-rank adapters: train small additions to linear layers, and leave the model as it is."""

    enabled: bool = setting(False, "refuse")
    """Train adapters alone, on the model that `init_from` names."""

    rank: int = setting(8, "refuse", ge=1, le=4096)
    """Rank of an addition: `rank` x (inputs + outputs) weights a layer."""

    alpha: float = setting(16.0, "refuse", gt=0)
    """An addition counts `alpha / rank`."""

    dropout: float = setting(0.0, "refuse", ge=0, lt=1)
    """Share of an addition's inputs set to zero while training."""

    targets: tuple[str, ...] = setting(("*_proj",), "refuse", min_length=1)
    """Which linear layers, by the end of their names: `q_proj`, `*_proj`, `layers.0.*`."""

    rslora: bool = setting(False, "refuse")
    """Let an addition count `alpha / sqrt(rank)`, so that a higher rank learns as fast."""

    use_dora: bool = setting(False, "refuse")
    """Let the length of each layer's rows be learnt beside the addition, which then decides their direction (DoRA)."""

    quantize: Literal["none", "int8", "int4"] = setting("none", "refuse")
    """Keep the frozen weights in 8 or 4 bits (QLoRA)."""

    @field_validator("targets", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _settings_need_their_switch(self) -> LoraSection:
        if self.model_fields_set and "enabled" not in self.model_fields_set:
            name = min(self.model_fields_set)
            raise ValueError(f"lora.{name} says nothing without lora.enabled: true (--lora)")
        return self


class RunConfig(Section):
    """Everything one run is told."""

    model: Annotated[ModelConfig, Field(discriminator="model_type")] = Qwen3Config()
    """The shape of the network."""

    data: DataConfig = DataConfig()
    """The text."""

    training: TrainingConfig = TrainingConfig()
    """The optimisation."""

    lora: LoraSection = LoraSection()
    """Low-rank adapters."""

    out_dir: Path | None = setting(None, "allow")
    """The run directory. Default: `runs/NAME`, where NAME is the config file's."""

    stage: str = setting("pretrain", "refuse")
    """What kind of training this is."""

    init_from: Path | None = setting(None, "allow")
    """Start from the weights of this checkpoint, run or imported model instead of random ones. Its shape and tokenizer
    are taken over; optimizer, schedule and step count start anew."""

    @field_validator("out_dir", "init_from", mode="before")
    @classmethod
    def _home(cls, value: Any) -> Any:
        return _path(value)

    @property
    def home(self) -> str:
        """Which module of `stages/` holds the class of this stage."""
        return self.stage

    @property
    def tokens_per_step(self) -> int:
        """Tokens in the batch of one update, all processes together."""
        return self.training.examples_per_step * self.data.seq_len

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> RunConfig:
        if self.lora.enabled and self.init_from is None:
            raise ValueError("lora.enabled needs init_from (--init_from RUN): adapters are added to a trained model")
        return self

    @model_validator(mode="after")
    def _first_layer_can_look_back(self) -> RunConfig:
        if self.training.previous_token_init and (why := self.model.look_back_refusal()):
            raise ValueError(f"training.previous_token_init {why}: change that, or leave previous_token_init out")
        return self

    @model_validator(mode="after")
    def _sequence_fits_the_model(self) -> RunConfig:
        limit = self.model.max_position_embeddings
        if self.data.seq_len > limit:
            raise ValueError(
                f"data.seq_len {self.data.seq_len} is longer than model.max_position_embeddings {limit}: "
                "shorten the one or raise the other"
            )
        return self


def sections_of(schema: type[RunConfig]) -> dict[str, type[Section] | None]:
    """The sections of a config by name; None for `model`, whose class `model_type` decides."""
    found: dict[str, type[Section] | None] = {}
    for name, field in schema.model_fields.items():
        if name == "model":
            found[name] = None
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found[name] = field.annotation
    return found
