"""A configuration that is illegal cannot exist, and a state is followed by what may follow it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from novasandbox.core.hypervisor import (
    SandboxConfig,
    SandboxState,
    check_transition,
    require_state,
)
from novasandbox.errors import IllegalTransition, InvalidConfig

CREATING, RUNNING, PAUSED, HIBERNATED, STOPPED, FAILED = SandboxState
LEGAL = {
    (CREATING, RUNNING),
    (CREATING, STOPPED),
    (CREATING, FAILED),
    (RUNNING, PAUSED),
    (RUNNING, HIBERNATED),
    (RUNNING, STOPPED),
    (RUNNING, FAILED),
    (PAUSED, RUNNING),
    (PAUSED, HIBERNATED),
    (PAUSED, STOPPED),
    (PAUSED, FAILED),
    (HIBERNATED, RUNNING),
    (HIBERNATED, STOPPED),
    (HIBERNATED, FAILED),
}


def test_the_defaults_are_those_of_the_documents() -> None:
    config = SandboxConfig()
    assert (config.vcpus, config.memory_mib, config.disk_mib) == (1, 256, 2048)
    assert (config.timeout, config.on_timeout, config.provider) == (300.0, "kill", "auto")
    assert (config.idle_timeout, config.on_idle) == (None, "hibernate")
    assert (config.network, config.detach, config.name) == (None, False, None)


@pytest.mark.parametrize(
    "settings",
    [
        {"vcpus": 0},
        {"vcpus": 65},
        {"vcpus": True},
        {"vcpus": 1.0},
        {"vcpus": "2"},
        {"memory_mib": 63},
        {"memory_mib": 2**21},
        {"memory_mib": None},
        {"disk_mib": 15},
        {"disk_mib": -1},
        {"timeout": 0},
        {"timeout": -1.0},
        {"timeout": math.nan},
        {"timeout": "5"},
        {"timeout": True},
        {"on_timeout": "sleep"},
        {"idle_timeout": 0},
        {"idle_timeout": -1.0},
        {"idle_timeout": "5"},
        {"idle_timeout": False},
        {"on_idle": "stop"},
        {"on_idle": None},
        {"name": ""},
        {"name": "-x"},
        {"name": "a b"},
        {"name": "a/b"},
        {"name": "a\n"},
        {"name": "x" * 64},
        {"env": {"A=B": "x"}},
        {"env": {"": "x"}},
        {"env": {"A": "x\0"}},
        {"env": {"A": 1}},
        {"metadata": {"a": None}},
        {"metadata": {"a\0": "b"}},
        {"user": ""},
        {"user": "a\0b"},
        {"cwd": ""},
        {"cwd": "relative"},
        {"cwd": "/a\0"},
        {"template": "a", "snapshot": "b"},
        {"template": "a", "image": "b"},
    ],
    ids=str,
)
def test_an_illegal_configuration_cannot_exist(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        SandboxConfig(**settings)
    assert str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"vcpus": 64, "memory_mib": 64, "disk_mib": 16, "timeout": None},
        {"timeout": 0.001},
        {"timeout": 7},
        {"idle_timeout": 0.5, "on_idle": "kill"},
        {"idle_timeout": math.inf, "on_idle": "pause", "on_timeout": "hibernate"},
        {"name": "a" * 63},
        {"name": "9.b_c-d"},
        {"env": {"A": "", "ä": "b=c"}, "metadata": {"k=v": ""}},
        {"user": "1000:1000", "cwd": "/"},
    ],
    ids=str,
)
def test_what_is_legal_is_taken_as_it_is(settings: dict[str, Any]) -> None:
    config = SandboxConfig(**settings)
    for name, value in settings.items():
        assert getattr(config, name) == value


def test_a_configuration_does_not_change_and_hides_its_environment() -> None:
    config = SandboxConfig(env={"TOKEN": "secret"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.vcpus = 2  # type: ignore[misc]
    assert "secret" not in repr(config)


@pytest.mark.parametrize("current", SandboxState)
@pytest.mark.parametrize("target", SandboxState)
def test_only_what_may_follow_a_state_does(current: SandboxState, target: SandboxState) -> None:
    if (current, target) in LEGAL:
        check_transition(current, target, "ab")
        return
    with pytest.raises(IllegalTransition) as caught:
        check_transition(current, target, "ab")
    error = caught.value
    assert error.current is current
    assert set(error.required) == {before for before, after in LEGAL if after is target}
    assert error.sandbox_id == "ab"
    assert target.name in str(error)
    assert current.name in str(error)


def test_nothing_follows_the_end() -> None:
    assert {state for state in SandboxState if state.ended} == {STOPPED, FAILED}


def test_a_verb_names_the_states_that_it_needs() -> None:
    require_state(RUNNING, (RUNNING, PAUSED), "expose", "ab")
    with pytest.raises(IllegalTransition, match="STOPPED, and this needs RUNNING or PAUSED"):
        require_state(STOPPED, (RUNNING, PAUSED), "expose", "ab")
