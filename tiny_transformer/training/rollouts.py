"""Batches of answers that the model in training has just written: rounds, written, judged, kept and shared out.

A round is written with the weights of its first step, and with random numbers that depend on the seed and that step.
What it came to is kept before anything is learnt from it; see `rollout_store`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tiny_transformer.data.questions import Question, numbers_of_round
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.judges import Judge
from tiny_transformer.generation.rollouts import roll_out
from tiny_transformer.generation.sampling import SamplingConfig, row_keys
from tiny_transformer.hardware import Hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.parallel.processes import ALONE, Processes
from tiny_transformer.tokenizers import Tokenizer
from tiny_transformer.training.policy import PolicyBatch, Scale, advantages_of, written_log_probs
from tiny_transformer.training.rollout_store import Answer, RolloutStore, decode, encode

PHRASE_TOKENS = 4  # a run of tokens of this length that many answers share


@dataclass(frozen=True)
class RoundSettings:
    """How rounds are made.

    Attributes:
        group_size: answers to a question.
        num_questions: in a round, all processes together.
        num_updates: steps that learn from a round.
        scale: see `advantages_of`.
        counts_tokens: see `PolicyBatch`.
        temperature, max_new_tokens: of the answers.
        seed: of the order of the questions, and of the answers.
        rows_at_once: answers written side by side, whole groups.
        rows_of_pass: answers whose log-probabilities are found in one pass.
        failure: what an answer is worth that the verifier cannot judge: nothing, or the end of the run.
    """

    group_size: int
    num_questions: int
    num_updates: int
    scale: Scale
    counts_tokens: bool
    temperature: float
    max_new_tokens: int
    seed: int
    rows_at_once: int
    rows_of_pass: int
    failure: Literal["zero", "stop"]

    @property
    def fingerprint(self) -> str:
        """Of what decides which answers given weights write."""
        decides = (self.group_size, self.num_questions, self.temperature, self.max_new_tokens, self.seed)
        return hashlib.blake2b(repr(decides).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Author:
    """Writes answers, finds their log-probabilities, and has them judged.

    Attributes:
        model, tokenizer: the model in training.
        hardware: of the passes that find log-probabilities, which are computed as the loss computes them.
        questions: all of the split, and `prompts` their tokens.
        end_ids: tokens that end an answer.
        judge: what an answer is worth.
        settings: of the rounds.
        reference: the log-probabilities of the same tokens under the reference: `reference(input_ids, is_written)`.
    """

    model: CausalLM
    tokenizer: Tokenizer
    hardware: Hardware
    questions: Sequence[Question]
    prompts: Sequence[tuple[int, ...]]
    end_ids: frozenset[int]
    judge: Judge
    settings: RoundSettings
    reference: Callable[[Tensor, Tensor], Tensor] | None

    def write(self, numbers: Sequence[int], keys: Sequence[int]) -> list[Answer]:
        """An answer to each of these questions; a number that stands several times in a row is a group.

        Raises:
            UserError: the verifier could judge none, or it failed and `failure` is `stop`.
        """
        settings = self.settings
        prompts = [self.prompts[number] for number in numbers]
        sampling = SamplingConfig(temperature=settings.temperature, max_new_tokens=settings.max_new_tokens)
        written = roll_out(
            self.model,
            self.tokenizer,
            prompts,
            sampling,
            end_ids=self.end_ids,
            keys=keys,
            rows_at_once=settings.rows_at_once,
        )
        answers = []
        for number, prompt, one in zip(numbers, prompts, written, strict=True):
            question = self.questions[number]
            reward, problem = self.judge(question.text, one.text, question.answer)
            answers.append(Answer(number, prompt, one.ids, one.text, one.reason or "", reward, problem, (), ()))
        self._refuse_failures(answers)
        return self._with_log_probs(answers)

    def _refuse_failures(self, answers: Sequence[Answer]) -> None:
        failed = [one for one in answers if one.problem]
        if failed and (len(failed) == len(answers) or self.settings.failure == "stop"):
            many = "none of the answers" if len(failed) == len(answers) else "not every answer"
            raise UserError(
                f"the verifier could judge {many} ({len(failed):,} of {len(answers):,}): {failed[0].problem}",
                where=self.questions[failed[0].question].where,
                remedy="mend the verifier; then --resume goes on from the last checkpoint",
                exit_code=ExitCode.BAD_DATA,
            )

    @torch.no_grad()
    def _with_log_probs(self, answers: Sequence[Answer]) -> list[Answer]:
        was_training, found = self.model.training, []
        self.model.train(False)
        for first in range(0, len(answers), self.settings.rows_of_pass):
            part = answers[first : first + self.settings.rows_of_pass]
            input_ids, is_written = (tensor.to(self.hardware.device) for tensor in padded(part))
            with self.hardware.autocast():
                old = written_log_probs(self.model, input_ids, is_written, self.settings.temperature)
                reference = None if self.reference is None else self.reference(input_ids, is_written)
            sizes = [len(one.ids) for one in part]
            olds = old.cpu().split(sizes)
            references = [()] * len(part) if reference is None else [r.tolist() for r in reference.cpu().split(sizes)]
            for one, its_old, its_reference in zip(part, olds, references, strict=True):
                found.append(one._replace(old=tuple(its_old.tolist()), reference=tuple(its_reference)))
        self.model.train(was_training)
        return found


class RolloutBatches:
    """Batches of answers: `training.contract.BatchSource`.

    Args:
        num_questions: of the split.
        settings: of the rounds.
        rank, world_size: which equal part of each round this process writes and learns from.

    Raises:
        UserError: a round cannot be shared equally.
    """

    def __init__(self, num_questions: int, settings: RoundSettings, *, rank: int = 0, world_size: int = 1) -> None:
        if settings.num_questions % world_size:
            raise UserError(
                f"a round of {settings.num_questions} questions cannot be shared equally by {world_size} processes",
                where="training.micro_batch_size x grad_accum_steps / grpo.group_size",
                remedy="choose a batch size that is a multiple of group_size times the number of processes",
            )
        self._num_questions, self._settings = num_questions, settings
        self._rank, self._rows = rank, settings.num_questions * settings.group_size // world_size
        self._author: Author | None = None
        self._store: RolloutStore | None = None
        self._processes, self._tell = ALONE, print
        self._held: tuple[int, list[Answer]] | None = None

    def begin(self, author: Author, store: RolloutStore, processes: Processes, tell: Callable[[str], Any]) -> None:
        """Who writes answers, and where rounds are kept; `tell` takes a line for the user."""
        self._author, self._store, self._processes, self._tell = author, store, processes, tell

    @property
    def steps_per_epoch(self) -> float:
        """How many updates see every question once."""
        return self._num_questions * self._settings.num_updates / self._settings.num_questions

    def epoch(self, step: int) -> float:
        """How many times the questions have been asked before update number `step`."""
        return step / self.steps_per_epoch

    def micro_batches(self, step: int, micro_batch_size: int) -> Iterator[PolicyBatch]:
        """This process's part of the round that update number `step` learns from, in pieces."""
        answers = self._round(step)
        rewards = torch.tensor([one.reward for one in answers]).view(-1, self._settings.group_size)
        advantages, facts = advantages_of(rewards, self._settings.scale).flatten(), facts_of(answers, rewards)
        of_step = len(answers), sum(len(one.ids) for one in answers)
        for first in range(self._rank * self._rows, (self._rank + 1) * self._rows, micro_batch_size):
            last = min(first + micro_batch_size, (self._rank + 1) * self._rows)
            part = answers[first:last]
            input_ids, is_written = padded(part)
            has_reference = bool(part[0].reference)
            yield PolicyBatch(
                input_ids,
                is_written,
                torch.tensor([value for one in part for value in one.old]),
                torch.tensor([value for one in part for value in one.reference]) if has_reference else None,
                advantages[first:last],
                torch.tensor([one.question for one in part]),
                {name: values[first:last] for name, values in facts.items()},
                of_step,
                self._settings.counts_tokens,
            )

    def _round(self, step: int) -> list[Answer]:
        """The answers of all processes: those that are kept, or new ones, which are kept before they are given out."""
        if self._author is None or self._store is None:
            raise RuntimeError("answers are asked for before `begin`")
        first, processes = step - step % self._settings.num_updates, self._processes
        if self._held is not None and self._held[0] == first:
            return self._held[1]
        processes.mark("rollouts")
        made_by = {"weights": fingerprint_of(self._author.model), "settings": self._settings.fingerprint}
        sought = made_by if step == first else made_by | {"weights": None}  # in the middle of a round they have moved
        lines = processes.broadcast(self._store.read(first, sought) if processes.is_first else None)
        if lines is None:
            if step != first:
                self._tell(
                    f"the answers that steps {first + 1:,} to {first + self._settings.num_updates:,} learn from are "
                    "not there any more, and are written anew: from here on this is another run"
                )
            lines = processes.join(encode(self._author.write(*self._own(first))))
            if processes.is_first:
                self._store.keep(first, made_by, lines)
            processes.mark("rollouts")
        self._held = first, decode(lines)
        return self._held[1]

    def _own(self, first: int) -> tuple[list[int], list[int]]:
        """The questions that this process answers in the round of a step, each as often as it has answers, and the
        keys of their random numbers, which no other round or process has."""
        settings, author = self._settings, self._author
        number = first // settings.num_updates
        asked = numbers_of_round(number, settings.num_questions, self._num_questions, settings.seed)
        numbers = [question for question in asked for _ in range(settings.group_size)]
        digest = hashlib.blake2b(f"rollouts {settings.seed} {first}".encode(), digest_size=7).digest()
        keys = row_keys(int.from_bytes(digest, "little"), [author.prompts[n] for n in numbers] if author else [])
        mine = slice(self._rank * self._rows, (self._rank + 1) * self._rows)
        return numbers[mine], keys[mine]


def padded(answers: Sequence[Answer]) -> tuple[Tensor, Tensor]:
    """`input_ids` (B, T) int64, padded on the right with 0, and (B, T) bool: which tokens are of the answer."""
    sizes = [len(one.prompt) + len(one.ids) for one in answers]
    input_ids = torch.zeros(len(answers), max(sizes), dtype=torch.int64)
    is_written = torch.zeros(len(answers), max(sizes), dtype=torch.bool)
    for row, (one, size) in enumerate(zip(answers, sizes, strict=True)):
        input_ids[row, :size] = torch.tensor([*one.prompt, *one.ids])
        is_written[row, len(one.prompt) : size] = True
    return input_ids, is_written


def facts_of(answers: Sequence[Answer], rewards: Tensor) -> dict[str, Tensor]:
    """What the log tells of a round: (rows,) float32 by name, to be averaged.

    Args:
        answers: all of the round, group after group.
        rewards: (groups, k).
    """
    group_size = rewards.shape[1]
    spread = rewards.std(dim=1) if group_size > 1 else torch.zeros(len(rewards))
    is_equal = (rewards == rewards[:, :1]).all(dim=1)
    return {
        "reward": rewards.flatten(),
        "reward_spread": spread.repeat_interleave(group_size),
        "equal_groups": is_equal.float().repeat_interleave(group_size),
        "answer_tokens": torch.tensor([float(len(one.ids)) for one in answers]),
        "ended": torch.tensor([float(one.reason == "end") for one in answers]),
        "unjudged": torch.tensor([float(bool(one.problem)) for one in answers]),
        "same_words": torch.full((len(answers),), _share_of_commonest_phrase(answers)),
    }


def _share_of_commonest_phrase(answers: Sequence[Answer]) -> float:
    """In which share of the answers the commonest run of a few tokens stands; 0 where all answer one question."""
    if len({one.question for one in answers}) < 2:
        return 0.0
    counts: Counter[tuple[int, ...]] = Counter()
    for one in answers:
        counts.update({one.ids[i : i + PHRASE_TOKENS] for i in range(len(one.ids) - PHRASE_TOKENS + 1)})
    return max(counts.values(), default=0) / len(answers)


def fingerprint_of(model: CausalLM) -> str:
    """A hash of the weights that are trained, from the sum of the bits of each tensor: no update leaves that alone."""
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            bits = parameter.detach().contiguous().view(torch.int32).sum(dtype=torch.int64)
            digest.update(f"{name} {int(bits)} ".encode())
    return digest.hexdigest()
