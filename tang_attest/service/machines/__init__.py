"""Machines, from the operator's side: registration, labels, suspension, removal."""
