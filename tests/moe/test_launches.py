"""What a step asks of a GPU, held as numbers: they grow only on purpose."""

import pytest

from bench.launches import count_launches, gpu, shapes

# Operations of a micro-step, forward and backward, views excluded, and of them the head's.
MICRO_STEP = {
    ("tutorial", "7.5"): (1502, 26),
    ("tutorial", "8.0"): (1466, 26),
    ("tutorial", "9.0"): (1226, 26),
    ("published", "7.5"): (1522, 46),
    ("published", "8.0"): (1486, 46),
    ("published", "9.0"): (1246, 46),
    ("matched", "7.5"): (1522, 46),
    ("matched", "8.0"): (1486, 46),
    ("matched", "9.0"): (1246, 46),
}
OPTIMIZER = {"7.5": 227, "8.0": 211, "9.0": 211}


@pytest.mark.parametrize(("preset", "capability"), MICRO_STEP)
def test_the_launch_budget_of_a_step_and_its_host_reads(preset, capability):
    model, batch = shapes(preset)["large_batch"]
    found = count_launches(model, batch, gpu(capability))
    micro_step, head = MICRO_STEP[preset, capability]
    assert found.micro_step <= micro_step, found.by_name.most_common(40)
    assert found.by_part["head"] <= head <= 60
    assert found.by_part["optimizer"] <= OPTIMIZER[capability]
    # grouped products need no number; expert by expert the host reads the loads of each layer once
    assert found.reads_in_micro_step == (0 if capability == "9.0" else model.n_layers)
    assert found.reads_in_step == 1
    grouped = sum(count for name, count in found.by_name.items() if "grouped_mm" in name)
    assert grouped == (6 * model.n_layers if capability == "9.0" else 0)
