"""Unix sockets of every kind, each with data under way while nobody reads."""

import os
import socket

from harness import expect, later, run

HERE = '/agent/data'
STREAM, DATAGRAM, PACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
checks = 0


def under_way(number):
    return b'%d under way' % number


def echo(listener):
    """Serves each connection in a thread of its own, and gives back what comes."""

    def serve(connection):
        while data := connection.recv(100):
            connection.sendall(data)

    while True:
        connection = listener.accept()[0]
        later(lambda connection=connection: serve(connection))


def listening(address, kind=STREAM):
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(address)
    listener.listen()
    return listener


def connected(address, kind=STREAM):
    client = socket.socket(socket.AF_UNIX, kind)
    client.connect(address)
    return client


pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in (STREAM, DATAGRAM, PACKET)]
addresses = [(f'{HERE}/stream.sock', STREAM), ('\0abstract', STREAM), (f'{HERE}/packet.sock', PACKET)]
for address, kind in addresses:
    later(lambda listener=listening(address, kind): echo(listener))
clients = [connected(address, kind) for address, kind in addresses]
# The path of a listening socket whose file is gone, as a restarted server leaves it.
unlinked = listening(f'{HERE}/unlinked.sock')
unlinked_client = connected(f'{HERE}/unlinked.sock')
unlinked_server = unlinked.accept()[0]
os.unlink(f'{HERE}/unlinked.sock')
receiver = socket.socket(socket.AF_UNIX, DATAGRAM)
receiver.bind(f'{HERE}/datagram.sock')
sender = socket.socket(socket.AF_UNIX, DATAGRAM)
sender.connect(f'{HERE}/datagram.sock')


def put_under_way(number):
    for one, other in [*pairs, (unlinked_client, unlinked_server)]:
        one.send(under_way(number))
        other.send(under_way(number))
    sender.send(under_way(number))


def check():
    global checks
    for one, other in [*pairs, (unlinked_client, unlinked_server)]:
        expect('what was under way', [one.recv(100), other.recv(100)], [under_way(checks)] * 2)
    expect('a datagram', receiver.recv(100), under_way(checks))
    checks += 1
    for (address, kind), client in zip(addresses, clients):
        client.send(under_way(checks))
        expect(f'echo of {address}', client.recv(100), under_way(checks))
        with connected(address, kind) as new:
            new.send(under_way(checks))
            expect(f'echo to a new client of {address}', new.recv(100), under_way(checks))
    put_under_way(checks)
    return {'checks': checks}


put_under_way(0)
run(check)
