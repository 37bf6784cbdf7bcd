"""Changes of a policy: the value, its dry run, and its rollout."""
