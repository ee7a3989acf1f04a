"""The machine: devices by name, and free memory as system and container state it."""

import pytest
import torch

from pellucid.errors import ParameterError
from pellucid.stages.work import resources


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resources.resolve_device("auto") == "cuda:0"
    assert resources.resolve_device("cuda") == "cuda:0"
    assert resources.resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(ParameterError, match="there is cuda:0 to cuda:1"):
        resources.resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resources.resolve_device("auto") == "cpu"


def test_the_tighter_of_system_and_container_counts(tmp_path, monkeypatch):
    meminfo, limit, used = (tmp_path / name for name in ("meminfo", "max", "current"))
    monkeypatch.setattr(resources, "MEMINFO", meminfo)
    monkeypatch.setattr(resources, "CGROUPS", ((limit, used),))
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:   4000 kB\n")
    assert resources.available_bytes("cpu") == 4000 * 1024
    used.write_text("1000000\n")
    limit.write_text("max\n")
    assert resources.available_bytes("cpu") == 4000 * 1024
    limit.write_text("3000000\n")
    assert resources.available_bytes("cpu") == 2000000
