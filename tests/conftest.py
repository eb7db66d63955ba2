"""Options and fixtures of all tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--simulate-seeds",
        type=int,
        default=400,
        metavar="N",
        help="schedules that the simulator draws and runs (default: %(default)s)",
    )
