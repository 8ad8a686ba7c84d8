"""How clauses become sentences."""

import pytest

from sweeps.formatting import sentence


@pytest.mark.parametrize(
    ("clause", "written"),
    [
        ("too few seeds", "Too few seeds."),
        ("cp866.txt of test has 60% of its text in train", "cp866.txt of test has 60% of its text in train."),
        ("sympy/core/expr.py is long", "sympy/core/expr.py is long."),
        ("seq_len=64 is short", "seq_len=64 is short."),
        ("balanced is behind", "balanced is behind."),
        ("arm's rates differ", "Arm's rates differ."),
    ],
)
def test_a_sentence_begins_with_a_capital_unless_it_begins_with_a_name(clause: str, written: str) -> None:
    assert sentence(clause, "balanced") == written
