"""The server's answers are the checkpoint's: by the same weights, greedy, whole, each to its own image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from qwendet.answers.format import parse_answer
from qwendet.checks.runner import NotApplicableError, Verdict
from qwendet.checks.served.observed import MULTIPLE, Observed, is_near_tie
from qwendet.checks.served.prompt import launch_limits
from qwendet.errors import Problem, QwendetError
from qwendet.export.directory import FINAL
from qwendet.inference.chat_server import Reply
from qwendet.inference.predictor import Predictor
from qwendet.inference.text_answers import answer_size, read_answer
from qwendet.loading.checkpoint import dtype_name
from qwendet.loading.lora import without_adapter
from qwendet.loading.manifest import MANIFEST

BOX_TOLERANCE = 0.02
"""Pixels of the displayed image."""
ROUNDED = 0.5
"""Nats: weights that were rounded, as by a quantization, rarely differ by more in the middle of answers."""
LEAST_SHARE, SPREAD = 0.5, 0.75
"""Of a sound server's rounding in the checkpoint's; the share of one answer varies by a third."""
FEW = 3


def greedy(observed: Observed) -> Verdict:
    """The same question has the same answer, also where the request leaves sampling to the server."""
    again = observed.asked()
    where = _first_other(observed, observed.replies, again)
    fix = "send temperature 0; start vLLM with --generation-config auto and no --override-generation-config"
    if where:
        return Verdict("", (Problem("the same question got two answers: the server samples", where, fix),))
    unset = observed.asked(temperature=None)
    if where := _first_other(observed, observed.replies, unset):
        what = "without a temperature it answers otherwise: the server's sampling defaults are not greedy"
        return Verdict("", (Problem(what, where, fix),))
    behind = _behind(observed)
    seen = f"{len(again)} answers are the same when asked again, and without a temperature"
    if observed.tells_log_probs and behind > observed.tolerance >= _worst(observed):
        what = (
            f"the server's log-probabilities are the checkpoint's, but its tokens are up to {behind:.3f} nats"
            " behind the likeliest: a repetition penalty, or another change of its choice"
        )
        fix = "leave repetition_penalty, logit_bias and min_p out of requests and of generation_config.json"
        return Verdict(seen, (Problem(what, observed.server.url, fix),))
    return Verdict(seen)


def _first_other(observed: Observed, first: Sequence[Reply], second: Sequence[Reply]) -> str:
    """Where answers differ by more than a near tie; empty if nowhere."""
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        if one.text != other.text and not is_near_tie(observed, number, other):
            return observed.samples[number].where
    return ""


def _behind(observed: Observed) -> float:
    """How far the server's tokens are behind the checkpoint's likeliest, in the worst place."""
    behind = (observed.forced(number, reply).behind for number, reply in enumerate(observed.replies))
    return max((nats for answer in behind for nats in answer), default=0.0)


def weights(observed: Observed) -> Verdict:
    """The server's model finds its answers as likely as the checkpoint does."""
    worst, tolerance = _worst(observed), observed.tolerance
    unit = "log-probabilities differ by up to" if observed.tells_log_probs else "tokens are behind by up to"
    seen = f"{unit} {worst:.1e} nats in {len(observed.misfits)} answers, tolerance {tolerance:.1e}"
    if math.isinf(worst):
        what, fix = "the server's log-probabilities are not finite", "see what it computes in: --dtype"
        return Verdict(seen, (Problem(what, observed.server.url, fix),))
    if worst <= tolerance:
        return Verdict(*_rounded_alike(observed, seen))
    cause, fix = next(_causes(observed, worst))
    return Verdict(seen, (Problem(f"{cause}: {seen}", observed.server.url, fix),))


def _rounded_alike(observed: Observed, seen: str) -> tuple[str, tuple[Problem, ...]]:
    """What is seen, and whether the server rounds about as much as the checkpoint in half precision."""
    share, most = observed.share_of_rounding, 1 + SPREAD / math.sqrt(len(observed.misfits))
    if math.isnan(share):
        return seen, ()
    detectors = observed.predictor.bundle.detector, observed.in_other_precision
    own, exact = (dtype_name(detector.dtype) for detector in detectors)
    seen += f"; {share:.2f} times as far from {exact} as the checkpoint, expected {LEAST_SHARE} to {most:.2f}"
    if LEAST_SHARE <= share <= most:
        return seen, ()
    cause = f"the server rounds less than {own}, as {exact} or float16 does"
    if share > most:
        cause = f"the server's weights are quantized or slightly others, or it rounds more than {own}"
    return seen, (Problem(f"{cause}: {seen}", observed.server.url, _precision_fix(own)),)


def _precision_fix(dtype: str) -> str:
    return f"start the server with --dtype {dtype}, without --quantization"


def _worst(observed: Observed) -> float:
    """The worst misfit of all answers."""
    if not observed.misfits:
        raise NotApplicableError("no answer of the server can be read back into its tokens")
    return max(observed.misfits.values())


def _causes(observed: Observed, worst: float) -> Iterator[tuple[str, str]]:
    """Why the numbers differ, the first that explains them."""
    numbers = sorted(observed.misfits, key=lambda number: -observed.misfits[number])[:FEW]
    detector = observed.predictor.bundle.detector
    own = dtype_name(detector.dtype)
    if observed.predictor.bundle.config.model.lora is not None:
        with without_adapter(detector.vlm):
            misfit = max(observed.misfit(number, detector) for number in numbers)
        if misfit < worst / 4:
            yield (
                "the server answers as the base without the adapter",
                "serve what qwendet export writes, or name the adapter: --set infer.server_model=NAME",
            )
    if observed.misfit_of_text <= observed.tolerance / MULTIPLE:
        yield (
            "without images the answers agree: the images arrive with other pixels, as after a second resize",
            f"send PNG, not JPEG, in the model's size; {launch_limits(observed.predictor.encoder.limits)}",
        )
    for sibling in _siblings(observed.checkpoint):
        try:
            other = Predictor.from_checkpoint(sibling, overrides=[f"model.device={detector.device.type}"])
        except QwendetError:
            continue
        if max(observed.misfit(number, other.bundle.detector) for number in numbers) <= observed.tolerance:
            yield f"the server answers as {sibling} does", f"restart the server with {observed.checkpoint}"
    rounded = observed.in_other_precision
    fix = _precision_fix(own)
    if max(observed.misfit(number, rounded) for number in numbers) < worst / 2:
        name = dtype_name(rounded.dtype)
        yield f"the server computes in {name}, the checkpoint in {own}", fix
    if worst <= 3 * observed.rounding or np.median([*observed.misfits.values()]) < ROUNDED:
        yield f"the server computes in another precision than {own}, or with quantized weights", fix
    yield (
        "the server has other weights",
        f"restart it with what qwendet export writes of {observed.checkpoint}",
    )


def _siblings(checkpoint: Path) -> list[Path]:
    """Other checkpoints of the same run, the newest first."""
    folder = checkpoint.resolve()
    names = [folder.parent / FINAL, *folder.parent.glob("checkpoint-*")]
    others = [path for path in names if path != folder and (path / MANIFEST).is_file()]
    return sorted(others, key=lambda path: -path.stat().st_mtime)[:FEW] if folder in names else []


def text(observed: Observed) -> Verdict:
    """Greedy answers are the checkpoint's, but for ties within the tolerance."""
    same = ties = 0
    problems = []
    for number, (reply, own) in enumerate(zip(observed.replies, observed.own, strict=True)):
        if reply.text == own.text:
            same += 1
        elif is_near_tie(observed, number, reply):
            ties += 1
        else:
            what = f"the server answers {reply.text[:80]!r}, the checkpoint {own.text[:80]!r}"
            problems.append(
                Problem(what, observed.samples[number].where, "see the checks above for the cause")
            )
    near = f"{ties} differ first within {observed.tolerance:.1e} nats"
    seen = f"{same} of {len(observed.own)} answers are the same, {near}"
    return Verdict(seen, tuple(problems))


def boxes(observed: Observed) -> Verdict:
    """Boxes of both answers are the same, in pixels of the displayed image."""
    compared, worst = 0, 0.0
    problems: list[Problem] = []
    for number, (reply, own) in enumerate(zip(observed.replies, observed.own, strict=True)):
        theirs, ours = parse_answer(reply.text).objects, parse_answer(own.text).objects
        if len(theirs) != len(ours) or not ours or [t.desc for t in theirs] != [o.desc for o in ours]:
            continue
        item, bundle = observed.items[number], observed.predictor.bundle
        found, wanted = (read_answer(bundle, answer, item).detections for answer in (reply.answer(), own))
        compared += len(wanted)
        pairs = zip(found, wanted, strict=False)
        off = max((float(np.abs(np.subtract(a.bbox_2d, b.bbox_2d)).max()) for a, b in pairs), default=0.0)
        worst = max(worst, off)
        if off <= BOX_TOLERANCE and len(found) == len(wanted):
            continue
        given, expected = ([entry.bbox_2d for entry in entries] for entries in (theirs, ours))
        fix, where = "let whatever stands behind the model leave its text", observed.samples[number].where
        if frame := _frame_of(given, expected, answer_size(bundle, item), item.image_size):
            problems.insert(0, Problem(f"the boxes are in {frame}", where, fix))
        elif not is_near_tie(observed, number, reply):
            problems.append(Problem(f"boxes are up to {off:.1f} pixels off", where, fix))
    if not compared:
        raise NotApplicableError("no two answers hold boxes of the same labels")
    return Verdict(f"{compared} boxes differ by up to {worst:.2f} pixels", tuple(problems[:FEW]))


def _frame_of(
    theirs: Sequence[Sequence[float]],
    ours: Sequence[Sequence[float]],
    size: tuple[int, int],
    displayed: tuple[int, int],
) -> str:
    """The frame that boxes are in, by their factor to the checkpoint's; empty if it is none."""
    frames = {
        "thousandths": (1000, 1000),
        "the unit square": (1, 1),
        "pixels of the displayed image": displayed,
    }
    given, expected = np.array(theirs, float), np.array(ours, float)
    for name, frame in frames.items():
        factor = np.array([frame[0] / size[0], frame[1] / size[1]] * 2)
        if frame != size and np.abs(given - expected * factor).max() <= max(1.0, factor.max()):
            return f"{name}, the checkpoint's frame is {size[0]}x{size[1]}"
    return ""


def end(observed: Observed) -> Verdict:
    """Answers end where the turn ends: neither cut nor going on."""
    problems = []
    for sample, reply, own in zip(observed.samples, observed.replies, observed.own, strict=True):
        length = f"{len(reply.text)} of {len(own.text)} characters"
        is_beginning = own.text.startswith(reply.text.rstrip("�")) and len(reply.text) < len(
            own.text.rstrip()
        )
        is_short = reply.tokens is None or len(reply.tokens) < observed.max_tokens
        if is_beginning and reply.truncated and is_short:
            what = f"the answer is cut ({length}, finish_reason length)"
            fix = "raise what limits it: --max-model-len, or max_new_tokens of --override-generation-config"
            problems.append(Problem(what, sample.where, fix))
        elif is_beginning:
            what = f"the answer ends early ({length}): a stop word, or a cut"
            problems.append(Problem(what, sample.where, "leave stop words out of the server's defaults"))
        elif own.text and not own.truncated and reply.text != own.text and reply.text.startswith(own.text):
            fix = "serve the checkpoint's generation_config.json (vLLM: --generation-config auto)"
            problems.append(Problem("the answer goes on behind the end of its turn", sample.where, fix))
    whole = sum(not own.truncated for own in observed.own)
    if not whole and not problems:
        raise NotApplicableError(f"no answer of the checkpoint ends within {observed.max_tokens} tokens")
    return Verdict(f"{whole} answers end with their turn", tuple(problems[:FEW]))


def order(observed: Observed) -> Verdict:
    """Questions asked at once, in another order, get the answers that they got alone."""
    problems = []
    texts = [reply.text for reply in observed.replies]
    for number, reply in enumerate(observed.asked(at_once=True)):
        if reply.text == texts[number] or is_near_tie(observed, number, reply):
            continue
        whose = [observed.samples[other].where for other, text in enumerate(texts) if text == reply.text]
        which = f"the answer to {whose[0]}" if whose else "another answer than alone"
        what = f"asked at once with others it gets {which}"
        fix = "report it to the server's makers; meanwhile --max-num-seqs 1, or --set infer.server_requests=1"
        problems.append(Problem(what, observed.samples[number].where, fix))
    return Verdict(f"{len(texts)} questions at once get the same answers as alone", tuple(problems[:FEW]))
