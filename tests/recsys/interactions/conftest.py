"""Generated inputs: some hundreds in every run, with `-m thorough` at least ten thousand of every loader."""

import pytest
from hypothesis import HealthCheck, given, settings


def pytest_collection_modifyitems(config, items):
    if "thorough" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(params=["few", pytest.param("thorough", marks=pytest.mark.thorough)])
def holds(request):
    """
    Asks a property of generated values: the same few every time, or many: 1000, or as many as the class of the test says
    in `inputs`, so that the tests of every loader have ten thousand together.
    """
    few = request.param == "few"

    def ask(check, *strategies, **named):
        checks = settings(
            max_examples=40 if few else getattr(request.cls, "inputs", 1000),
            deadline=None,
            derandomize=few,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        checks(given(*strategies, **named)(check))()

    return ask
