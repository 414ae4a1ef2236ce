"""ALFWorld (Shridhar et al. 2021): what it has of its own among the settings. The environment is in `env`."""

PROFILES = {
    "smoke": dict(families="look_at_obj_in_light", max_steps=12),
    "laptop": dict(
        max_steps=20,
        il_tasks=144,
        mistake_rate=0.1,
        sft_batch=2,
        sft_lr=7e-4,
        rl_tasks=72,
        test_tasks=48,
        eval_trials=2,
        ablations="",
    ),
    "gpu": dict(max_steps=50, max_repeats=3),
    "paper": dict(max_steps=50, max_repeats=3, test_tasks=134),
}
