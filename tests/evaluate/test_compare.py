"""The figures against a plain double loop over tokens and vocabulary, and against known cases."""

import math

import numpy as np
import pytest

from stillhouse.errors import EvidenceError, ModelError
from stillhouse.evaluate.compare import (
    BINS,
    COLUMNS,
    calibration_error,
    change,
    compare,
    figures,
    teacher_figures,
)


def distributions(rng, tokens, vocabulary, sharpness=2.0):
    logits = sharpness * rng.normal(size=(tokens, vocabulary))
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits.astype(np.float32)


def draw(rng, logprobs):
    p = np.exp(logprobs.astype(np.float64))
    return np.array([rng.choice(len(q), p=q / q.sum()) for q in p], dtype=np.int32)


def double_loop(answers):
    """KL, agreement, NLL, teacher's NLL, entropy and calibration error over all tokens, plainly."""
    kl = agree = nll = floor = entropy = tokens = 0.0
    bins = [[0, 0.0, 0] for _ in range(BINS)]
    for ids, teacher, student in answers:
        for t in range(len(ids)):
            tokens += 1
            for v in range(teacher.shape[1]):
                p = math.exp(teacher[t][v])
                kl += p * (float(teacher[t][v]) - float(student[t][v]))
                entropy -= p * float(teacher[t][v])
            best = max(range(teacher.shape[1]), key=lambda v: student[t][v])
            agree += best == max(range(teacher.shape[1]), key=lambda v: teacher[t][v])
            nll -= float(student[t][ids[t]])
            floor -= float(teacher[t][ids[t]])
            sure = math.exp(student[t][best])
            bin_ = bins[min(BINS - 1, int(sure * BINS))]
            bin_[0] += 1
            bin_[1] += sure
            bin_[2] += best == ids[t]
    ece = sum(n / tokens * abs(c / n - k / n) for n, c, k in bins if n)
    return tokens, kl / tokens, agree / tokens, nll / tokens, floor / tokens, entropy / tokens, ece


def test_figures_equal_a_double_loop_over_tokens_and_vocabulary():
    rng = np.random.default_rng(1)
    answers = []
    for length in (1, 7, 31, 32, 33, 70):  # around the edges of a chunk
        teacher = distributions(rng, length, 23)
        student = distributions(rng, length, 23)
        student = np.log(0.7 * np.exp(teacher) + 0.3 * np.exp(student)).astype(np.float32)
        answers.append((draw(rng, teacher), teacher, student))
    rows = np.stack([compare(ids, t, [s])[0] for ids, t, s in answers])
    tokens, kl, agree, nll, floor, entropy, ece = double_loop(answers)
    after, teacher = figures(rows, seed=0), teacher_figures(rows, seed=0)
    assert after["n_tokens"] == tokens == 174
    assert after["kl_nats"]["value"] == pytest.approx(kl, rel=1e-5)
    assert after["top1_agreement"]["value"] == pytest.approx(agree)
    assert 0.5 < agree < 1
    assert after["nll_nats"]["value"] == pytest.approx(nll, rel=1e-6)
    assert after["ece"]["value"] == pytest.approx(ece, rel=1e-6)
    assert teacher["nll_nats"]["value"] == pytest.approx(floor, rel=1e-6)
    assert teacher["entropy_nats"]["value"] == pytest.approx(entropy, rel=1e-5)
    assert after["kl_nats"]["n"] == len(answers)
    assert after["kl_nats"]["low"] <= after["kl_nats"]["value"] <= after["kl_nats"]["high"]


def test_two_tokens_by_hand():
    teacher = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], dtype=np.float32))
    student = np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.6, 0.2]], dtype=np.float32))
    row = compare(np.array([0, 1], dtype=np.int32), teacher, [student])[0]
    kl = 0.5 * math.log(2) - 0.25 * math.log(2) + 0.2 * math.log(0.5) + 0.8 * math.log(0.8 / 0.6)
    assert row[:4] == pytest.approx([2, kl, 1, -math.log(0.25) - math.log(0.6)], rel=1e-6)


def test_a_model_compared_with_itself_is_at_no_distance():
    rng = np.random.default_rng(2)
    rows = []
    for _ in range(6):
        teacher = distributions(rng, 40, 50)
        rows.append(compare(draw(rng, teacher), teacher, [teacher.copy()])[0])
    after = figures(np.stack(rows), seed=0)
    assert after["kl_nats"]["value"] == pytest.approx(0, abs=1e-6)
    assert after["top1_agreement"]["value"] == 1


def test_students_are_compared_apart_and_change_is_paired():
    rng = np.random.default_rng(3)
    near, far = [], []
    for _ in range(12):
        teacher = distributions(rng, 30, 40)
        noise = np.exp(distributions(rng, 30, 40))
        mix = [np.log((1 - w) * np.exp(teacher) + w * noise).astype(np.float32) for w in (0.2, 0.6)]
        a, b = compare(draw(rng, teacher), teacher, mix)
        near.append(a)
        far.append(b)
    gap = change(np.stack(far), np.stack(near), seed=0)
    assert gap["kl_nats"]["high"] < 0 < gap["top1_agreement"]["low"]
    apart = (
        figures(np.stack(near), 0)["kl_nats"]["value"]
        - figures(np.stack(far), 0)["kl_nats"]["value"]
    )
    assert gap["kl_nats"]["value"] == pytest.approx(apart)


def test_a_teacher_is_calibrated_on_its_own_samples_and_a_sharpened_one_is_not():
    rng = np.random.default_rng(4)
    rows = []
    for _ in range(60):
        teacher = distributions(rng, 100, 30)
        sharp = 2.5 * teacher.astype(np.float64)
        sharp -= np.log(np.exp(sharp).sum(axis=1, keepdims=True))
        rows.append(compare(draw(rng, teacher), teacher, [sharp.astype(np.float32)])[0])
    rows = np.stack(rows)
    assert teacher_figures(rows, 0)["ece"]["value"] < 0.03
    assert figures(rows, 0)["ece"]["low"] > 0.15
    assert figures(rows, 0)["ece"]["bins"] == 15


def test_calibration_error_weighs_bins_by_their_tokens():
    bins = np.zeros(3 * BINS)
    bins[[0, BINS - 1]] = 30, 10  # tokens
    bins[[BINS, 2 * BINS - 1]] = 1.5, 9.5  # summed confidence
    bins[[2 * BINS, 3 * BINS - 1]] = 3.0, 5.0  # hits
    assert calibration_error(bins) == pytest.approx(30 / 40 * abs(0.05 - 0.1) + 10 / 40 * 0.45)


def test_probability_zero_counts_nothing_for_the_teacher_and_is_refused_for_the_student():
    with np.errstate(divide="ignore"):
        sure = np.log(np.array([[1.0, 0.0, 0.0]], dtype=np.float32))
    even = np.log(np.full((1, 3), 1 / 3, dtype=np.float32))
    ids = np.array([0], dtype=np.int32)
    assert compare(ids, sure, [even])[0][1] == pytest.approx(math.log(3))
    with pytest.raises(EvidenceError, match="rules out"):
        compare(ids, even, [sure])


def test_other_vocabularies_and_unnormalised_numbers_are_refused():
    even = np.log(np.full((2, 3), 1 / 3, dtype=np.float32))
    ids = np.array([0, 1], dtype=np.int32)
    with pytest.raises(EvidenceError, match="one tokenizer"):
        compare(ids, even, [np.log(np.full((2, 4), 1 / 4, dtype=np.float32))])
    with pytest.raises(EvidenceError, match="answer tokens"):
        compare(ids[:1], even, [even])
    with pytest.raises(ModelError, match="miss 1"):
        compare(ids, even + 1, [even])
    with pytest.raises(ModelError, match="miss 1"):
        compare(ids, even, [np.full((2, 3), np.nan, dtype=np.float32)])


def test_few_prompts_give_no_interval():
    with pytest.raises(EvidenceError, match="prompts"):
        figures(np.ones((4, COLUMNS)), seed=0)
