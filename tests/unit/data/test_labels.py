"""The label set, and which labels a request names: those in the image, and others that tell nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from qwendet.config.schema import Config, DataConfig
from qwendet.data.labels import choose_labels, label_chunks, labels_of, resolve_labels
from qwendet.data.samples import DetectedObject, Sample, Turn
from qwendet.data.teachers import without_own_image
from qwendet.errors import DataError

LABELS = tuple(f"thing {number}" for number in range(1203))


def turn(*labels: str, own: tuple[str, ...] | None = None) -> Turn:
    return Turn("a.png", tuple(DetectedObject((1, 2, 3, 4), label) for label in labels), labels=own)


def test_choose_labels__those_of_the_image_and_others_to_the_number_wanted() -> None:
    chosen = choose_labels(turn("thing 7", "thing 900", "thing 7"), LABELS, 40, Random(3))
    assert chosen.labels is not None
    assert len(set(chosen.labels)) == 40
    assert {"thing 7", "thing 900"} < set(chosen.labels) < set(LABELS)
    assert [item.desc for item in chosen.objects] == ["thing 7", "thing 900", "thing 7"]


def test_choose_labels__is_a_function_of_the_generator_alone() -> None:
    keys = [f"labels/0/{epoch}/{index}" for epoch in range(4) for index in range(4)]
    one, other = ([choose_labels(turn("thing 7"), LABELS, 5, Random(key)) for key in keys] for _ in range(2))
    assert one == other
    assert len({chosen.labels for chosen in one}) == len(keys)


def test_choose_labels__their_order_and_choice_tell_nothing() -> None:
    """Labels of objects stand in every place alike, and every other label is drawn alike."""
    few, places, drawn = LABELS[:12], Counter[int](), Counter[str]()
    for seed in range(6000):
        labels = choose_labels(turn("thing 0", "thing 11"), few, 6, Random(seed)).labels
        assert labels is not None
        places.update((labels.index("thing 0"), labels.index("thing 11")))
        drawn.update(labels)
    assert all(places[place] == pytest.approx(2000, abs=200) for place in range(6))
    assert all(drawn[label] == pytest.approx(2400, abs=200) for label in few[1:11])


def test_choose_labels__of_an_image_with_more_labels_than_are_asked() -> None:
    """The other objects are no targets."""
    chosen = choose_labels(turn(*LABELS[:9]), LABELS, 4, Random(0))
    assert chosen.labels is not None
    assert set(chosen.labels) < set(LABELS[:9])
    assert len(chosen.labels) == 4
    assert {item.desc for item in chosen.objects} == set(chosen.labels)


@pytest.mark.parametrize("most", [None, 3, 4])
def test_choose_labels__of_no_more_than_fit_leaves_the_turn_as_it_is(most: int | None) -> None:
    own = turn("thing 7", own=("thing 7", "thing 8", "thing 9"))
    assert choose_labels(own, LABELS, most, Random(0)) is own
    plain = turn("thing 7")
    assert choose_labels(plain, LABELS[:3], most, Random(0)) is plain


def test_label_chunks__name_each_label_once_in_order() -> None:
    chunks = label_chunks(Sample(turn()), LABELS, 40)
    asked = [chunk.student.labels or () for chunk in chunks]
    assert len(chunks) == 31
    assert {len(labels) for labels in asked} == {40, 3}
    assert tuple(label for labels in asked for label in labels) == LABELS
    own = Sample(turn(own=("cat", "dog", "hen")))
    assert [chunk.student.labels for chunk in label_chunks(own, LABELS, 2)] == [("cat", "dog"), ("hen",)]
    assert label_chunks(own, LABELS, 3) == label_chunks(own, LABELS, None) == [own]


def test_demonstrations__are_asked_what_they_are_annotated_for() -> None:
    """Nobody has said whether a red hat is in an image that was annotated for the label set."""
    plain, own = turn("cat", "dog"), turn("hen", own=("hen",))
    for labels, expected in {
        ("a red hat", "cat"): [(("cat",), ["cat"]), (("hen",), ["hen"])],
        ("a red hat",): [(("hen",), ["hen"])],
        None: [(None, ["cat", "dog"]), (("hen",), ["hen"])],
    }.items():
        shown = without_own_image([plain, own], Turn("b.png", (), labels=labels), 5, ("cat", "dog"))
        assert [(one.labels, [item.desc for item in one.objects]) for one in shown] == expected


def test_labels_of__samples_that_name_their_own_add_nothing() -> None:
    samples = [
        Sample(turn("cat"), (turn("dog"),)),
        Sample(turn("hen", own=("hen",)), (turn("owl"),)),
        Sample(turn("cow"), (turn("ant", own=("ant",)),)),
    ]
    assert labels_of(samples, skip_bad=False) == ("cat", "cow", "dog")


def test_resolve_labels__where_all_samples_name_their_own(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"images": ["a.png"], "objects": [], "labels": ["cat"]}\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        resolve_labels(Config(data=DataConfig(train=str(file))))
    (problem,) = caught.value.problems
    assert (problem.what, problem.where) == ("there is no label to look for", "data.labels")
    assert problem.fix.endswith("in samples without labels of their own")


@pytest.mark.parametrize("most", [None, 3, 2])
def test_choose_labels__of_federated_annotations_those_that_were_looked_for(most: int | None) -> None:
    """A cow may be in the image: nobody has looked."""
    objects = (DetectedObject((1, 2, 3, 4), "cat"),)
    labels = ("cat", "cow", "dog", "hen", "owl")
    turn = Turn("a.png", objects, neg_labels=("hen", "dog"), not_exhaustive_labels=("cat",))
    drawn = [choose_labels(turn, labels, most, Random(f"{seed}")).labels or () for seed in range(50)]
    assert {len(asked) for asked in drawn} == {min(3, most or 3)}
    assert all("cat" in asked for asked in drawn)
    assert {label for asked in drawn for label in asked} == {"cat", "dog", "hen"}
    assert len({asked[0] for asked in drawn}) > 1, "the order tells nothing"
    unknown = Turn("a.png", (), neg_labels=())
    assert choose_labels(unknown, labels, None, Random("0")) is unknown
