"""Machines that train together: TF_CONFIG read with care, all there and alike before work starts."""

import json
import socket
import threading

import pytest

from tlkeras.errors import RunError, TlkerasError
from tlkeras.finetuning.rendezvous import Cluster, read_cluster, rendezvous

FACTS = {"recipe": "abc", "keras": "3.15.1"}


def configure(workers=("a:1", "b:2"), kind="worker", index=0, **more):
    return {
        "TF_CONFIG": json.dumps({"cluster": {"worker": list(workers), **more}, "task": {"type": kind, "index": index}})
    }


def test_a_cluster_is_what_tf_config_says():
    assert read_cluster(configure(index=1)) == Cluster(("a:1", "b:2"), 1)
    assert len(read_cluster(configure(["[::1]:80"]))) == 1


@pytest.mark.parametrize(
    "environment, sentence",
    [
        ({}, "needs TF_CONFIG in the environment(.|\n)*An example"),
        ({"TF_CONFIG": "{"}, "is not JSON"),
        ({"TF_CONFIG": "{}"}, "with workers and a task. Received: KeyError: 'cluster'"),
        (configure(["a", "b:0", "c:99999"]), "'a' is no host:port.\n.*'b:0' is no.*\n.*'c:99999' is no"),
        (configure(["a:1", "a:1"]), "'a:1' is listed twice"),
        (configure(ps=["p:1"]), "only workers are supported.*Received: ps"),
        (configure(kind="chief"), "task.type is not 'worker'. Received: 'chief'"),
        (configure(index=2), "task.index is no whole number from 0 to 1. Received: 2"),
        (configure(index="1"), "task.index is no whole number from 0 to 1. Received: '1'"),
        (configure(["a"], index=True), "'a' is no host:port.\n.*Received: True"),
    ],
)
def test_a_wrong_tf_config_is_told_with_all_its_problems(environment, sentence):
    with pytest.raises(TlkerasError, match=sentence):
        read_cluster(environment)


def find_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    finally:
        for one in sockets:
            one.close()


def meet_all(facts, timeout=5.0, absent=()):
    """Let one thread per worker meet the others; return what each raised."""
    addresses = tuple(find_ports(len(facts)))
    raised = [None] * len(facts)

    def come(index):
        try:
            rendezvous(Cluster(addresses, index), facts[index], timeout)
        except RunError as error:
            raised[index] = str(error)

    threads = [threading.Thread(target=come, args=(i,)) for i in range(len(facts)) if i not in absent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised, addresses


def test_all_that_are_alike_go_on():
    assert meet_all([FACTS] * 3)[0] == [None, None, None]


def test_one_that_differs_stops_all_with_what_differs():
    raised, _ = meet_all([FACTS, FACTS, {**FACTS, "recipe": "xyz"}])
    assert all("worker 2: recipe is 'xyz', of the chief it is 'abc'" in error for error in raised)


def test_one_that_does_not_come_is_named_to_all():
    raised, addresses = meet_all([FACTS] * 3, timeout=1.0, absent=(1,))
    assert all(f"{addresses[1]} did not connect" in raised[index] for index in (0, 2))


def test_a_chief_that_is_not_there_is_told():
    raised, addresses = meet_all([FACTS] * 2, timeout=0.5, absent=(0,))
    assert f"cannot reach the chief. Received: {addresses[0]}" in raised[1]


def test_a_chief_needs_its_port():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match="port is not free"):
            rendezvous(Cluster((f"127.0.0.1:{port}", "b:1"), 0), FACTS, 1.0)


def test_strangers_on_the_port_do_no_harm():
    addresses = tuple(find_ports(2))
    chief = threading.Thread(target=rendezvous, args=(Cluster(addresses, 0), FACTS, 10.0))
    chief.start()
    host, port = addresses[0].split(":")
    while True:
        try:
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            break
        except OSError:
            continue
    rendezvous(Cluster(addresses, 1), FACTS, 10.0)
    chief.join()
