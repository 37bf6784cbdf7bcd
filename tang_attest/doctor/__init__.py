"""The examination of an installation: findings and actions.  Nothing is changed."""
