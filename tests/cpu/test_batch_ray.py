"""batch-predict on a Ray cluster of three nodes, all of them on this machine."""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cpu.commands import PROGRAM, Done, call, complaint, environment, left_over, spawn
from tests.cpu.test_batch_predict import color_classifier, pictures, wait_for

PICTURES = 240
ADDRESS = "127.0.0.2"
"""Not 127.0.0.1, which Ray takes for the machine's own address, where nothing listens."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster()
    with contextlib.redirect_stdout(io.StringIO()):
        for _ in range(3):
            cluster.add_node(
                num_cpus=1, node_ip_address=ADDRESS, object_store_memory=100 << 20, include_dashboard=False
            )
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("work")
    color_classifier(work / "m.onnx")
    pictures(work / "in", PICTURES)
    (work / "in" / "0" / "damaged.jpg").write_bytes(b"no picture")
    return work


def arguments(work: Path, output: str, *more: str) -> list[str]:
    names = [str(work / "m.onnx"), "--images", str(work / "in"), "--output", str(work / output)]
    return ["batch-predict", *names, "--part", "8", *more]


@pytest.fixture(scope="module")
def expected(work: Path) -> pa.Table:
    done = spawn(*arguments(work, "local.parquet"))
    assert done.code == 0, done
    return pq.read_table(work / "local.parquet")


def test_a_node_that_dies_in_the_middle_costs_no_row(cluster: Any, work: Path, expected: pa.Table) -> None:
    command = [*PROGRAM, *arguments(work, "ray.parquet", "--ray", cluster.address, "--json")]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    wait_for(work / "ray.parquet" / "part-000005.parquet")
    victim = max(cluster.worker_nodes, key=lambda node: node.node_id)
    cluster.remove_node(victim, allow_graceful=False)
    there = [name for name in left_over(work / "ray.parquet") if name.startswith("part")]
    out, err = job.communicate(timeout=120)
    done = Done(job.returncode, out, err)
    assert done.code == 0, done
    assert len(there) < 31, "it was over before the node died"
    assert done.document["images"] == done.document["made"] == PICTURES + 1
    assert (done.document["failed"], done.document["workers"], done.document["parts"]) == (1, 3, 31)
    assert pq.read_table(work / "ray.parquet").equals(expected)
    assert all(line.endswith(" ...") or line.startswith("warning: ") for line in err.splitlines()), err
    again = spawn(*arguments(work, "ray.parquet"))
    assert "finished already" in again.out


def test_a_job_begun_here_goes_on_there_and_a_failure_is_one_line(cluster: Any, work: Path, expected: pa.Table) -> None:
    names = work / "names.txt"
    names.write_text("one\ntwo")
    output = work / "both.parquet"
    failed = spawn(*arguments(work, output.name, "--ray", cluster.address, "--labels", str(names), "--workers", "1"))
    complaint(failed, "--labels has 2 labels; expected 10", "the same command goes on")
    assert spawn(*arguments(work, output.name)).code == 0
    for k in (1, 7, 30):
        (output / f"part-{k:06d}.parquet").unlink()
    done = spawn(*arguments(work, output.name, "--ray", cluster.address, "--json"))
    assert done.document["made"] == 17
    assert pq.read_table(output).equals(expected)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_without_a_cluster_is_one_line(work: Path, scheme: str) -> None:
    complaint(call(*arguments(work, "o", "--ray", f"{scheme}127.0.0.1:1")), "nothing answers at", "HOST:PORT")
    complaint(call(*arguments(work, "o", "--ray", f"{scheme}nonsense")), "nonsense", "HOST:PORT")
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=_say_no, args=[other], daemon=True).start()
        address = f"{scheme}127.0.0.1:{other.getsockname()[1]}"
        complaint(call(*arguments(work, "o", "--ray", address)), f"what listens at {address} is no Ray cluster")


def _say_no(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_a_machine_that_sees_other_files_is_named(work: Path, tmp_path: Path) -> None:
    from sepvit_deploy.batch_predict.classifying import Place
    from sepvit_deploy.batch_predict.cluster import _look

    class Same:
        def require_same(self) -> None: ...

    place = Place(work / "in", work / "l", tmp_path, {})
    marker = tmp_path / ".marker-1.tmp"
    assert "No such file" in str(_look(marker, b"x", place, Same()))
    marker.write_bytes(b"y")
    assert "is another folder there" in str(_look(marker, b"x", place, Same()))
    assert _look(marker, b"y", place, Same()) is None
    assert "in2 is not there" in str(_look(marker, b"y", Place(work / "in2", work / "l", tmp_path, {}), Same()))
    assert left_over(tmp_path) == [".marker-1.tmp"]
