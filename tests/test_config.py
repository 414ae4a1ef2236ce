"""Settings: profiles resolve, names are unique, nonsense is refused in one sentence."""

import math
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest

from retroact_lib.config import PARTS, PROFILES, config_from_notebook, field_names, load_config
from retroact_lib.envs import ENVIRONMENTS, profile_overrides


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_names_are_unique(env):
    names, config = field_names(env), load_config("smoke", env=env)
    assert len(names) == 3 + sum(len(fields(getattr(config, part))) for part in PARTS) == len(set(names))


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_resolve(profile):
    config = load_config(profile, seed=3)
    assert config.profile == profile and config.flat()["seed"] == 3
    for name, value in (PROFILES[profile] | profile_overrides(config.env, profile)).items():
        assert config.flat()[name] == value


def test_profiles_are_adapted_to_environments():
    for env in ENVIRONMENTS:
        assert profile_overrides(env, "laptop"), f"{env} has settings of its own in the laptop profile"
        for profile in PROFILES:
            assert load_config(profile, env=env).flat().items() >= profile_overrides(env, profile).items()
            assert load_config(profile, env=env, max_steps=7).rollout.max_steps == 7


def test_each_environment_has_its_own_options_and_no_others():
    assert load_config("smoke", env="hotpotqa", retrieval="open").options.retrieval == "open"
    assert load_config("smoke", retrieval=None).options.describe == "names"
    with pytest.raises(ValueError, match="Unknown setting 'retrieval'"):
        load_config("smoke", retrieval="open")
    with pytest.raises(ValueError, match="retrieval is 'all'; expected one of"):
        load_config("smoke", env="hotpotqa", retrieval="all")
    changed = load_config("smoke", describe="compact").change(env="hotpotqa")
    assert "describe" not in changed.flat() and changed.change(env="intercode_sql").options.describe == "mysql"


def test_overrides_reach_their_stage_and_none_keeps_the_profile():
    config = load_config("laptop", rl_lr=1, il_tasks=None)
    assert config.rl.rl_lr == 1.0 and config.data.il_tasks == load_config("laptop").data.il_tasks


@pytest.mark.parametrize(
    "values, message",
    [
        ({"profile": "huge"}, "Unknown profile 'huge'; expected one of smoke"),
        ({"rl_rl": 1}, "Unknown setting 'rl_rl'; expected one of"),
        ({"il_tasks": "many"}, "il_tasks is 'many'; expected int"),
        ({"il_tasks": 0}, "expected at least 1"),
        ({"known_tasks": -1}, "known_tasks is -1; expected 0 or more"),
        ({"reflection_retries": -1}, "reflection_retries is -1; expected 0 or more"),
        ({"reflection_retries": 2, "trials": 1}, "expected 0 without a second trial and reflections"),
        ({"reflection_retries": 2, "trials": 2, "temperature": 0.0}, "would all be the same"),
        ({"reflection_samples": 2}, "reflection_samples is 2; expected 1, or more with reflection_retries above 0"),
        ({"trials": 0}, "trials \\(K\\) is 0"),
        ({"temperature": -1.0}, "expected 0 \\(greedy\\) or more"),
        ({"objective": "reinforce"}, "expected one of"),
        ({"baseline": "mean"}, "baseline is 'mean'; expected one of"),
        ({"baseline": "task"}, "baseline 'task' with objective 'truncated'; expected objective ppo"),
        ({"kl_updates": 0}, "kl_updates is 0; expected at least 1"),
        ({"sft_epochs": 0.0}, "sft_epochs is 0.0; expected more than 0"),
        ({"versions": 2, "askings": 4}, "askings is 4; expected 1 to 3"),
        ({"roles": "critic"}, "expected one of"),
        ({"eps": 1.5}, "clip range"),
        ({"mistake_rate": 2.0}, "share in"),
        ({"describe": "long"}, "expected one of"),
        ({"device": "tpu"}, "expected one of"),
        ({"quantize": 1}, "expected bool"),
        ({"eval_trials": 0}, "eval_trials is 0"),
        ({"bootstrap": 0}, "bootstrap is 0"),
        ({"eval_temperature": -0.5}, "eval_temperature is -0.5"),
        ({"grad_clip": 0.0}, "grad_clip is 0.0; expected more than 0"),
        ({"max_kl": -1.0}, "max_kl is -1.0"),
        ({"rl_lr": 0.0}, "rl_lr is 0.0"),
        ({"rl_lr": math.inf}, "rl_lr is inf; expected a finite number"),
        ({"reflector_c": math.inf}, "reflector_c is inf; expected a finite number"),
        ({"sft_epochs": math.nan}, "sft_epochs is nan; expected a finite number"),
        ({"max_kl": math.nan}, "max_kl is nan; expected a finite number"),
        ({"lora_rank": 10**9}, "lora_rank is 1000000000; expected 1 to 4096"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"max_context": 512}, "max_context is 512; expected at least"),
        ({"pg_weight": 0.0, "il_weight": 0.0}, "something to learn from"),
    ],
)
def test_nonsense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        load_config(values.pop("profile", "smoke"), **values)


def test_a_notebook_namespace_gives_its_parameters_and_refuses_others():
    seen = {"profile": "laptop", "seed": 2, "rl_lr": None, "_private": 1, "math": math, "In": [], "__name__": "x"}
    assert config_from_notebook(seen).seed == 2
    with pytest.raises(ValueError, match="Unknown setting 'lrr'"):
        config_from_notebook({**seen, "lrr": 0.1})
    for values, message in (
        ({"il_tasks": (40,)}, r"il_tasks is \(40,\); expected int"),
        ({"il_tasks": np.int64(40)}, "il_tasks is .*40.*; expected int"),
        ({"rl_lr": [1e-4]}, r"rl_lr is \[0.0001\]; expected float"),
        ({"env": ["hotpotqa"]}, r"env is \['hotpotqa'\]; expected str"),
        ({"profile": ["smoke"]}, "Unknown profile"),
        ({"il_task": [5]}, "Unknown setting 'il_task'"),
        ({"il_task": np.int64(5)}, "Unknown setting 'il_task'"),
        ({"env": math}, "env is <module 'math'.*; expected str"),
    ):
        with pytest.raises(ValueError, match=message):
            config_from_notebook({**seen, **values})
    own = {"rows": [1, 2], "Out": {1: 2}, "show": print, "table": pd.DataFrame()}
    assert config_from_notebook({**seen, **own}).seed == 2, "variables of one's own are left alone"
