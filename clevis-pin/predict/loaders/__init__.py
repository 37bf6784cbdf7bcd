"""One module for each way to boot: it exchanges the events of a plan that its software, files and
configuration change.
"""
