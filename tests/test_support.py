"""The node and the proxy that the other tests rely on do what their names say."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support import LIMIT_S
from tests.support.node import (
    ELASTICSEARCH,
    TESTED,
    Node,
    free_port,
    own_directory,
    remove_leftovers,
    unavailable_reason,
)
from tests.support.proxy import (
    Action,
    FaultProxy,
    Request,
    bulk,
    cut,
    hang,
    hold,
    hold_answer,
    refuse,
    reply,
    reset,
    rewrite,
    swallow,
)
from tests.support.tls import needs_openssl, self_signed

LINES = b'{"index":{"_index":"support","_id":"1"}}\n{"n":1}\n'


def connect(proxy: FaultProxy, timeout: float = LIMIT_S) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=timeout)


def send(connection: http.client.HTTPConnection, path: str = "/_bulk?refresh=true") -> tuple[int, bytes]:
    connection.request("POST", path, LINES, {"Content-Type": "application/json", "Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[http.client.HTTPConnection]:
    made = connect(proxy)
    yield made
    made.close()


SCRIPT = ELASTICSEARCH.script


@pytest.fixture
def own_node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node that a test may kill."""
    if TESTED.url:
        pytest.skip("a given node is not killed")
    if reason := unavailable_reason():
        if request.config.getoption("--require-elasticsearch"):
            pytest.fail(reason)
        pytest.skip(reason)
    made = Node.start()
    yield made
    made.stop()


# The node


@pytest.mark.slow
def test_killed_stopped_and_paused_node_comes_back_with_its_data(own_node: Node) -> None:
    own_node.request("PUT", "/support/_doc/1", {"n": 1})
    own_node.kill()
    with pytest.raises(ConnectionRefusedError):
        own_node.request("GET", "/")
    own_node.restart()
    assert own_node.get("support", "1") == {"n": 1}
    own_node.stop()
    own_node.restart()
    assert own_node.version("support", "1") == 1
    own_node.pause()
    with pytest.raises(TimeoutError):
        own_node.request("GET", "/", timeout=0.2)
    own_node.resume()
    assert own_node.get("support", "1") == {"n": 1}
    own_node.pause()
    before = time.monotonic()
    own_node.stop()
    assert time.monotonic() - before < LIMIT_S / 2  # for a process that does not hear the SIGTERM it waits longer


@pytest.mark.slow
@pytest.mark.usefixtures("own_node")  # it can be had here, and no other one is given
def test_killed_run_leaves_no_node_and_no_data_behind(tmp_path: Path) -> None:
    program = "from tests.support.node import Node; n = Node.start(); print(n.url, n.directory, flush=True); input()"
    run = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout
    assert run.stdin
    url, directory = run.stdout.readline().split()
    left = Node(url)
    assert left.request("GET", "/_cluster/health")[0] == 200
    run.kill()
    run.wait()
    run.stdout.close()
    run.stdin.close()
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            left.request("GET", "/_cluster/health", timeout=5)
        except (OSError, http.client.HTTPException):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the node outlives the run that started it")
    assert Path(directory).parent == tmp_path
    until_gone = time.monotonic() + LIMIT_S
    while Path(directory).exists() and time.monotonic() < until_gone:  # a node that ends still writes
        remove_leftovers(tmp_path)
        time.sleep(0.1)
    assert list(tmp_path.glob("outbox-node-*")) == []


def test_data_of_a_run_that_goes_on_is_no_leftover(tmp_path: Path) -> None:
    directory, lock = own_directory(tmp_path)
    remove_leftovers(tmp_path)
    assert directory.is_dir()
    lock.close()
    remove_leftovers(tmp_path)
    assert not directory.exists()


def test_ports_are_none_that_the_system_gives_to_others(node: Node, proxy: FaultProxy) -> None:
    if not TESTED.url:
        assert 1_024 <= (urlsplit(node.url).port or 0) < 32_768
    assert 1_024 <= (urlsplit(proxy.url).port or 0) < 32_768
    taken = free_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", taken))
        assert taken not in {free_port() for _ in range(100)}


def test_documents_of_several_shards_behind_an_alias_are_all_seen(clean_node: Node) -> None:
    for name in ("support-1", "support-2"):
        clean_node.request("PUT", f"/{name}", {"settings": {"number_of_shards": 3}, "aliases": {"support": {}}})
        lines = b"".join(b'{"index":{"_id":"%s-%d"}}\n{"n":%d}\n' % (name.encode(), n, n) for n in range(6_000))
        assert clean_node.request("POST", f"/{name}/_bulk", lines)[1]["errors"] is False
    documents = clean_node.documents("support")
    assert len(documents) == 12_000
    assert documents["support-2-5999"] == {"n": 5_999}
    clean_node.delete_index("support")
    assert clean_node.indexes() == []
    assert clean_node.documents("support") == {}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--port"], "--port needs a value"), (["--set", "x"], "setting=value"), (["--wrong"], "unknown argument")],
)
def test_wrong_argument_of_the_script_is_named(arguments: list[str], reason: str) -> None:
    ended = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert (ended.returncode, reason in ended.stderr) == (2, True)


def test_given_node_is_printed_and_none_started() -> None:
    given = {**os.environ, "ELASTICSEARCH_URL": "http://127.0.0.1:1"}
    ended = subprocess.run([SCRIPT], capture_output=True, text=True, check=True, env=given)
    assert ended.stdout == "http://127.0.0.1:1\n"
    assert ended.stderr


def test_machine_without_java_is_told_what_to_install(tmp_path: Path) -> None:
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    ended = subprocess.run(
        [SCRIPT, "--prepare"], capture_output=True, text=True, check=False, env={"PATH": str(tmp_path), "HOME": "/"}
    )
    assert ended.returncode == 2
    assert "openjdk-17-jdk-headless maven" in ended.stderr


def fake_java(directory: Path, version: str) -> dict[str, str]:
    (directory / "bin").mkdir()
    (directory / "bin" / "java").write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    (directory / "bin" / "java").chmod(0o755)
    for tool in ("bash", "dirname", "sed", "head"):
        (directory / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    return {"PATH": str(directory / "bin"), "JAVA_HOME": str(directory), "HOME": str(directory)}


def test_java_that_is_too_old_for_9_is_told_what_every_system_has(tmp_path: Path) -> None:
    ended = subprocess.run(
        [SCRIPT, "--prepare", "--version", "9.2.0"],
        capture_output=True,
        text=True,
        check=False,
        env=fake_java(tmp_path, "17.0.1"),
    )
    assert ended.returncode == 2
    assert "Java 17 is too old for Elasticsearch 9.2.0; " in ended.stderr
    assert "a JDK 21 or newer, and set JAVA_HOME" in ended.stderr
    assert "openjdk-21" not in ended.stderr


def test_container_ends_with_the_standard_input_too(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n'
        'if [ "$1" = run ]; then trap "exit 0" TERM; while [ ! -e ' + f"{tmp_path}/killed ]; do sleep 0.05; done; fi\n"
        f'[ "$1" != kill ] || touch {tmp_path}/killed\n'
    )
    docker.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.endswith("ELASTICSEARCH_URL")}
    run = subprocess.Popen(
        [SCRIPT, "--until-eof", "--port", "9999"],
        stdin=subprocess.PIPE,
        env=environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert run.stdin
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(1)
    run.stdin.close()
    try:
        assert run.wait(LIMIT_S) == 0
    finally:
        run.kill()
        run.wait()
    assert "kill outbox-relay-9999-" in (tmp_path / "calls").read_text()


def test_node_program_is_compiled_once_into_the_cache(node: Node) -> None:
    if node.command is None or "docker" in node.command:
        pytest.skip("no node of ours from its jars")
    assert "Node.java" not in node.command
    assert "classes-" in node.command


# The proxy


@pytest.mark.parametrize("fault", [None, swallow, hold_answer, cut(10)])
def test_node_that_speaks_no_http_is_a_closed_connection(
    fault: Action | None, capfd: pytest.CaptureFixture[str]
) -> None:
    class Garbage(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"220 mail.example ESMTP\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", free_port()), Garbage) as upstream:
        threading.Thread(target=upstream.serve_forever, args=(0.02,), daemon=True).start()
        proxy = FaultProxy(f"http://127.0.0.1:{upstream.server_address[1]}")
        if fault:
            proxy.on(bulk, fault)
            proxy.release()
        connection = connect(proxy)
        with pytest.raises(http.client.RemoteDisconnected):
            send(connection)
        connection.close()
        proxy.close()
        upstream.shutdown()
    assert capfd.readouterr().err == ""  # no traceback of the connection's thread


@pytest.mark.parametrize(
    ("fault", "error", "applied"),
    [
        pytest.param(refuse, http.client.RemoteDisconnected, False, id="refuse"),
        pytest.param(reset, ConnectionResetError, False, id="reset"),
        pytest.param(swallow, http.client.RemoteDisconnected, True, id="swallow"),
        pytest.param(cut(10), http.client.IncompleteRead, True, id="cut"),
    ],
)
def test_broken_answer_is_seen_as_such_and_applied_or_not(
    proxy: FaultProxy,
    client: http.client.HTTPConnection,
    node: Node,
    fault: Action,
    error: type[Exception],
    applied: bool,
) -> None:
    proxy.on(bulk, fault, times=1)
    with pytest.raises(error) as raised:
        send(client)
    assert raised.type is error  # RemoteDisconnected, a close, is a ConnectionResetError, too
    assert (node.get("support", "1") is not None) == applied
    client.close()
    assert send(client)[0] == 200  # once only


@pytest.mark.parametrize(("fault", "applied"), [(hang, False), (hold, False), (hold_answer, True)])
def test_client_waits_until_release_and_every_new_rule_holds_again(
    proxy: FaultProxy, node: Node, fault: Action, applied: bool
) -> None:
    for _ in range(2):
        node.delete_index("support")
        proxy.clear()
        proxy.on(bulk, fault, times=1)
        connection = connect(proxy)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(send, connection)
            proxy.wait_for(bulk)
            if fault is hold_answer:
                proxy.wait_held()
            with pytest.raises(TimeoutError):
                answer.result(0.2)
            assert (node.get("support", "1") is not None) == applied
            proxy.release()
            if fault is hang:
                with pytest.raises(http.client.RemoteDisconnected):
                    answer.result(LIMIT_S)
            else:
                assert answer.result(LIMIT_S)[0] == 200
                assert node.get("support", "1") == {"n": 1}
        connection.close()


def test_request_whose_client_is_killed_half_way_never_reaches_the_node(proxy: FaultProxy) -> None:
    address = urlsplit(proxy.url)
    with socket.create_connection((address.hostname or "", address.port or 0)) as killed:
        killed.sendall(b"POST /_bulk HTTP/1.1\r\nContent-Length: 1000\r\n\r\nhalf of it")
        killed.shutdown(socket.SHUT_WR)
        assert killed.recv(1) == b""
    assert proxy.requests == []


def test_closed_proxy_has_nothing_on_its_way_to_the_node(clean_node: Node) -> None:
    proxy = FaultProxy(clean_node.url)
    proxy.on(bulk, hold)
    connection = connect(proxy)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(send, connection)
        proxy.wait_for(bulk)
        proxy.close()
        assert clean_node.get("support", "1") == {"n": 1}  # it has arrived, and does not do so in the next test
    connection.close()


def test_reply_and_rewrite_keep_the_connection_and_its_lengths_right(
    proxy: FaultProxy, client: http.client.HTTPConnection, node: Node
) -> None:
    proxy.on(bulk, rewrite(lambda answer: {"items": len(answer["items"]), "more": "é" * 5_000}), times=1)
    status, body = send(client)
    assert (status, json.loads(body)["items"]) == (200, 1)
    socket_before = client.sock
    proxy.on(bulk, reply(503, b"{}"), times=1)
    assert send(client) == (503, b"{}")
    assert send(client, "/support/_doc/2?x=/_bulk")[0] == 400  # no bulk request, and two lines are no document
    assert client.sock is socket_before
    assert [request.is_bulk for request in proxy.requests] == [True, True, False]
    assert proxy.requests[0].body == LINES
    assert node.version("support", "1") == 1


def test_proxy_that_is_down_cuts_even_connections_just_accepted(proxy: FaultProxy) -> None:
    for _ in range(20):
        open_before = connect(proxy)
        open_before.connect()
        proxy.down()
        with pytest.raises(OSError):
            send(open_before)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy).connect()
        proxy.up()
        open_before.close()
    assert not [request for request in proxy.requests if bulk(request)]
    after = connect(proxy)
    assert send(after)[0] == 200
    after.close()


def test_slow_client_does_not_hold_up_the_others(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    def hanging(request: Request) -> bool:
        return request.path == "/hanging"

    proxy.on(hanging, hang)
    with ThreadPoolExecutor(1) as pool:
        other = connect(proxy)
        waiting = pool.submit(send, other, "/hanging")
        proxy.wait_for(hanging)
        assert send(client)[0] == 200
        proxy.release()
        assert isinstance(waiting.exception(LIMIT_S), http.client.RemoteDisconnected)
        other.close()


@needs_openssl
def test_tls_is_spoken_and_broken_like_plain_http(clean_node: Node, tmp_path: Path) -> None:
    server, certificate = self_signed(tmp_path)
    trusting = ssl.create_default_context(cafile=str(certificate))
    proxy = FaultProxy(clean_node.url, tls=server)
    address = urlsplit(proxy.url)
    assert address.scheme == "https"
    client = http.client.HTTPSConnection(address.netloc, timeout=LIMIT_S, context=trusting)
    try:
        assert send(client)[0] == 200
        proxy.on(bulk, reset, times=1)
        with pytest.raises(ConnectionResetError):
            send(client)
        client.close()
        assert send(client)[0] == 200
        proxy.down()
        with pytest.raises(OSError):
            send(client)
        stranger = http.client.HTTPSConnection(address.netloc, timeout=LIMIT_S, context=ssl.create_default_context())
        proxy.up()
        with pytest.raises(ssl.SSLCertVerificationError):
            send(stranger)
        stranger.close()
    finally:
        client.close()
        proxy.close()
