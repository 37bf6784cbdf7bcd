"""An unlock request in the making, and every fault that step by step refuses it: for vectors and live."""
