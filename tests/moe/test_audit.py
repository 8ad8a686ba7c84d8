import json

import pytest

from moe.audit import _common_run, audit, straddling_share
from moe.config import BatchConfig
from moe.exam import build_exam
from tests.moe.synthetic_corpora import corpus_of, token_file

ARMS = {"short": BatchConfig(micro_batch_size=4, seq_len=32), "long": BatchConfig(micro_batch_size=1, seq_len=128)}
VALIDATION = token_file([300] * 20, split="validation", seed=1)


def audited(train, *, test=(300,) * 60, budget_tokens=6400, arms=ARMS, block_len=128, **settings):
    corpus = corpus_of(token_file(list(train)), VALIDATION, token_file(list(test), split="test", seed=2), **settings)
    exam = build_exam(corpus, block_len=block_len, common_len=32, rows_validation=8, rows_test=8)
    return audit(corpus, exam, arms=arms, budget_tokens=budget_tokens)


def found(result, rule, subject):
    (finding,) = [finding for finding in result.findings if (finding.rule, finding.subject) == (rule, subject)]
    return finding


def test_a_fit_corpus_has_only_findings_that_pass_and_needs_no_remedy():
    result = audited([500] * 40)
    assert {finding.level for finding in result.findings} == {"ok"}
    assert {finding.remedy for finding in result.findings} == {""}


def test_every_rule_is_measured_for_every_arm_and_pair_of_splits():
    pairs = {"validation/train", "test/train", "test/validation"}
    subjects = {}
    for finding in audited([500] * 40).findings:
        subjects.setdefault(finding.rule, set()).add(finding.subject)
    assert subjects == {
        "overlap_share": {"validation", "test"},
        "common_run_tokens": pairs,
        "near_duplicate": pairs,
        "exam_rows": {"test"},
        "straddling_windows": {"short", "long"},
        "document_tokens": {"short", "long"},
        "epochs": {"train"},
    }


@pytest.mark.parametrize(
    ("budget_tokens", "level"), [(12_800, "ok"), (25_600, "warn"), (64_000, "warn"), (89_600, "refuse")]
)
def test_a_budget_that_repeats_the_corpus_is_a_caveat_and_beyond_the_limit_refused(budget_tokens, level):
    # 155 blocks of 128 targets: 19,840 tokens an epoch.
    finding = found(audited([500] * 40, budget_tokens=budget_tokens), "epochs", "train")
    assert finding.level == level
    assert finding.value == pytest.approx(budget_tokens / 19_840)
    if level == "refuse":
        assert finding.remedy == "choose a budget <= 79360 tokens or a larger corpus"


def test_the_number_of_epochs_allowed_can_be_stated():
    assert found(audited([500] * 40, budget_tokens=89_600, max_epochs=5.0), "epochs", "train").level == "warn"


def test_a_length_beyond_the_longest_document_is_refused_unless_joined_documents_are_accepted():
    documents = {"train": [90] * 200, "test": [100] * 100}
    arms = {"long": BatchConfig(micro_batch_size=1, seq_len=512)}
    refused = found(audited(**documents, arms=arms, block_len=512, budget_tokens=5120), "document_tokens", "long")
    assert refused.level == "refuse"
    assert refused.message == "seq_len=512 of long exceeds the longest document (300 tokens)"
    assert refused.remedy == "choose seq_len <= 300 or a corpus of longer documents"
    accepted = audited(**documents, arms=arms, block_len=512, budget_tokens=5120, allow_straddling=True)
    assert found(accepted, "document_tokens", "long").level == "warn"


def test_a_median_document_shorter_than_an_arms_windows_is_a_caveat():
    result = audited([90] * 400)
    assert found(result, "document_tokens", "long").level == "warn"
    assert found(result, "document_tokens", "short").level == "ok"
    assert "median of 90 tokens" in found(result, "document_tokens", "long").message


def test_windows_that_straddle_documents_are_counted_per_arm():
    result = audited([100] * 400)
    short, long = (found(result, "straddling_windows", arm) for arm in ("short", "long"))
    # Of windows of 33 and 129 tokens over documents of 100: a third, and every one.
    assert short.value == pytest.approx(0.32, abs=0.03)
    assert (short.level, long.value, long.level) == ("ok", 1.0, "warn")


def test_one_document_straddles_nothing():
    assert straddling_share(token_file([5000]), block_len=128, seq_len=32) == 0.0


def test_packed_rows_are_a_caveat_that_says_which_documents_were_long_enough():
    finding = found(audited([500] * 40, test=[300] * 30), "exam_rows", "test")
    assert finding.level == "warn"
    assert finding.value == 30
    only = "only 30 test documents exceed 128 tokens, and 50 are needed for one document per row"
    assert finding.message == f"exam rows join several documents: {only}"


def test_a_share_of_overlap_above_the_limit_is_refused_and_below_it_a_caveat():
    train, test = token_file([500] * 40), token_file([300] * 60, split="test", seed=2)
    corpus = corpus_of(train, VALIDATION, test, max_overlap_share=0.05)
    exam = build_exam(corpus, block_len=128, common_len=32, rows_validation=8, rows_test=8)
    rows = exam.test
    # 66 runs of 64 tokens a row: 80 common tokens are 17 of them, of 528.
    train.tokens[1000:1080] = rows.tokens_RS[3, 20:100]
    warned = found(audit(corpus, exam, arms={}, budget_tokens=6400), "overlap_share", "test")
    assert warned.value == pytest.approx(17 / 528)
    assert warned.level == "warn"
    assert rows.document_names[rows.documents_RS[3, 0]] in warned.message
    train.tokens[2000:2100] = rows.tokens_RS[5, :100]
    refused = audit(corpus, exam, arms={}, budget_tokens=6400)
    assert found(refused, "overlap_share", "test").value == pytest.approx((17 + 37) / 528)
    [refusal] = refused.refusals
    assert "10.23% of the 64-token runs of the test exam stand in train" in refusal.message


def test_a_run_that_is_too_long_is_refused_where_a_shorter_one_of_another_place_begins_before_it():
    splits = {
        "train": token_file([500] * 40),
        "validation": token_file([300] * 20, split="validation", seed=1),
        "test": token_file([300] * 60, split="test", seed=2),
    }
    # Tokens 10 to 136 of a test document in one train document, 11 to 200 in another.
    start = int(splits["test"].document_starts[7])
    splits["train"].tokens[1010:1137] = splits["test"].tokens[start + 10 : start + 137]
    splits["train"].tokens[2011:2201] = splits["test"].tokens[start + 11 : start + 201]
    finding, shared = _common_run(splits["test"], splits["train"], run_len=64, limit=128, remedy="")
    assert finding.level == "refuse"
    assert finding.value == 190
    assert finding.message == "train and test share copied text: 190 tokens of test-7 also stand in train-4 (limit 128)"
    assert [row.document for row in shared] == ["test-7"]
    finding, shared = _common_run(splits["test"], splits["train"], run_len=64, limit=191, remedy="")
    assert (finding.level, shared) == ("ok", [])


def test_a_train_split_without_a_whole_block_is_refused_with_the_length_that_fits():
    result = audited([90], arms=ARMS)
    finding = found(result, "epochs", "train")
    assert finding.level == "refuse"
    assert finding.remedy == "choose a longest seq_len < 90 tokens or a larger corpus"
    assert found(result, "straddling_windows", "long").value == 0.0


def test_an_audit_is_plain_data():
    result = audited([500] * 40)
    again = json.loads(json.dumps(result.as_dict()))
    assert [finding["rule"] for finding in again["findings"]] == [finding.rule for finding in result.findings]
