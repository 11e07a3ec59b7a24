"""The stacked launcher is a Hydra launcher: Hydra's own suites, inherited."""

import pytest
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite
from hydra.version import VersionBase


@pytest.fixture(autouse=True)
def no_version_base():
    """The suites expect what Hydra does where an application names no version: jobs in folders of their own."""
    state = Singleton.get_state()
    Singleton.set_state(
        {**state, "instances": {kind: one for kind, one in state["instances"].items() if kind is not VersionBase}}
    )
    yield
    Singleton.set_state(state)


def test_hydra_discovers_it():
    assert "StackedLauncher" in {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}


@pytest.mark.parametrize(("launcher_name", "overrides"), [("stacked", [])])
class TestStackedLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(("launcher_name", "overrides"), [("stacked", ["hydra.sweeper.max_batch_size=2"])])
class TestStackedLauncherInBatches(BatchedSweeperTestSuite):
    pass


# Commands, in which the launcher does what the suites above have it do in this process.
@pytest.mark.slow
@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=stacked"])])
class TestStackedLauncherIntegration(IntegrationTestSuite):
    pass
