"""Unlock: from evidence to a reply, and the appraisal that other use cases share."""
