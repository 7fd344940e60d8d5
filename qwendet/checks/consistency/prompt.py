"""``consistency.prompt.*``: inference sends, token for token, what training saw before the answer.

And both are the family's published chat format, so that any other server of the model sends it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from qwendet.checks.consistency.pair import pair
from qwendet.checks.consistency.runs import prompts_of, serving, training
from qwendet.checks.loss.answer_spans import answer_spans
from qwendet.checks.result import Verdict
from qwendet.checks.subject import Subject
from qwendet.encoding.collate import IGNORED
from qwendet.encoding.encode import EncodedSample
from qwendet.errors import Problem
from qwendet.families.chat import (
    END_OF_TURN,
    IN_CONFIG,
    PADDING,
    START_OF_TURN,
    prompt_text,
)
from qwendet.loader import Bundle
from qwendet.loading.processor import TEMPLATE_FIX, TOKENIZER_FIX, template_problems

ONE_TOKEN = (PADDING, START_OF_TURN, END_OF_TURN, *IN_CONFIG)
CONTEXT = 4
"""Tokens shown on either side of a difference."""


def prefix(subject: Subject) -> Verdict:
    """The prompts of the Predictor, for head and text, are the beginnings of what training saw."""
    shown, problems = serving(subject), []
    tokenizer = pair(subject).served.processor.tokenizer
    items = subject.encoded
    given = [("generation", prompts_of(shown))]
    if shown.trace.batches:
        batch = shown.trace.batches[0]
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        given.append(("the head", [ids[mask.bool()].tolist() for ids, mask in rows]))
    for name, prompts in given:
        for prompt, item, sample in zip(prompts, items, shown.samples, strict=True):
            if not item.student_assistant_spans:
                problems.append(Problem("training knows of no student's answer", sample.where, TEMPLATE_FIX))
                continue
            seen = item.input_ids[: item.student_assistant_spans[0][0]].tolist()
            what = f"the prompt of {name} is not what training saw"
            problems += _first_difference(prompt, seen, tokenizer, what, sample.where)
    tokens = sum(map(len, given[0][1]))
    return Verdict(
        f"{len(items)} prompts, {tokens} tokens, are the prefix that training saw", tuple(problems)
    )


def text(subject: Subject) -> Verdict:
    """What training sees is the whole conversation, written in the published format, tokenised in one go."""
    both, problems = pair(subject), []
    tokenizer = Tokenizer.from_file(str(both.folder / "tokenizer.json"))
    for item, sample in zip(subject.encoded, subject.samples, strict=True):
        expected = tokenizer.encode(_conversation(item, both.trained), add_special_tokens=False).ids
        what = "the encoder's tokens are not those of the published chat format"
        own = both.trained.processor.tokenizer
        problems += _first_difference(item.input_ids.tolist(), expected, own, what, sample.where)
    return Verdict("conversations are tokenised as the published format has it", tuple(problems))


def _conversation(item: EncodedSample, bundle: Bundle) -> str:
    """The sample written out, its answers as they stand in its tokens."""
    data, ids = bundle.config.data, item.input_ids.tolist()
    answers = [_decode(bundle, ids[start : end - 1]) for start, end in _spans(item)]
    merge = bundle.detector.config.vision_config.spatial_merge_size
    image_tokens = [int(grid.prod()) // merge**2 for grid in item.image_grid_thw]
    request = data.request.replace("{labels}", ", ".join(bundle.labels))
    prefix = bundle.detector.family.answer_prefix
    prompt = prompt_text(data.system_prompt or "", request, answers[:-1], image_tokens, prefix)
    return prompt + answers[-1] + END_OF_TURN


def _spans(item: EncodedSample) -> list[tuple[int, int]]:
    return [*item.teacher_assistant_spans, *item.student_assistant_spans]


def _decode(bundle: Bundle, ids: Sequence[int]) -> str:
    decoded: str = bundle.processor.tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return decoded


def _first_difference(
    found: Sequence[int], expected: Sequence[int], tokenizer: Any, what: str, where: str
) -> list[Problem]:
    pairs = enumerate(zip_longest(found, expected))
    at = next((index for index, (own, other) in pairs if own != other), None)
    if at is None:
        return []
    window = slice(max(0, at - CONTEXT), at + CONTEXT)
    texts = [repr(tokenizer.decode(list(ids[window]))) for ids in (found, expected)]
    lengths = f"{len(found)} and {len(expected)} tokens"
    return [Problem(f"{what}: from token {at} {texts[0]} for {texts[1]} ({lengths})", where, TEMPLATE_FIX)]


def template(subject: Subject) -> Verdict:
    """The chat template of either build, and of the checkpoint, writes the published format."""
    both = pair(subject)
    reloaded = AutoTokenizer.from_pretrained(both.folder, trust_remote_code=False)
    problems: list[Problem] = []
    for name, tokenizer in (
        ("the training build", both.trained.processor.tokenizer),
        ("the inference build", both.served.processor.tokenizer),
        ("the checkpoint, read by transformers", reloaded),
        ("the training processor", both.trained.processor),
        ("the inference processor", both.served.processor),
    ):
        problems += template_problems(tokenizer, both.trained.detector.family, name)
    return Verdict("templates write the published chat format", tuple(problems))


def special_tokens(subject: Subject) -> Verdict:
    """Each special token is one token, and the one that the model's config names."""
    both = pair(subject)
    problems: list[Problem] = []
    for name, bundle in (("training", both.trained), ("inference", both.served)):
        problems += special_token_problems(bundle.processor.tokenizer, bundle.detector.config, name)
    return Verdict(f"{len(ONE_TOKEN)} special tokens are one token each, as in config.json", tuple(problems))


def special_token_problems(tokenizer: Any, config: Any, name: str) -> Iterator[Problem]:
    """Special tokens that are split, or other ones than a model's config names."""
    for token in ONE_TOKEN:
        ids = tokenizer(f"a{token}b", add_special_tokens=False)["input_ids"]
        if len(ids) != 3 or tokenizer.decode(ids[1:2]) != token:
            yield Problem(
                f"{token} becomes {max(len(ids) - 2, 0)} tokens", f"{name} tokenizer", TOKENIZER_FIX
            )
            continue
        expected = getattr(config, IN_CONFIG.get(token, ""), ids[1])
        if ids[1] != expected:
            what = f"{token} is token {ids[1]}, but the model's {IN_CONFIG[token]} is {expected}"
            yield Problem(what, f"{name} tokenizer", TOKENIZER_FIX)
    if tokenizer.eos_token != END_OF_TURN:
        yield Problem(
            f"the end of turn is {tokenizer.eos_token}, expected {END_OF_TURN}", name, TOKENIZER_FIX
        )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        what = (
            f"padding is {tokenizer.pad_token!r}, the end of turn {tokenizer.eos_token!r}: they must differ"
        )
        yield Problem(what, f"{name} tokenizer", "set pad_token to " + PADDING)
    if len(tokenizer) > config.text_config.vocab_size:
        what = f"{len(tokenizer)} tokens, but the model embeds {config.text_config.vocab_size}"
        yield Problem(what, f"{name} tokenizer", TOKENIZER_FIX)


def tokenizer(subject: Subject) -> Verdict:
    """Both builds have one tokenizer, padding on the left, and what it writes it reads back."""
    both, problems = pair(subject), []
    ours, theirs = both.trained.processor.tokenizer, both.served.processor.tokenizer
    if ours.get_vocab() != theirs.get_vocab():
        differing = sorted(set(ours.get_vocab().items()) ^ set(theirs.get_vocab().items()))
        what = f"{len(differing)} entries of the vocabularies differ, such as {differing[0]}"
        problems.append(Problem(what, "training and inference build", TOKENIZER_FIX))
    texts = [*both.trained.labels, both.trained.config.data.request, '[{"bbox_2d": [0, 1, 23, 456]}]']
    texts += [_decode(both.trained, item.input_ids.tolist()) for item in subject.encoded]
    for name, own in (("training", ours), ("inference", theirs)):
        if own.padding_side != "left":
            problems.append(
                Problem(f"padding_side is {own.padding_side}", f"{name} tokenizer", TOKENIZER_FIX)
            )
        for line in texts:
            ids = own(line, add_special_tokens=False)["input_ids"]
            if own.decode(ids, clean_up_tokenization_spaces=False) != line:
                what = f"{line[:60]!r} is read back as {own.decode(ids)[:60]!r}"
                problems.append(Problem(what, f"{name} tokenizer", TOKENIZER_FIX))
            elif ids != ours(line, add_special_tokens=False)["input_ids"]:
                problems.append(
                    Problem(f"{line[:60]!r} has other tokens", f"{name} tokenizer", TOKENIZER_FIX)
                )
    return Verdict(f"{len(ours)} entries, {len(texts)} texts read back as written", tuple(problems))


def labels(subject: Subject) -> Verdict:
    """Exactly the assistants' answers are learned, each with its end of turn; the last is the student's."""
    own = pair(subject).trained.processor.tokenizer
    prefix = pair(subject).trained.detector.family.answer_prefix
    batch, problems = training(subject).batches[0], []
    fix = "labels are the answers' tokens, student_mask those of the last answer"
    for row, sample in enumerate(subject.samples):
        ids = batch["input_ids"][row].tolist()
        answers = answer_spans(ids, own, prefix)
        learned = {index for start, stop in answers for index in range(start, stop)}
        marked = (batch["labels"][row] != IGNORED).nonzero().flatten().tolist()
        student = batch["student_mask"][row].nonzero().flatten().tolist()
        if set(marked) != learned:
            strange = sorted(set(marked) ^ learned)[0]
            kind = "is learned but is no answer" if strange in marked else "is of an answer but not learned"
            what = f"token {strange} ({own.decode([ids[strange]])!r}) {kind}"
            problems.append(Problem(what, sample.where, fix))
        if any(batch["labels"][row, index] != ids[index] for index in marked):
            problems.append(Problem("a label is not its own token", sample.where, fix))
        if student != list(range(*answers[-1])):
            problems.append(Problem("student_mask is not the last answer", sample.where, fix))
    count = int((batch["labels"] != IGNORED).sum())
    return Verdict(f"{count} tokens are learned: the answers and nothing else", tuple(problems))


def loader(subject: Subject) -> Verdict:
    """The trainer's first batch is the encoder's and collator's work on its samples, and nothing else."""
    trainer = subject.trainer
    dataset: Any = trainer.train_dataset
    batch = next(iter(trainer.get_train_dataloader()))
    found, problems = list(batch["where"]), []
    places = {dataset.samples.where(index): at for at, index in enumerate(dataset.indices)}
    items = [dataset[places[where]] for where in found]
    trained = pair(subject).trained
    expected = trained.collator(packing=trained.config.train.packing)(items)
    for key, value in expected.items():
        same = torch.equal(value, batch[key].cpu()) if torch.is_tensor(value) else value == batch.get(key)
        if not same:
            fix = "give Trainer the collator as it is, and remove_unused_columns=False"
            problems.append(Problem(f"the trainer changes {key} of a batch", found[0], fix))
    return Verdict(f"the trainer's first batch of {len(found)} is what the encoder made", tuple(problems))
