"""What the trace on fake CUDA tensors says of what it saw; ``make cuda-trace`` runs it where torch has CUDA."""

from bench.cuda_trace import problems

FP32 = "attention runs in float32 6 times: flash and cuDNN kernels take 16 bits only"


def test_attention_in_16_bits_and_grouped_products_where_they_are_fast_are_right():
    assert problems((9, 0), {"_grouped_mm": 18}, {"bfloat16": 6}) == []
    assert problems((8, 0), {"mm": 100}, {"bfloat16": 6}) == []
    assert problems((7, 5), {"mm": 100}, {"float16": 6}) == []


def test_what_the_trace_of_earlier_code_showed_is_wrong():
    assert problems((8, 0), {"_grouped_mm": 12}, {"float32": 6}) == [
        FP32,
        "grouped_mm runs 12 times: here torch reads its offsets on the host and loops",
    ]


def test_a_trace_that_sees_nothing_is_wrong():
    assert problems((9, 0), {}, {}) == [
        "no attention was seen: the trace is blind",
        "grouped_mm does not run, where it is fast",
    ]


def test_a_number_read_past_the_one_function_is_wrong():
    found = problems((8, 0), {"_local_scalar_dense": 2}, {"bfloat16": 6})
    assert found == ["the host reads 2 numbers past moe.device.read_on_host"]
