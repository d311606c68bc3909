"""Studies on a Ray cluster of two nodes: two raylets on this machine, which share its files as a real one's would."""

import json
import time

import pytest

from metamixer.studies import Study, conduct
from tests.studies.test_run_study import CONTENT, FILES, command, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def cluster():
    """One processor on each of two nodes, so that two runs cannot share one."""
    pytest.importorskip("ray", reason="ray is an extra: pip install 'metamixer[ray]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def test_a_node_that_dies_takes_no_run_with_it(cluster, tmp_path):
    """Both nodes work; one is killed in the middle, its run continues on the other, and the table is the same."""
    content = json.loads(json.dumps(CONTENT))
    content["recipe"]["train"]["epochs"] = 60
    wanted = tmp_path / "wanted"
    conduct(Study.of(content), wanted, threads=1)
    file, folder = write(tmp_path / "study.json", content), tmp_path / "study"
    process = command(file, folder, "--engine", "ray", "--address", cluster.address)
    try:
        runs = [folder / "runs" / cell.name for cell in Study.of(content).cells]

        def rows():
            paths = [run / "metrics.jsonl" for run in runs]
            return [path.read_text().count("\n") if path.exists() else 0 for path in paths]

        end = time.monotonic() + 240
        while min(rows()) < 2:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < end, "the two nodes do not work side by side"
            time.sleep(0.05)
        assert max(rows()) < 60
        (other,) = cluster.worker_nodes
        cluster.remove_node(other, allow_graceful=False)
        printed, _ = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert process.returncode == 0, printed
    for name in FILES:
        assert (folder / name).read_text() == (wanted / name).read_text(), name
