import pytest


@pytest.fixture(params=["pysim", "cxxrtl"])
def engine(request):
    """Name of a simulation engine; a test that takes it runs in both."""
    return request.param
