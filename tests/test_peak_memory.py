"""A run's peak memory is its own, not that of an earlier run of the same process."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from tailora.peak_memory import forget, peak

MEGABYTES = 300


def taken() -> np.ndarray:
    return np.ones(MEGABYTES * 2**17)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak is that of the GPU")
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot forget a peak")
def test_what_was_given_back_before_does_not_count():
    forget()
    before = peak()
    held = taken()
    with_it = peak()
    assert with_it > before + 0.9 * MEGABYTES
    forget()
    assert peak() > before + 0.9 * MEGABYTES, "what is still held counts"
    del held
    assert peak() > before + 0.9 * MEGABYTES, "a peak is not what is held now"
    forget()
    assert peak() < with_it - 0.9 * MEGABYTES


def test_a_system_without_proc_tells_the_peak_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr("tailora.peak_memory._PROCESS", tmp_path / "none")
    forget()
    assert peak() > 10
