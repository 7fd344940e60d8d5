"""What constrained answers cost: the trie of a real vocabulary, and one step of one answer.

    python -m benchmarks.constrained PATH/TO/Qwen2.5-VL-7B-Instruct [--labels 80]

Only the tokenizer's files are needed. The steps are those of an answer of 20 boxes, without the model's.
"""

from __future__ import annotations

import time

from transformers import AutoTokenizer

from benchmarks.report import parser, report
from qwendet.answers.format import format_answer
from qwendet.answers.grammar import AnswerGrammar
from qwendet.data.samples import DetectedObject
from qwendet.inference.constrained_decoding import AnswerConstraint, AnswerVocabulary

BOXES = 20
SIZE = (1288, 784)


def main() -> None:
    """Build the trie, then replay one answer token by token."""
    arguments = parser(__doc__)
    arguments.add_argument("tokenizer", help="folder with the tokenizer's files")
    arguments.add_argument("--labels", type=int, default=80, help="size of the label set")
    options = arguments.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    labels = [f"traffic light {index}" for index in range(options.labels)]
    grammar = AnswerGrammar(labels, SIZE)
    started = time.perf_counter()
    vocabulary = AnswerVocabulary(tokenizer, grammar.alphabet)
    built = time.perf_counter() - started
    objects = [
        DetectedObject((9 * i, 7 * i, 9 * i + 100, 7 * i + 90), labels[i % len(labels)]) for i in range(BOXES)
    ]
    ids = tokenizer(format_answer(objects))["input_ids"]
    constraint = AnswerConstraint(vocabulary, [grammar], most_boxes=100, max_new_tokens=4096)
    seconds = []
    for token in (*ids, vocabulary.end_id):
        started = time.perf_counter()
        allowed = constraint.allowed(0)
        constraint.write(0, token)
        seconds.append(time.perf_counter() - started)
        if token not in allowed:
            raise SystemExit(f"token {token} of a valid answer was taken away")
    report(
        {
            "tokens_of_the_vocabulary": len(tokenizer),
            "tokens_in_the_trie": len(vocabulary.bytes_of),
            "trie_seconds": built,
            "steps": len(seconds),
            "step_milliseconds_mean": 1000 * sum(seconds) / len(seconds),
            "step_milliseconds_longest": 1000 * max(seconds),
        },
        options.json,
    )


if __name__ == "__main__":
    main()
