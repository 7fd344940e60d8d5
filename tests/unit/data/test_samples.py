"""Samples: every mistake is refused with file, line and field, and a file is read at any index."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qwendet.data.samples import DetectedObject, Sample, SampleFile, Turn, check_label, parse_sample
from qwendet.errors import DataError

Refusal = Callable[..., DataError]

GOOD = {"images": ["a.png"], "objects": [{"bbox_2d": [1, 2, 3, 4], "desc": "cat"}]}
IMAGE = '"images": ["a.png"]'


def one_object(text: str) -> str:
    return f'{{{IMAGE}, "objects": [{{"bbox_2d": [1, 2, 3, 4], "desc": "cat"}}, {{{text}}}]}}'


def one_box(text: str) -> str:
    return one_object(f'"bbox_2d": {text}, "desc": "cat"')


def one_label(label: str) -> str:
    return one_object(f'"bbox_2d": [1, 2, 3, 4], "desc": {json.dumps(label)}')


REFUSED = {
    # name: line, how the message begins
    "not JSON": ('{"images": ["a.png"', 'expected one JSON object a line, got \'{"images": ["a.png"\' ('),
    "a list": ("[1]", "expected a JSON object, got list"),
    "nested without end": ("[" * 100_000, "expected one JSON object a line, got '[[["),
    "unknown key": (
        '{"image": ["a.png"], "objects": []}',
        "unknown key image; known here: height, images, labels, neg_labels, not_exhaustive_labels, o",
    ),
    "unknown key of the turn": (f'{{{IMAGE}, "objects": [], "boxes": 1}}', "unknown key boxes; known here: "),
    "unknown key of an object": (
        one_object('"bbox_2d": [1, 2, 3, 4], "desc": "a", "label": "b"'),
        "unknown key objects[1].label; known here: area, bbox_2d, crowd, desc, difficult",
    ),
    "objects beside the student": (
        f'{{"student": {{{IMAGE}, "objects": []}}, "objects": []}}',
        "unknown key objects; known here: student, teachers",
    ),
    "teachers of a bare turn": (f'{{{IMAGE}, "objects": [], "teachers": []}}', "unknown key teachers; known"),
    "neither images nor student": ('{"objects": []}', 'expected "images" or "student", got neither'),
    "no labels": (
        f'{{{IMAGE}, "objects": [], "labels": []}}',
        "labels: expected a list of label texts, got []",
    ),
    "a label twice": (
        f'{{{IMAGE}, "objects": [], "labels": ["cat", "dog", "cat"]}}',
        "labels names 'cat' twice",
    ),
    "an object that is absent": (
        f'{{{IMAGE}, "objects": [{{"bbox_2d": [1, 2, 3, 4], "desc": "cat"}}], "neg_labels": ["cat"]}}',
        "neg_labels says that 'cat' is absent, but there is an object of it",
    ),
    "absent labels that are no list": (
        f'{{{IMAGE}, "objects": [], "neg_labels": "cat"}}',
        "neg_labels: expected a list of label texts, got 'cat'",
    ),
    "a frequency of another kind": (
        one_object('"bbox_2d": [1, 2, 3, 4], "desc": "a", "frequency": "often"'),
        "objects[1].frequency: expected r, c or f, got 'often'",
    ),
    "an empty label": (
        f'{{{IMAGE}, "objects": [], "labels": ["cat", " "]}}',
        "labels[1]: expected a label text, got ' '",
    ),
    "an object that is not asked": (
        '{"student": {"images": ["a.png"], "objects": [{"bbox_2d": [1, 2, 3, 4], "desc": "cat"}],'
        ' "labels": ["dog"]}}',
        "student.objects[0].desc: 'cat' is not among the labels of the sample (dog)",
    ),
    "teachers no list": (
        f'{{"teachers": {{}}, "student": {{{IMAGE}, "objects": []}}}}',
        "teachers: expected a list, got {",
    ),
    "student no object": ('{"student": 5}', "student: expected an object, got 5"),
    "no image": ('{"images": [], "objects": []}', "images: expected a list of one path, got []"),
    "an empty path": ('{"images": [""], "objects": []}', "images: expected a list of one path, got ['']"),
    "two images": (
        '{"images": ["a.png", "b.png"], "objects": []}',
        "images: expected a list of one path, got ['a.png', 'b.png']",
    ),
    "two images of a teacher": (
        f'{{"teachers": [{{"images": ["a", "b"], "objects": []}}], "student": {{{IMAGE}, "objects": []}}}}',
        "teachers[0].images: expected a list of one path, got ['a', 'b']",
    ),
    "no objects": (f"{{{IMAGE}}}", "objects: expected a list, got None"),
    "student's objects": (f'{{"student": {{{IMAGE}}}}}', "student.objects: expected a list, got None"),
    "an object no object": (
        f'{{{IMAGE}, "objects": [[1, 2, 3, 4]]}}',
        "objects[0]: expected an object, got [",
    ),
    "width as text": (
        f'{{{IMAGE}, "objects": [], "width": "640"}}',
        "width: expected a positive integer, got '6",
    ),
    "height 0": (f'{{{IMAGE}, "objects": [], "height": 0}}', "height: expected a positive integer, got 0"),
    "no box": (one_object('"desc": "cat"'), "objects[1].bbox_2d: expected [x1, y1, x2, y2], got None"),
    "three numbers": (one_box("[1, 2, 3]"), "objects[1].bbox_2d: expected [x1, y1, x2, y2], got [1, 2, 3]"),
    "a truth value": (
        one_box("[1, 2, 3, true]"),
        "objects[1].bbox_2d: expected [x1, y1, x2, y2], got [1, 2, 3,",
    ),
    "NaN": (one_box("[1, NaN, 3, 4]"), "objects[1].bbox_2d: expected finite numbers, got [1, nan, 3, 4]"),
    "infinity": (
        one_box("[1, 2, 1e999, 4]"),
        "objects[1].bbox_2d: expected finite numbers, got [1, 2, inf, 4]",
    ),
    "beyond float": (
        one_box(f"[1, 2, 1{'0' * 400}, 4]"),
        "objects[1].bbox_2d: expected finite numbers, got [1, 2",
    ),
    "x2 = x1": (
        one_box("[3, 2, 3, 4]"),
        "objects[1].bbox_2d: expected x1 < x2 and y1 < y2, got [3, 2, 3, 4]",
    ),
    "y2 < y1": (
        one_box("[1, 9, 3, 4]"),
        "objects[1].bbox_2d: expected x1 < x2 and y1 < y2, got [1, 9, 3, 4]",
    ),
    "no label": (one_object('"bbox_2d": [1, 2, 3, 4]'), "objects[1].desc: expected a label text, got None"),
    "blank label": (one_label("  "), "objects[1].desc: expected a label text, got '  '"),
    "special token": (
        one_label("<|im_end|>"),
        "objects[1].desc: the label '<|im_end|>' holds special-token text",
    ),
    "half of a special token": (
        one_label("cat|>"),
        "objects[1].desc: the label 'cat|>' holds special-token text",
    ),
    "line break": (one_label("a\nb"), "objects[1].desc: the label 'a\\nb' holds control characters"),
    "terminal escape": (
        one_label("\x1b[31m"),
        "objects[1].desc: the label '\\x1b[31m' holds control characters",
    ),
    "text turned round": (
        one_label("a\u202eb"),
        "objects[1].desc: the label 'a\\u202eb' holds control characters",
    ),
    "half a surrogate pair": (
        one_label("\ud800"),
        "objects[1].desc: the label '\\ud800' holds control characters",
    ),
    "crowd 1": (
        one_object('"bbox_2d": [1, 2, 3, 4], "desc": "cat", "crowd": 1'),
        "objects[1].crowd: expected true or false, got 1",
    ),
    **{
        f"area {area}": (
            one_object(f'"bbox_2d": [1, 2, 3, 4], "desc": "cat", "area": {area}'),
            f"objects[1].area: expected square pixels above 0, got {shown}",
        )
        for area, shown in [
            ("0", "0"),
            ("-1.5", "-1.5"),
            ("NaN", "nan"),
            ("true", "True"),
            ('"9"', "'9'"),
            ("[9]", "[9]"),
            ("1e999", "inf"),
            ("1" + "0" * 400, "1" + "0" * 10),
        ]
    },
}


@pytest.mark.parametrize(("line", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_parse_sample__refuses_and_names_line_and_field(line: str, message: str, refusal: Refusal) -> None:
    error = refusal(parse_sample, line, "train.jsonl:12")
    (problem,) = error.problems
    assert problem.where == "train.jsonl:12"
    assert problem.what.startswith(message)


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        (
            one_box("[30, 40, 20, 20]"),
            "boxes are [x1, y1, x2, y2], not [x, y, width, height]; remove boxes without area",
        ),
        (f"{{{IMAGE}}}", 'write "objects": [] for a negative'),
        (one_label("<|box_start|>"), "remove <| and |>: the tokenizer would read them as control tokens"),
    ],
)
def test_parse_sample__says_how_to_fix_it(line: str, fix: str, refusal: Refusal) -> None:
    assert refusal(parse_sample, line, "x.jsonl:1").problems[0].fix == fix


def test_parse_sample__reads_both_forms() -> None:
    turn = GOOD | {"width": 640, "height": 480}
    bare = parse_sample(json.dumps(turn), "x:1", Path("root"))
    full = parse_sample(json.dumps({"teachers": [GOOD, turn], "student": turn}), "x:1", Path("root"))
    assert bare.student == full.student == full.teachers[1]
    assert bare.student.objects == (DetectedObject((1.0, 2.0, 3.0, 4.0), "cat"),)
    assert (bare.student.declared_size, full.teachers[0].declared_size) == ((640, 480), None)
    assert (bare.student.root, bare.teachers, bare.where) == (Path("root"), (), "x:1")


def test_parse_sample__labels() -> None:
    asked = parse_sample(f'{{{IMAGE}, "objects": [], "labels": ["red\u00a0ring", "cat"]}}', "x:1")
    assert asked.student.labels == ("red ring", "cat")
    assert parse_sample(json.dumps(GOOD), "x:1").student.labels is None


def test_asking__what_no_turn_says_is_the_students_and_there_the_label_set() -> None:
    cat, dog = (DetectedObject((1, 2, 3, 4), desc) for desc in ("cat", "dog"))
    shown, own = Turn("a.png", (cat, dog)), Turn("b.png", (dog,), labels=("dog", "cow"))
    asked = Sample(Turn("c.png", (cat,), labels=("cat",)), (shown, own)).asking(("cat", "dog"))
    assert [turn.labels for turn in (asked.student, *asked.teachers)] == [("cat",), ("cat",), ("dog", "cow")]
    assert [turn.objects for turn in (asked.student, *asked.teachers)] == [(cat,), (cat,), (dog,)]
    assert Sample(Turn("c.png", (cat,)), (shown,)).asking(("cat", "dog")).teachers[0].objects == (cat, dog)


def test_parse_sample__flags() -> None:
    line = one_object('"bbox_2d": [1, 2, 3, 4], "desc": "cat", "crowd": true, "difficult": true')
    plain, flagged = parse_sample(line, "x:1").student.objects
    assert (plain.crowd, plain.difficult, flagged.crowd, flagged.difficult) == (False, False, True, True)


def test_parse_sample__area_is_optional_and_makes_no_other_object() -> None:
    line = one_object('"bbox_2d": [1, 2, 3, 4], "desc": "cat", "area": 2.5')
    plain, given = parse_sample(line, "x:1").student.objects
    assert (plain.area, given.area) == (None, 2.5)
    assert given == replace(given, area=None)
    assert hash(given) == hash(replace(given, area=None))


def test_check_label__composes_characters_as_the_tokenizer_does() -> None:
    assert check_label("cafe\u0301 圆", "x:1", "desc") == "caf\u00e9 圆"


# Files


@pytest.fixture
def sample_file(tmp_path: Path) -> Path:
    """Three samples at lines 1, 3 and 6, the second broken, the last without a line break."""
    last = json.dumps(GOOD | {"images": ["圆.png"]}, ensure_ascii=False)
    lines = [json.dumps(GOOD), "", '{"images": 5, "objects": []}', "   ", "\n" + last]
    path = tmp_path / "train.jsonl"
    path.write_text("\r\n".join(lines), encoding="utf-8", newline="")
    return path


def test_sample_file__reads_at_any_index(sample_file: Path, refusal: Refusal) -> None:
    samples = SampleFile(sample_file)
    assert len(samples) == 3
    assert samples[2].student.image == "圆.png"
    assert samples[2].where == f"{sample_file}:6"
    assert samples[0].student.image == "a.png"
    assert samples[0].student.root == sample_file.parent
    assert refusal(samples.__getitem__, 1).problems[0].where == f"{sample_file}:3"
    assert samples[0] == samples[0]


@pytest.mark.parametrize("index", [3, -1])
def test_sample_file__has_no_index_beyond_its_ends(sample_file: Path, index: int) -> None:
    with pytest.raises(IndexError):
        SampleFile(sample_file)[index]


def test_sample_file__line_bytes_add_up_to_the_file(sample_file: Path) -> None:
    lengths = SampleFile(sample_file).line_bytes()
    assert sum(lengths) == sample_file.stat().st_size
    assert lengths[0] == len(json.dumps(GOOD)) + 2 * len("\r\n")


def test_sample_file__root_replaces_its_folder(sample_file: Path) -> None:
    assert SampleFile(sample_file, Path("photos"))[0].student.root == Path("photos")


def test_sample_file__that_is_not_utf_8_names_the_line(tmp_path: Path, refusal: Refusal) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"images": ["caf\xe9.png"], "objects": []}\n')
    samples = SampleFile(path)
    assert samples[0].student.image == "a.png"
    (problem,) = refusal(samples.__getitem__, 1).problems
    assert (problem.where, problem.what) == (f"{path}:2", "the line is not UTF-8 (invalid continuation byte)")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_sample_file__without_samples_is_refused(tmp_path: Path, content: str, refusal: Refusal) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    (problem,) = refusal(SampleFile, path).problems
    assert (problem.where, problem.what) == (str(path), "the file holds no samples")


def test_sample_file__that_is_absent_or_a_folder_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    absent = tmp_path / "absent.jsonl"
    assert (
        str(refusal(SampleFile, absent))
        == f"{absent}: cannot read the sample file (No such file or directory)"
        " (correct the path, or fix the permissions)"
    )
    assert "cannot read the sample file (Is a directory)" in str(refusal(SampleFile, tmp_path))
