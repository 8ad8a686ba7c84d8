"""What a step asks of a GPU, held as numbers: they change only on purpose."""

import pytest

from bench.launches import count_launches, gpu, shapes

# Operations of the head, forward and backward, views excluded: 10 a chunk of 8,192 tokens, and 6.
HEAD = {
    ("tutorial", "large_batch"): 26,
    ("tutorial", "balanced"): 26,
    ("tutorial", "long_seq"): 16,
    ("published", "large_batch"): 46,
    ("published", "balanced"): 46,
    ("published", "long_seq"): 36,
    ("matched", "large_batch"): 46,
    ("matched", "balanced"): 46,
    ("matched", "long_seq"): 46,
}
# All others of a micro-step, which depend on no shape; those of the optimizers; and host reads a layer.
BY_CAPABILITY = {
    "7.5": (1476, 223, 1),
    "8.0": (1440, 207, 1),
    "9.0": (1200, 207, 0),
    "10.0": (1200, 207, 0),
    "12.0": (1440, 207, 1),
}
CASES = [
    *((*shape, capability) for shape in HEAD for capability in ("8.0", "9.0")),
    *(("published", "large_batch", capability) for capability in ("7.5", "10.0", "12.0")),
]


@pytest.mark.parametrize(("preset", "arm", "capability"), CASES)
def test_the_launch_budget_of_a_step_and_its_host_reads(preset, arm, capability):
    model, batch = shapes(preset)[arm]
    found = count_launches(model, batch, gpu(capability))
    without_head, optimizers, reads_a_layer = BY_CAPABILITY[capability]
    assert found.by_part["head"] == HEAD[preset, arm] <= 60
    assert found.micro_step == without_head + HEAD[preset, arm], found.by_name.most_common(40)
    assert found.by_part["optimizer"] == optimizers
    # grouped products need no number; expert by expert the host reads the loads of each layer once
    assert found.reads_in_micro_step == reads_a_layer * model.n_layers
    assert found.reads_in_step == 1
    grouped = sum(count for name, count in found.by_name.items() if "grouped_mm" in name)
    assert grouped == (0 if reads_a_layer else 6 * model.n_layers)


def test_bytes_of_an_operation_are_what_it_reads_and_writes():
    """The head of ``published``: 8,192 rows of logits at a time, written and read 5.5 times in fp32."""
    model, batch = shapes("published")["large_batch"]
    found = count_launches(model, batch, gpu("9.0"))
    logits = 26_624 * 49_152
    written_and_read = (4 + 8 + 4 + 2 + 2 + 2) * logits  # product, softmax, exp to bf16, and its two products
    assert written_and_read < found.bytes_by_part["head"] < 1.1 * written_and_read
    assert found.flops == pytest.approx(7.8e12, rel=0.01)
