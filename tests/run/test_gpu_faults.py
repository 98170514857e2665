"""The table of faults: what torch 2.6 to 2.14, CUDA and NCCL say, and the exit code and the words that it means."""

from __future__ import annotations

import json
import re
import socket

import pytest
import torch

from jobs.config import rules
from jobs.config.specs import ConfigError, GanConfig, VaeConfig
from jobs.run import faults
from jobs.run.attempt import Attempt, report_and_code
from jobs.run.resume import write_config
from jobs.run.rundir import RunDir

# The lines that torch puts below every error of CUDA: 2.6 the first three, 2.9 and later the one above them.
BELOW = (
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable "
    "device-side assertions.\n"
)
SEARCH = "Search for `cudaErrorX' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html\n"
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {0} (run with NCCL_DEBUG=INFO), "
    "NCCL version 2.27.5\nnccl{1}: A call to something failed.\nLast error:\n{2}"
)
MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 39.39 GiB of which 1 GiB is free. "
    "Including non-PyTorch memory, this process has 38.19 GiB memory in use. See documentation for Memory Management"
)
SAID = [
    ("CUDA error: uncorrectable ECC error encountered\n", 75, "GPU or its driver"),
    ("CUDA error: uncorrectable NVLink error detected during the execution\n", 75, "GPU or its driver"),
    ("CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error\n", 75, "GPU or its driver"),
    ("CUDA error: unspecified launch failure\n", 75, "GPU or its driver"),
    ("CUDA error: an illegal memory access was encountered\n", 75, "GPU or its driver"),
    ("CUDA error: an illegal instruction was encountered\n", 75, "GPU or its driver"),
    ("CUDA error: misaligned address\n", 75, "GPU or its driver"),
    ("CUDA error: the launch timed out and was terminated\n", 75, "GPU or its driver"),
    ("CUDA error: hardware stack error\n", 75, "GPU or its driver"),
    ("CUDA error: unknown error\n", 75, "GPU or its driver"),
    ("CUDA error: CUDA-capable device(s) is/are busy or unavailable\n", 75, "GPU or its driver"),
    ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", 75, "GPU or its driver"),
    ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED_CUDART", 75, "GPU or its driver"),
    ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", 75, "GPU or its driver"),
    ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb)`", 75, "GPU or its"),
    ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", 75, "GPU or its driver"),
    (MEMORY, 78, "ran out of memory"),
    ("CUDA error: out of memory\n", 78, "ran out of memory"),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 78, "ran out of memory"),
    ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", 78, "ran out of memory"),
    ("CUDA error: no kernel image is available for execution on the device\n", 78, "no kernels for it"),
    ("The NVIDIA driver on your system is too old (found version 11040). Please update", 75, "GPU driver"),
    ("CUDA error: CUDA driver version is insufficient for CUDA runtime version", 75, "GPU driver"),
    ("Found no NVIDIA driver on your system. Please check that you have", 75, "no GPU that torch can use"),
    ("No CUDA GPUs are available", 75, "no GPU that torch can use"),
    ("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized", 75, "no GPU that torch can"),
    ("CUDA error: device-side assert triggered\n", 1, "out of range"),
]
OF_NCCL = [
    (("unhandled cuda error", "UnhandledCudaError", "Cuda failure 'out of memory'"), 78, "ran out of memory"),
    (("unhandled cuda error", "UnhandledCudaError", "Cuda failure 719 'unspecified launch failure'"), 75, "driver"),
    (("invalid usage", "InvalidUsage", "Duplicate GPU detected : rank 1 and rank 0 on device 1000"), 78, "share"),
    (("remote process exited or there was a network error", "RemoteError", "closed by n2"), 75, "ranks lost"),
    (("unhandled system error", "SystemError", "Call to ibv_reg_mr failed: Cannot allocate"), 75, "ranks lost"),
]  # fmt: skip


@pytest.mark.parametrize("below", ["", BELOW, SEARCH + BELOW], ids=["bare", "2.6", "2.9"])
@pytest.mark.parametrize(("text", "code", "words"), SAID, ids=[text[:50] for text, *_ in SAID])
def test_what_torch_says_of_a_gpu(text, code, words, below):
    fault = faults.fault_of(RuntimeError(text + below))
    assert fault is not None and fault.code == code and words in fault.text
    assert "\n" not in faults.line_of(RuntimeError(text + below))


@pytest.mark.parametrize(("parts", "code", "words"), OF_NCCL, ids=[parts[1] for parts, *_ in OF_NCCL])
def test_of_nccl_its_last_error_is_kept(parts, code, words):
    """Its first line only says that there was an error."""
    error = torch.distributed.DistBackendError(NCCL.format(*parts))
    fault, line = faults.fault_of(error), faults.line_of(error)
    assert fault is not None and fault.code == code and words in fault.text
    assert line.startswith("NCCL error in") and line.endswith(f"; last error: {parts[2]}") and "\n" not in line


@pytest.mark.parametrize(
    "error",
    [
        ValueError("CUDA error: unspecified launch failure"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 2x1)"),
        RuntimeError("CUDA error: invalid configuration argument"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a view"),
        None,
    ],
)
def test_a_bug_is_no_fault_of_the_gpu(error):
    assert faults.fault_of(error) is None and faults.named(error, str) is None


def test_a_pattern_of_the_table_is_found_in_the_words_that_a_person_sees():
    """So that `why` finds in the log what training said."""
    for fault in faults.FAULTS:
        if fault.code != 1 and fault is not faults.RANKS_LOST:
            text = next(text for text, *_ in [*SAID, (NCCL.format(*OF_NCCL[2][0]),)] if re.search(fault.pattern, text))
            said = str(faults.named(RuntimeError(text), lambda: "fix"))
            assert faults.fault_in(f"error: {said}") is fault and socket.gethostname() in said


# --- what an attempt leaves behind ------------------------------------------------------------------------------------
def left_by(tmp_path, error: BaseException, begun: bool = True, config=None):
    """(exit code, RunDir) of an attempt that ends with this error."""
    run = RunDir(tmp_path / "run")

    def main():
        with Attempt(run, config or GanConfig(data="phantom", batch=64, mbstd_group=4), 0, 2) as attempt:
            if begun:
                attempt.begin(0, 1000, {})
            raise error

    return report_and_code(main), run


def test_memory_that_does_not_suffice_is_one_line_with_the_flags_that_would_do(tmp_path, capsys):
    code, run = left_by(tmp_path, torch.OutOfMemoryError(MEMORY))
    said = capsys.readouterr().err
    assert code == 78 and said.count("\n") == 1 and said.startswith(f"error: {socket.gethostname()}: the GPU ran out")
    assert "Tried to allocate 2.00 GiB" in said and "--accumulate 2 (the same result" in said and "--batch 32" in said
    assert run.read_status()["state"] == "failed" and run.read_status()["code"] == 78


@pytest.mark.parametrize("begun", [True, False])
def test_a_fault_of_the_hardware_may_pass_and_names_the_node(tmp_path, capsys, begun):
    """Also one from before the first step: whoever decides on the next attempt hears the reason."""
    code, run = left_by(tmp_path, RuntimeError("CUDA error: unspecified launch failure\n" + BELOW), begun)
    said, status = capsys.readouterr().err, run.read_status()
    assert (
        code == 75 and said.count("\n") == 1 and f"error: {socket.gethostname()}: the GPU or its driver failed" in said
    )
    assert (status["state"], status["code"]) == ("continue", 75) and socket.gethostname() in status["reason"]
    ends = [line for line in run.read_attempts() if line["event"] == "end"]
    assert [(line["code"], line["node"]) for line in ends] == ([(75, socket.gethostname())] if begun else [])


def test_a_failed_assertion_in_a_kernel_keeps_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match="device-side assert"):
        left_by(tmp_path, RuntimeError("CUDA error: device-side assert triggered\n" + BELOW))
    assert json.loads((tmp_path / "run" / "status.json").read_text())["code"] == 1


@pytest.mark.parametrize(
    ("config", "world", "words"),
    [
        (GanConfig(batch=64, mbstd_group=8), 1, "--accumulate 2 (the same result in more steps) or --batch 32"),
        (
            GanConfig(batch=64, mbstd_group=8, accumulate=2),
            1,
            "--accumulate 4 (the same result in more steps) or --batch 32",
        ),
        (GanConfig(batch=48, mbstd_group=4), 2, "--accumulate 2 (the same result in more steps) or --batch 24"),
        (GanConfig(batch=36, mbstd_group=4), 1, "--accumulate 3 (the same result in more steps) or --batch 16"),
        (GanConfig(batch=8, mbstd_group=4), 2, "a smaller network, or a GPU with more memory"),
        (VaeConfig(batch=6, accumulate=2), 1, "--accumulate 3 (the same result in more steps) or --batch 2"),
    ],
)
def test_less_memory_as_flags_that_the_rules_accept(config, world, words):
    assert rules.less_memory(config, world).startswith(words)


def test_the_flags_that_are_named_are_accepted():
    for batch in range(8, 130, 4):
        config = GanConfig(batch=batch, mbstd_group=4)
        try:
            rules.check_world(config, 2)
        except ConfigError:
            continue
        for name, value in re.findall(r"--(accumulate|batch) (\d+)", rules.less_memory(config, 2)):
            rules.check_world(GanConfig(**{"batch": batch, "mbstd_group": 4, name: int(value)}), 2)


def test_what_asks_for_a_gpu_is_of_one_command(tmp_path):
    """launch.py asks for one where it planned one; the run itself goes on where there is none. To use the CPU stays
    with it."""
    run = RunDir(tmp_path / "run")
    run.create()
    for asked, stored in (("cuda", "auto"), ("cpu", "cpu"), ("auto", "auto")):
        write_config(run, GanConfig(data="phantom", device=asked))
        assert run.read_config()["device"] == stored
