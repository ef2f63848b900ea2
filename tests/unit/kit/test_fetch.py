"""Calls to customers' addresses, against a real server on this machine: what is connected to is what was checked."""

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kit.errors import InvalidInput, TooLarge, Unavailable
from kit.fetch import FetchPolicy, Resolve, fetch

HERE = FetchPolicy(bytes_max=1000, seconds_max=5, schemes=("https", "http"), allowed=("127.0.0.1/32",))


class Server:
    """Answers every request with `answer`, and keeps what came."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = [line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("content-length")]
        self.bodies.append(await reader.readexactly(int(length[0])) if length else b"")
        self.heads.append(head.lower())
        writer.write(self.answer.replace(b"PORT", str(self.port).encode()))
        await writer.drain()
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one = Server()
    listening = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield one


def names(*addresses: str, asked: list[str] | None = None) -> Resolve:
    """A name server that knows one answer for every name."""

    async def resolver(host: str, port: int) -> list[str]:
        if asked is not None:
            asked.append(host)
        return list(addresses)

    return resolver


async def test_it_connects_to_the_checked_address_under_the_asked_name(server: Server) -> None:
    asked: list[str] = []
    url = f"http://hook.test:{server.port}/in?x=1"
    answer = await fetch(
        url,
        HERE,
        method="POST",
        content=b"{}",
        headers={"webhook-id": "dlv_1"},
        resolver=names("127.0.0.1", asked=asked),
    )
    assert (answer.status, answer.ok, answer.body, answer.url) == (200, True, b"hi", url)
    assert asked == ["hook.test"]
    assert server.heads[0].startswith("post /in?x=1 http/1.1\r\n") and server.bodies == [b"{}"]
    assert f"host: hook.test:{server.port}\r\n" in server.heads[0]
    assert "webhook-id: dlv_1" in server.heads[0]


@pytest.mark.parametrize("addresses", [("10.0.0.1",), ("93.184.216.34", "10.0.0.1"), ("127.0.0.2",), ("::1",)])
async def test_a_name_that_stands_for_something_private_is_not_called(
    server: Server, addresses: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await fetch(f"http://hook.test:{server.port}/", HERE, resolver=names(*addresses))
    assert caught.value.code == "address_private" and server.heads == []


async def test_numbers_in_odd_writing_are_looked_up_and_then_refused(server: Server) -> None:
    outside = FetchPolicy(bytes_max=10, schemes=("http",))
    for host in ("2130706433", "0x7f.1", "127.1", "localhost"):
        with pytest.raises(InvalidInput) as caught:
            await fetch(f"http://{host}:{server.port}/", outside)
        assert caught.value.code == "address_private"
    assert server.heads == []


async def test_a_redirect_is_checked_like_the_first_address(server: Server) -> None:
    follows = FetchPolicy(1000, 5, redirects_max=2, schemes=("http",), allowed=HERE.allowed)
    server.answer = b"HTTP/1.1 302 x\r\nlocation: http://inside.test:PORT/\r\ncontent-length: 0\r\n\r\n"

    async def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.2" if host == "inside.test" else "127.0.0.1"]

    with pytest.raises(InvalidInput) as caught:
        await fetch(f"http://hook.test:{server.port}/", follows, resolver=resolver)
    assert caught.value.code == "address_private" and len(server.heads) == 1
    server.answer = b"HTTP/1.1 302 x\r\nlocation: file:///etc/passwd\r\ncontent-length: 0\r\n\r\n"
    with pytest.raises(InvalidInput) as caught:
        await fetch(f"http://hook.test:{server.port}/", follows, resolver=resolver)
    assert caught.value.code == "url_invalid"


async def test_redirects_end_and_another_host_learns_no_headers(server: Server) -> None:
    follows = FetchPolicy(1000, 5, redirects_max=2, schemes=("http",), allowed=HERE.allowed)
    server.answer = b"HTTP/1.1 307 x\r\nlocation: http://b.test:PORT/\r\ncontent-length: 0\r\n\r\n"
    with pytest.raises(InvalidInput) as caught:
        await fetch(
            f"http://a.test:{server.port}/", follows, headers={"authorization": "s"}, resolver=names("127.0.0.1")
        )
    assert caught.value.code == "too_many_redirects"
    assert ["authorization" in head for head in server.heads] == [True, False, False]


async def test_without_leave_a_redirect_is_an_answer_like_any_other(server: Server) -> None:
    server.answer = b"HTTP/1.1 302 x\r\nlocation: http://b.test/\r\ncontent-length: 0\r\n\r\n"
    answer = await fetch(f"http://a.test:{server.port}/", HERE, resolver=names("127.0.0.1"))
    assert (answer.status, answer.ok, len(server.heads)) == (302, False, 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"x" * 1001,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n",
    ],
)
async def test_too_much_is_refused_whether_announced_or_not(server: Server, answer: bytes) -> None:
    server.answer = answer
    with pytest.raises(TooLarge):
        await fetch(f"http://hook.test:{server.port}/", HERE, resolver=names("127.0.0.1"))


async def test_a_body_of_the_very_limit_is_taken_and_a_compressed_one_is_not(server: Server) -> None:
    server.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b"x" * 1000
    assert len((await fetch(f"http://a.test:{server.port}/", HERE, resolver=names("127.0.0.1"))).body) == 1000
    server.answer = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nhi"
    with pytest.raises(InvalidInput) as caught:
        await fetch(f"http://a.test:{server.port}/", HERE, resolver=names("127.0.0.1"))
    assert caught.value.code == "encoding_unwanted"


async def test_silence_ends_in_time_and_a_closed_port_says_so(server: Server) -> None:
    server.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n"
    quick = FetchPolicy(10, 0.1, schemes=("http",), allowed=HERE.allowed)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    with pytest.raises(Unavailable) as caught:
        await fetch(f"http://a.test:{port}/", quick, resolver=names("127.0.0.1"))
    assert caught.value.code == "fetch_timeout"
    listening.close()
    await listening.wait_closed()
    with pytest.raises(Unavailable) as caught:
        await fetch(f"http://a.test:{port}/", HERE, resolver=names("127.0.0.1"))
    assert caught.value.code == "fetch_failed"


async def test_tls_proves_the_asked_name_and_not_the_address(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = _self_signed("hook.test", tmp_path)
    monkeypatch.setattr("kit.fetch._tls", lambda: ssl.create_default_context(cafile=chain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    async with listening:
        answer = await fetch(f"https://hook.test:{port}/", HERE, resolver=names("127.0.0.1"))
        assert answer.body == b"hi"
        with pytest.raises(Unavailable, match="certificate"):
            await fetch(f"https://other.test:{port}/", HERE, resolver=names("127.0.0.1"))


def _self_signed(host: str, folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "chain.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path
