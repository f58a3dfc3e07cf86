"""`regard doctor`: what it finds, and that it notices a backend that computes something else."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from regard import cli, doctor
from regard.attention import fused
from regard.attention.dispatch import BACKENDS
from regard.attention.native import library


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SPEED_SECONDS", 0.0)
    monkeypatch.setattr(doctor, "SPEED_SHAPE", (1, 2, 64, 16))


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_found", library._Found(None, "it was not built; install a C++ compiler"))


def written(examination: doctor.Examination) -> str:
    return "\n".join(line for part, value in examination.items() for line in doctor.lines(part, value))


def of(examination: doctor.Examination, backend: str) -> list[dict[str, object]]:
    return [result for result in examination["self_check"] if result["backend"] == backend]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["regard", "doctor", *arguments])
    try:
        cli.main()
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def test_all_is_well_here():
    parts: list[str] = []
    examination = doctor.examine(lambda part, _: parts.append(part))
    assert parts == list(examination)
    assert examination["healthy"], written(examination)
    assert examination["versions"]["torch"] == torch.__version__
    assert "translate-en-de" in examination["models"]
    assert examination["threads"]["torch"] == torch.get_num_threads()
    assert [(result["backend"], result["dtype"]) for result in examination["self_check"]] == [
        (backend, dtype) for backend in BACKENDS for dtype in doctor.DTYPES
    ]
    for backend in ("fused", "reference"):
        assert [result["state"] for result in of(examination, backend)] == ["passed", "passed"]
        assert all(0 < result["error"] < result["allowed"] for result in of(examination, backend))  # type: ignore[operator]
    assert json.loads(json.dumps(examination, allow_nan=False)) == examination


@pytest.mark.skipif(not library.PATH.exists(), reason="the native library was not built")
def test_the_native_kernel_is_described():
    examination = doctor.examine()
    assert examination["native"]["available"]
    assert examination["native"]["isa"] == library.isa()
    assert [result["state"] for result in of(examination, "native")] == ["passed", "passed"]
    assert examination["speed"]["native_over_torch"] > 0
    assert f"native kernel: {library.isa()}" in written(examination)


@pytest.mark.usefixtures("without_native")
def test_a_missing_kernel_is_said_and_is_no_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run(monkeypatch) == 0
    out = capsys.readouterr().out
    assert "native kernel: not there: it was not built; install a C++ compiler" in out
    assert "regard works without it" in out
    assert "an ordinary call on the CPU goes to fused" in out
    assert out.splitlines()[-1] == "all is well"
    assert run(monkeypatch, "--json") == 0
    examination = json.loads(capsys.readouterr().out)
    assert examination["native"]["why_missing"] == "it was not built; install a C++ compiler"
    assert {result["state"] for result in of(examination, "native")} <= {"refused"}
    assert examination["speed"] is None


def test_a_setting_that_cannot_be_is_a_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(library, "_found", None)
    monkeypatch.setenv("REGARD_NATIVE", "maybe")
    assert run(monkeypatch) == 1
    out = capsys.readouterr().out
    assert "REGARD_NATIVE is 'maybe'" in out
    assert out.splitlines()[-1] == "something is wrong: see above"


# -- Backends that are wrong

FUSED = BACKENDS["fused"]
WRONG = {
    "a share too much": (replace(FUSED, attend=lambda request: fused.attend(request) * 1.001), "output"),
    "not a number": (replace(FUSED, attend=lambda request: fused.attend(request) * torch.nan), "output has no value"),
    "an error": (replace(FUSED, attend=lambda request: {}[request.B]), "KeyError: 2"),  # type: ignore[index]
    "another shape": (replace(FUSED, attend=lambda request: fused.attend(request)[:1]), "output has no value"),
    "a wrong statistic": (
        replace(
            FUSED,
            attend_observed=lambda request, watch: (
                (found := fused.attend_observed(request, watch))[0],
                replace(found[1], entropy=None if found[1].entropy is None else found[1].entropy + 0.01),
            ),
        ),
        "entropy",
    ),
    "a statistic left out": (
        replace(
            FUSED,
            attend_observed=lambda request, watch: (
                (found := fused.attend_observed(request, watch))[0],
                replace(found[1], received=None),
            ),
        ),
        "received has no value",
    ),
    "other keys": (
        replace(
            FUSED,
            attend_observed=lambda request, watch: (
                (found := fused.attend_observed(request, watch))[0],
                replace(found[1], top_keys=found[1].top_keys.flip(-1)),  # type: ignore[union-attr]
            ),
        ),
        "top_keys",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_backend_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch):
    backend, words = WRONG[fault]
    monkeypatch.setitem(BACKENDS, "wrong", backend)
    result = doctor._checked_backend("wrong", "float32")
    assert result["state"] == "failed"
    (line,) = list(doctor.lines("self_check", [result]))[1:]
    assert "FAILED" in line and words in line
    json.dumps(result, allow_nan=False)


def test_a_wrong_backend_is_a_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(BACKENDS, "wrong", WRONG["not a number"][0])
    assert run(monkeypatch, "--json") == 1
    examination = json.loads(capsys.readouterr().out)
    assert not examination["healthy"]
    assert examination["speed"] is None
    assert [result["state"] for result in of(examination, "wrong")] == ["failed", "failed"]
    assert [result["state"] for result in of(examination, "fused")] == ["passed", "passed"]


def test_a_backend_that_refuses_every_call_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(BACKENDS, "shy", replace(FUSED, refuses=lambda _: "query is not to my taste"))
    result = doctor._checked_backend("shy", "float32")
    assert result["state"] == "refused"
    assert "left out: query is not to my taste" in "\n".join(doctor.lines("self_check", [result]))
