"""The admin API's use cases: the operator's, within the scope of an admin token."""
