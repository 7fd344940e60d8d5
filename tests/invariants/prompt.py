"""Inference sends, token for token, what training saw before the answer; both builds have one tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoTokenizer

from qwendet.checks.consistency.inputs import first_difference
from qwendet.checks.consistency.pair import pair
from qwendet.checks.subject import Subject
from qwendet.encoding.collate import IGNORED
from qwendet.errors import Problem
from qwendet.loader import Bundle
from qwendet.loading.processor import TEMPLATE_FIX, TOKENIZER_FIX, template_problems
from tests.invariants.answer_spans import answers_of
from tests.invariants.runs import prompts_of, serving, training


def prefix(subject: Subject) -> list[Problem]:
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
            problems += first_difference(prompt, seen, tokenizer, what, sample.where)
    return problems


def _decode(bundle: Bundle, ids: Sequence[int]) -> str:
    decoded: str = bundle.processor.tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return decoded


def template(subject: Subject) -> list[Problem]:
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
    return problems


def tokenizer(subject: Subject) -> list[Problem]:
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
    return problems


def labels(subject: Subject) -> list[Problem]:
    """Exactly the assistants' answers are learned, each with its end of turn; the last is the student's."""
    own = pair(subject).trained.processor.tokenizer
    batch, problems = training(subject).batches[0], []
    fix = "labels are the answers' tokens, student_rows before those of the last answer"
    for row, (sample, (_, spans)) in enumerate(zip(subject.samples, answers_of(subject), strict=True)):
        ids, pad = batch["input_ids"][row].tolist(), int((batch["attention_mask"][row] == 0).sum())
        answers = [(start + pad, end + pad) for start, end in spans]
        learned = {index for start, stop in answers for index in range(start, stop)}
        marked = (batch["labels"][row] != IGNORED).nonzero().flatten().tolist()
        length, rows = len(ids), batch["student_rows"]
        student = (rows[rows // length == row] % length + 1).tolist()
        if set(marked) != learned:
            strange = sorted(set(marked) ^ learned)[0]
            kind = "is learned but is no answer" if strange in marked else "is of an answer but not learned"
            what = f"token {strange} ({own.decode([ids[strange]])!r}) {kind}"
            problems.append(Problem(what, sample.where, fix))
        if any(batch["labels"][row, index] != ids[index] for index in marked):
            problems.append(Problem("a label is not its own token", sample.where, fix))
        if student != list(range(*answers[-1])):
            problems.append(Problem("student_rows are not before the last answer", sample.where, fix))
    return problems


def loader(subject: Subject) -> list[Problem]:
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
    return problems
