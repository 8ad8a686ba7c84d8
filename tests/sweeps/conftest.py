"""What several tests of reports read and none changes."""

import pytest

from sweeps.ledger.results import SweepResults
from tests.sweeps.report_data import results


@pytest.fixture(scope="session")
def finished() -> SweepResults:
    return results()
