"""Two small story grammars, a model that knows one of them exactly, and tiny models that learn the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from tiny_transformer.cli import run
from tiny_transformer.config.schema import DataConfig
from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.data.batches import Batches
from tiny_transformer.data.prepare.command import prepare
from tiny_transformer.data.prepare.sources import STORIES, Document, Source
from tiny_transformer.data.stories.parser import Parser
from tiny_transformer.data.stories.sampler import Sampler, available
from tiny_transformer.data.stories.template import Alternatives, Draw, Literal, Node, Reader, Reference
from tiny_transformer.data.stories.words.build import nouns, people
from tiny_transformer.data.token_file import Dataset, TokenFile, open_dataset
from tiny_transformer.evaluation.stories import Reading, ToldStory
from tiny_transformer.hardware import Hardware
from tiny_transformer.models import build_model
from tiny_transformer.tokenizers import Tokenizer, make_tokenizer
from tiny_transformer.training.losses import language_modelling_loss

LISTS = {
    "names": people("Ann, Eve, Mia", "Bob, Tom"),
    "fruit": nouns("apple, cherry, pear, plum, fig, melon"),
    "things": nouns("hat, drum, spoon, kite, lamp, cup, key, boot, nut, rope, bell, jar, map, pen, net, wig"),
}
RULES = {
    "start": """
    {who=names} had {first=fruit.a} and {second=fruit.a-first}.
    [#plot {who.He} ate the {first@ordering}[ at once| late|]
    |The {second} was bad]. {who} [#ending smiled|slept|went on].
    """
}
# Two nats per word: a short training cannot come near the floor, and a mistake goes far below it.
BAGS = {"start": "{who=names}:" + " {_=things}" * 8 + "."}
SEQ_LEN = 64
CPU = Hardware(torch.device("cpu"), None)
SHAPE = Qwen3Config(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=256,
)


class Corpus:
    """The stories of one small grammar."""

    def __init__(self, rules: dict[str, str]) -> None:
        self.tree = Reader(rules, LISTS).read("start")
        self.sampler, self.parser = Sampler(self.tree), Parser(self.tree)

    def told(self, seed: int, count: int) -> list[ToldStory]:
        """Stories with their choices."""
        return [self.tell(self.sampler.sample(seed, i)[0]) for i in range(count)]

    def tell(self, text: str) -> ToldStory:
        return ToldStory(text, self.parser.derivations(text)[0].choices)

    def prepare(self, out_dir: Path, count: int = 400, val_fraction: float = 0.1, tokenizer: str = "byte") -> Dataset:
        """The first stories of seed 0 as prepared data."""
        source = Source(
            name=STORIES,
            licence="ours",
            fingerprint="small",
            max_bytes=None,
            total_bytes=None,
            start=lambda: (Document(*self.sampler.sample(0, i)) for i in range(count)),
        )
        data = DataConfig(seq_len=SEQ_LEN, val_fraction=val_fraction, tokenizer=tokenizer)
        prepare(data, out_dir, source=source)
        return open_dataset(out_dir)


PLAIN, MANY = Corpus(RULES), Corpus(BAGS)


def reading(tokenizer: Tokenizer | None = None, *, seq_len: int = 256, predicts_first: bool = True) -> Reading:
    return Reading(tokenizer or make_tokenizer("byte"), seq_len, predicts_first, CPU)


def train_small(tokens: TokenFile, vocab_size: int, steps: int, *, packing: str = "concat") -> nn.Module:
    """A tiny Qwen3 after a short training on a split."""
    torch.manual_seed(0)
    batches = Batches(tokens, seq_len=SEQ_LEN, global_batch_size=16, seed=0, packing=packing)
    model = build_model(SHAPE.model_copy(update={"vocab_size": vocab_size}), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for step in range(steps):
        batch = batches.batch(step)
        loss_sum, _ = language_modelling_loss(model, batch)
        optimizer.zero_grad()
        (loss_sum / batch.num_targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


class Oracle(nn.Module):
    """The small grammar as a language model over bytes: exact probabilities of the next byte, after any beginning.

    What it knows is the grammar's list of all stories, each with the probability that the parser gives it. It reads
    each row from its last end token (or its beginning) on.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.end_id = tokenizer.end_id
        mass: dict[tuple[int, ...], np.ndarray] = {}
        for text in all_texts(PLAIN.tree, {}):
            probability = math.exp(PLAIN.parser.derivations(text)[0].log_probability)
            ids = (*tokenizer.encode(text), self.end_id)
            for i, token_id in enumerate(ids):
                mass.setdefault(ids[:i], np.zeros(tokenizer.vocab_size))[token_id] += probability
        with np.errstate(divide="ignore"):
            self.logits = {beginning: np.log(next_mass / next_mass.sum()) for beginning, next_mass in mass.items()}
        self.unknown = np.zeros(tokenizer.vocab_size)

    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor | None = None, doc_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        del positions
        rows = []
        for row, ids in enumerate(input_ids.tolist()):
            beginning: tuple[int, ...] = ()
            logits = []
            for place, token_id in enumerate(ids):
                new = doc_ids is not None and place > 0 and doc_ids[row, place] != doc_ids[row, place - 1]
                beginning = () if token_id == self.end_id else ((() if new else beginning) + (token_id,))
                logits.append(self.logits.get(beginning, self.unknown))
            rows.append(logits)
        return torch.from_numpy(np.array(rows))


def all_texts(sequence: tuple[Node, ...], slots: dict) -> Iterator[str]:
    """Every text of a tree without sums."""
    if not sequence:
        yield ""
        return
    node, rest = sequence[0], sequence[1:]
    if isinstance(node, Alternatives):
        for option in node.options:
            yield from all_texts((*option, *rest), slots)
        return
    if isinstance(node, Draw):
        pairs = [(entry.forms[node.form], {**slots, node.slot: entry}) for entry in available(node, slots.__getitem__)]
    elif isinstance(node, Reference):
        pairs = [(slots[node.slot].forms[node.form], slots)]
    else:
        assert isinstance(node, Literal)
        pairs = [(node.text, slots)]
    for text, bound in pairs:
        for more in all_texts(rest, bound):
            yield text + more


def entropy_of_all() -> float:
    """The grammar's entropy from the list of all its texts."""
    logs = [PLAIN.parser.derivations(text)[0].log_probability for text in all_texts(PLAIN.tree, {})]
    assert math.isclose(math.fsum(map(math.exp, logs)), 1.0, abs_tol=1e-12)
    return -math.fsum(math.exp(log_p) * log_p for log_p in logs)


SEED_RUNS = {"s1": 1, "s2": 2}


def seed_runs(root: Path) -> Path:
    """Two runs of one config that differ in their seed, in `runs/`, and the data they learnt from in `data/`."""
    PLAIN.prepare(root / "data", count=300)
    shape = {name: getattr(SHAPE, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256}
    for name, seed in SEED_RUNS.items():
        training = {"steps": 4, "micro_batch_size": 4, "eval_tokens": 64, "log_steps": 1, "sample_prompts": ["Ann"]}
        settings = {
            "model": {**shape, **heads},
            "data": {"data_dir": str(root / "data"), "seq_len": SEQ_LEN},
            "training": {**training, "seed": seed, "device": "cpu"},
            "out_dir": str(root / "runs" / name),
        }
        (root / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        assert run(["train", "--config", str(root / f"{name}.yaml")]) == 0
    return root
