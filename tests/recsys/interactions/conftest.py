"""Generated inputs: some hundreds in every run, `-m thorough` for ten thousand."""

import pytest
from hypothesis import HealthCheck, given, settings


def pytest_collection_modifyitems(config, items):
    if "thorough" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(params=[40, pytest.param(1000, marks=pytest.mark.thorough)])
def holds(request):
    """Asks a property of generated values: the same few every time, or many."""

    def ask(check, *strategies, **named):
        checks = settings(
            max_examples=request.param,
            deadline=None,
            derandomize=request.param < 1000,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        checks(given(*strategies, **named)(check))()

    return ask
