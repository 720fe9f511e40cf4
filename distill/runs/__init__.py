"""A run as a whole: verify, watch, plan, launch."""
