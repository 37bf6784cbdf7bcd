"""Fewer reports from the processes that run the tests to the one that shows them: half as much of either's time for each test.

pytest-xdist sends six messages for a test.  The run is shown by three of them at most: the outcome, the end, and a
set-up or tear-down that failed, warned, printed or took long.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

#: Begin and end of a test; only ``-v`` shows them.
_SHOWN_BY_NOBODY: Final = ("logstart", "logfinish")
#: Seconds of a set-up or tear-down that ``--durations`` does not reach.
_SHORT: Final = 0.05


def thin_out(config: pytest.Config) -> None:
    """Let the process of *config*, if it runs tests for another one, keep what nobody is shown to itself."""
    if not hasattr(config, "workerinput") or config.option.verbose > 0:
        return
    for plugin in config.pluginmanager.get_plugins():
        if type(plugin).__name__ == "WorkerInteractor":
            plugin.sendevent = _thinned(plugin.sendevent)


def _thinned(send: Any) -> Any:
    def sendevent(name: str, **content: Any) -> None:
        if name not in _SHOWN_BY_NOBODY and not (name == "testreport" and is_dispensable(content["data"])):
            send(name, **content)

    return sendevent


def is_dispensable(report: dict[str, Any]) -> bool:
    """Tell whether *report*, as it is sent, is that of a short and silent set-up or tear-down that passed."""
    return (
        report["outcome"] == "passed"
        and report["when"] != "call"
        and report["duration"] < _SHORT
        and not report["sections"]
    )
