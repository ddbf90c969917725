import pytest

from dashboard_frames import make_scene


@pytest.fixture
def scene():
    return make_scene()
