"""The environment of a process changes nothing that a recipe computes."""

from __future__ import annotations

import os
from operator import attrgetter

import pytest
import torch

from mixerzoo import load_registry
from mixerzoo.errors import RunError
from mixerzoo.evaluation import evaluate_run
from mixerzoo.process.environment import ALONE, Launch, launch, notices, recipe_decides
from mixerzoo.process.state import float32_precision, set_float32_precision
from mixerzoo.recipe.feasibility import check_size
from mixerzoo.training.run import Reporter, train
from runs import fingerprint, tiny_recipe

LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
ONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    """Sets variables, with none of a launcher's there before."""
    for name in LAUNCH:
        monkeypatch.delenv(name, raising=False)

    def set_all(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": ""},
        {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""},
        {"RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"LOCAL_RANK": "0"},
        {"LOCAL_RANK": "-1"},
        {"MASTER_ADDR": "somewhere", "MASTER_PORT": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": ""},
        ONE,
        {**ONE, "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost"},
    ],
)
def test_alone(variables, environment):
    environment(variables)
    assert launch() == ALONE
    with recipe_decides():
        assert not any(name in os.environ for name in LAUNCH)
    assert {name: os.environ[name] for name in variables} == variables


def test_under_torchrun(environment):
    environment(TORCHRUN)
    assert launch() == Launch(3, 1, 4)
    with recipe_decides():
        assert {name: os.environ[name] for name in TORCHRUN} == TORCHRUN
    environment({"LOCAL_WORLD_SIZE": "2"})
    assert launch() == Launch(3, 1, 4, local_world_size=2)
    environment({**TORCHRUN, **ONE, "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"})
    assert launch() == ALONE
    with recipe_decides():
        assert os.environ["LOCAL_RANK"] == "0"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "1"}, r"RANK=1 is set, but not .*LOCAL_RANK"),
        ({"RANK": "0", "WORLD_SIZE": "4"}, r"RANK=0, WORLD_SIZE=4 are set, but not LOCAL_RANK"),
        ({"LOCAL_RANK": "2"}, r"LOCAL_RANK=2 is set, but not "),
        ({"RANK": "first"}, r"variable RANK is 'first'; expected a whole number"),
        ({"LOCAL_RANK": "-2"}, r"variable LOCAL_RANK is '-2'"),
        ({"WORLD_SIZE": "9" * 5000}, r"variable WORLD_SIZE is '9+'; expected"),
        ({**TORCHRUN, "RANK": "4"}, r"RANK=4, LOCAL_RANK=1, WORLD_SIZE=4 cannot be"),
        ({**TORCHRUN, "MASTER_PORT": ""}, r"but not MASTER_ADDR and MASTER_PORT"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, r"but not MASTER_ADDR and MASTER_PORT"),
        ({**ONE, "TORCHELASTIC_RUN_ID": "none"}, r"WORLD_SIZE=1 are set, but not MASTER_ADDR and MASTER_PORT"),
        ({**TORCHRUN, "MASTER_PORT": "abc"}, r"variable MASTER_PORT is 'abc'; expected a whole number"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, r"LOCAL_WORLD_SIZE=0 cannot be: from 1 to WORLD_SIZE=4"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "5"}, r"LOCAL_WORLD_SIZE=5 cannot be"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "x"}, r"variable LOCAL_WORLD_SIZE is 'x'"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, r"OMPI_COMM_WORLD_SIZE=2 is set: processes of mpirun would train apart"),
        ({"PMI_SIZE": "2"}, r"PMI_SIZE=2 is set"),
        ({"DNNL_DEFAULT_FPMATH_MODE": "BF16"}, r"DNNL_DEFAULT_FPMATH_MODE=BF16 is set, which changes"),
        ({"ATEN_CPU_CAPABILITY": "default"}, r"ATEN_CPU_CAPABILITY=default is set"),
    ],
)
def test_what_is_refused(variables, words, environment, tmp_path):
    environment(variables)
    with pytest.raises(RunError, match=words), recipe_decides():
        pass
    with pytest.raises(RunError, match=words):
        train(tiny_recipe(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_compiler(environment):
    environment({"TORCHINDUCTOR_CACHE_DIR": "x", "TORCHINDUCTOR_COMPILE_THREADS": "1"})
    assert notices(compiled=True) == []
    environment({"TORCHDYNAMO_DISABLE": "1"})
    assert notices(compiled=False) == []
    with pytest.raises(RunError, match="TORCHDYNAMO_DISABLE is set, which would change"):
        notices(compiled=True)


def test_precision_of_products(environment):
    before = torch.get_float32_matmul_precision()
    environment({"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"})
    with recipe_decides():
        assert torch.get_float32_matmul_precision() == "highest"
        assert notices(compiled=False)[0].endswith(": TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
    assert torch.get_float32_matmul_precision() == before
    assert notices(compiled=False) == []


@pytest.fixture
def _precision():
    before = float32_precision()
    yield
    set_float32_precision(before)


def _set(place: str, value: str) -> None:
    attrgetter(place)(torch.backends).fp32_precision = value


NEW_SETTINGS = [("cuda.matmul", "tf32"), ("mkldnn.matmul", "bf16"), ("cudnn.conv", "ieee"), ("cudnn", "ieee")]


@pytest.mark.usefixtures("_precision")
@pytest.mark.parametrize(("place", "value"), NEW_SETTINGS)
def test_a_precision_set_in_python_is_the_user_s(place, value, environment):
    _set(place, value)
    before = float32_precision()
    assert load_registry().entries
    with recipe_decides():
        assert float32_precision() == before
    environment({"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"})
    with recipe_decides():
        assert torch.get_float32_matmul_precision() == "highest"
    assert float32_precision() == before


@pytest.mark.usefixtures("_precision")
@pytest.mark.parametrize("legacy", ["highest", "high", "medium"])
@pytest.mark.parametrize(("place", "value"), NEW_SETTINGS)
def test_precision_is_restored_whichever_way_it_was_set(place, value, legacy):
    begun = float32_precision()
    torch.set_float32_matmul_precision(legacy)
    torch.backends.cudnn.allow_tf32 = False
    before = float32_precision()
    _set(place, value)
    set_float32_precision(before)
    assert float32_precision() == before
    set_float32_precision(begun)
    assert float32_precision() == begun


@pytest.mark.usefixtures("_precision")
def test_a_run_with_tf32_set_in_python_trains_and_is_scored(environment, tmp_path, monkeypatch):
    recipe = tiny_recipe("train.steps=2", "train.checkpoint_interval=2", "data.source.max_bytes=100000")
    _set("cuda.matmul", "tf32")
    environment(ONE)
    result = train(recipe, tmp_path / "run")
    assert evaluate_run(tmp_path / "run")["loss"] == result["loss"]
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    with pytest.raises(RunError, match="MKL_CBWR=COMPATIBLE is set, which changes"):
        evaluate_run(tmp_path / "run")


def test_memory_is_shared_by_the_processes_of_a_machine(environment, monkeypatch):
    monkeypatch.setattr("mixerzoo.recipe.feasibility.free_bytes", lambda: (1 << 40, "this machine"))
    environment({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"})
    with pytest.raises(RunError, match="LOCAL_WORLD_SIZE=0 cannot be"):
        check_size(tiny_recipe())


class _Heard(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def notice(self, text: str) -> None:
        self.said.append(text)


def test_a_run_is_the_same_bits_whatever_is_set(environment, tmp_path):
    recipe = tiny_recipe("train.steps=2", "train.checkpoint_interval=2", "data.source.max_bytes=100000")
    train(recipe, tmp_path / "plain")
    environment(
        {
            "ACCELERATE_MIXED_PRECISION": "bf16",
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
            "ACCELERATE_USE_FSDP": "true",
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DYNAMO_BACKEND": "eager",
            "ACCELERATE_TORCH_DEVICE": "meta",
            "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
            "PARALLELISM_CONFIG_TP_SIZE": "2",
            "FSDP_VERSION": "2",
            "RANK": "",
            "LOCAL_RANK": "0",
            "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
        }
    )
    heard = _Heard()
    train(recipe, tmp_path / "set", reporter=heard)
    assert fingerprint(tmp_path / "set") == fingerprint(tmp_path / "plain")
    assert any("ACCELERATE_MIXED_PRECISION" in text for text in heard.said)
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
