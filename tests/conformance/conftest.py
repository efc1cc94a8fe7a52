"""Compares each stack with its native control, test by test, and fails the run where the stack falls short.

A module holds a control, `<Native>Control`, and one or more classes of hf_llm's own. Each of these must fail nothing,
and skip nothing that the control passes.
"""

from collections import Counter, defaultdict

import pytest


MARKERS = (
    "accelerate_tests",
    "all_flash_attn_test",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_fsdp_test",
    "is_tensor_parallel_test",
    "is_training_test",
    "torch_compile_test",
)
# a test has several reports (setup, call, teardown, subtests) and counts by the last of these that occurs
SEVERITY = ("passed", "skipped", "failed")


class Comparison:
    """Collects the reports of all workers and judges them at the end of the session."""

    def __init__(self):
        self.outcomes = defaultdict(lambda: defaultdict(dict))  # module -> class -> test -> outcome

    def pytest_runtest_logreport(self, report):
        module, class_name, test = report.nodeid.split("::")[:3]
        tests = self.outcomes[module][class_name]
        tests[test] = max(tests.get(test, "passed"), report.outcome, key=SEVERITY.index)

    def shortfalls(self):
        """Yields (class name, test, why) for each test in which a stack falls short of its control."""
        for module, classes in self.outcomes.items():
            controls = [name for name in classes if name.endswith("Control")]
            for name in sorted(classes.keys() - set(controls)):
                for test, outcome in sorted(classes[name].items()):
                    if outcome == "failed":
                        yield name, test, "failed"
                    elif outcome == "skipped":
                        for control in controls:
                            if classes[control].get(test) == "passed":
                                yield name, test, f"skipped, but {control} passes it"
                if not controls:
                    yield name, module, "has no native control to be compared with"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if any(self.shortfalls()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("transformers' own tests, by class")
        for classes in self.outcomes.values():
            for name, tests in sorted(classes.items()):
                counts = Counter(tests.values())
                terminalreporter.line(f"{name:32}" + "".join(f"{counts[o]:5} {o}" for o in SEVERITY))
        for name, test, why in self.shortfalls():
            terminalreporter.line(f"{name}::{test} {why}", red=True)


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: set by transformers' tests")
    if not hasattr(config, "workerinput"):  # under xdist, only the controller sees every report
        config.pluginmanager.register(Comparison())
