"""Which errors say that memory has run out, and what people read then."""

import pytest
import torch

from utils.errors import TooLittleMemory, UserError, advice_on_memory, is_out_of_memory

ADVICE = "a smaller --batch_size gives the same images"


def error_of_allocator() -> RuntimeError:
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**50)
    return found.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        error_of_allocator(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory")
        if hasattr(torch, "AcceleratorError")
        else RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.04 GB, max allowed: 6.80 GB)."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_memory_that_runs_out_ends_in_a_sentence_with_advice(error):
    assert is_out_of_memory(error)
    with pytest.raises(TooLittleMemory) as found, advice_on_memory(ADVICE):
        raise error
    sentence = str(found.value)
    assert sentence.startswith(f"memory has run out; {ADVICE}") and str(error) in sentence
    assert "()" not in sentence and is_out_of_memory(found.value)


def test_the_innermost_advice_counts():
    with pytest.raises(TooLittleMemory, match="memory has run out; the first"):
        with advice_on_memory("the second"), advice_on_memory("the first"):
            raise MemoryError


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Bus error. out of shared memory"
        ),
        UserError("out of memory"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_pass(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as found, advice_on_memory(ADVICE):
        raise error
    assert found.value is error
